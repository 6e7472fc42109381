"""Where capture is on: inside the forward of a module that holds trainable parameters, while gradients are enabled."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hushgrad.capture.axes.batch_axes import BatchAxes, tensors_in
from hushgrad.capture.axes.conversions import Conversions
from hushgrad.capture.axes.layout import Path, Role
from hushgrad.capture.leaves import TrackedTensor
from hushgrad.capture.mode import CaptureMode
from hushgrad.capture.operators.operator import ForwardContext, GraphAnchor
from hushgrad.capture.public import PublicTensors
from hushgrad.capture.running import LivingArguments, RunningCall
from hushgrad.capture.transforms import refuse_transforms, transform_in_force
from hushgrad.capture.uses import UsePool
from hushgrad.errors import PrivacyUnitError, UnsupportedModelError
from hushgrad.torch_internals import (
    EagerCode,
    calls_compiled,
    go_on_compiling,
    never_compiled,
    parameters_of,
    stop_compiling,
    top_mode,
    unseen,
)
from hushgrad.torch_sharding import companions, fully_sharded, is_one_of_many, is_part, parallel_meshes

# Frames between `RunningCall.is_running` and the code that calls a module (hook, torch's three) or an operator.
CALLER_OF_MODULE, CALLER_OF_OPERATOR = 6, 3


class CallObserver(Protocol):
    """Is told of every outermost forward that is captured."""

    def entering(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Called before the forward runs; what it returns comes back when the forward is left."""

    def left(self, token: Any, output: Any, hangs_hooks: bool) -> None:
        """Called with what `entering` returned and what the forward returned, None if it was left by an exception.

        `hangs_hooks`: whether the forward hung hooks on activations, which see and change gradients.
        """


@dataclass(eq=False)
class _Open:
    """An outermost forward that is being captured, in the thread that runs it.

    `entered` are the modules whose calls have begun and not ended, as far as hooks tell. `compiler` is what compiles
    the code around it, and is to go on with that afterwards; None where nothing does.
    """

    mode: CaptureMode
    call: RunningCall
    left: Callable[[Any, bool], None]
    entered: list[nn.Module] = field(default_factory=list)
    compiler: Any = None


class _Here(threading.local):
    """What a thread is in the middle of: torch's stack of modes is the thread's own, and so is this."""

    open: _Open | None = None


