"""What is refused when a model and an optimizer are made private, before any data is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.optim import LBFGS, Optimizer, SparseAdam

from hushgrad.errors import (
    CrossSampleLeakError,
    InvalidArgumentError,
    ParameterMismatchError,
    PrivateBufferError,
    SparseGradientError,
    UnsupportedModelError,
    UnsupportedOptimizerError,
)
from hushgrad.torch_internals import BatchNorm, InstanceNorm, has_gradient_hooks

TRAINABLE_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def require_trainable_privately(model: nn.Module, optimizer: Optimizer) -> dict[str, nn.Parameter]:
    """Return the parameters to train, by name and each once, or refuse the model or the optimizer.

    Raises:
        InvalidArgumentError: not a module, or not an optimizer.
        UnsupportedModelError, CrossSampleLeakError, PrivateBufferError, SparseGradientError: what the model is.
        ParameterMismatchError, UnsupportedOptimizerError: what the optimizer is.
    """
    if not isinstance(model, nn.Module):
        raise InvalidArgumentError(f"module must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(optimizer, Optimizer):
        raise InvalidArgumentError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    _require_one_process(model)
    _require_parts_in_python(model)
    require_separate_examples(model, list(model.modules()))
    _require_dense_gradients(model)
    trainable = _trainable_parameters(model)
    _require_supported_optimizer(optimizer)
    _require_same_parameters(model, optimizer, trainable)
    return trainable


def _require_one_process(model: nn.Module) -> None:
    wrappers = [part for part in model.modules() if _is_replica_or_shard(type(part))]
    if wrappers:
        kinds = ", ".join(dict.fromkeys(type(part).__name__ for part in wrappers))
        raise UnsupportedModelError(
            f"{kinds} is not supported: replicas would drift apart, and shards hold parts of what is clipped as one. "
            f"Train the plain module in one process"
        )
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        world = torch.distributed.get_world_size()
        if world > 1:
            raise UnsupportedModelError(f"a world size of {world} is not supported. Train in one process")


def _is_replica_or_shard(kind: type) -> bool:
    """Whether a class is one of torch's wrappers, or one that `fully_shard` made."""
    if issubclass(kind, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return True
    return any(base.__module__.startswith("torch.distributed.fsdp") for base in kind.__mro__)


def _require_parts_in_python(model: nn.Module) -> None:
    parts = dict(scripted_parts(model))
    if parts:
        names = ", ".join(f"{name!r}" if name else "the model itself" for name in parts)
        raise UnsupportedModelError(
            f"{names}: a scripted or traced part (torch.jit) runs outside of Python, so that the use of the trainable "
            f"parameters in it cannot be seen. Use the module that it was made from"
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

    Args:
        model: for the names in the message.
        modules: all modules of `model`.

    Raises:
        CrossSampleLeakError, PrivateBufferError: naming the layers.
    """
    mixing = [part for part in modules if isinstance(part, BatchNorm) and _uses_batch(part)]
    if mixing:
        raise CrossSampleLeakError(
            f"BatchNorm mixes the examples of a batch: {_names(model, mixing)}. Use nn.GroupNorm instead, or put these "
            f"layers into eval() so that their frozen statistics are used (and again after every model.train())"
        )
    tracking = [
        part for part in modules if isinstance(part, InstanceNorm) and part.track_running_stats and part.training
    ]
    if tracking:
        raise PrivateBufferError(
            f"InstanceNorm with track_running_stats=True writes statistics of the data into buffers without noise: "
            f"{_names(model, tracking)}. Set track_running_stats=False"
        )


def _require_dense_gradients(model: nn.Module) -> None:
    sparse = [part for part in model.modules() if isinstance(part, (nn.Embedding, nn.EmbeddingBag)) and part.sparse]
    if sparse:
        raise SparseGradientError(
            f"sparse=True would show which rows were touched: {_names(model, sparse)}. Set sparse=False"
        )


def _names(model: nn.Module, chosen: Sequence[nn.Module]) -> str:
    names = [name for name, part in model.named_modules() if any(part is other for other in chosen)]
    return ", ".join(repr(name) if name else "the model itself" for name in names)


def _uses_batch(layer: BatchNorm) -> bool:
    return layer.training or layer.running_mean is None


def _trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    if not model.training:
        raise UnsupportedModelError("the model is in eval() mode. Call model.train() before making it private")
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not trainable:
        raise UnsupportedModelError("no parameter requires gradients, so there is nothing to train")
    problems = []
    for name, parameter in trainable.items():
        if isinstance(parameter, nn.UninitializedParameter):
            problems.append(f"{name} is not initialised yet (run the lazy module once)")
        elif parameter.is_meta:
            problems.append(f"{name} is on the meta device (materialise it first)")
        elif parameter.dtype not in TRAINABLE_DTYPES:
            problems.append(f"{name} is {parameter.dtype} (use a real floating dtype of at least 16 bits)")
        elif parameter.is_sparse or parameter.layout != torch.strided:
            problems.append(f"{name} is not a dense tensor")
        elif has_gradient_hooks(parameter):
            problems.append(f"{name} has a gradient hook, which would see or change gradients (remove the hook)")
        elif parameter.grad is not None:
            problems.append(f"{name} holds a gradient already (call optimizer.zero_grad())")
    if problems:
        raise UnsupportedModelError(f"these parameters cannot be trained privately: {'; '.join(problems)}")
    return trainable


def _require_supported_optimizer(optimizer: Optimizer) -> None:
    if isinstance(optimizer, LBFGS):
        raise UnsupportedOptimizerError(
            "LBFGS evaluates its closure several times for one step, and each would be a release. Use SGD or Adam"
        )
    if isinstance(optimizer, SparseAdam):
        raise UnsupportedOptimizerError("SparseAdam needs sparse gradients, which show the rows touched. Use Adam")


def _require_same_parameters(model: nn.Module, optimizer: Optimizer, trainable: dict[str, nn.Parameter]) -> None:
    updated = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    own = {id(parameter) for parameter in model.parameters()}
    missing = [name for name, parameter in trainable.items() if id(parameter) not in updated]
    foreign = len(updated - own)
    if missing:
        raise ParameterMismatchError(
            f"trainable but not in the optimizer: {', '.join(missing)}. Give the optimizer all of model.parameters(), "
            f"or freeze these with requires_grad_(False)"
        )
    if foreign:
        raise ParameterMismatchError(
            f"the optimizer updates {foreign} tensors that are not parameters of the model, so nobody would clip them. "
            f"Make them parameters of the module, or give them an optimizer of their own"
        )
