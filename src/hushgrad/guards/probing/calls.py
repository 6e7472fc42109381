"""The forwards that a batch made, kept until they are probed, and run again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from hushgrad.capture.axes.layout import Role
from hushgrad.capture.public import PublicTensors
from hushgrad.capture.scope import Scope
from hushgrad.errors import HushgradError
from hushgrad.guards.probing.deterministic_mode import QUANTILES, DeterministicMode
from hushgrad.guards.probing.finite import count_nan
from hushgrad.guards.probing.kept import Key
from hushgrad.guards.probing.laws import Law
from hushgrad.guards.probing.lifting import Lifted, lifted
from hushgrad.guards.probing.seeds import Seeds, seeds_left
from hushgrad.guards.probing.state import State, Structure, forked_randomness, others_drawn, randomness_used
from hushgrad.guards.probing.trees import Path, copied, detached, tensors_at
from hushgrad.guards.probing.uncounted_writes import UncountedWrites
from hushgrad.torch_internals import function_of, gradient_hooks_of, has_backward_hooks, version
from hushgrad.torch_sharding import arrived, is_hook_of_fsdp

SEED = 20_260_101

SUMS_CLOSE = 1e-4

MOST_NODES = 5_000
"""So many nodes of a graph are looked at for custom functions."""

OWN, TORCH = __name__.partition(".")[0], torch.__name__

AUTOCAST_DEVICES = ("cpu", "cuda")


@dataclass(eq=False)
class Call:
    """One outermost call of a module of the model.

    Attributes:
        module: what was called.
        state: what the model kept before the call.
        inputs: `(args, kwargs)` as they were, whatever the loop writes into them afterwards.
        autocast: device, whether autocast was on there, and its dtype.
        is_training: whether the model was in train().
        lifting: how altered inputs become what the module takes; None until `lift`.
        output: what it returned; None once it was forgotten.
        reached: the paths of the outputs that a backward of a loss came back through.
        gradients: what came back to each of them; None where it came more than once.
        handed_on: what hooks that the loop hung on them made of it.
        missing: how many NaN it returned; None where that is not compared.
        is_hooked: whether hooks hung on its outputs already as it returned.
        changes_gradients: whether hooks, or custom autograd functions, may do to gradients what no value shows.
        sums: of its outputs, by which it shows whether a run gave the same.
        has_returned: whether it did, and was not left by an exception.
        versions: those of the outputs, by which it shows that the loop wrote into them.
        axes: of each input, by its path, the axis of the examples; None where it is still to be found.
        watch: of what it was given, until it has returned.
        has_left_more: whether it put tensors into what it was given, and did not return them.
        written: the path of an input that the forward wrote to in a way that torch does not count.
    """

    module: nn.Module
    state: State
    inputs: tuple[tuple[Any, ...], dict[str, Any]]
    autocast: list[tuple[str, bool, torch.dtype]]
    is_training: bool
    lifting: Lifted | None = None
    output: Any = None
    reached: set[Path] = field(default_factory=set)
    gradients: dict[Path, Tensor | None] = field(default_factory=dict)
    handed_on: dict[Path, Tensor] = field(default_factory=dict)
    missing: int | None = 0
    axes: Mapping[Path, int] | None = None
    sums: list[tuple[float, float]] = field(default_factory=list)
    has_returned: bool = False
    is_hooked: bool = False
    changes_gradients: bool = False
    versions: list[int] = field(default_factory=list)
    watch: UncountedWrites | None = None
    written: Path | None = None
    has_left_more: bool = False

    @classmethod
    def begun(
        cls,
        model: nn.Module,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        public: PublicTensors | None = None,
    ) -> Call:
        """Return the call that is beginning, with the settings around it."""
        autocast = [
            (device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in AUTOCAST_DEVICES
        ]
        inputs = copied((args, kwargs), public)
        watch = UncountedWrites((args, kwargs), inputs)
        return cls(module, State(model), inputs, autocast, model.training, watch=watch)

    def lift(self, size: int, roles: Mapping[Path, Role]) -> None:
        """Make tensors of all inputs that hold `size` examples, before they are altered; once.

        `roles`: what its inputs hold, as far as it is known.
        """
        if self.lifting is not None:
            return
        self.lifting = lifted(self.inputs, size, outer=2, known=roles)
        self.inputs = self.lifting.value

    def returned(self, output: Any, hangs_hooks: bool, is_accumulating: Callable[[], bool]) -> None:
        """Take note of the output, and of the parts of it that gradients will come back through.

        Args:
            output: what the module returned.
            hangs_hooks: whether the forward hung hooks on activations.
            is_accumulating: whether the backward that is running accumulates gradients, or only asks for some.
        """
        if self.watch is not None:
            self.written, self.has_left_more = self.watch.found(), self.watch.has_left_more(output)
            self.watch = None
        tensors = [tensor for _, tensor in tensors_at(output)]
        self.sums = sums_of(output)
        self.is_hooked = not all(is_hook_of_fsdp(hook) for tensor in tensors for hook in gradient_hooks_of(tensor))
        self.changes_gradients = (
            self.is_hooked or hangs_hooks or has_backward_hooks(self.module) or any(map(_has_functions, tensors))
        )
        self.output, self.missing, self.has_returned = output, count_nan(output), True
        self.versions = [version(tensor) for _, tensor in tensors_at(output)]
        for path, tensor in tensors_at(output):
            if tensor.requires_grad:
                tensor.register_hook(self._mark(path, is_accumulating))  # type: ignore[no-untyped-call]
                if tensor.grad_fn is not None:  # behind all hooks on the tensor, of whatever age
                    tensor.grad_fn.register_prehook(self._note(path, tensor.output_nr, is_accumulating))

    def _mark(self, path: Path, is_accumulating: Callable[[], bool]) -> Callable[[Tensor], None]:
        reached, gradients = self.reached, self.gradients  # and not the call, which holds the tensor of this hook

        def hook(gradient: Tensor) -> None:
            if is_accumulating():
                gradients[path] = None if path in reached else gradient.detach()
                reached.add(path)

        return hook

    def _note(
        self, path: Path, place: int, is_accumulating: Callable[[], bool]
    ) -> Callable[[tuple[Tensor | None, ...]], None]:
        handed_on = self.handed_on

        def hook(gradients: tuple[Tensor | None, ...]) -> None:
            gradient = gradients[place]
            if gradient is not None and is_accumulating():
                handed_on[path] = gradient.detach()

        return hook

    @contextmanager
    def settings(self) -> Iterator[None]:
        """Autocast as it was around the call."""
        with ExitStack() as stack:
            for device, enabled, dtype in self.autocast:
                if enabled or torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, dtype=dtype, enabled=enabled))
            yield


@dataclass(frozen=True)
class Outcome:
    """What one run gave.

    Attributes:
        output: the module's output.
        moved: the state that the run changed, before it was put back.
        drew: whether random numbers were drawn.
        unknown: a random operator that could not be made quiet.
        structure: what the run left behind, where it made or took away parts or hooks.
        seeds: by what random numbers are drawn after the run, where it has seeded a generator.
        laws: what a quiet run would have drawn from.
        drew_outside: whether random numbers were drawn that torch does not draw.
        columns: of its draws `[..., n]` that are one number for each column, n.
    """

    output: Any
    moved: dict[Key, Any]
    drew: bool
    unknown: str | None
    structure: Structure | None
    seeds: Seeds = ()
    laws: tuple[Law, ...] = ()
    columns: tuple[int, ...] = ()
    drew_outside: bool = False


@dataclass(eq=False)
class Runner:
    """Runs a call on other inputs, each time from the same state and the same randomness, and counts.

    Attributes:
        call: what is run again. It ran with gradients: capture sees no other calls.
        state: what each run starts from and goes back to.
        scope: is off while a run only records gradients because the model wants them.
        devices: those whose random numbers are the same in each run.
        forwards: the cost so far, in forwards of the whole batch.
        unit: the cost of a run on what the call holds now, which may be a part of the batch.
    """

    call: Call
    state: State
    scope: Scope
    devices: list[torch.device]
    forwards: float = 0.0
    unit: float = 1.0
    _wants_gradients: bool | None = None  # None until a run has come to its end

    def run(
        self,
        inputs: Any,
        *,
        quiet: bool,
        share: float = 1.0,
        parameters: bool = False,
        quantile: float = QUANTILES[0],
        then: Callable[[Any], object] | None = None,
    ) -> Outcome:
        """Run the call without gradients, or with them if `then` is given, which gets the output.

        A model may want gradients itself: it hangs hooks on its activations, or asserts that gradients are recorded.
        Where the first run fails without them and one with them does not, all further runs have them, too. Their graph
        is dropped at once. Once a run without them has come to its end, what fails does so for another reason.

        `share` is the cost, in forwards of the whole batch; `parameters`: whether those are looked at for changes;
        `quantile`: which constants a quiet run has in place of random numbers.
        """
        if then is not None:
            return self._run(inputs, quantile if quiet else None, share, parameters, True, then)
        if not self._wants_gradients:
            try:
                outcome = self._run(inputs, quantile if quiet else None, share, parameters, False)
            except (HushgradError, torch.OutOfMemoryError):
                raise
            except Exception:
                if self._wants_gradients is False:
                    raise
            else:
                self._wants_gradients = False
                return outcome
        paused, self.scope.paused = self.scope.paused, True
        try:
            outcome = self._run(inputs, quantile if quiet else None, share, parameters, True)
        finally:
            self.scope.paused = paused
        self._wants_gradients = True
        return replace(outcome, output=detached(outcome.output))

    def _run(
        self,
        inputs: Any,
        quantile: float | None,
        share: float,
        parameters: bool,
        gradients: bool,
        then: Callable[[Any], object] | None = None,
    ) -> Outcome:
        args, kwargs = inputs if self.call.lifting is None else self.call.lifting.lowered(inputs)
        self.forwards += share * self.unit
        silence = DeterministicMode() if quantile is None else DeterministicMode(quantile)
        try:
            with ExitStack() as stack:
                stack.enter_context(forked_randomness(self.devices, SEED))
                stack.enter_context(torch.set_grad_enabled(gradients))
                if quantile is not None:
                    stack.enter_context(silence)
                with self.call.settings():
                    output = self.call.module(*args, **kwargs)
                for _, tensor in tensors_at(output):
                    arrived(tensor)  # which nobody else may wait for
                drew = randomness_used(self.devices, SEED) or self.state.has_drawn()
                drew_outside = drew and others_drawn(SEED)
                seeds = seeds_left(self.devices, SEED)
                if then is not None:
                    then(output)
            moved, structure = self.state.moved(parameters=parameters), self.state.other_structure()
        finally:
            self.state.restore()
        laws, columns = tuple(silence.laws), tuple(silence.columns)
        return Outcome(output, moved, drew, silence.unknown, structure, seeds, laws, columns, drew_outside)


def sums_of(output: Any) -> list[tuple[float, float]]:
    """Return the sum and the sum of absolute values of each tensor."""
    wide = [
        tensor.detach().abs().double() if tensor.is_complex() else tensor.detach().double()
        for _, tensor in tensors_at(output)
    ]
    return [(float(values.sum()), float(values.abs().sum())) for values in wide]


def are_close(one: list[tuple[float, float]], other: list[tuple[float, float]]) -> bool:
    """Return whether outputs with these sums are the same, as far as these show."""
    return len(one) == len(other) and all(
        abs(a - b) <= SUMS_CLOSE * size and abs(size - second) <= SUMS_CLOSE * size
        for (a, size), (b, second) in zip(one, other, strict=True)
    )


def _has_functions(tensor: Tensor) -> bool:
    """Whether a custom autograd function of somebody else's is among the nearer part of a tensor's graph."""
    known: set[Any] = set()
    waiting = [] if tensor.grad_fn is None else [tensor.grad_fn]
    while waiting and len(known) < MOST_NODES:
        node = waiting.pop()
        if node in known:
            continue
        known.add(node)
        function = function_of(node)
        if function is not None and function.__module__.partition(".")[0] not in (OWN, TORCH):
            return True
        waiting += [part for part, _ in node.next_functions if part is not None]
    return False


def devices_of(model: nn.Module, inputs: Any) -> list[torch.device]:
    """Return the devices of a model and its inputs, each once."""
    found = {parameter.device for parameter in model.parameters()}
    return [*(found | {tensor.device for _, tensor in tensors_at(inputs)})]
