"""Does one example's loss depend on another's output or target? Asked of the losses, and of the criterion."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from hushgrad.errors import CrossSampleLeakError, where_raised
from hushgrad.guards.probing.calls import SEED
from hushgrad.guards.probing.finite import repairs
from hushgrad.guards.probing.kept import Key
from hushgrad.guards.probing.lifting import Lifted, lifted
from hushgrad.guards.probing.rows import Batch, batch_axes, rows_agree, split_examples
from hushgrad.guards.probing.state import SAMPLES, State, following, forked_randomness
from hushgrad.guards.probing.state_values import differs_by_itself
from hushgrad.guards.probing.trees import Path, tensors_at, with_tensors
from hushgrad.guards.probing.widths import OwnWidth, cut_to
from hushgrad.separation import Separation

CURE = (
    "Give each example a loss of its own: average over its own elements or tokens and divide by nothing that the batch "
    "decides (its size, its number of tokens, its class counts); contrast with no other example of the batch"
)


class Criterion(Protocol):
    """A criterion as the probe sees it; `engine.per_example` makes one."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def watched(self) -> Any:
        """The loss module, function or object whose state is watched."""

    def losses(self, output: Any, target: Any) -> Tensor:
        """Return the losses of the examples, `[B]`."""


def require_separate_losses(losses: Tensor, outputs: Iterable[Tensor]) -> bool:
    """Refuse losses of which one depends, by its graph, on another example's rows of the model's outputs.

    What reaches a loss without a gradient (targets, detached values) is not seen here. A loss that is not finite says
    nothing of others', since 0 times Inf is NaN: where a backward of zeros gives NaN as well, nothing came through. It
    gives NaN at such examples alone, unless they are mixed with others.

    Args:
        losses: `[B]`, with their graph, which is kept.
        outputs: tensors that the model returned. The examples lie on axis 0 of those with B rows or a multiple.

    Returns whether it could be told: of two examples at least, unless B is 1.

    Raises:
        CrossSampleLeakError: with the cure.
    """
    size = losses.shape[0]
    held = [tensor for tensor in outputs if tensor.requires_grad and any(n and n % size == 0 for n in tensor.shape)]
    if size < 2 or not losses.requires_grad or not held:
        return True
    found = Separation(losses, held)
    suspects = found.suspects()
    if not suspects:
        return True
    silent = found.spoiled()
    finite = found.finite()
    is_spread = bool(silent & finite) and len(finite) < size
    if is_spread or found.mixes(suspects, silent):
        raise CrossSampleLeakError(
            "the loss of one example depends on the outputs of others in its batch: its gradient with respect to them "
            "is not 0",
            cure=CURE,
        )
    return size - len(silent) > 1 and not silent & finite


@dataclass(frozen=True, eq=False)
class Runs:
    """What a model returned for a batch and for altered ones.

    Attributes:
        whole: for the batch itself.
        exchanged: for the batch in which the `chosen` examples were exchanged.
        chosen: their numbers.
        fewer: for the batch without the example `left_out`; None where random numbers forbid to compare.
        left_out: its number.
        alone: short records by themselves, each with its own width, what it gave, and whether padding is on the left.
    """

    whole: Any
    exchanged: Any
    chosen: Sequence[int]
    fewer: Any
    left_out: int
    alone: Sequence[tuple[OwnWidth, Any, bool]]


