"""Everything hushgrad knows of torch's insides: the first file to open when a new torch breaks something.

No other file but `torch_sharding` names a private part of torch (a test walks the sources). Each entry says what it is
for and was read in torch 2.13; tests/test_torch_internals.py asks whether each still means what it is taken for.
Attribute reads are `attrgetter`s, which cost no Python call: some run hundreds of times a step.
"""

from __future__ import annotations

import itertools
import sys
import weakref
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from datetime import timedelta
from operator import attrgetter
from types import FrameType, FunctionType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch._C._dynamo.eval_frame import set_eval_frame
from torch._ops import OpOverload
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors
from torch.autograd import Variable, forward_ad
from torch.multiprocessing.reductions import StorageWeakRef as StorageWeakRef
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm as InstanceNorm
from torch.nn.modules.loss import _Loss as Criterion
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map, tree_unflatten
from torch.utils.checkpoint import _CachingTorchDispatchMode

__all__ = [
    "BatchNorm",  # the common base of BatchNorm1d to 3d, lazy ones and SyncBatchNorm
    "Criterion",  # the common base of torch's losses
    "InstanceNorm",  # the common base of InstanceNorm1d to 3d and lazy ones
    "OpOverload",  # an operator of a traced graph, with its tags; torch.ops has no public name for it
    "TorchDispatchMode",  # sees operators below autograd; documented by torch, in a module with a private name
    "TreeSpec",  # torch.utils.pytree has no tree_flatten for Python's own containers yet
    "tree_flatten",
    "tree_leaves",
    "tree_map",
    "tree_unflatten",
]

# Tensors and their memory --------------------------------------------------------------------------------------------


def version(tensor: Tensor) -> int:
    """Return how often a tensor's memory was written to: tells of a change in place. Writes to `.data` don't count.

    What was made under `torch.inference_mode` has no count: a few values stand for themselves, and of many each answer
    is another one, as if they had just been written to.
    """
    try:
        return tensor._version
    except RuntimeError:
        with unseen():
            if (
                tensor.numel() > MOST_READ
                or tensor.layout is not torch.strided
                or tensor.is_quantized
                or tensor.is_meta
            ):
                return -next(_UNCOUNTED)
            return hash(tensor.detach().reshape(-1).view(torch.uint8).cpu().numpy().tobytes())


MOST_READ = 1 << 16
"""So many values of a tensor whose writes nobody counts are compared."""

_UNCOUNTED = itertools.count(1)
"""A number for each answer about a larger one."""


def versions_of(tensors: Iterable[Tensor]) -> list[int]:
    """Return the version of each tensor. Asked for all parameters in each step."""
    return [tensor._version for tensor in tensors]


base_of: Callable[[Tensor], Tensor | None] = attrgetter("_base")
"""The tensor that a view was taken of, through all views between; None for a tensor that is no view."""

is_view: Callable[[Tensor], bool] = Tensor._is_view
"""Whether a tensor is a view, as autograd knows it: such an output of a custom function can't be changed in place."""

storage_handle: Callable[[torch.UntypedStorage], int] = attrgetter("_cdata")
"""The address of the C++ object behind a storage, by which its users are counted."""

storage_use_count: Callable[[int], int] = torch._C._storage_Use_Count
"""How many tensors and storages hold the memory of a storage, given its handle: tells whether anybody else does."""


def flattened(tensors: Any) -> Tensor:
    """Return the values of some tensors of one dtype one after another, in one C++ call."""
    return _flatten_dense_tensors(tensors)  # type: ignore[no-any-return,no-untyped-call]


def unflattened(flat: Tensor, tensors: Any) -> tuple[Tensor, ...]:
    """Return consecutive parts of `flat` in the shapes of some tensors; an empty one comes without its shape."""
    return _unflatten_dense_tensors(flat, tensors)  # type: ignore[no-any-return,no-untyped-call]


# Optimizers ----------------------------------------------------------------------------------------------------------

