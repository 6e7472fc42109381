"""How a forward's inputs hold the examples: on an axis, end to end in flat rows, or one by one in lists.

Graphs, bags and jagged sequences are batched end to end, and other tensors say where each example begins:

    x           [N, d]    the nodes of all graphs, one graph behind the other
    batch       [N]       owners: the graph of each node, as in PyG
    ptr         [B + 1]   bounds: where each graph begins, and where the last one ends
    offsets     [B]       starts: where each bag begins, as `nn.EmbeddingBag` takes them
    edge_index  [2, E]    links: pairs of nodes, the edges of one graph behind those of another
    weight      [E]       flat rows of the edges

What a tensor is, is its *role*. Shapes and values tell it, and where they fit two roles, what the tensor at the same
place was before, or the loader's item (`guards/probing/roles.py`). Where nothing tells, the batch is lost.

Guarantee: flat rows have owners only where one division of them fits all tensors that say where examples begin.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch import Tensor

Path = tuple[Any, ...]


class Role(Enum):
    """What a tensor among the inputs holds."""

    FIRST = "the examples on its first axis"
    SECOND = "the examples on its second axis"
    FLAT = "rows of all examples, end to end"
    OWNERS = "the example that owns each row"
    STARTS = "where each example's rows begin"
    BOUNDS = "where each example's rows begin, and the last one's end"
    LINKS = "pairs of rows"
    ENTRIES = "an entry for each example, in a list"
    CONSTANT = "nothing of the batch"
    LOST = "what cannot be told"


MARKS = (Role.OWNERS, Role.STARTS, Role.BOUNDS)
INTEGERS = (torch.int64, torch.int32)


@dataclass(frozen=True, eq=False)
class Layout:
    """The roles of the inputs, by their paths.

    Attributes:
        roles: of each tensor.
        counts: how many flat rows each example has, by their number in all.
        links: how many pairs each example has, by their number in all.
    """

    roles: dict[Path, Role]
    counts: dict[int, list[int]] = field(default_factory=dict)
    links: dict[int, list[int]] = field(default_factory=dict)

    @property
    def is_flat(self) -> bool:
        """Whether there are rows end to end."""
        return any(role in (Role.FLAT, Role.LINKS, *MARKS) for role in self.roles.values())

    def counts_at(self, path: Path, tensor: Tensor) -> list[int] | None:
        """Return how many rows each example has in a tensor with flat rows; None for any other."""
        role = self.roles.get(path)
        if role in (Role.FLAT, Role.OWNERS):
            return self.counts.get(tensor.shape[0], self.links.get(tensor.shape[0]))
        return self.links.get(tensor.shape[1]) if role is Role.LINKS else None

    def division(self, kind: Role, tensor: Tensor) -> list[int]:
        """Return how many rows each example has, as a tensor says that tells where they begin."""
        for counts in (*self.counts.values(), *self.links.values()):
            found = owners_of(counts).tolist() if kind is Role.OWNERS else [0, *itertools.accumulate(counts)]
            if (found[:-1] if kind is Role.STARTS else found) == tensor.tolist():
                return counts
        raise ValueError("tells of no rows here")

    def rows_of_links(self, tensor: Tensor) -> list[int]:
        """Return how many rows each example has among those that pairs are of."""
        fitting = [counts for total, counts in self.counts.items() if int(tensor.max()) < total]
        return fitting[0]


def owners_of(counts: Sequence[int], device: torch.device | None = None) -> Tensor:
    """Return the owner of each row, where examples have so many rows, one behind the other."""
    return torch.arange(len(counts), device=device).repeat_interleave(torch.tensor(counts, device=device))


def layout_of(tensors: Sequence[tuple[Path, Tensor]], size: int, known: Mapping[Path, Role] | None = None) -> Layout:
    """Return how nested inputs hold `size` examples.

    Args:
        tensors: with at least one dimension each, by their paths.
        size: B.
        known: the roles that tensors have had, or have in the loader's item, where several would fit.
    """
    known = known or {}
    counts = _divisions(tensors, size, known)
    links = _links(tensors, counts, known) if counts else {}
    division = {**{total: found for total, (found, _) in links.items()}, **counts}
    clashing = {total for total in links if total in counts and links[total][0] != counts[total]}
    roles: dict[Path, Role] = {}
    for path, tensor in tensors:
        expected = known.get(path)
        kind = _mark(tensor, size, division, expected) if counts else None
        if kind is not None:
            roles[path] = kind
        elif any(path in paths for _, paths in links.values()):
            roles[path] = Role.LINKS
        else:
            roles[path] = _of_rows(tensor, size, division, clashing, expected)
    return Layout(roles, counts, {total: found for total, (found, _) in links.items()})


def _of_rows(
    tensor: Tensor, size: int, division: Mapping[int, list[int]], clashing: set[int], expected: Role | None
) -> Role:
    """Return the role of a tensor that says nothing of where examples begin."""
    length, has_second = tensor.shape[0], tensor.ndim > 1 and tensor.shape[1] == size
    if (expected is Role.FIRST and length != size) or (expected is Role.SECOND and not has_second):
        return Role.CONSTANT if length == 1 else Role.LOST
    is_flat = length in division and length not in clashing
    if length in clashing:
        return Role.LOST  # as many links as rows
    if is_flat and length == size and expected not in (Role.FLAT, Role.FIRST):
        return Role.FIRST if set(division[length]) == {1} else Role.LOST
    if is_flat and expected is not Role.SECOND and (length != size or expected is Role.FLAT):
        return Role.FLAT
    if length == size:
        return Role.SECOND if has_second and expected is Role.SECOND else Role.FIRST
    if has_second and (length != 1 or expected is Role.SECOND):
        return Role.SECOND
    return Role.CONSTANT if length == 1 else Role.LOST


# Where examples begin ------------------------------------------------------------------------------------------------


def _divisions(tensors: Sequence[tuple[Path, Tensor]], size: int, known: Mapping[Path, Role]) -> dict[int, list[int]]:
    """Return for each number of flat rows how many of them each example has, where all that tells it agrees."""
    lengths = {part.shape[0] for path, part in tensors if known.get(path) is not Role.SECOND} - {1, size}
    lengths |= {part.shape[0] for path, part in tensors if known.get(path) is Role.FLAT}
    # Beginnings alone prove little: labels in order look like them, and so does a time-first tensor like flat rows.
    plain = {
        tensor.shape[0] for path, tensor in tensors if known.get(path) is Role.FLAT or not _is_turned(tensor, size)
    }
    found: dict[int, dict[tuple[int, ...], set[bool]]] = {}
    for path, tensor in tensors:
        expected = known.get(path)
        if expected in (Role.FIRST, Role.SECOND, Role.FLAT, Role.LINKS):
            continue
        for kind, total, counts in _readings(tensor, size, lengths, expected):
            if kind is Role.STARTS and total not in plain:
                continue
            found.setdefault(total, {}).setdefault(tuple(counts), set()).add(expected in MARKS)
    divisions = {}
    for total, readings in found.items():
        sure = [counts for counts, is_known in readings.items() if True in is_known] or list(readings)
        if len(sure) == 1:
            divisions[total] = list(sure[0])
    return divisions


def _is_turned(tensor: Tensor, size: int) -> bool:
    return tensor.ndim > 1 and tensor.shape[1] == size != tensor.shape[0]


def _readings(
    tensor: Tensor, size: int, lengths: set[int], expected: Role | None
) -> Iterator[tuple[Role, int, list[int]]]:
    """Yield `(kind, total, counts)` for what a tensor may say of where examples begin."""
    if tensor.ndim != 1 or tensor.dtype not in INTEGERS or not tensor.numel():
        return
    length = tensor.shape[0]
    may_own = length not in (1, size) or expected is Role.OWNERS
    if length not in (size, size + 1) and not may_own:
        return
    numbers = tensor.tolist()
    if numbers[0] < 0 or any(a > b for a, b in itertools.pairwise(numbers)):
        return
    if may_own and numbers[-1] < size and expected in (None, Role.OWNERS):
        yield Role.OWNERS, length, torch.bincount(tensor.long(), minlength=size).tolist()
    if numbers[0] != 0:
        return
    if length == size + 1 and expected in (None, Role.BOUNDS) and (numbers[-1] in lengths or numbers[-1] == size):
        yield Role.BOUNDS, numbers[-1], [b - a for a, b in itertools.pairwise(numbers)]
    if length == size and expected in (None, Role.STARTS):
        for total in lengths:
            if total >= numbers[-1]:
                yield Role.STARTS, total, [b - a for a, b in itertools.pairwise([*numbers, total])]


def mark_candidates(tensors: Sequence[tuple[Path, Tensor]], size: int) -> list[tuple[Path, Role]]:
    """Return which tensors may say where examples begin, and how."""
    lengths = {tensor.shape[0] for _, tensor in tensors} - {1, size}
    return [
        (path, kind)
        for path, tensor in tensors
        for kind in dict.fromkeys(kind for kind, _, _ in _readings(tensor, size, lengths, None))
    ]


def _mark(tensor: Tensor, size: int, division: Mapping[int, list[int]], expected: Role | None) -> Role | None:
    """Return in which way a tensor says how flat rows are divided; None for a tensor that does not."""
    if expected in (Role.FIRST, Role.SECOND, Role.FLAT, Role.LINKS):
        return None
    for kind, total, counts in _readings(tensor, size, set(division), expected):
        if division.get(total) == counts:
            return kind
    return None


def _links(
    tensors: Sequence[tuple[Path, Tensor]], counts: Mapping[int, list[int]], known: Mapping[Path, Role]
) -> dict[int, tuple[list[int], set[Path]]]:
    """Return for each number of pairs `[2, E]` how many each example has, and where they are."""
    found: dict[int, tuple[list[int], set[Path]]] = {}
    for path, tensor in tensors:
        is_pairs = tensor.ndim == 2 and tensor.shape[0] == 2 and tensor.dtype in INTEGERS
        if not is_pairs or known.get(path) not in (None, Role.LINKS) or tensor.shape[1] == 0:
            continue
        divisions = [own for total, own in counts.items() if int(tensor.max()) < total and int(tensor.min()) >= 0]
        if len(divisions) != 1:
            continue
        owners = owners_of(divisions[0], tensor.device)[tensor.long()]
        is_within = torch.equal(owners[0], owners[1]) and bool((owners[0].diff() >= 0).all())
        own = torch.bincount(owners[0], minlength=len(divisions[0])).tolist() if is_within else None
        earlier = found.get(tensor.shape[1])
        if own is not None and (earlier is None or earlier[0] == own):
            found[tensor.shape[1]] = own, {path} | (set() if earlier is None else earlier[1])
    return found
