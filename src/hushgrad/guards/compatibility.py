"""What is refused when a model and an optimizer are made private, before any data is read: one list of checks.

Each check yields errors as values. Set-up raises those of the first kind joined to one, the doctor shows all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.optim import LBFGS, Optimizer, SparseAdam

from hushgrad.capture.operators.lookup_options import OF_GRADIENTS, TABLES, option_error, refused_options
from hushgrad.errors import (
    CrossSampleLeakError,
    HushgradError,
    InvalidArgumentError,
    ParameterMismatchError,
    PrivateBufferError,
    ProtocolError,
    UnsupportedModelError,
    UnsupportedOptimizerError,
)
from hushgrad.guards.in_use import is_in_use
from hushgrad.guards.sparse_tables import sparse_table_problems, updates_tables_alone
from hushgrad.joined_optimizer import parts_of, with_parts
from hushgrad.parallel.layout import layout_problems
from hushgrad.printable import full_name
from hushgrad.sparse_rows.rule import SparseRows
from hushgrad.torch_internals import BatchNorm, InstanceNorm, has_gradient_hooks, takes_step_hooks

TRAINABLE_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

_NORMS = (BatchNorm, InstanceNorm)

READY = "hushgrad.make_private_ready(model)"

WHOLE = "the model itself"
"""What a message calls the module whose dotted name is empty."""


def require_trainable_privately(
    model: nn.Module, optimizer: Optimizer, sparse_rows: SparseRows | None = None
) -> dict[str, nn.Parameter]:
    """Return the parameters to train, by name and each once, or refuse the model or the optimizer.

    Raises:
        InvalidArgumentError: not a module, or not an optimizer.
        ProtocolError: the model or the optimizer belongs to an open session.
        UnsupportedModelError, CrossSampleLeakError, PrivateBufferError, SparseGradientError: what the model is.
        ParameterMismatchError, UnsupportedOptimizerError: what the optimizer is.
    """
    require_module(model)
    require_optimizer(optimizer)
    problems = list(setup_problems(model, optimizer, sparse_rows))
    if problems:
        raise join_problems(problems)
    return _trainable(model)


def require_module(model: nn.Module, argument: str = "module") -> None:
    """Refuse, as `InvalidArgumentError`, what is not a module; as `UnsupportedModelError` a stage of a pipeline."""
    if type(model).__module__.startswith("torch.distributed.pipelining"):
        raise UnsupportedModelError(
            "a stage of a pipeline sees a part of each example's gradient, and a part of the batch at a time",
            where=argument,
            cure="Shard the whole model by torch.distributed.fsdp.fully_shard instead",
        )
    if not isinstance(model, nn.Module):
        raise InvalidArgumentError(
            f"must be a torch.nn.Module, got {type(model).__name__}", where=argument, cure="Pass the model itself"
        )


def require_optimizer(optimizer: Optimizer) -> None:
    """Refuse, as `InvalidArgumentError`, what is not an optimizer."""
    if not isinstance(optimizer, Optimizer):
        raise InvalidArgumentError(
            f"must be a torch.optim.Optimizer, got {type(optimizer).__name__}",
            where="optimizer",
            cure="Pass the optimizer itself, such as torch.optim.SGD(model.parameters(), lr=0.1)",
        )


def require_no_session(model: nn.Module, optimizer: Optimizer | None = None) -> None:
    """Refuse, as `ProtocolError`, a model or an optimizer that belongs to an open session."""
    for problem in _session_problems(model, optimizer):
        raise problem


def setup_problems(
    model: nn.Module, optimizer: Optimizer | None = None, sparse_rows: SparseRows | None = None
) -> Iterator[HushgradError]:
    """Yield everything that set-up refuses, each as an error whose `where` is a dotted name if it is one part.

    Nothing is run or changed. Without an optimizer the model alone is looked at.
    """
    yield from _session_problems(model, optimizer)
    yield from layout_problems(model)
    yield from _scripted_problems(model)
    yield from _norm_problems(model)
    yield from _table_problems(model)
    if not model.training:
        yield UnsupportedModelError(
            "the model is in eval() mode", cure="Call model.train() before making the model private"
        )
    yield from _parameter_problems(model)
    if optimizer is not None:
        yield from _optimizer_problems(model, optimizer, sparse_rows)
    if sparse_rows is not None:
        yield from sparse_table_problems(model, sparse_rows, optimizer)


def join_problems(problems: Sequence[HushgradError]) -> HushgradError:
    """Return one error, of the first one's kind, that names every place of that kind with what is wrong there."""
    kind = type(problems[0])
    places: dict[tuple[str, str], list[str]] = {}
    for problem in problems:
        if type(problem) is kind:
            places.setdefault((problem.what, problem.cure), []).append(problem.where)
    if len(places) == 1:
        [((what, cure), names)] = places.items()
        return kind(what, where=", ".join(names), cure=cure)
    each = [
        f"{', '.join(names)}: {what} ({cure})" if any(names) else f"{what} ({cure})"
        for (what, cure), names in places.items()
    ]
    return kind("; ".join(each), cure="Follow the advice in brackets after each")


