"""What is no tensor and belongs to single examples: altered as tensors are, and given back as it was."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from hushgrad.errors import UnsupportedModelError
from hushgrad.guards.probing.lifting import Lifted, Packed, lifted
from hushgrad.guards.probing.rows import Batch, batch_axes
from hushgrad.guards.probing.trees import tensors_at, with_tensors

B = 3
Pair = namedtuple("Pair", "texts kept")


class Slotted:
    """Keeps what it is given in slots."""

    __slots__ = ("texts", "width")

    def __init__(self, texts: list[str], width: int) -> None:
        self.texts, self.width = texts, width


class Plain:
    """Keeps what it is given as attributes."""

    def __init__(self, numbers: list[int]) -> None:
        self.numbers = numbers


def lift(value: Any) -> Lifted:
    """One argument of a model, among `(args, kwargs)`."""
    return lifted(((value,), {}), B, outer=2)


def again(value: Any, change: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> Any:
    """Lift an argument, change the tensor it became, and lower it."""
    lifting = lift(value)
    (args, kwargs) = lifting.lowered(with_tensors(lifting.value, lambda _, tensor: change(tensor)))
    assert kwargs == {}
    return args[0]


def turned(tensor: Tensor) -> Tensor:
    """Exchange the first example and the last."""
    return tensor.flip(0)


def same(one: Any, two: Any) -> bool:
    """Whether two values are of one kind and hold the same."""
    if isinstance(one, Tensor):
        return isinstance(two, Tensor) and torch.equal(one, two)
    if isinstance(one, np.ndarray):
        return isinstance(two, np.ndarray) and one.dtype == two.dtype and np.array_equal(one, two)
    if isinstance(one, (list, tuple)):
        return type(one) is type(two) and len(one) == len(two) and all(map(same, one, two))
    return type(one) is type(two) and one == two


# Lists, tuples and arrays: the round trip ----------------------------------------------------------------------------

ROWS: dict[str, Any] = {
    "integers": [3, 1, 2],
    "a tuple of floats": (0.5, 1.5, -2.0),
    "booleans": [True, False, True],
    "numbers of NumPy": [np.float32(1.5), np.float32(0.25), np.float32(3.0)],
    "integers of NumPy": [np.int64(2), np.int64(5), np.int64(7)],
    "texts": ["one", "two", "three"],
    "nested lists of several lengths": [[1, 2], [3], [4, 5, 6]],
    "dictionaries": [{"a": 1}, {"a": 2}, {"a": 3}],
    "None for some": [None, 1, 2],
    "tensors of several lengths": [torch.zeros(2), torch.ones(4), torch.full((1,), 2.0)],
    "tensors of one length": [torch.zeros(2), torch.ones(2), torch.full((2,), 2.0)],
    "an array of floats": np.arange(6.0).reshape(3, 2),
    "an array of integers": np.array([3, 1, 2], dtype=np.int32),
    "an array of booleans": np.array([True, False, True]),
    "an array of complex numbers": np.array([1j, 2, 3 + 1j]),
    "an array of unsigned integers": np.array([3, 1, 2], dtype=np.uint8),
    "an array of wide floats": np.array([1, 2, 3], dtype=np.longdouble),
    "an array of the other byte order": np.array([1, 2, 3], dtype=">i4"),
    "an array of texts": np.array(["one", "two", "three"]),
    "an array of dates": np.array(["2020-01-01", "2021-01-01", "2022-01-01"], dtype="datetime64[D]"),
}


@pytest.mark.parametrize("name", ROWS)
def test_what_has_an_entry_for_each_example_is_one_tensor_and_comes_back_as_it_was(name: str) -> None:
    value = ROWS[name]
    ((held,), _) = lift(value).value
    assert isinstance(held, Tensor)
    assert held.shape[0] == B
    assert same(value, again(value))


@pytest.mark.parametrize("name", ROWS)
def test_examples_that_are_moved_or_left_out_take_their_entries_along(name: str) -> None:
    value = ROWS[name]
    back = value[::-1] if isinstance(value, np.ndarray) else type(value)(reversed(value))
    assert same(back, again(value, turned))
    assert same(value[1:], again(value, lambda tensor: tensor[1:]))


def test_what_is_given_back_is_another_object_whose_writes_reach_nothing() -> None:
    for value in ([torch.zeros(2), torch.ones(4), torch.zeros(1)], np.arange(3.0), np.array(["a", "b", "c"])):
        found = again(value)
        for part in found if isinstance(found, list) else [found]:
            part[:] = part[0] + 5 if isinstance(part, Tensor) or part.dtype.kind == "f" else "x"
        assert same(again(value), value)
        assert not same(found, value)


def test_an_example_made_of_nan_is_nan_where_numbers_are_floats() -> None:
    def poison(tensor: Tensor) -> Tensor:
        return tensor.clone().index_fill_(0, torch.tensor(1), float("nan"))

    for value in ([0.5, 1.5, 2.5], (0.5, 1.5, 2.5), np.array([0.5, 1.5, 2.5])):
        found = again(value, poison)
        assert type(found) is type(value)
        assert np.isnan(found).tolist() == [False, True, False]


def test_a_list_of_numbers_that_no_one_kind_of_tensor_holds_comes_back_as_floats() -> None:
    assert again([1, 0.5, 2]) == [1.0, 0.5, 2.0]
    assert again([2**70, 1, 2]) == [2.0**70, 1.0, 2.0]


def test_numbers_of_entries_are_never_taken_for_those_of_positions() -> None:
    """A batch whose examples are numbered from 0 holds them as positions, which are constants to the probe."""
    value = lift([torch.randn(B, 2), ["a", "b", "c"]]).value
    assert len(list(tensors_at(value))) == 2
    assert all({path: 0 for path, _ in tensors_at(value)} == axes for axes in batch_axes(value, B))


# What holds no batch -------------------------------------------------------------------------------------------------

CONSTANTS: dict[str, Any] = {
    "a list of another length": [1, 2],
    "an array of another length": np.arange(4),
    "an array without axes": np.array(3.0),
    "a list of tensors that hold the batch each": [torch.zeros(B, 2), torch.ones(B), torch.zeros(B, 1)],
    "a text of as many letters": "abc",
    "bytes": b"abc",
    "a dictionary of as many entries": {"a": 1, "b": 2, "c": 3},
    "a set": {1, 2, 3},
    "an empty list": [],
    "a number": 3,
    "nothing": None,
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_what_has_no_entry_for_each_example_stays_what_it_is(name: str) -> None:
    lifting = lift(CONSTANTS[name])
    assert lifting.back == {}
    ((held,), _) = lifting.value
    assert type(held) is type(CONSTANTS[name])
    ((found,), _) = lifting.lowered(lifting.value)
    assert type(found) is type(CONSTANTS[name])


def test_the_containers_around_say_nothing_by_their_lengths() -> None:
    """Three arguments of a batch of three, and an output and a target of a batch of two."""
    lifting = lifted((("a", "b", "c"), {}), B, outer=2)
    assert lifting.back == {}
    assert lifted(("output", "target"), 2, outer=1).back == {}
    assert set(lifted((["a", "b"], "target"), 2, outer=1).back) == {(0,)}


# Inside of other things ----------------------------------------------------------------------------------------------


def test_what_objects_slots_dictionaries_and_named_tuples_hold_is_lifted_in_place() -> None:
    value = {
        "pair": Pair(["a", "b", "c"], "kept"),
        "slots": Slotted(["d", "e", "f"], 3),
        "plain": Plain([1, 2, 3]),
        "deep": [[["g", "h", "i"]]],
    }
    lifting = lift(value)
    assert len(lifting.back) == 4
    found = again(value, turned)
    assert found["pair"] == Pair(["c", "b", "a"], "kept")
    assert (found["slots"].texts, found["slots"].width) == (["f", "e", "d"], 3)
    assert found["plain"].numbers == [3, 2, 1]
    assert found["deep"] == [[["i", "h", "g"]]]
    assert value["slots"].texts == ["d", "e", "f"]  # type: ignore[attr-defined]
    assert value["plain"].numbers == [1, 2, 3]  # type: ignore[attr-defined]


def test_tensors_beside_what_is_lifted_are_the_tensors_themselves() -> None:
    x = torch.randn(B, 2)
    lifting = lifted(((x, ["a", "b", "c"]), {"scale": [1.0, 2.0, 3.0]}), B, outer=2)
    assert lifting.value[0][0] is x
    batch = Batch(lifting.value, batch_axes(lifting.value, B)[0], B)
    (given, texts), keywords = lifting.lowered(batch.without(1))
    assert torch.equal(given, x[[0, 2]])
    assert texts == ["a", "c"]
    assert keywords == {"scale": [1.0, 3.0]}
    (_, texts), keywords = lifting.lowered(batch.exchanged([0], away=True))
    assert texts == ["b", "b", "c"]
    assert keywords == {"scale": [201.0, 2.0, 3.0]}


# Packed sequences ----------------------------------------------------------------------------------------------------


def packed(lengths: list[int]) -> PackedSequence:
    padded = torch.arange(1.0, len(lengths) * max(lengths) * 2 + 1).reshape(len(lengths), max(lengths), 2)
    return pack_padded_sequence(padded, torch.tensor(lengths), batch_first=True, enforce_sorted=False)


def test_a_packed_sequence_is_rows_and_lengths_and_is_packed_again() -> None:
    value = packed([2, 4, 3])
    ((held,), _) = lift(value).value
    assert isinstance(held, Packed)
    assert held.padded.shape == (B, 4, 2)
    assert held.lengths.tolist() == [2, 4, 3]
    found = again(value)
    assert torch.equal(found.data, value.data)
    assert torch.equal(found.batch_sizes, value.batch_sizes)
    assert torch.equal(found.sorted_indices, value.sorted_indices)


def test_a_packed_sequence_loses_an_example_with_its_length() -> None:
    lifting = lift(packed([2, 4, 3]))
    batch = Batch(lifting.value, batch_axes(lifting.value, B)[0], B)
    ((found,), _) = lifting.lowered(batch.without(1))
    ((held,), _) = lifted(((found,), {}), 2, outer=2).value
    assert held.lengths.tolist() == [2, 3]
    assert torch.equal(held.padded[0, :2], batch.value[0][0].padded[0, :2])


def test_lengths_that_were_altered_fit_what_is_left() -> None:
    lifting = lift(packed([2, 4, 3]))
    ((held,), _) = lifting.value
    ((found,), _) = lifting.lowered(((Packed(held.padded[:, :2], held.lengths * 0 + 7),), {}))
    assert found.batch_sizes.tolist() == [3, 3]
    ((found,), _) = lifting.lowered(((Packed(held.padded, held.lengths * 0),), {}))
    assert found.batch_sizes.tolist() == [3]


# What can be read once -----------------------------------------------------------------------------------------------

ONCE: dict[str, Callable[[], Any]] = {
    "a generator": lambda: (n for n in range(B)),
    "an iterator over a list": lambda: iter([1, 2, 3]),
    "zip": lambda: zip("ab", "cd", strict=True),
    "map": lambda: map(str, range(3)),
    "one in a list": lambda: [iter([1]), 2],
}


@pytest.mark.parametrize("name", ONCE)
def test_an_iterator_is_refused_by_its_kind_and_not_read(name: str) -> None:
    value = ONCE[name]()
    with pytest.raises(UnsupportedModelError, match=r"is given an iterator .*Pass a list or a tensor"):
        lift(value)
    inner = value[0] if isinstance(value, list) else value
    assert next(inner) is not None


def test_a_range_is_no_iterator_and_no_batch() -> None:
    assert lift(range(B)).back == {}