step_pre_hooks_of: Callable[[torch.optim.Optimizer], Mapping[int, Any]] = attrgetter("_optimizer_step_pre_hooks")
"""An optimizer's own hooks before its step, in the order in which they run."""


def distributions_validate() -> bool:
    """Return whether torch.distributions checks its arguments by their values; torch has only the setter."""
    return torch.distributions.Distribution._validate_args


# Modules -------------------------------------------------------------------------------------------------------------

parameters_of: Callable[[nn.Module], MutableMapping[str, nn.Parameter | None]] = attrgetter("_parameters")
"""A module's own parameters by name. Read in each step: torch's `parameters()` takes several times as long."""

buffers_of: Callable[[nn.Module], MutableMapping[str, Tensor | None]] = attrgetter("_buffers")
"""A module's own buffers by name. Written by the doctor, which puts them back: `setattr` checks what it is given."""

children_of: Callable[[nn.Module], MutableMapping[str, nn.Module | None]] = attrgetter("_modules")
"""A module's own submodules by name; one of them is exchanged by writing here, in the place where it was."""

REGISTERED = ("_buffers", "_non_persistent_buffers_set")
"""Where a module keeps its buffers and which of them are not saved, in its `vars`."""

CONTAINERS = ("_modules", "_parameters", "_buffers")
"""Where a module keeps what it registers, in its `vars`."""

forward_pre_hooks_of: Callable[[nn.Module], Mapping[int, Any]] = attrgetter("_forward_pre_hooks")
"""A module's forward pre-hooks: by them a model is known that belongs to a session."""


def hook_counts(modules: Iterable[nn.Module]) -> tuple[int, ...]:
    """Return how many hooks each module has that run in its forward or backward. Asked for all modules in each item."""
    return tuple(
        [
            len(part._forward_hooks)
            + len(part._forward_pre_hooks)
            + len(part._backward_hooks)
            + len(part._backward_pre_hooks)
            for part in modules
        ]
    )


def has_backward_hooks(model: nn.Module) -> bool:
    """Return whether a module, or a part of it, has hooks that run in its backward."""
    return any(part._backward_hooks or part._backward_pre_hooks for part in model.modules())


def has_gradient_hooks(tensor: Tensor) -> bool:
    """Return whether a tensor has hooks that see or change its gradient; torch keeps None where it has none."""
    return bool(tensor._backward_hooks) or bool(tensor._post_accumulate_grad_hooks)


def gradient_hooks_of(tensor: Tensor) -> list[Any]:
    """Return the hooks on a tensor that see or change its gradient."""
    return [*(tensor._backward_hooks or {}).values(), *(tensor._post_accumulate_grad_hooks or {}).values()]


def modules_of(model: nn.Module) -> list[nn.Module]:
    """Return all modules of a model, each once, in any order. Runs in every step, unlike torch's own `modules()`."""
    found, waiting = {id(model): model}, [model]
    while waiting:
        for module in waiting.pop()._modules.values():
            if module is not None and id(module) not in found:
                found[id(module)] = module
                waiting.append(module)
    return list(found.values())