def _session_problems(model: nn.Module, optimizer: Optimizer | None) -> Iterator[HushgradError]:
    if is_in_use([*model.modules(), *([] if optimizer is None else with_parts(optimizer))]):
        yield ProtocolError(
            "the model or the optimizer is private already",
            cure="Where a notebook cell ran twice, call hushgrad.session_of(model).close() (or give it the optimizer): "
            "the weights stay, and the same ledger goes on. Or build both anew",
        )


def _scripted_problems(model: nn.Module) -> Iterator[HushgradError]:
    for name, _ in scripted_parts(model):
        yield UnsupportedModelError(
            "a scripted or traced part (torch.jit) runs outside of Python, where the use of its trainable parameters "
            "cannot be seen",
            where=name or WHOLE,
            cure="Use the module that it was made from",
        )


def scripted_parts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the outermost parts that `torch.jit` made and that hold trainable parameters, with their names."""
    last = None
    for name, part in model.named_modules():
        inside = last is not None and (not last or name.startswith(f"{last}."))
        if inside or not isinstance(part, torch.jit.ScriptModule):
            continue
        last = name
        if any(parameter.requires_grad for parameter in part.parameters()):
            yield name, part


def require_separate_examples(model: nn.Module, modules: Sequence[nn.Module]) -> None:
    """Refuse normalization layers that mix examples, or that write statistics of them, in the mode they are in now.

    This runs in every step.

    Args:
        model: for the names in the message.
        modules: all modules of `model`.

    Raises:
        CrossSampleLeakError, PrivateBufferError: naming the layers.
    """
    if any(isinstance(part, _NORMS) and (mixes_examples(part) or tracks_statistics(part)) for part in modules):
        raise join_problems(list(_norm_problems(model)))


def mixes_examples(layer: nn.Module) -> bool:
    """Whether a layer normalises by statistics of the batch, in the mode it is in now."""
    return isinstance(layer, BatchNorm) and (layer.training or layer.running_mean is None)


def tracks_statistics(layer: nn.Module) -> bool:
    """Whether a layer that keeps examples apart writes statistics of them, in the mode it is in now."""
    return isinstance(layer, InstanceNorm) and layer.track_running_stats and layer.training


def _norm_problems(model: nn.Module) -> Iterator[HushgradError]:
    for name, part in model.named_modules():
        if mixes_examples(part):
            yield CrossSampleLeakError(
                f"{type(part).__name__} mixes the examples of a batch",
                where=name or WHOLE,
                cure=f"Use nn.GroupNorm instead ({READY} puts it in), or call eval() on these "
                "layers, and again after every model.train(), so that they use their frozen statistics",
            )
    for name, part in model.named_modules():
        if tracks_statistics(part):
            yield PrivateBufferError(
                f"{type(part).__name__} with track_running_stats=True writes statistics of the data into buffers "
                f"without noise",
                where=name or WHOLE,
                cure=f"Set track_running_stats=False, as {READY} does",
            )


def _table_problems(model: nn.Module) -> Iterator[HushgradError]:
    for name, part in model.named_modules():
        if isinstance(part, TABLES):
            is_trained = any(parameter.requires_grad for parameter in part.parameters())
            for option in refused_options(vars(part)):
                if is_trained or option not in OF_GRADIENTS:
                    yield option_error(option, name or WHOLE, helped_by=READY)


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _parameter_problems(model: nn.Module) -> Iterator[HushgradError]:
    trainable = _trainable(model)
    if not trainable:
        yield UnsupportedModelError(
            "no parameter requires gradients, so there is nothing to train",
            cure="Call requires_grad_(True) on what should be trained",
        )
    for name, parameter in trainable.items():
        for what, cure in _reasons_against(parameter):
            yield UnsupportedModelError(what, where=name, cure=cure)


def _reasons_against(parameter: nn.Parameter) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with a parameter, and the cure."""
    if isinstance(parameter, nn.UninitializedParameter):
        yield "is not initialised yet", "Run the lazy module once"
        return
    if parameter.is_meta:
        yield "is on the meta device, where it has no values", "Call model.to_empty(device=...) and initialise it"
        return
    if parameter.dtype not in TRAINABLE_DTYPES:
        yield f"has dtype {parameter.dtype}", "Use a real floating dtype of at least 16 bits"
    if parameter.layout != torch.strided:
        yield "is not a dense tensor", "Make it dense"
    if has_gradient_hooks(parameter):
        yield "has a gradient hook, which would see or change gradients", "Remove the hook"
    if parameter.grad is not None:
        yield "holds a gradient already", "Call optimizer.zero_grad()"


