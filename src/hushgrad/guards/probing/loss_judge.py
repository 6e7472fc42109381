"""Is a loss that was read the declared mean or sum of one loss for each example?

What surely is not is refused. A divisor that the graph does not show is told from the gradient where that can be, and
must not follow the batch: divided by the number of tokens in it, say, each example is scaled by what the others hold.
"""

from __future__ import annotations

import math

from torch import Tensor

from hushgrad.accounting.conditions import INNER_LOSS, LOSS_OF_MODEL, OWN_LOSS, UNREAD_LOSS, Condition
from hushgrad.errors import CrossSampleLeakError, LossShapeError
from hushgrad.guards.probing.counted_rows import Counted, CountedRows, counted_values
from hushgrad.guards.probing.loss_values import Key, Law, PerExample, Reading, Shape, Term, Total, Unread

CLOSE = 1e-4
"""A divisor this near to a number of parts, relative to it, is that number."""

SAME = 2e-3
"""Two divisors are the same if they differ by less than this, relative to the larger."""

MOST_KINDS = 64
"""Of so many kinds of losses it is remembered what they divided by."""

CURE = (
    "Give each example one loss, averaged over its own elements or tokens, and divide by nothing that the batch "
    "decides: engine.per_example(criterion), or engine.session.backward(losses) with losses of shape [B]"
)

Shown = tuple[Key, Tensor, Tensor | None]
Kind = tuple[str, ...]
"""The operators of a loss, in order: losses of one kind come from the same lines of the loop."""