def own_parameters(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """Return the parameters that some modules hold themselves; one that two hold stands there twice."""
    return [value for module in modules for value in module._parameters.values() if value is not None]


MODULE_CALL_FILE = nn.Module._call_impl.__code__.co_filename
"""The file of torch's code that calls a module and its hooks: frames of a module's call are known by it."""

# Frames of torch's own code ------------------------------------------------------------------------------------------


def life_of_call(hook_frame: FrameType) -> weakref.ref[Any] | None:
    """Return a reference to what dies with the module call that runs a hook, asked from the frame that called the hook.

    `Module._call_impl` notes in a set of its own which hooks have run, and nobody else ever holds it. None where the
    call is compiled, or another torch keeps no such set.
    """
    frame: FrameType | None = hook_frame
    while frame is not None and frame.f_code.co_filename == MODULE_CALL_FILE:
        if frame.f_code is nn.Module._call_impl.__code__:
            ran = frame.f_locals.get("called_always_called_hooks")
            return weakref.ref(ran) if isinstance(ran, set) else None
        frame = frame.f_back
    return None


def witness_of_step(frame: FrameType) -> object | None:
    """Return an object that torch's frame around `Optimizer.step` made for itself, and that holds nothing of anybody's.

    It is the name under which the profiler shows the step, a string put together anew in each call. None where another
    torch makes none.
    """
    name = frame.f_locals.get("profile_name")
    return name if isinstance(name, str) else None


def losses_of_backward(frame: FrameType) -> tuple[Any, Any] | None:
    """Return the tensors that a running `torch.autograd.backward` was given, and their gradients; None elsewhere."""
    if frame.f_code is not torch.autograd.backward.__code__:
        return None
    return frame.f_locals["tensors"], frame.f_locals["grad_tensors"]


def opened(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a copy of one of torch's Python functions that does not hand itself over to a mode as a whole.

    It runs with a `has_torch_function` that says no, so what it calls is seen one by one.
    """
    assert isinstance(function, FunctionType)
    assert "has_torch_function" in function.__code__.co_names
    names = {**function.__globals__, "has_torch_function": lambda _: False}
    copy = FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def only_looks(hook: Any) -> bool:
    """Return whether a hook on a tensor is one of `register_multi_grad_hook`, as torch's FlopCounterMode sets them."""
    return isinstance(hook, FunctionType) and hook.__code__.co_filename == torch.autograd.graph.__file__


# What shows itself to a mode -----------------------------------------------------------------------------------------

unseen = torch._C.DisableTorchFunction
"""`with unseen():` runs torch calls that no function mode is told of."""

VARIABLE_FUNCTIONS: Any = torch._C._VariableFunctions
"""Where functions are found that torch's modules call and that have no public name: cells, packed sequences."""

PACK: Callable[..., tuple[Tensor, Tensor]] = VARIABLE_FUNCTIONS._pack_padded_sequence
PAD_PACKED: Callable[..., tuple[Tensor, Tensor]] = VARIABLE_FUNCTIONS._pad_packed_sequence
"""What `nn.utils.rnn` calls, and thus what a mode sees, to pack sequences and to pad them again."""

PAD_LIST: Callable[..., Tensor] = torch._C._nn.pad_sequence
"""What `nn.utils.rnn.pad_sequence` calls, and thus what a mode sees, to pad a list of sequences."""
GROUPED_MM: Callable[..., Tensor] = torch._grouped_mm
"""What `F.grouped_mm` calls, and thus what a mode sees: rows in groups, each times a matrix of its own."""
NUMBER_OF_VALUES: Callable[..., int] = Tensor._nnz
"""What sparse adapters ask before they multiply: how many values a sparse tensor holds. There is no public name."""


def top_mode() -> TorchFunctionMode | None:
    """Return the innermost function mode of this thread: only that one may be left."""
    stack = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    return stack[-1] if stack else None


def function_modes() -> list[TorchFunctionMode]:
    """Return the function modes of this thread, the outermost first."""
    return list(_get_current_function_mode_stack())  # type: ignore[no-untyped-call]


def order_modes(modes: Sequence[TorchFunctionMode]) -> None:
    """Let these be the function modes of this thread, the outermost first, without leaving or entering any."""
    for _ in function_modes():
        _pop_mode()  # type: ignore[no-untyped-call]
    for mode in modes:
        _push_mode(mode)  # type: ignore[no-untyped-call]


COMPILER = "torch._dynamo.eval_frame"
"""Where what `torch.compile` returns is made. What it keeps says which code runs, and nothing of the values."""


def compiled_from(function: FunctionType) -> FunctionType | None:
    """Return the function that `torch.compile` made this one of; None if it is none of those."""
    made = function.__globals__.get("__name__") == COMPILER
    return vars(function).get("_torchdynamo_orig_callable") if made else None


def is_compiled(module: nn.Module) -> bool:
    """Return whether `torch.compile` made this module of another one, which it has as its only part."""
    return type(module).__module__ == COMPILER


def calls_compiled(module: nn.Module) -> bool:
    """Return whether a call of this module itself runs code that is compiled: also after `module.compile()`."""
    return is_compiled(module) or getattr(module, "_compiled_call_impl", None) is not None


def stop_compiling() -> Any:
    """Have all code of this thread run as it is, until the compiled call around it ends; return what compiled it.

    That is None where nothing does. What Python calls from here on is neither compiled nor looked up.
    """
    return set_eval_frame(None)


def go_on_compiling(by: Any) -> None:
    """Have code of this thread compiled again, within the call in which `stop_compiling` returned `by`."""
    set_eval_frame(by)


def never_compiled(function: Callable[..., Any]) -> None:
    """Have compiled code call a function as it is, with whatever it does to the compiler of its thread.

    What `torch.compiler.disable` makes of one undoes that. Without effect where nothing can be compiled yet.
    """
    if "torch._dynamo" in sys.modules:
        torch._dynamo.decorators.skip(function)


class EagerCode:
    """Has what a loop compiled run eagerly, as long as anybody wants it so.

    Under a function mode torch.compile would give such code up for good. Another's `release` may run anywhere within
    these, in a finalizer; who was collected wants nothing any more.
    """

    _wanted: ClassVar[dict[int, weakref.ref[object]]] = {}
    _former: ClassVar[Any] = None

    @classmethod
    def want(cls, who: object) -> None:
        """Somebody begins to want it; without effect where nothing can be compiled yet."""
        if "torch._dynamo" in sys.modules:
            key = id(who)
            cls._wanted[key] = weakref.ref(who, lambda gone: cls._release(key, gone))
            if cls._former is None:
                cls._former = torch.compiler.set_stance("force_eager")

    @classmethod
    def release(cls, who: object) -> None:
        """They want it no more."""
        cls._release(id(who), cls._wanted.get(id(who)))

    @classmethod
    def _release(cls, key: int, known: weakref.ref[object] | None) -> None:
        if cls._wanted.get(key) is known:  # not the one who has this number now
            cls._wanted.pop(key, None)
        if not cls._wanted and cls._former is not None and not sys.is_finalizing():
            former, cls._former = cls._former, None
            by = stop_compiling()  # torch lets no code that it compiles say how it is to run
            try:
                former.__exit__(None, None, None)
            finally:
                go_on_compiling(by)


def keeps_some_values() -> bool:
    """Return whether this thread runs a part of a forward that selective checkpointing keeps some values of.

    They are used up by one backward, whether it keeps its graph or not.
    """
    return any(isinstance(mode, _CachingTorchDispatchMode) for mode in _get_current_dispatch_mode_stack())


def dispatch_modes() -> list[TorchDispatchMode]:
    """Return the dispatch modes of this thread, the outermost first."""
    return list(_get_current_dispatch_mode_stack())


def saved_tensors_hooks_here() -> tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]] | None:
    """Return what packs and unpacks tensors that are saved here for a backward; None where nothing does."""
    found = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return None if found is None else (found[0], found[1])