def is_unready(parameter: nn.Parameter) -> bool:
    """Whether no backward can be run with a parameter."""
    if isinstance(parameter, nn.UninitializedParameter) or parameter.is_meta:
        return True
    return parameter.requires_grad and (parameter.dtype not in TRAINABLE_DTYPES or parameter.layout != torch.strided)


def _optimizer_problems(
    model: nn.Module, optimizer: Optimizer, sparse_rows: SparseRows | None
) -> Iterator[HushgradError]:
    for part in parts_of(optimizer):
        yield from _problems_of_kind(part, takes_sparse=updates_tables_alone(part, sparse_rows, model))
    updated = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in _trainable(model).items():
        if id(parameter) not in updated:
            yield ParameterMismatchError(
                "trainable but not in the optimizer",
                where=name,
                cure="Give the optimizer all of model.parameters(), or freeze these with requires_grad_(False). For "
                "parts with settings of their own use one optimizer with a group for each, or for optimizers of their "
                "own hushgrad.JoinedOptimizer([first, second]): they are clipped and noised together, and charged once",
            )
    foreign = len(updated - {id(parameter) for parameter in model.parameters()})
    if foreign:
        yield ParameterMismatchError(
            f"the optimizer updates {foreign} tensors that are not parameters of the model, so nobody would clip them",
            cure="Make them parameters of the module, or give them an optimizer of their own",
        )


def _problems_of_kind(optimizer: Optimizer, *, takes_sparse: bool) -> Iterator[HushgradError]:
    if not takes_step_hooks(optimizer):
        yield UnsupportedOptimizerError(
            f"{full_name(type(optimizer))} wraps another optimizer and has no step hooks of torch's, by which noise is "
            f"added and charged",
            where="optimizer",
            cure="Pass the optimizer that it wraps. With Accelerate call make_private first, and then "
            "accelerator.prepare(model, optimizer)",
        )
    if callable(getattr(type(optimizer), "first_step", None)) and callable(
        getattr(type(optimizer), "second_step", None)
    ):
        yield UnsupportedOptimizerError(
            f"{type(optimizer).__name__} takes two steps for one update (first_step, second_step), as SAM does: the "
            f"first moves the weights along the gradient of these records, without noise, and the second one is a "
            f"further release of them",
            where="optimizer",
            cure="Use its base optimizer (SGD, Adam) itself",
        )
    if isinstance(optimizer, LBFGS):
        yield UnsupportedOptimizerError(
            "LBFGS evaluates its closure several times for one step, and each evaluation would be a release",
            cure="Use SGD or Adam",
        )
    if isinstance(optimizer, SparseAdam) and not takes_sparse:
        yield UnsupportedOptimizerError(
            "SparseAdam needs sparse gradients, which show the rows that were touched",
            cure="Use Adam; or choose rows privately (SparseRows), with SparseAdam for these tables alone",
        )
