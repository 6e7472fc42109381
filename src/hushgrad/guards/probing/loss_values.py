"""What a value in the graph of a loss is, and how layouts change: values of single examples, or sums over them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

Shape = tuple[int, ...]
Key = tuple[int, int]
"""An output of the model: the number of the node that made it, and which of the node's outputs it is."""


class Law(NamedTuple):
    """How values depend on an output of the model, from which a weight on them can be told by a gradient.

    `kind`: "classes" (log-probabilities), "bernoulli", "square" or "absolute"; `output`: its key; `classes`: how many.
    """

    kind: str
    output: Key
    classes: int = 0


class PerExample(NamedTuple):
    """Values of single examples. `axis` holds the examples, None where no one axis does.

    `raw`: the output of the model (its key) whose own values these are, arranged anew, else None; `shifted`: or that
    output less a constant, or without some of its values. `law`: what is known of these values, or what is linear in
    them. `grown`: the length of an axis that came by broadcasting against something that is no output, and the shape it
    came in. `picked`: whether values of the batch were chosen, so that examples may have different numbers of them.
    """

    axis: int | None
    raw: Key | None = None
    shifted: bool = False
    law: Law | None = None
    grown: tuple[int, Shape] | None = None
    picked: bool = False


class Term(NamedTuple):
    """One reduction over the examples of the batch, as it enters the loss.

    `kind`: "mean", "sum", "model" (a scalar that the model returned), "vouched" (a sum of losses that were examined,
    which its own backward holds to its gradient) or "other". `is_plain`: False where it has a factor that the graph
    does not show. `counts`: whether it is divided by a number of chosen values (of targets that
    are not ignored, say). `is_weighted`: whether classes have weights. `law`: see `PerExample`.
    """

    kind: str
    is_plain: bool = True
    counts: bool = False
    is_weighted: bool = False
    law: Law | None = None


class Total(NamedTuple):
    """A linear function of reductions over the examples."""

    terms: tuple[Term, ...]

    def scaled(self) -> Total:
        """Return it with a factor that is not known."""
        return Total(tuple(term._replace(is_plain=False) for term in self.terms))


class Unread(NamedTuple):
    """A value of which nothing is known, and why."""

    why: str


Value = PerExample | Total | Unread | None
"""None is a constant: it does not come from the model."""


class LossOperator(NamedTuple):
    """One operator of a graph: its node and the shape it made, and what it was given, constants as None and ()."""

    name: str
    node: Any
    shape: Shape
    values: list[Value]
    shapes: list[Shape]


@dataclass(eq=False)
class Reading:
    """What was read of one loss.

    Attributes:
        size: B, the number of examples.
        value: what the loss is.
        loss: its number.
        faults: what makes it no mean and no sum of one loss for each example; the first one is told.
        broadcasts: the lengths that came about by broadcasting against something that is no output, and their shapes.
        divisors: for every mean, how many values of one example it is over, in the order of the graph.
        operators: the names of all operators, in that order.
        outputs: the model's outputs that the loss was made of, and what each is taken for.
        has_own: whether a part of the loss is not from losses that were examined elsewhere.
        has_vouched: whether a part is.
        has_inner: whether a part comes from inside the model, past its outputs.
        uneven: means over numbers of values that are no multiple of B; faults unless `cuts` hold all examples.
        cuts: which parts of the batch were cut out, and of how many.
        has_leaf: whether gradients go to something that is neither the model nor examined.
        is_rounded: whether the gradient of a sum over the batch, of what is unread, or of a criterion that divides
            twice, is rounded to 16 bits: maybe before it was divided, or after.
        has_narrow: whether values of single examples are in 16 bits between the outputs and the loss.
        means: the nodes of means over the batch.
    """

    size: int
    value: Value = None
    loss: Any = None
    faults: list[str] = field(default_factory=list)
    broadcasts: list[tuple[int, Shape]] = field(default_factory=list)
    divisors: list[float] = field(default_factory=list)
    operators: list[str] = field(default_factory=list)
    outputs: dict[Key, Value] = field(default_factory=dict)
    has_own: bool = False
    has_vouched: bool = False
    has_inner: bool = False
    uneven: list[str] = field(default_factory=list)
    cuts: list[tuple[range, int]] = field(default_factory=list)
    has_leaf: bool = False
    is_rounded: bool = False
    has_narrow: bool = False
    means: list[Any] = field(default_factory=list)

    def mixes(self, what: str) -> None:
        """Note that the loss depends on the batch as a whole."""
        self.faults.append(
            f"the loss depends on the batch as a whole ({what}), so that the gradient of one example depends on the "
            f"others"
        )

    def is_cut_whole(self) -> bool:
        """Whether what was cut out of the batch holds all of it."""
        lengths = {length for _, length in self.cuts}
        return any(
            len({place for part, whole in self.cuts if whole == length for place in part}) == length
            for length in lengths
        )

    def note_broadcast(self, value: PerExample) -> None:
        """Take note that values are reduced which were broadcast before."""
        if value.grown is not None:
            self.broadcasts.append(value.grown)


def moved_axis(axis: int | None, old: Shape, new: Shape, size: int) -> int | None:
    """Return where the axis of `size` examples lies after values were laid out in another shape, None if nowhere."""
    if axis is None:
        return None
    before = prefix = 1
    for length in old[:axis]:
        before *= length
    for place, length in enumerate(new):
        if prefix == before and length and length % size == 0:
            return place
        prefix *= length
    return None


def broadcast_axis(axis: int, old: Shape, new: Shape, size: int) -> tuple[int, int | None]:
    """Return the axis of the examples after broadcasting, and the length that another axis came to have, if any did.

    Of several that of `size` examples is told.
    """
    added = len(new) - len(old)
    axis += added
    grown = [
        length
        for place, length in enumerate(new)
        if length != 1 and place != axis and (place < added or old[place - added] == 1)
    ]
    return axis, size if size in grown else grown[-1] if grown else None


def axes_of(dims: Any, rank: int) -> tuple[int, ...]:
    """Return the axes that a node works along as it saved them; all of them for None and ().

    Graphs keep negative axes as unsigned numbers of 64 bits.
    """
    if dims is None or dims == ():
        return tuple(range(rank))
    given = dims if isinstance(dims, tuple) else (dims,)
    return tuple((dim - 2**64 if dim >= 2**63 else dim) % max(rank, 1) for dim in given)
