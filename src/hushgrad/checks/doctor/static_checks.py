"""What can be told of a model without running it; and a model put right for the length of one run.

The one place that decides what may be made private is `compatibility.py`. Here its refusals are told apart by module
and parameter, all of them; what it refuses for a reason that is not named here is reported in its own words.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Optimizer

from hushgrad.capture.scope import _Hook
from hushgrad.checks.doctor.findings import Finding
from hushgrad.errors import (
    CrossSampleLeakError,
    HushgradError,
    ParameterMismatchError,
    ProtocolError,
    SparseGradientError,
    UnsupportedModelError,
)
from hushgrad.guards.compatibility import (
    TRAINABLE_DTYPES,
    require_separate_examples,
    require_trainable_privately,
    scripted_parts,
)
from hushgrad.torch_internals import BatchNorm, InstanceNorm, buffers_of, forward_pre_hooks_of, has_gradient_hooks

READY = "hushgrad.make_private_ready(model)"

LOOKUPS = (nn.Embedding, nn.EmbeddingBag)

FLAGS: dict[str, tuple[Any, type[HushgradError], str]] = {
    "sparse": (False, SparseGradientError, "sparse=True would show which rows were touched"),
    "max_norm": (None, UnsupportedModelError, "max_norm rescales the rows that the batch looks up, without noise"),
    "scale_grad_by_freq": (
        False,
        CrossSampleLeakError,
        "scale_grad_by_freq divides a record's gradient by counts over the whole batch",
    ),
}
"""Flags of lookup tables that cannot be kept: the value to give them, what using them raises, and why."""


def require_ordinary(model: nn.Module) -> None:
    """Refuse a model that belongs to an open session.

    Raises:
        ProtocolError: with the cure.
    """
    hooks = (hook for module in model.modules() for hook in forward_pre_hooks_of(module).values())
    if any(isinstance(hook, _Hook) for hook in hooks):
        raise ProtocolError("the model was made private already. Call session.close() first")


def flagged(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Yield `(name, module, flag)` for the lookup tables with a flag that cannot be kept."""
    for name, module in model.named_modules():
        if isinstance(module, LOOKUPS):
            for flag, (wanted, _, _) in FLAGS.items():
                if vars(module)[flag] is not wanted and vars(module)[flag] != wanted:
                    yield name, module, flag


def problems_of(model: nn.Module, optimizer: Optimizer | None) -> list[Finding]:
    """Return everything that would be refused before any data is read."""
    found = [
        *_modules(model),
        *_parameters(model),
        *([] if optimizer is None else _optimizer(model, optimizer)),
    ]
    known = {finding.code for finding in found}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if optimizer is None and trained and not any(map(_is_unready, trained)):
        optimizer = SGD(trained, lr=1.0)
    if optimizer is not None:
        try:
            require_trainable_privately(model, optimizer)
        except HushgradError as error:
            if error.code not in known:
                found.append(finding_of(error))
    return found


def finding_of(error: HushgradError, where: str = "") -> Finding:
    """Return an error as a finding: its first sentence says what is wrong, the others what to do."""
    what, _, cure = str(error).removeprefix(error.code).strip().partition(". ")
    return Finding(error.code, where, what, cure)


