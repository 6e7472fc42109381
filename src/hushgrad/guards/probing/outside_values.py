"""Values that enter a loop's program from outside of torch's calls: made in Python, in NumPy, or by another thread.

Nothing shows what they were computed from. A constant of the loop's own is the same tensor in each item; what was made
anew for this one may hold anything that the item held as lists, arrays and texts, or that another thread was handed.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from hushgrad.guards.probing.constants import Constants, Origin
from hushgrad.guards.probing.loop_line import line_of, loop_frame
from hushgrad.guards.probing.loss_numbers import ARITHMETIC
from hushgrad.guards.probing.loss_program import mapped, tensors_of
from hushgrad.guards.probing.numbers_taken import numbers_in
from hushgrad.guards.probing.own_memory import has_memory
from hushgrad.guards.probing.trees import DESCEND, Path, with_parts
from hushgrad.torch_internals import storage_handle, unseen, version

FROM_PYTHON = {
    "tensor",
    "as_tensor",
    "asarray",
    "new_tensor",
    "scalar_tensor",
    "full",
    "full_like",
    "new_full",
    "fill_",
}
"""Calls that make a tensor of Python's numbers."""

RANDOM = {
    "_sample_dirichlet", "_standard_gamma", "bernoulli", "bernoulli_", "binomial", "cauchy_", "exponential_",
    "geometric_", "log_normal_", "multinomial", "normal", "normal_", "poisson", "rand", "rand_like", "randint",
    "randint_like", "randn", "randn_like", "random_", "randperm", "uniform_",
}  # fmt: skip
"""Calls that draw random numbers."""

ORDERING = {"argsort", "cummax", "cummin", "cumprod", "cumsum", "sort"}
"""Calls after which random numbers of one axis follow their place."""


MOST_COMPARED = 1 << 22
"""Larger arrays of an item are told by their memory alone."""