class LossJudge:
    """Judges the losses of one session, and remembers what they divided by."""

    def __init__(self, loss_reduction: str) -> None:
        self._loss_reduction = loss_reduction
        self._divisors: dict[Kind, tuple[float, ...]] = {}
        self._lengths: dict[Kind, set[int]] = {}
        self._cleared: set[Kind] = set()

    def judge(self, reading: Reading, shown: Shown | None) -> list[Condition]:
        """Return what is on trust with a loss.

        Args:
            reading: of the loss.
            shown: an output of the model that it was made of, the gradient that came back to this output and the
                output's values, or None for those where they are gone. None where other losses gave gradients too.

        Raises:
            CrossSampleLeakError: one example changes the gradient of others.
            LossShapeError: outputs were broadcast against targets, or the loss is a sum where a mean was declared.
        """
        inner = [INNER_LOSS] if reading.has_inner else []
        if reading.size == 1:  # one example alone: nothing that it could be mixed with
            own = [UNREAD_LOSS if isinstance(reading.value, Unread) else OWN_LOSS]
            return [*inner, *(own if reading.has_own else [])]
        if reading.faults:
            raise CrossSampleLeakError(reading.faults[0], cure=CURE)
        if not reading.has_own and self._is_declared(reading):
            is_unread = isinstance(reading.value, Unread) and not reading.has_inner
            return [*inner, *([UNREAD_LOSS] if is_unread else [])]
        return [*inner, *self._judge_own(reading, shown)]

    def _is_declared(self, reading: Reading) -> bool:
        """Whether examined losses were reduced as declared, as far as their graph could be read."""
        if not reading.has_vouched or isinstance(reading.value, Unread):
            return True
        kinds = {"vouched", "model", self._loss_reduction}
        return isinstance(reading.value, Total) and all(term.kind in kinds for term in reading.value.terms)

    def _judge_own(self, reading: Reading, shown: Shown | None) -> list[Condition]:
        kind = tuple(reading.operators)
        self._refuse_pairs(reading, kind)
        if not isinstance(reading.value, Total):
            self._require_steady(kind, tuple(reading.divisors))
            return [UNREAD_LOSS]
        terms = reading.value.terms
        self._refuse_other_reduction(terms)
        divisors = self._divisors_shown(reading, kind, shown)
        self._require_steady(kind, (*reading.divisors, *(divisors or ())))
        own = [UNREAD_LOSS if divisors is None else OWN_LOSS] if any(term.kind != "model" for term in terms) else []
        return [*own, *([LOSS_OF_MODEL] if any(term.kind == "model" for term in terms) else [])]

    def _refuse_pairs(self, reading: Reading, kind: Kind) -> None:
        """Refuse values that were broadcast to the batch's length, unless other batches had this length there too."""
        known = self._lengths.get(kind, set())
        for length, shape in reading.broadcasts:
            if length != reading.size:
                known.add(length)
            elif length not in known:
                raise LossShapeError(
                    f"an output of the model was broadcast against the targets (to shape {list(shape)}, for "
                    f"{reading.size} examples), so that one example's loss contains another one's target",
                    cure="Give both the same shape",
                )
        if known and (kind in self._lengths or len(self._lengths) < MOST_KINDS):
            self._lengths[kind] = known

    def _refuse_other_reduction(self, terms: tuple[Term, ...]) -> None:
        declared, other = self._loss_reduction, {"mean": "sum", "sum": "mean"}[self._loss_reduction]
        if any(term.kind == other and term.is_plain for term in terms):
            raise LossShapeError(
                f"loss_reduction is {declared!r}, and the loss (or a part of it) is a {other} over the batch: each "
                f"example's gradient would be scaled by the number of examples in the batch, which is no constant",
                cure=f"Pass loss_reduction={other!r}, or make every part of the loss a {declared} over the batch",
            )

    def _divisors_shown(self, reading: Reading, kind: Kind, shown: Shown | None) -> tuple[float, ...] | None:
        """Return what the gradient shows of divisors that the graph does not hold; None where it does not show them."""
        assert isinstance(reading.value, Total)
        terms, size = reading.value.terms, reading.size
        hidden = [term for term in terms if _is_hidden(term)]
        if not hidden:
            return ()
        if shown is None or shown[0] not in reading.outputs or len(reading.outputs) > 1:
            return None
        key, gradient, values = shown
        laws = {term.law for term in hidden}
        (law,) = laws if len(laws) == 1 else (None,)
        layout = reading.outputs[key]
        if law is None or law.output != key or not isinstance(layout, PerExample):
            return None
        if layout.axis is None:
            return None
        counted: Counted | None
        if law.kind == "classes":
            rows = CountedRows(gradient, values, layout.axis, size, law.classes)
            needs_weight = any(term.is_weighted or not term.counts for term in hidden)
            counted = rows.found(with_weight=needs_weight, smoothed=len(terms) > 1) if rows.is_known else None
        else:
            loss = float(reading.loss) if len(terms) == 1 else math.nan
            counted = counted_values(law.kind, gradient, values, loss, layout.axis, size)
        if counted is None:
            return None
        _refuse_uneven(counted, hidden)
        if all(term.counts for term in hidden):
            return (counted.total / size,)
        return self._divisor(counted, law, tuple(gradient.shape), kind, size)

    def _divisor(self, counted: Counted, law: Law, shape: Shape, kind: Kind, size: int) -> tuple[float, ...] | None:
        """Return what a sum is divided by, for each example of the batch, None where it cannot be compared.

        A sum that is divided by the number of its parts shows in the first batch in which examples have different
        numbers of them; a loss that was divided by something else there is not suspected again.
        """
        if counted.weight is None:
            return None
        divisor = 1 / counted.weight
        if counted.least != counted.most and kind not in self._cleared:
            lengths = {1} if law.kind == "classes" else _products(shape)
            if any(abs(divisor * length - counted.total) < CLOSE * counted.total for length in lengths):
                raise CrossSampleLeakError(
                    "the loss is divided by the number of tokens (or elements) in the batch, of which the examples "
                    "have different numbers: one example changes what the others' gradients are divided by",
                    cure=CURE,
                )
            if len(self._cleared) < MOST_KINDS:
                self._cleared.add(kind)
        return None if law.kind == "square" else (divisor / size,)

    def _require_steady(self, kind: Kind, divisors: tuple[float, ...]) -> None:
        """Refuse a loss that divides an example's part by another number than in an earlier batch."""
        earlier = self._divisors.get(kind, ())
        if len(divisors) > len(earlier) and (kind in self._divisors or len(self._divisors) < MOST_KINDS):
            self._divisors[kind] = divisors
        for one, other in zip(earlier, divisors, strict=False):
            if abs(one - other) > SAME * max(one, other):
                raise CrossSampleLeakError(
                    "the loss divides each example's part by another number than in an earlier batch (its longest "
                    "record, its number of tokens, a size that is not this batch's), so that one example changes what "
                    "the others' gradients are divided by",
                    cure=CURE,
                )


def _is_hidden(term: Term) -> bool:
    """Whether a reduction divides by a number that its graph does not show."""
    return term.counts or term.kind == "other" or (term.kind == "sum" and not term.is_plain)


def _refuse_uneven(counted: Counted, hidden: list[Term]) -> None:
    """Refuse means over what was chosen of each example, if not of all the same number, or with other weights."""
    if any(term.counts for term in hidden) and counted.least != counted.most:
        raise CrossSampleLeakError(
            "the loss is a mean over the targets (or values) that are not left out, of which the examples have "
            "different numbers: one example changes what the others' gradients are divided by",
            cure=CURE,
        )
    if any(term.is_weighted for term in hidden) and counted.weight is None:
        raise CrossSampleLeakError(
            "the loss is a mean with class weights, which divides by the sum of the batch's weights: one example "
            "changes what the others' gradients are divided by",
            cure=CURE,
        )


def _products(shape: Shape) -> set[int]:
    """Return how many elements a part may have: products of some of the lengths of an output."""
    found = {1}
    for length in shape:
        found |= {length * other for other in found}
    return found
