"""What a loop computes between an item of the loader and the backward of its loss, written down call by call.

A mode at the bottom of torch's stack sees the loop's own torch calls, so that they can be run again on altered examples
(see `loss_replay`). It changes nothing, and it is there for a few items only. Calls inside the model's forward, of
which the model's probe knows, are left out.
"""

from __future__ import annotations

import math
import pickle
import random
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from functools import partial
from types import FrameType, MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hushgrad.capture.axes.layout import MARKS, Layout, Role
from hushgrad.capture.axes.rules import changes_in_place, main_argument
from hushgrad.errors import UncoveredParameterUseError
from hushgrad.guards.probing.backward_reach import Reach
from hushgrad.guards.probing.backward_watch import BackwardWatch
from hushgrad.guards.probing.constants import Origin
from hushgrad.guards.probing.live_memory import WRITTEN_UNSEEN, Written, sets_values
from hushgrad.guards.probing.loop_line import loop_frame
from hushgrad.guards.probing.loss_numbers import choosing_numbers
from hushgrad.guards.probing.loss_program import (
    Earlier,
    End,
    Given,
    Made,
    Place,
    Program,
    Slot,
    mapped,
    slots_of,
    tensors_of,
)
from hushgrad.guards.probing.loss_tensors import LossTensors
from hushgrad.guards.probing.numbers_taken import is_free, numbers_in
from hushgrad.guards.probing.outside_values import OutsideValues
from hushgrad.guards.probing.trace_places import function_call, place_of, running
from hushgrad.guards.probing.trees import DESCEND, Path, tensors_at, with_parts
from hushgrad.low_mode import LowMode
from hushgrad.torch_internals import (
    EagerCode,
    function_of,
    functorch_transform,
    saved_tensors_hooks_here,
    unseen,
    unwrapped,
)

MOST_CALLS = 20_000
"""Longer programs are not run again."""

NOTHING: Mapping[Path, Role] = MappingProxyType({})

NOBODYS = -1

DEVICES = ("cpu", "cuda")

SILENT = {
    "__hash__", "backward", "retain_grad", "requires_grad_",
    "register_post_accumulate_grad_hook", "is_floating_point", "is_complex", "dim", "ndimension",
    "is_contiguous", "element_size", "stride", "storage_offset", "get_device", "__dir__",
}  # fmt: skip
"""Calls that compute nothing a loss could be made of."""

LIKE = {"empty_like", "full_like", "ones_like", "rand_like", "randint_like", "randn_like", "zeros_like"}
"""Calls that take the shape of a tensor and none of its values."""

READING = {
    "__repr__", "__format__", "__str__", "__reduce__", "__reduce_ex__", "__dlpack__", "data_ptr", "storage",
    "untyped_storage",
}  # fmt: skip
"""Calls that hand the values on as texts, bytes or memory."""