class OutsideValues:
    """The values of one item's program that torch's calls in its thread have not made.

    Args:
        item: what the loop was handed.
        constants: those of the loop, which are told from item to item.
        size: its number of examples.
    """

    def __init__(self, item: Any, constants: Constants, size: int = 0) -> None:
        self._constants = constants
        self._size = size
        self._made: dict[int, _Quiet] = {}
        self._counts: dict[int, set[int]] = {}  # by memory, how often it was written to when a call had run
        self._readable: list[tuple[Path, Any]] = []
        self.is_readable = False
        """Whether the item holds numbers or texts that Python can read without a call of torch's."""
        self.has_come = False
        """Whether a tensor that was made of Python's numbers entered the program of such an item."""
        self.numbers: set[tuple[str, float]] = set()
        """Those by which the loop scaled noise and parameters, and the seeds of its own generators."""
        with_parts(item, self._visit)

    def _visit(self, path: Path, part: Any) -> Any:
        if isinstance(part, np.ndarray) or _is_list_of_numbers(part):
            self._readable.append((path, part))
        elif not isinstance(part, (int, float, complex, str, bytes, np.generic)):
            return DESCEND if not isinstance(part, Tensor) else part
        self.is_readable = True
        return part

    def path_in_item(self, tensor: Tensor) -> Path | None:
        """Return where the item holds the values of a tensor as an array or a list; None where it does not."""
        return next((path for path, part in self._readable if _is_copy(tensor, part)), None)

    def note(self, name: str, given: Any, result: Any, *, is_python: bool = False) -> None:
        """A call of the loop's with this name, into which nothing of the batch goes, has made this.

        `is_python`: whether Python's numbers went in beside lengths and what stands in the code.
        """
        is_python = is_python or name in FROM_PYTHON
        is_random = self._is_random(name, given)
        is_trained = is_random is False and Origin.TRAINED in map(self.origin, tensors_of(given))
        if is_random or is_trained:
            self._note_numbers(name, given)
        roots: dict[int, weakref.ref[Tensor]] = {}
        leaves: dict[int, weakref.ref[Tensor]] = {}
        is_drawn_anew = name in RANDOM and name.endswith("_")  # what it held before is gone
        for number, tensor in enumerate(tensors_of(given)):
            made = self._made_before(tensor)
            is_python = is_python or (made is not None and made.is_python)
            if made is not None:
                roots.update(made.roots)
                leaves.update(made.leaves)
            elif not tensor.requires_grad and (number or not is_drawn_anew):
                roots[id(tensor)] = weakref.ref(tensor)
            elif tensor.requires_grad and tensor.is_leaf:
                leaves[id(tensor)] = weakref.ref(tensor)
        self.note_counts(tensors_of(given, result))
        for tensor in tensors_of(result):
            self._made[id(tensor)] = _Quiet(weakref.ref(tensor), is_python, roots, leaves, is_random, is_trained)
        changed = next(tensors_of(given), None) if name == "__setitem__" else None
        if changed is not None and (made := self._made_before(changed)) is not None and made.is_random:
            self._made[id(changed)] = made._replace(is_random=None)

    def note_counts(self, tensors: Iterable[Tensor]) -> None:
        """Take note of how often memory was written to once a call that is seen has run."""
        with unseen():
            for tensor in tensors:
                if has_memory(tensor):
                    self._counts.setdefault(storage_handle(tensor.untyped_storage()), set()).add(version(tensor))

    def are_written_unseen(self, tensors: Iterable[Tensor]) -> bool:
        """Return whether tensors that calls were seen to make were written to by what is not seen (`.real = ...`)."""
        made = [tensor for tensor in tensors if self._made_before(tensor) is not None and has_memory(tensor)]
        with unseen():
            return any(
                version(part) not in self._counts.get(storage_handle(part.untyped_storage()), ()) for part in made
            )

    def _is_random(self, name: str, given: Any) -> bool | None:
        """Return whether a call draws, or makes rows of drawn ones; None if they follow their place as well."""
        found: bool | None = name in RANDOM
        is_placed = False
        for tensor in tensors_of(given):
            origin = self.origin(tensor)
            if origin is Origin.RANDOM:
                found = True
                is_placed = is_placed or (name in ORDERING and tensor.ndim == 1)
            elif not isinstance(tensor, nn.Parameter):  # as many outputs as there are examples are no places
                is_placed = is_placed or self.has_own_rows(tensor)
        return None if found and is_placed else found

    def _note_numbers(self, name: str, given: Any) -> None:
        """Take note of the numbers by which noise is scaled, and parameters; and of the seeds of generators."""
        kwargs = given[1] if given else {}
        if isinstance(generator := kwargs.get("generator"), torch.Generator):
            self.numbers.add(("a seed", float(generator.initial_seed())))
        if name in ARITHMETIC:
            numbers = numbers_in(mapped(given, _no_tensor))
            self.numbers |= {(name, number) for number in numbers if number != 1}  # a framework divides by 1

    def has_own_rows(self, tensor: Tensor) -> bool:
        """Return whether a tensor has a row for each example, and not the same for all."""
        if type(tensor) not in (Tensor, nn.Parameter) or not has_memory(tensor):
            return False  # to look at a sharded one sends messages, and nested ones may have no shape
        if not tensor.ndim or tensor.shape[0] != self._size:
            return False
        if not tensor.untyped_storage().nbytes():
            return False  # its memory was given back, as FSDP does between two uses
        return not bool((tensor == tensor[:1]).all())

    def is_of_model(self, tensor: Tensor) -> bool:
        """Return whether a tensor lies in memory of the private model."""
        return self._constants.are_of_model(tensor)

    def is_placed(self, tensor: Tensor) -> bool:
        """Return whether a tensor that the model is given may tell the place of each example."""
        return (
            not self._constants.are_declared(tensor)
            and self.origin(tensor) is not Origin.RANDOM
            and (self.has_own_rows(tensor.detach()))
        )

    def rows_of_numbers(self, given: Iterable[Tensor]) -> list[Tensor]:
        """Return the first rows of tensors that were made of Python's numbers, or of nothing, and are alike in each."""
        made = [tensor for tensor in given if self.origin(tensor) in (Origin.PYTHON, Origin.FIXED)]
        return [
            tensor[:1].clone()
            for tensor in made
            if tensor.ndim and not tensor.is_nested and tensor.shape[0] == self._size and not self.has_own_rows(tensor)
        ]

    def origin(self, tensor: Tensor) -> Origin:
        """Return what a tensor was made of that no call on the batch has made."""
        made = self._made_before(tensor)
        if tensor.requires_grad and (made is None or not made.is_random):
            return Origin.TRAINED
        if made is None or made.is_random is None:
            return Origin.UNKNOWN
        if made.is_random:
            return Origin.RANDOM
        if made.is_trained:
            return Origin.TRAINED
        if made.is_python:
            return Origin.PYTHON
        return Origin.UNKNOWN if made.roots else Origin.FIXED

    def meet(self, tensor: Tensor, *, is_input: bool = False) -> None:
        """The program, or the model's inputs, hold a tensor that no call on the batch has made."""
        made = self._made_before(tensor)
        self._meet_leaves(tensor, made, is_input=is_input)
        if tensor.requires_grad:
            return
        if made is None:
            self._constants.meet(tensor)
            return
        self.has_come = self.has_come or (made.is_python and self.is_readable)
        for root in made.roots.values():
            self._constants.meet(root())

    def _meet_leaves(self, tensor: Tensor, made: _Quiet | None, *, is_input: bool) -> None:
        """Meet the leaves that a tensor was made of, or itself.

        What a generator makes of noise follows the model that it is trained through, as far as anybody can tell; and
        the gradient that comes back to it from there is of no record.
        """
        if made is None:
            leaves = [tensor] if tensor.requires_grad and tensor.is_leaf else []
        else:
            leaves = [leaf for ref in made.leaves.values() if (leaf := ref()) is not None]
        is_generated = made is not None and made.is_random is True
        takes_gradients = tensor.requires_grad and torch.is_grad_enabled() and not (is_generated and is_input)
        frame = loop_frame() if leaves and takes_gradients else None
        for leaf in leaves:
            if not is_generated:
                self._constants.changes.meet(leaf)
            if takes_gradients:
                self._constants.leaves.meet(leaf, self._size, "" if frame is None else line_of(frame))

    def _made_before(self, tensor: Tensor) -> _Quiet | None:
        made = self._made.get(id(tensor))
        return made if made is not None and made.tensor() is tensor else None