def functorch_transform() -> str | None:
    """Return the name of the innermost `torch.func` transform that is running in this thread; None outside of any."""
    if torch._C._functorch.maybe_current_level() is None:
        return None
    return str(torch._C._functorch.peek_interpreter_stack().key().name).lower()


is_wrapped: Callable[[Tensor], bool] = torch._C._functorch.is_functorch_wrapped_tensor
"""Whether a tensor stands for another one inside a `torch.func` transform: it has no memory to look at."""


def unwrapped(tensor: Tensor) -> Tensor:
    """Return the tensor that one inside of `torch.func` transforms stands for."""
    while is_wrapped(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


HAS_NO_DISPATCH = torch._C._disabled_torch_dispatch_impl
"""What classes of tensors have that do not run operators another way: their values lie in memory of their own."""


def is_forward_differentiating() -> bool:
    """Return whether this thread is inside a `forward_ad.dual_level()`."""
    return forward_ad._current_level >= 0


schema_of: Callable[[Any], Any] = attrgetter("_schema")
"""An ATen operator's name and its arguments with their names and types."""

# The engine and its graph --------------------------------------------------------------------------------------------

NO_GRAPH_TASK = -1
"""The graph task outside of any backward."""

current_graph_task: Callable[[], int] = torch._C._current_graph_task_id
"""Which backward is running in this thread: one inside another has a number of its own, and none is used again."""

will_execute: Callable[[Any], bool] = torch._C._will_engine_execute_node
"""Whether the running backward will reach a node. For an `AccumulateGrad`: whether it accumulates gradients at all."""


def call_after_backward(callback: Callable[[], None]) -> None:
    """Have the engine call back when the running graph task has finished; after one that raised, it does not."""
    Variable._execution_engine.queue_callback(callback)


def sequence_number(node: Any) -> int:
    """Return the number of a node in the order of its making in its thread; a node's Python object may change."""
    return node._sequence_nr()  # type: ignore[no-any-return]


def saved(node: Any, name: str, *default: Any) -> Any:
    """Return what a node's formula keeps, a setting or a tensor, by the name that derivatives.yaml gives it.

    Reading a tensor that is gone raises RuntimeError; a name that the node lacks, AttributeError or the default.
    """
    return getattr(node, f"_saved_{name}", *default)


def shape_of_output(node: Any, index: int) -> tuple[int, ...]:
    """Return the shape of one of the outputs that a node made."""
    return tuple(node._input_metadata[index].shape)


def dtype_of_output(node: Any, index: int) -> torch.dtype:
    """Return the dtype of one of the outputs that a node made: that of the gradient which comes back to it."""
    return node._input_metadata[index].dtype  # type: ignore[no-any-return]


def hooks_of_node(node: Any) -> tuple[list[Any], list[Any]]:
    """Return the Python hooks on a node: those before it runs, and those after.

    Torch keeps them in a dictionary for each kind, which what `register_hook` returns points to.
    """
    found: list[list[Any]] = []
    for register in (node.register_prehook, node.register_hook):
        handle = register(_no_hook)
        known = handle.hooks_dict_ref() or {}
        handle.remove()
        found.append(list(known.values()))
    return found[0], found[1]


def _no_hook(*_: Any) -> None:
    """Leave gradients as they are."""


def put_first(tensor: Tensor, hook: Callable[[Tensor], Any]) -> Any:
    """Register a hook on a tensor that runs before those which are there; return its handle."""
    handle = tensor.register_hook(hook)  # type: ignore[no-untyped-call]
    hooks = tensor._backward_hooks
    assert hooks is not None
    old = list(hooks.items())
    hooks.clear()
    hooks.update([old[-1], *old[:-1]])
    return handle


def function_of(node: Any) -> type | None:
    """Return the class of a custom autograd function whose backward a node is; None for a node of torch's own."""
    return vars(type(node)).get("_forward_cls")  # type: ignore[no-any-return]


def takes_step_hooks(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether torch's hooks on the step can hang on it: not on a wrapper that never ran `Optimizer.__init__`."""
    return "_optimizer_step_pre_hooks" in vars(optimizer)


# Several processes ---------------------------------------------------------------------------------------------------


def timeout_of(group: Any) -> timedelta | None:
    """Return how long the operations of a process group wait for a peer; None where it does not say."""
    for device in group._device_types:
        timeout = getattr(getattr(group._get_backend(device), "options", None), "_timeout", None)
        if isinstance(timeout, timedelta):
            return timeout
    return None


def has_communication_hooks(replica: nn.parallel.DistributedDataParallel) -> bool:
    """Return whether code of somebody's was registered to reduce the ordinary gradients of replicas."""
    return bool(replica._comm_hooks)