class CriterionProbe:
    """Evaluates a criterion again on altered outputs and targets.

    Attributes:
        unread: what the criterion keeps and could not be looked into, in words.
    """

    def __init__(self, criterion: Criterion, state: State | None = None) -> None:
        """Begin; `state` is what the criterion kept before it was called for the batch, where that is known."""
        self._criterion = criterion
        self._state = State(criterion.watched) if state is None else state
        self.unread = self._state.unread
        self._lifting = Lifted(None, {})
        self.axes: Mapping[Path, int] = {}
        """The axis of the examples in each tensor of `(output, target)` that holds them, once that was examined."""

    def examine(self, output: Any, target: Any, size: int, runs: Runs | None, losses: Tensor | None = None) -> bool:
        """Refuse a criterion that gives an example another loss when the others change.

        Examples whose losses are not finite are replaced by others, which tell more.

        Args:
            output, target: what the criterion was given for a batch of `size` examples.
            size: B, at least 2.
            runs: what the model gave for this batch and for altered ones, if `output` is what it returned.
            losses: what the criterion gave for these examples among others of their batch, if they are a part of one.

        Returns whether it could be told. It cannot where the criterion runs on no values that give finite losses.

        Raises:
            CrossSampleLeakError: naming the criterion.
        """
        now = State(self._criterion.watched)
        self._state.restore()
        try:
            self._lifting = lifted((output, target), size, outer=1)
            output, target = self._lifting.value
            if losses is not None:
                self._require_equal(losses, self._run(output, target)[0], [], "were left out")
            return self._examine(output, target, size, runs)
        finally:
            now.restore()

    def _examine(self, output: Any, target: Any, size: int, runs: Runs | None) -> bool:
        output, target, base, still, is_told = self._finite(output, target, size)
        again, _ = self._run(output, target)
        if not rows_agree(base, again):
            raise CrossSampleLeakError(
                "gives other losses when it is run again on the same values, so it keeps something from one call to "
                "the next",
                where=self._place,
                cure=CURE,
            )
        self.axes = self._require_fewer(output, target, size, base)
        batch = Batch((output, target), self.axes, size)
        for chosen in split_examples(size):
            changed, moved = self._run(*batch.exchanged(chosen, away=False))
            self._require_equal(base, changed, chosen, "were exchanged")
            for key in following(still, moved):
                samples = [still, *(self._run(output, target)[1] for _ in range(SAMPLES))]
                *same, other = [found.get(key, self._state.saved(key)) for found in (*samples, moved)]
                if not self._state.is_unsteady(key, samples) and not differs_by_itself(same, other):
                    raise CrossSampleLeakError(
                        f"keeps {self._state.place(key)!r}, which follows the data and may enter later losses",
                        where=self._place,
                        cure=CURE,
                    )
        if runs is not None:
            self._require_separate_through_model(target, size, runs)
        return is_told

    def _finite(self, output: Any, target: Any, size: int) -> tuple[Any, Any, Tensor, dict[Key, Any], bool]:
        """Return arguments whose losses are finite, with what the criterion gives for them, and whether they are.

        Raises:
            CrossSampleLeakError: not even values between 0 and 1 give finite losses.
        """
        losses, moved = self._run(output, target)
        axes = batch_axes((output, target), size)
        if bool(losses.isfinite().all()) or losses.shape != (size,) or not axes:
            return output, target, losses, moved, True
        spoiled = [int(row) for row in losses.isfinite().logical_not().nonzero()]
        failed = False
        for batch in repairs(Batch((output, target), axes[0], size), spoiled):
            try:
                found, left = self._run(*batch.value)
            except Exception:  # content that the criterion cannot take
                failed = True
                continue
            if bool(found.isfinite().all()):
                return *batch.value, found, left, True
        if not failed:
            raise CrossSampleLeakError(
                "gives losses that are not finite even for outputs and targets between 0 and 1, so it keeps something "
                "from one call to the next that an example has made NaN or Inf",
                where=self._place,
                cure=CURE,
            )
        return output, target, losses, moved, False

    @property
    def _place(self) -> str:
        return f"criterion {self._criterion.name}"

    def _run(self, output: Any, target: Any) -> tuple[Tensor, dict[Key, Any]]:
        devices = [tensor.device for _, tensor in tensors_at((output, target))]
        try:
            with torch.no_grad(), forked_randomness(devices, SEED):
                found = self._criterion.losses(*self._lifting.lowered((output, target))).detach()
            return found, self._state.moved()
        finally:
            self._state.restore()

    def _require_fewer(self, output: Any, target: Any, size: int, base: Tensor) -> dict[Path, int]:
        """Leave one example out, and return which of the arguments hold the batch, and where."""
        example = size - 1
        failure: Exception | None = None
        for axes in batch_axes((output, target), size):
            batch = Batch((output, target), axes, size)
            try:
                fewer, _ = self._run(*batch.without(example))
            except Exception as error:
                failure = failure or error
                continue
            if fewer.shape == (size - 1,):
                self._require_equal(base, fewer, [example], "were left out")
                return axes
        came = "" if failure is None else f" ({where_raised(failure)})"
        raise CrossSampleLeakError(
            f"cannot be evaluated without one of the examples{came}, so it depends on how many there are",
            where=self._place,
            cure=f"Pass everything that belongs to an example in its two arguments, which may be tuples or "
            f"dictionaries. {CURE}",
        ) from None

    def _require_separate_through_model(self, target: Any, size: int, runs: Runs) -> None:
        """The same with the values that the model itself gave: scalars among its outputs may carry the batch."""
        base, _ = self._run(runs.whole, target)
        try:
            changed, _ = self._run(runs.exchanged, target)
        except Exception:
            return  # the exchanged examples' own values are out of the criterion's range
        self._require_equal(base, changed, runs.chosen, "were exchanged")
        if runs.fewer is not None and (axes := batch_axes(target, size)):
            fewer, _ = self._run(runs.fewer, Batch(target, axes[0], size).without(runs.left_out))
            self._require_equal(base, fewer, [runs.left_out], "were left out")
        for width, output, left in runs.alone:
            self._require_same_alone(base, target, size, width, output, left)

    def _require_same_alone(
        self, base: Tensor, target: Any, size: int, width: OwnWidth, output: Any, left: bool
    ) -> None:
        """A short record must have the loss that it has at its own width."""
        axes = next(iter(batch_axes(target, size)), {})

        def cut(path: Path, tensor: Tensor) -> Tensor:
            return cut_to(tensor, width, axes.get(path), left)

        try:
            found, _ = self._run(output, with_tensors(Batch(target, axes, size).only([width.row]), cut))
        except Exception:
            return  # targets that the loop would not cut in this way
        if found.shape == (1,) and not rows_agree(base[width.row : width.row + 1], found):
            raise CrossSampleLeakError(
                "gives an example another loss when it is padded to a longer one of its batch than it gives it alone",
                where=self._place,
                cure="Average over the example's own tokens, and leave padding out",
            )

    def _require_equal(self, base: Tensor, changed: Tensor, altered: Sequence[int], what: str) -> None:
        kept = [row for row in range(base.shape[0]) if row not in altered]
        others = base[kept]
        if changed.shape == base.shape:
            changed = changed[kept]
        if changed.shape != others.shape or not rows_agree(others, changed):
            raise CrossSampleLeakError(
                f"makes the loss of one example depend on the others: when some of them {what}, the losses of others "
                f"changed",
                where=self._place,
                cure=CURE,
            )