def can_run(model: nn.Module) -> bool:
    """Whether a forward and backward can be tried on the model at all."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained or isinstance(model, wrappers) or any(scripted_parts(model)):
        return False
    return not any(map(_is_unready, model.parameters()))


def _is_unready(parameter: nn.Parameter) -> bool:
    if isinstance(parameter, nn.UninitializedParameter) or parameter.is_meta:
        return True
    return parameter.requires_grad and (parameter.dtype not in TRAINABLE_DTYPES or parameter.layout != torch.strided)


def _modules(model: nn.Module) -> Iterator[Finding]:
    modes = {module: module.training for module in model.modules()}
    if not model.training:
        yield Finding(
            UnsupportedModelError.code, "", "the model is in eval() mode", "Call model.train() before making it private"
        )
    try:
        if not model.training:
            model.train()  # as it will be
        for name, module in model.named_modules():
            if isinstance(module, (BatchNorm, InstanceNorm)):
                try:
                    require_separate_examples(module, [module])
                except HushgradError as error:
                    yield _of_norm(error, name, module)
    finally:
        _restore_modes(modes)
    for name, _, flag in flagged(model):
        _, error_type, what = FLAGS[flag]
        yield Finding(error_type.code, name, what, f"Set {flag}={FLAGS[flag][0]}: {READY} does")


def _of_norm(error: HushgradError, name: str, module: nn.Module) -> Finding:
    if isinstance(module, BatchNorm):
        return Finding(
            error.code,
            name,
            f"{type(module).__name__} mixes the examples of a batch",
            f"Use GroupNorm: {READY} does; or put it into eval(), and again after every model.train()",
        )
    return Finding(
        error.code,
        name,
        f"{type(module).__name__} with track_running_stats=True writes statistics of the data into buffers",
        f"Set track_running_stats=False: {READY} does",
    )


def _parameters(model: nn.Module) -> Iterator[Finding]:
    code = UnsupportedModelError.code
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not trainable:
        yield Finding(code, "", "no parameter requires gradients, so there is nothing to train", "Unfreeze some")
    for name, parameter in trainable.items():
        if isinstance(parameter, nn.UninitializedParameter):
            yield Finding(code, name, "not initialised yet", "Run the lazy module once")
        elif parameter.is_meta:
            yield Finding(code, name, "on the meta device", "Materialise it first")
        elif parameter.dtype not in TRAINABLE_DTYPES:
            yield Finding(code, name, f"is {parameter.dtype}", "Use a real floating dtype of at least 16 bits")
        elif parameter.layout != torch.strided:
            yield Finding(code, name, "not a dense tensor", "Make it dense")
        else:
            if has_gradient_hooks(parameter):
                yield Finding(code, name, "has a gradient hook, which would see or change gradients", "Remove the hook")
            if parameter.grad is not None:
                yield Finding(code, name, "holds a gradient already", "Call optimizer.zero_grad()")


def _optimizer(model: nn.Module, optimizer: Optimizer) -> Iterator[Finding]:
    code = ParameterMismatchError.code
    updated = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in updated:
            yield Finding(
                code,
                name,
                "trainable but not in the optimizer",
                "Give the optimizer all of model.parameters(), or freeze it with requires_grad_(False)",
            )
    foreign = len(updated - {id(parameter) for parameter in model.parameters()})
    if foreign:
        yield Finding(
            code,
            "",
            f"the optimizer updates {foreign} tensors that are not parameters of the model, so nobody would clip them",
            "Make them parameters of the module, or give them an optimizer of their own",
        )


# A model put right ---------------------------------------------------------------------------------------------------


@contextmanager
def put_right(model: nn.Module) -> Iterator[None]:
    """Take what `problems_of` found about the modules out of the way, so that a run can find what is left.

    Everything is as it was afterwards.
    """
    modes = {module: module.training for module in model.modules()}
    with ExitStack() as stack:
        stack.callback(_restore_modes, modes)
        if not model.training:
            model.train()
        for module in model.modules():
            if isinstance(module, BatchNorm):
                try:
                    require_separate_examples(module, [module])
                except CrossSampleLeakError:
                    stack.enter_context(_frozen(module))
            elif isinstance(module, InstanceNorm) and module.track_running_stats and module.training:
                stack.enter_context(_without_statistics(module))
        for _, module, flag in list(flagged(model)):
            stack.enter_context(_attribute(module, flag, FLAGS[flag][0]))
        yield


def _restore_modes(modes: dict[nn.Module, bool]) -> None:
    for module, training in modes.items():
        module.training = training


@contextmanager
def _frozen(module: BatchNorm) -> Iterator[None]:
    buffers = dict(buffers_of(module))
    if module.running_mean is None:
        reference = next(module.parameters(), torch.empty(0))
        for name, value in (("running_mean", 0.0), ("running_var", 1.0)):
            buffers_of(module)[name] = reference.new_full((module.num_features,), value)
    module.training = False
    try:
        yield
    finally:
        buffers_of(module).clear()
        buffers_of(module).update(buffers)


@contextmanager
def _without_statistics(module: InstanceNorm) -> Iterator[None]:
    buffers = dict(buffers_of(module))
    buffers_of(module).update(dict.fromkeys(buffers))
    module.track_running_stats = False
    try:
        yield
    finally:
        buffers_of(module).update(buffers)
        module.track_running_stats = True


@contextmanager
def _attribute(module: nn.Module, name: str, value: Any) -> Iterator[None]:
    own = vars(module)
    kept, own[name] = own[name], value
    try:
        yield
    finally:
        own[name] = kept
