"""The peers: Opacus in each of its modes, whole-model `torch.func`, and the ordinary step under `torch.compile`.

Opacus is imported on use: the other contestants need nothing but torch.
"""

from __future__ import annotations

import os
import shutil
import warnings

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from benchmarks.runner import MAX_GRAD_NORM, Runner, runner_of, sgd, trainable, whole_batch_loader
from benchmarks.workloads import Batch, Workload


def quiet_remarks() -> None:
    """Hide torch's remarks on peers in this process.

    Opacus hooks the first layer, whose input requires no gradient, and asks for autocast in float32; fastDP has the
    older kind of backward hooks; vmap has no batched rule for the fused attention of a CPU.
    """
    for message in (
        "Full backward hook is firing",
        "Using a non-full backward hook",
        "In CPU autocast",
        "There is a performance drop",
    ):
        warnings.filterwarnings("ignore", message=message)


def opacus_hooks(workload: Workload, noise_multiplier: float) -> Runner:
    """Opacus' default: hooks on modules form all per-example gradients with a rule for each kind of layer."""
    from opacus import GradSampleModule

    model = workload.model()
    return _opacus(workload, model, GradSampleModule(model), noise_multiplier)


def opacus_functorch(workload: Workload, noise_multiplier: float) -> Runner:
    """Opacus' hooks with `torch.func` in place of its own rules."""
    from opacus import GradSampleModule

    model = workload.model()
    return _opacus(workload, model, GradSampleModule(model, force_functorch=True), noise_multiplier)


def opacus_ew(workload: Workload, noise_multiplier: float) -> Runner:
    """Opacus on torch's expanded weights."""
    from opacus.grad_sample import GradSampleModuleExpandedWeights

    model = workload.model()
    return _opacus(workload, model, GradSampleModuleExpandedWeights(model), noise_multiplier)


def _opacus(workload: Workload, inner: nn.Module, model: nn.Module, noise_multiplier: float) -> Runner:
    from opacus.optimizers import DPOptimizer

    optimizer = DPOptimizer(
        sgd(inner),
        noise_multiplier=noise_multiplier,
        max_grad_norm=MAX_GRAD_NORM,
        expected_batch_size=workload.batch_size,
    )
    criterion = workload.criterion()

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        criterion(model(batch[0]), batch[1]).backward()
        optimizer.step()

    return runner_of(workload, inner, step)


def opacus_ghost(workload: Workload, noise_multiplier: float) -> Runner:
    """Opacus' ghost clipping: norms from activations, then a second backward; its engine wraps the loss."""
    from opacus import PrivacyEngine

    inner = workload.model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the noise's generator, which is the same as in the other modes
        model, optimizer, criterion, _ = PrivacyEngine().make_private(
            module=inner,
            optimizer=sgd(inner),
            criterion=workload.criterion(),
            data_loader=whole_batch_loader(workload),
            noise_multiplier=noise_multiplier,
            max_grad_norm=MAX_GRAD_NORM,
            poisson_sampling=False,
            grad_sample_mode="ghost",
        )

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        criterion(model(batch[0]), batch[1]).backward()
        optimizer.step()

    return runner_of(workload, inner, step)


def torch_func(workload: Workload, noise_multiplier: float) -> Runner:
    """`vmap(grad)` of the whole model, clipping by a matrix-vector product, noise from the global generator."""
    model = workload.model()
    optimizer, criterion = sgd(model), workload.criterion()
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    weights = trainable(model)
    frozen = {name: value.detach() for name, value in model.named_parameters() if not value.requires_grad}

    def loss(values: dict[str, Tensor], record: Tensor, target: Tensor) -> Tensor:
        output = functional_call(model, {**frozen, **values}, (record.unsqueeze(0),))
        return criterion(output, target.unsqueeze(0))  # type: ignore[no-any-return]

    per_example = vmap(grad(loss), in_dims=(None, 0, 0))

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        gradients = per_example({name: w.detach() for name, w in zip(names, weights, strict=True)}, *batch)
        flat = [gradients[name].flatten(1) for name in names]
        norms_B = torch.stack([part_Bn.norm(dim=1) for part_Bn in flat], 1).norm(dim=1)
        factors_B = (MAX_GRAD_NORM / norms_B).clamp(max=1.0)
        for parameter, part_Bn in zip(weights, flat, strict=True):
            total = factors_B @ part_Bn
            noise = torch.empty_like(total).normal_(0.0, noise_multiplier * MAX_GRAD_NORM)
            parameter.grad = total.add_(noise).div_(workload.batch_size).view_as(parameter)
        optimizer.step()

    return runner_of(workload, model, step)


def compiled(workload: Workload, noise_multiplier: float) -> Runner:
    """The ordinary step, its forward, loss and backward compiled for the fixed shape of the batch."""
    model = workload.model()
    optimizer, criterion = sgd(model), workload.criterion()

    def loss(records: Tensor, targets: Tensor) -> Tensor:
        return criterion(model(records), targets)  # type: ignore[no-any-return]

    compiled_loss = torch.compile(loss, dynamic=False)

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        compiled_loss(*batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return runner_of(workload, model, step)


def no_compiler() -> str | None:
    """Return why `torch.compile` cannot work here, or None: on a CPU it needs a C++ compiler."""
    compilers = [os.environ.get("CXX"), "g++", "clang++"]
    if any(name is not None and shutil.which(name) for name in compilers):
        return None
    return "torch.compile needs a C++ compiler (g++ or clang++), and none is installed"