class Scope:
    """Enters the capture mode when the outermost of a model's modules is called, and leaves it afterwards.

    Guarantee: threads that run one model at the same time do not see each other's modes.
    """

    def __init__(
        self,
        model: nn.Module,
        pool: UsePool,
        observer: CallObserver | None = None,
        public: PublicTensors | None = None,
    ) -> None:
        self._pool = pool
        self._public = public
        self._instead: UsePool | None = None
        self._observer = observer
        self._anchor = GraphAnchor()
        self._sites = [
            (parameters_of(module), key, f"{prefix}.{key}" if prefix else key)
            for prefix, module in model.named_modules()
            for key, parameter in parameters_of(module).items()
            if parameter is not None and parameter.requires_grad
        ]
        self._here = _Here()
        self._swapped = self._sites_by_part(model)
        self._row = next(iter(parallel_meshes(model).values()), None)  # of a tensor parallel model
        self._converts = self._row is not None or is_one_of_many()
        self.paused = False
        self.registered: set[str] = set()
        """The names of the operators of others that ran in captured forwards."""
        self._roles: dict[nn.Module, dict[Path, Role]] = {}
        self._told: set[nn.Module] = set()
        self.expects: Callable[[tuple[Any, ...], dict[str, Any]], Mapping[Path, Role] | None] | None = None
        """What is known of the inputs of a module's first call from elsewhere, the loader's item; None without one."""
        self.turned: Sequence[Tensor] = ()
        """Of the outputs of the last forward, those with the examples on their second axis."""
        self.regroups = False
        """Whether a captured forward put rows together by the batch's values: how many there are differs then."""
        self.decides_by_numbers = False
        """Whether a captured forward that selects rows by the batch's values took numbers of the batch out of torch."""
        self._handles: list[RemovableHandle] = []
        self._has_compiled = any(map(calls_compiled, model.modules()))
        never_compiled(Scope._begin)
        for module in model.modules():
            if any(parameter.requires_grad for parameter in module.parameters()):
                before, after = _Entering(self), _Leaving(self)
                self._handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
                self._handles.append(module.register_forward_hook(after, always_call=True))

    def record_into(self, pool: UsePool) -> None:
        """Send the uses of coming forwards to `pool`; a graph of an earlier forward keeps the pool it began with.

        What was suspended for a while is taken up again: an interrupt may have come before it was.
        """
        self.leave_if_stale()
        self._pool, self._instead, self.paused = pool, None, False

    @contextmanager
    def recording_into(self, pool: UsePool) -> Iterator[None]:
        """Send the uses of the forwards inside to `pool`, and tell nobody of them."""
        outer, self._instead = self._instead, pool
        try:
            yield
        finally:
            self._instead = outer

    @contextmanager
    def off(self) -> Iterator[None]:
        """Leave the forwards inside alone: nothing of them is captured."""
        paused, self.paused = self.paused, True
        try:
            yield
        finally:
            self.paused = paused

    @property
    def asked(self) -> list[Tensor]:
        """Gradients by inputs that were asked for with a graph, through forwards of the physical batch in work."""
        return self._pool.asked

    @property
    def anchor(self) -> Tensor:
        """The scalar that every captured operator hangs on: `backward(inputs=[anchor])` reaches them and no data."""
        return self._anchor.tensor

    def detach(self) -> None:
        """Take all hooks off the model."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.leave_if_stale()

    def leave_if_stale(self) -> bool:
        """Leave a mode of this thread whose forward is no longer running; return whether there was one."""
        begun = self._here.open
        if begun is None or begun.call.is_running():
            return False
        self._abandon(begun)
        return True

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A module is called: begin to capture if it is the outermost one.

        Returns what the module is called with instead: the same arguments, which tell of the end of the call.
        """
        begun = self._here.open
        if begun is not None:
            if begun.call.is_running(CALLER_OF_MODULE):
                begun.entered.append(module)
                if module in self._swapped:
                    self._look_up_again(module, begun.mode.context)
                return None
            self.leave_if_stale()
        if self.paused or not torch.is_grad_enabled():
            return None
        return self._begin(module, args, kwargs)

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Begin to capture, out of what a loop compiles: the mode and the rules are no code of the loop's."""
        compiler = stop_compiling()
        held: list[Tensor] = []
        leaves = self._leaves(held)
        if (transform := transform_in_force()) is not None:
            if leaves:
                refuse_transforms(transform, next(iter(leaves.values())).name)
            go_on_compiling(compiler)
            return None
        pool, observer = (self._pool, self._observer) if self._instead is None else (self._instead, None)
        token = None if observer is None else observer.entering(module, args, kwargs)
        axes = BatchAxes()
        if self._converts:
            axes.conversions = Conversions(axes, self._row)
        batch_size = axes.seed((args, kwargs), pool.batch_size, self.roles_of(module, args, kwargs), self._public)
        call = RunningCall()
        forward = ForwardContext(pool, self._anchor, axes, leaves, batch_size, held, self.registered)
        mode = CaptureMode(forward, partial(call.is_running, CALLER_OF_OPERATOR))
        left = _nobody if observer is None else partial(observer.left, token)
        begun = _Open(mode, call, left, [module], compiler)
        self._here.open = begun
        if self._has_compiled:
            EagerCode.want(begun)
        mode.__enter__()  # type: ignore[no-untyped-call]
        return args, LivingArguments(kwargs, partial(self._let_go, weakref.ref(begun)))

    def roles_of(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[Path, Role]:
        """Return what the inputs of a module hold, as far as it is known; takes what is found."""
        known = self._roles.setdefault(module, {})
        if module not in self._told and self.expects is not None:
            told = self.expects(args, kwargs)
            if told is not None:
                self._told.add(module)
                known.update(told)
        return known

    def leave(self, module: nn.Module, output: Any) -> None:
        """A module's call has ended: stop if it is the outermost one.

        The calls inside it have then ended too, whether their own hooks ran or not.
        """
        begun = self._here.open
        if begun is None:
            return
        entered = begun.entered
        if entered[-1] is module:
            entered.pop()
        elif not _forget_from(entered, module):
            return
        if entered:
            return
        context = begun.mode.context
        try:
            if self._row is not None:
                _require_here(output)
            guard_outputs(context, output)
            self.turned = _turned(context, output) if Role.SECOND in self._roles.get(module, {}).values() else ()
            context.pool.is_narrow |= context.axes.is_narrow
            self.regroups |= context.axes.regroups
            self.decides_by_numbers |= context.axes.selects and context.axes.has_read
        finally:
            self._exit(begun)
        begun.left(output, context.hangs_hooks)
        go_on_compiling(begun.compiler)

    def _let_go(self, reference: weakref.ref[_Open], frame: FrameType | None) -> None:
        """The arguments of a call are gone, as `frame` ran: its hooks have run, or never will."""
        begun = self._here.open
        if begun is not None and begun is reference() and begun.call.is_over(frame):
            self._abandon(begun)

    def _abandon(self, begun: _Open) -> None:
        self._exit(begun)
        begun.left(None, False)

    def _leaves(self, held: list[Tensor]) -> dict[int, TrackedTensor]:
        """Resolve the parameters by name now: their tensors may have been swapped since the session began.

        They are held for the length of the forward, so that no other tensor can come to stand at their address.
        """
        leaves: dict[int, TrackedTensor] = {}
        for parameters, key, name in self._sites:
            parameter = parameters[key]
            if parameter is not None and parameter.requires_grad and id(parameter) not in leaves:
                leaves[id(parameter)] = TrackedTensor.of_parameter(name, parameter)
                held.append(parameter)
        return leaves

    def _sites_by_part(self, model: nn.Module) -> dict[nn.Module, list[Any]]:
        """Return, for each module whose call has FSDP put whole parameters in place, where these are."""
        found = {}
        for part in fully_sharded(model):
            inside = {id(parameters_of(module)) for other in companions(part) for module in other.modules()}
            found[part] = [site for site in self._sites if id(site[0]) in inside]
        return found

    def _look_up_again(self, module: nn.Module, context: ForwardContext) -> None:
        """Take the parameters that FSDP has just put in place; its own hook on the call runs before ours."""
        for parameters, key, name in self._swapped[module]:
            parameter = parameters[key]
            if parameter is None or id(parameter) in context.leaves:
                continue
            with unseen():
                if not parameter.requires_grad:
                    continue
                context.leaves[id(parameter)] = TrackedTensor.of_parameter(name, parameter)
            context.held.append(parameter)
            context.axes.forget(parameter)  # FSDP's hook has looked at it

    def _exit(self, begun: _Open) -> None:
        self._here.open = None
        mode = begun.mode
        above = []
        while (top := top_mode()) is not None:
            top.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            if top is mode:
                break
            above.append(top)
        for other in reversed(above):
            other.__enter__()  # type: ignore[no-untyped-call]
        mode.end()
        if self._has_compiled:
            EagerCode.release(begun)


def _require_here(output: Any) -> None:
    """Refuse outputs of a tensor parallel model of which this process has a part alone."""
    for tensor in tensors_in(output):
        if is_part(tensor):
            raise UnsupportedModelError(
                f"a tensor parallel model returns a distributed tensor, or a part of one, of shape "
                f"{list(tensor.shape)}: losses of it would be those of several processes together (as in "
                f"loss_parallel()), and each of them has a part of each example's",
                where="the model's outputs",
                cure="Let its last layer return all of its output in every process: output_layouts=Replicate(), "
                "use_local_output=True; and compute the loss outside of loss_parallel()",
            )


def _turned(context: ForwardContext, output: Any) -> Sequence[Tensor]:
    return [tensor for tensor in tensors_in(output) if context.axes.get(tensor) == 1]


def _forget_from(entered: list[nn.Module], module: nn.Module) -> bool:
    """Take the last call of a module off the list, with those after it: they have ended, and their hooks did not run.

    A module is not on the list where a pre-hook before ours raised; then nothing has begun.
    """
    for index in range(len(entered) - 1, -1, -1):
        if entered[index] is module:
            del entered[index:]
            return True
    return False


def _nobody(output: Any, hangs_hooks: bool) -> None:
    """Is told that a forward was left."""


def guard_outputs(context: ForwardContext, output: Any) -> None:
    """Let a backward through an output in which examples were mixed raise; as a value it may be looked at.

    Mixing before the last use of a parameter is seen at that use. Mixing after it (h - h.mean(0), a softmax over the
    batch) shows in the model's outputs only. A scalar is the loss itself, and is taken for a sum over examples. One
    example alone has no other to be mixed with.
    """
    if context.batch_size == 1:
        return
    axes, lost_by = context.axes, context.axes.lost_by
    if in_part := axes.reads_in_part:
        lost_by = "a loop over some of what nonzero() found of counts over the batch, which left others out"
    for tensor in tensors_in(output):
        is_data = tensor.ndim > 0 and tensor.requires_grad and axes.descends(tensor)
        if is_data and (in_part or axes.get(tensor) is None) and not tensor.is_leaf:
            tensor.register_hook(  # type: ignore[no-untyped-call]
                _refusal(context.anchor, list(tensor.shape), lost_by, axes.cure)
            )


def _refusal(anchor: GraphAnchor, shape: list[int], lost_by: str | None, cure: str) -> Callable[[Tensor], None]:
    def refuse(gradient: Tensor) -> None:
        if anchor.is_accumulating():
            raise PrivacyUnitError(
                f"the examples of the batch cannot be told apart in an output of the model, of shape {shape}, since "
                f"{lost_by or 'its forward began'}",
                cure=cure,
            )

    return refuse


class _Hook:
    """A hook that copies and pickles to one that does nothing: a copy of the model is an ordinary model."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    def __reduce__(self) -> tuple[Any, ...]:
        # A method of the standard library that takes anything and returns None: a saved model loads without hushgrad.
        return getattr, (nullcontext(), "__exit__")


class _Entering(_Hook):
    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._scope.enter(module, args, kwargs)


class _Leaving(_Hook):
    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._scope.leave(module, output)