class _Quiet(NamedTuple):
    """What a call made of nothing of the batch.

    `roots`: the tensors that went in and that no call was seen to make, by `id`.
    `leaves`: those among them that require gradients.
    `is_random`: whether its rows are drawn, None if they may follow their place as well.
    """

    tensor: weakref.ref[Tensor]
    is_python: bool
    roots: dict[int, weakref.ref[Tensor]]
    leaves: dict[int, weakref.ref[Tensor]]
    is_random: bool | None = False
    is_trained: bool = False


def _no_tensor(value: Any) -> Any:
    return None if isinstance(value, Tensor) else value


def _is_list_of_numbers(part: Any) -> bool:
    if not isinstance(part, (list, tuple)):
        return False
    while isinstance(part, (list, tuple)) and part:
        part = part[0]
    return isinstance(part, (int, float, complex, np.generic))


def _is_copy(tensor: Tensor, part: Any) -> bool:
    """Whether a tensor holds the values of an array or of nested lists, in whatever precision."""
    if tensor.is_nested:  # some have no shape
        return False
    is_array = isinstance(part, np.ndarray) and tensor.shape == part.shape and tensor.device.type == "cpu"
    if is_array and tensor.data_ptr() == part.ctypes.data:
        return True
    if not tensor.ndim or tensor.shape[0] != len(part) or tensor.numel() > MOST_COMPARED:
        return False
    try:
        values = torch.as_tensor(part).to(tensor.device, tensor.dtype)
    except (TypeError, ValueError, RuntimeError):  # of several lengths, or no numbers
        return False
    return values.shape == tensor.shape and torch.equal(values, tensor.detach())