class LossTrace(LowMode):
    """Writes down the calls of one item, in the thread that took it."""

    def __init__(
        self,
        size: int,
        item: Any,
        axes: Mapping[Path, int],
        earlier: Earlier | None = None,
        layout: Layout | None = None,
        lists: Set[Path] = frozenset(),
        is_private: Callable[[], bool] = lambda: True,
    ) -> None:
        """Begin for an item of `size` examples; `axes` says where they are in tensors that have them elsewhere.

        `earlier` is what is known of the items before, and takes what is known of this one at the end. `layout` tells
        of rows of the item that lie end to end, `lists` are the paths of those with an entry for each example.
        `is_private`: whether the backward that runs accumulates gradients of the model.
        """
        super().__init__()
        self._earlier = Earlier() if earlier is None else earlier
        self.outside = OutsideValues(item, self._earlier.constants, size)
        self._seed = torch.initial_seed()
        self._drawn_before = _drawn_in_python()
        self.program = Program(size, earlier=frozenset(self._earlier.numbers))
        self._tensors = LossTensors(self.program, self.outside, self._earlier)
        self._has_gone_back = False  # whether a backward came from what the loop computed of the batch
        self._is_used_by_us = False  # whether this library's own code computes with what the loop computed
        self.has_unseen_loss = False
        """Whether a loss came from what nobody saw: code that torch runs outside of Python, say."""
        self.changes_gradients = False
        """Whether the loop hung a hook on what it computes of each example, or gave it to a function of its own."""
        self.backward = BackwardWatch(is_private)
        self._weighted: list[Tensor] = []  # losses times the gradients that they were given
        for path, tensor in tensors_at(item):
            is_repeated = self._tensors.has_met(tensor)  # one tensor for several records: it cannot be altered for one
            slot = self._tensors.adopt(tensor, "item")
            self.program.paths[slot] = path
            if path in axes:
                self.program.axes[slot] = axes[path]
            if (place := next((n for n in range(len(path)) if path[:n] in lists), None)) is not None:
                self.program.entries[slot] = NOBODYS if is_repeated else path[place]
            if layout is not None and layout.is_flat and layout.roles.get(path) in (*MARKS, Role.FLAT, Role.LINKS):
                self.program.flat.add(slot, layout, path, tensor)
        is_compiling = "torch._dynamo" in sys.modules  # then this is no code of the loop's to compile
        self._run = torch.compiler.disable(self._seen) if is_compiling else self._seen  # type: ignore[no-untyped-call]
        self._end_older()
        EagerCode.want(self)
        self.lay_down()

    def _end_older(self) -> None:
        """Leave few traces of other loops in this thread: of those that were left in an item nobody tells the end."""
        for mode in LossTrace.left_here():
            mode.program.hide("many other loops ran within its item")
            mode.end()

    def end(self) -> None:
        """Take the mode away; what was written down stays."""
        if not self.is_over:
            self.program.seed = torch.initial_seed()
            self.program.sets_seed = self.program.seed != self._seed
            self.program.numbers_outside = frozenset(self.outside.numbers)
            self.program.draws_in_python = self._drawn_before != _drawn_in_python()
            self.end_runs()
            self._hand_on()
        self.take_up()
        self._tensors.forget()
        self._weighted.clear()
        self.backward.close()

    @property
    def has_read(self) -> bool:
        """Whether the loop read values in a way that leaves no number in the program."""
        return self._tensors.has_read

    def _hand_on(self) -> None:
        """Take note of what the loop may carry into a later item."""
        earlier = self._earlier
        alive = {key: known for key, known in earlier.tensors.items() if known() is not None}
        made = {key: known for key, (known, _) in self._tensors.of_batch().items()}
        earlier.tensors = {**alive, **made}
        earlier.constants.end_item(earlier.holds)
        for call in self.program.calls:
            if call.taken is not None and not isinstance(call.taken, torch.Size):
                earlier.numbers.update(number for number in numbers_in(call.taken) if not number.is_integer())

    # What the probe tells ------------------------------------------------------------------------------------------

    def given(self, inputs: Any, kept: Iterable[Any], roles: Mapping[Path, Role] = NOTHING) -> None:
        """The model is called with these inputs, and `kept` is what it holds beside parameters.

        `roles`: what its inputs hold, as far as it is known.
        """
        self.take_up()  # compiled code takes note of what lies in the stack
        program, named = self.program, list(tensors_at(inputs))
        tensors = [tensor for _, tensor in named]
        if any(tensor.requires_grad for tensor in tensors):
            self.backward.is_whole = False
        held = [*kept, *(part for tensor in tensors for part in tensor.__dict__.values())]
        for path, tensor in named if roles else ():
            if (known := self._tensors.slot(tensor)) is None:
                continue
            if roles.get(path) is Role.SECOND:
                program.axes[known] = 1
            for length in range(2, len(path)):
                if roles.get(path[:length]) is Role.ENTRIES:
                    program.entries[known] = path[length]
        for tensor in (*tensors, *(part for part in held if isinstance(part, Tensor))):
            self._tensors.takes_over(tensor)
        for tensor in self._tensors.without_number(tensors):
            if not self._earlier.holds(tensor) and not self._tensors.is_of_item(tensor):
                self.outside.meet(tensor, is_input=True)
        for tensor in (*tensors, *(part for part in held if isinstance(part, Tensor))):
            if (slot := self._tensors.slot(tensor)) in self._tensors.live:
                program.inputs.append(slot)
        frame = loop_frame()
        if frame is None:
            return
        place = place_of(frame)
        others = list(self._tensors.without_number(tensors))
        program.alike += self.outside.rows_of_numbers(others)
        program.placed += [place for tensor in others if self.outside.is_placed(tensor)]
        program.carried += [place for tensor in others if self._earlier.holds(tensor)]
        own = [part for part in held if _is_countable(part) and not float(part).is_integer()]  # not met by chance
        numbers = {float(part) for part in (*_numbers_at(inputs, program.size), *own)}
        if numbers:
            program.given.append(Given(len(program.calls), tuple(numbers), place))

    def returned(self, output: Any, turned: Sequence[Tensor] = (), module: nn.Module | None = None) -> None:
        """The `module` returned this; `turned` has the examples on the second axis."""
        if not self.is_over:
            self.lay_down()
        for path, tensor in tensors_at(output):
            if tensor.grad_fn is not None or tensor.requires_grad or self._tensors.slot(tensor) is None:
                slot = self._tensors.adopt(tensor, "output")
                self.program.outputs.append(slot)
                self.backward.returned(slot, tensor)
                if module is not None:
                    self.program.made_by[slot] = module, path
                if any(tensor is other for other in turned):
                    self.program.axes[slot] = 1

    def loss(self, loss: Tensor, *, is_rows: bool, weight: Any = None) -> None:
        """This is a loss that the loop runs backward on, or losses of one row for each example.

        `weight`: the gradient that the loop gives it, if any.
        """
        self._tensors.takes_over(loss)
        slot = self._tensors.slot(self._times(loss, weight))
        if slot is None or slot not in self._tensors.live:
            self.has_unseen_loss = not self._is_used_by_us
            self.program.hide("the loss comes from what is not seen")
        elif all(end.slot != slot for end in self.program.ends):
            self.program.ends.append(End(slot, len(self.program.calls), is_rows))
            if is_rows and loss.requires_grad:
                self.backward.ends(slot, loss)

    def runs(self, roots: Sequence[Tensor]) -> None:
        """A backward runs from these roots, and has come to an output of the model."""
        if self.is_over or self.program.hidden:
            return
        there = {
            id(tensor.grad_fn): (tensor, slot)
            for ref, slot in self._tensors.of_batch().values()
            if (tensor := ref()) is not None and tensor.grad_fn is not None
        }
        self.program.node_hooks += self.backward.runs(roots, there)
        reach = Reach([*self.backward.codes, *(vars(node) for node, _ in self._tensors.applied.values())])
        program = self.program
        for tensor in reach.tensors.values():
            slot = self._tensors.slot(tensor)
            if slot is None and self._earlier.holds(tensor):
                slot = self._tensors.adopt(tensor, "earlier")
            if slot is None:
                if self.outside.origin(tensor) is Origin.PYTHON:
                    self.outside.meet(tensor)
            elif all(tensor is not other for other in program.reached.setdefault(slot, [])):
                program.reached[slot].append(tensor)
        if reach.numbers:
            program.read_backward.append((tuple(reach.numbers), tuple(reach.written)))
        if self.backward.codes:
            needed = [
                number + 1
                for number, call in enumerate(program.calls)
                if call.function is Tensor.register_hook or any(slot in program.reached for slot in call.outputs)
            ]
            program.calls_of_backward = max((program.calls_of_backward, *needed))

    # The mode --------------------------------------------------------------------------------------------------------

    def run(self, func: Callable[..., Any], types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one call, and write it down if values of the batch go in."""
        return self._run(func, types, args, kwargs)

    def _seen(self, func: Callable[..., Any], types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = getattr(func, "__name__", "")
        if name in SILENT or not self.is_in_its_thread:
            self._has_gone_back |= name == "backward" and self._tensors.takes_batch(args[:1], kwargs)
            return func(*args, **kwargs)
        if name == "__get__" and self._tensors.is_unknown(args[0]):
            result = func(*args, **kwargs)
            if not isinstance(result, Tensor):  # most calls are such: a flag or a shape of a parameter
                return result
        if functorch_transform() is not None:
            self._note_transformed(args, kwargs)
            return func(*args, **kwargs)
        is_change = changes_in_place(func) or "out" in kwargs or sets_values(func, args)
        is_of_batch = self._tensors.takes_batch(args, kwargs)
        idle = [tensor for tensor in tensors_of(args, kwargs) if not self._tensors.is_live(tensor)]
        if self.outside.are_written_unseen(idle):
            self.program.hide(WRITTEN_UNSEEN)
        is_wanted = is_of_batch or (is_change and self._tensors.knows(args))
        if not is_wanted:
            result = func(*args, **kwargs)
            self._note_gradient(func, args, result)
            self.outside.note(name, (args, kwargs), result, is_python=self._has_free_numbers(name, args, kwargs))
            self._note_recipe(func, args, kwargs, result)
            return result
        place, applied = running()
        if place is None:
            result = func(*args, **kwargs)
            self.outside.note_counts(idle)
            is_ours = is_of_batch and any(tensor.grad_fn is not None for tensor in tensors_of(result))
            self._is_used_by_us = self._is_used_by_us or is_ours
            return result
        if applied is not None and self._write_applied(applied, place):
            return func(*args, **kwargs)
        if name == "__iter__":
            return iter(self._seen(Tensor.unbind, types, args, {}))
        if len(self.program.calls) >= MOST_CALLS:
            self.program.hide("it is too long")
            return func(*args, **kwargs)
        if func is torch.autograd.grad:
            self.backward.is_whole = False
        if func is torch.autograd.grad and self._asks_plainly(*args, **kwargs):
            # An output: what the model makes of each example, by its own backward.
            result = _asked(func, args, kwargs, place)
            self.program.outputs += [self._tensors.adopt(tensor, "output") for tensor in tensors_of(result)]
            return result
        if name in READING:
            self._tensors.has_read = True
            return func(*args, **kwargs)
        changed = (
            list(tensors_of(kwargs["out"] if "out" in kwargs else main_argument(args, kwargs))) if is_change else []
        )
        self._tensors.adopt_bases(changed)
        given = mapped((args, kwargs), partial(self._tensors.given, is_changed=is_change))
        written = Written(tensor for tensor in tensors_of(args, kwargs) if not self._tensors.is_live(tensor))
        try:
            result = _asked(func, args, kwargs, place) if func is torch.autograd.grad else func(*args, **kwargs)
        except Exception:
            self._tensors.has_read = True  # whether it fails is a look at the values
            raise
        was_live = self._tensors.live if is_of_batch else set(self._tensors.live)
        if func is Tensor.register_hook:
            self._note_change(args)
            self.backward.codes += [*args[1:], *kwargs.values()]
        self.outside.note_counts(idle)
        changed += [
            tensor for tensor in self._tensors.written_beside(written) if all(tensor is not one for one in changed)
        ]
        foreign = [] if is_change else list(written.tensors)
        self._write(func, given, result, place, changed, foreign, is_of_batch=is_of_batch)
        self._tensors.live &= was_live  # what the program read may be written to with nothing of the batch
        return result

    def _write(
        self,
        func: Callable[..., Any],
        given: Any,
        result: Any,
        place: Place,
        changed: Sequence[Tensor] = (),
        foreign: Sequence[Tensor] = (),
        *,
        is_of_batch: bool = True,
    ) -> None:
        """Write down a call, what it made and `changed`; `foreign` went in with nothing of the batch in them."""
        made = list(tensors_of(result))
        is_getter = getattr(func, "__name__", "") == "__get__"
        if is_getter and not made and not isinstance(result, torch.Size):
            return
        taken = None
        if not made and not changed and func is not Tensor.register_hook:
            if not _is_number(result):
                return
            taken = result
            self._tensors.has_taken = self._tensors.has_taken or not isinstance(result, torch.Size)
        outputs = tuple(self._tensors.made(tensor) for tensor in made)
        if self._takes_shape_alone(func, given, place):
            self._tensors.live.difference_update(outputs)
            self.outside.note(func.__name__, (), result)
            is_of_batch = False
        for tensor in changed:
            self._tensors.note_written(tensor, is_of_batch=is_of_batch)
        if is_of_batch:
            self._tensors.memory.note(zip(made, outputs, strict=True), foreign)
        self.program.calls.append(
            Made(
                func,
                given[0],
                given[1],
                outputs,
                place,
                torch.is_grad_enabled(),
                tuple((device, torch.get_autocast_dtype(device)) for device in DEVICES if _is_autocast(device)),
                taken,
                saving=self._saving(),
            )
        )

    def _note_gradient(self, func: Callable[..., Any], args: Any, result: Any) -> None:
        """Take note of a gradient that the loop asks a tensor of its own for: of a backward in this item, maybe."""
        is_gradient = getattr(getattr(func, "__self__", None), "__name__", "") == "grad" and isinstance(result, Tensor)
        if is_gradient and self._has_gone_back and not self._earlier.constants.are_of_model(args[0]):
            self._tensors.memory.note_unread(result, NOBODYS)

    def _takes_shape_alone(self, func: Callable[..., Any], given: Any, place: Place) -> bool:
        """Whether what a call made has the shape of a tensor of the batch, and of no tensor a value.

        A number that is not written in the code may be of the batch once numbers have left torch.
        """
        if getattr(func, "__name__", "") not in LIKE:
            return False
        rest = (given[0][1:], {key: value for key, value in given[1].items() if key != "input"})
        if any(slot.number in self._tensors.live for slot in slots_of(rest)):
            return False
        return not self._tensors.has_taken or not is_free(list(numbers_in(mapped(rest, _number))), 0, place.numbers)

    def _saving(self) -> tuple[Any, Any] | None:
        """Return what of the loop's own packs and unpacks tensors that calls save here; torch's own gives them back."""
        found = saved_tensors_hooks_here()
        if found is None or any(hook.__module__.startswith("torch.") for hook in found if hasattr(hook, "__module__")):
            return None
        self.backward.codes += found
        return found

    def _asks_plainly(self, outputs: Any, inputs: Any, grad_outputs: Any = None, *_: Any, **__: Any) -> bool:
        """Whether gradients are asked for of one output of the model, or of its sum, that counts once for each row."""
        parts = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        given = [grad_outputs] if grad_outputs is None or isinstance(grad_outputs, Tensor) else list(grad_outputs)
        if len(parts) != 1 or len(given) != 1:
            return False
        [output], [weights] = parts, given
        slot = self._tensors.slot(output)
        if weights is not None and (self._tensors.is_live(weights) or not bool((weights == 1).all())):
            return False
        made = [call for call in self.program.calls if slot in call.outputs]
        if made and made[-1].name == "sum" and len(made[-1].args) == 1 and not made[-1].kwargs:
            [of] = made[-1].args
            slot = of.number if isinstance(of, Slot) else None
        return slot is not None and slot in self.program.outputs

    def _times(self, loss: Tensor, weight: Any) -> Tensor:
        """Return a loss times the gradient that the loop's backward gave it, which is written down."""
        frame = loop_frame()
        if frame is None or not isinstance(weight, Tensor) or not self._tensors.is_live(loss):
            return loss
        given = mapped(((loss, weight), {}), partial(self._tensors.given, is_changed=False))
        with unseen(), torch.enable_grad():
            weighted = loss.detach() * weight.detach()
            self._write(torch.mul, given, weighted, place_of(frame))
        self._weighted.append(weighted)
        return weighted

    def _note_change(self, args: tuple[Any, ...]) -> None:
        is_of_values = any(tensor.numel() > 1 for tensor in tensors_of(args))
        self.changes_gradients = self.changes_gradients or is_of_values

    def _note_transformed(self, args: Any, kwargs: Any) -> None:
        """A call inside of a transform of `torch.func`, which is not run again: is it on anything of the batch?"""
        tensors = map(unwrapped, tensors_of(args, kwargs))
        if any(self._tensors.is_live(tensor) or self._tensors.takes_over(tensor) for tensor in tensors):
            self.program.hide("a transform of torch.func")

    def _has_free_numbers(self, name: str, args: Any, kwargs: Any) -> bool:
        """Whether a call on nothing of the batch has a number that Python may have made of the item.

        None is where the item has none for Python to read. A length of the item's tensors is no such number, nor is one
        that stands in the code.
        """
        if not self.outside.is_readable or not (numbers := choosing_numbers(name, args, kwargs)):
            return False
        frame = loop_frame()
        lengths = {length for source in self.program.sources.values() for length in source.values.shape}
        free = [number for number in numbers if number not in lengths]
        return is_free(free, self.program.size, () if frame is None else place_of(frame).numbers)

    def _note_recipe(self, func: Callable[..., Any], args: Any, kwargs: Any, result: Any) -> None:
        """Take note of what is made of lengths alone."""
        if isinstance(result, Tensor) and (frame := loop_frame()) is not None:
            sources = self.program.sources.values()
            lengths = {length for source in sources if source.kind == "item" for length in source.values.shape}
            written = {float(number) for number in place_of(frame).numbers}
            self._tensors.recipes.note(func, (args, kwargs), result, {*lengths, *(n - 1 for n in lengths)}, written)

    def _write_applied(self, applied: FrameType, place: Place) -> bool:
        """Write down an autograd function of the loop's own as one call; return whether it could be."""
        forward, cls, args, kwargs = function_call(applied)
        node = forward.f_locals.get(forward.f_code.co_varnames[0])
        if function_of(node) is not cls or kwargs:
            self.program.hide(f"{cls.__name__}, an autograd function of a kind that is not seen")
            return False
        self._note_change(args)
        self.backward.codes += [cls, *(part for part in args if not isinstance(part, Tensor))]
        if id(node) not in self._tensors.applied:
            given = mapped(args, partial(self._tensors.given, is_changed=False))
            self._tensors.applied[id(node)] = node, len(self.program.calls)
            self.program.calls.append(Made(applied.f_locals["cls"].apply, given, {}, (), place, True, ()))
        return True


def _asked(grad: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], place: Place) -> Any:
    """Return the gradients that the loop asks for.

    Raises:
        UncoveredParameterUseError: by parameters, and they are not there.
    """
    try:
        return grad(*args, **kwargs)
    except RuntimeError as error:
        if any(isinstance(part, nn.Parameter) for part in tensors_of(args[1:], kwargs.get("inputs"))):
            raise UncoveredParameterUseError(
                "torch.autograd.grad asked for gradients of trained parameters, which are of the whole batch and are "
                "not formed here",
                where=str(place),
                cure="Weigh losses by constants, or by what each example's own values say: a norm of the batch's "
                "gradients mixes examples, without noise",
            ) from error
        raise


def _numbers_at(inputs: Any, size: int) -> list[Any]:
    """Return the numbers among `(args, kwargs)`, but for lists with one for each example: those the probe alters."""
    found: list[Any] = []

    def visit(path: tuple[Any, ...], part: Any) -> Any:
        if _is_countable(part):
            found.append(part)
        is_own = len(path) > 1 and isinstance(part, (list, tuple)) and len(part) == size
        return part if is_own or isinstance(part, Tensor) else DESCEND

    with_parts(inputs, visit)
    return found


def _number(value: Any) -> Any:
    return value if isinstance(value, (int, float)) else None  # no tensor or array is read


def _is_countable(value: Any) -> bool:
    if isinstance(value, (bool, np.bool_)):
        return False
    return isinstance(value, (int, float, np.integer, np.floating)) and math.isfinite(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float, complex, list, tuple, torch.Size)) or hasattr(value, "__array__")


def _drawn_in_python() -> tuple[Any, bytes]:
    """Return how far Python's and NumPy's random generators have come."""
    return random.getstate(), pickle.dumps(np.random.get_state(legacy=False))


def _is_autocast(device: str) -> bool:
    return torch.is_autocast_enabled(device)
