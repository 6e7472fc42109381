"""Does one example's loss depend on another's output or target? Asked of the losses, and of the criterion."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor

from hushgrad.errors import CrossSampleLeakError, where_raised
from hushgrad.guards.probing.calls import SEED
from hushgrad.guards.probing.finite import repairs
from hushgrad.guards.probing.kept import Key
from hushgrad.guards.probing.lifting import Lifted, lifted
from hushgrad.guards.probing.narrowing import cut_to
from hushgrad.guards.probing.rows import Batch, batch_axes, rows_agree, split_examples
from hushgrad.guards.probing.state import SAMPLES, State, following, forked_randomness
from hushgrad.guards.probing.state_values import differs_by_itself
from hushgrad.guards.probing.trees import DESCEND, Path, tensors_at, with_parts, with_tensors
from hushgrad.guards.probing.widths import OwnWidth
from hushgrad.losses import Arguments
from hushgrad.separation import Separation

CURE = (
    "Give each example a loss of its own: average over its own elements or tokens and divide by nothing that the batch "
    "decides (its size, its number of tokens, its class counts); contrast with no other example of the batch"
)


NOWHERE: Mapping[Path, Path] = MappingProxyType({})


class Criterion(Protocol):
    """A criterion as the probe sees it; `engine.per_example` makes one."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def watched(self) -> Any:
        """The loss module, function or object whose state is watched."""

    def losses(self, *arguments: Any, **named: Any) -> Tensor:
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
    if not silent and len(held) == 1 and found.is_in_another_order():
        raise CrossSampleLeakError(
            "the losses come in another order than the model's rows: the loop put rows into another order on the way "
            "to the model or back, so that the loss of one example is of another one's output",
            cure="Put the records into that order in collate_fn, or leave them in theirs (pack_padded_sequence: "
            "enforce_sorted=False)",
        )
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
    """Evaluates a criterion again on altered arguments: outputs, targets, and whatever else it takes.

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
        """The axis of the examples in each tensor of the arguments that holds them, once that was examined."""

    def examine(
        self,
        arguments: Arguments,
        size: int,
        runs: Runs | None = None,
        losses: Tensor | None = None,
        places: Mapping[Path, Path] = NOWHERE,
    ) -> bool:
        """Refuse a criterion that gives an example another loss when the others change.

        Examples whose losses are not finite are replaced by others, which tell more.

        Args:
            arguments: what the criterion was given for a batch of `size` examples.
            size: B, at least 2.
            runs: what the model gave for this batch and for altered ones, if arguments are what it returned.
            losses: what the criterion gave for these examples among others of their batch, if they are a part of one.
            places: where in the arguments what the model returned is, or a part, and where that is in what it returned.

        Returns whether it could be told. It cannot where the criterion runs on no values that give finite losses.

        Raises:
            CrossSampleLeakError: naming the criterion.
        """
        now = State(self._criterion.watched)
        self._state.restore()
        try:
            self._lifting = lifted(arguments, size, outer=2)
            if losses is not None:
                self._require_equal(losses, self._run(self._lifting.value)[0], [], "were left out")
            return self._examine(self._lifting.value, size, runs, places)
        finally:
            now.restore()

    def _examine(self, arguments: Any, size: int, runs: Runs | None, places: Mapping[Path, Path]) -> bool:
        arguments, base, still, is_told = self._finite(arguments, size)
        again, _ = self._run(arguments)
        if not rows_agree(base, again):
            raise CrossSampleLeakError(
                "gives other losses when it is run again on the same values, so it keeps something from one call to "
                "the next",
                where=self._place,
                cure=CURE,
            )
        self.axes = self._require_fewer(arguments, size, base)
        batch = Batch(arguments, self.axes, size)
        for chosen in split_examples(size):
            changed, moved = self._run(batch.exchanged(chosen, away=False))
            self._require_equal(base, changed, chosen, "were exchanged")
            for key in following(still, moved):
                samples = [still, *(self._run(arguments)[1] for _ in range(SAMPLES))]
                *same, other = [found.get(key, self._state.saved(key)) for found in (*samples, moved)]
                if not self._state.is_unsteady(key, samples) and not differs_by_itself(same, other):
                    raise CrossSampleLeakError(
                        f"keeps {self._state.place(key)!r}, which follows the data and may enter later losses",
                        where=self._place,
                        cure=CURE,
                    )
        if runs is not None:
            self._require_separate_through_model(batch, runs, places)
        return is_told

    def _finite(self, arguments: Any, size: int) -> tuple[Any, Tensor, dict[Key, Any], bool]:
        """Return arguments whose losses are finite, with what the criterion gives for them, and whether they are.

        Raises:
            CrossSampleLeakError: not even values between 0 and 1 give finite losses.
        """
        losses, moved = self._run(arguments)
        ways = batch_axes(arguments, size)
        if bool(losses.isfinite().all()) or losses.shape != (size,) or not ways:
            return arguments, losses, moved, True
        spoiled = [int(row) for row in losses.isfinite().logical_not().nonzero()]
        failed = False
        for batch in chain.from_iterable(repairs(Batch(arguments, axes, size), spoiled) for axes in ways):
            try:
                found, left = self._run(batch.value)
            except Exception:  # content that the criterion cannot take
                failed = True
                continue
            if bool(found.isfinite().all()):
                return batch.value, found, left, True
        if not failed:
            raise CrossSampleLeakError(
                "gives losses that are not finite even for outputs and targets between 0 and 1, so it keeps something "
                "from one call to the next that an example has made NaN or Inf",
                where=self._place,
                cure=CURE,
            )
        return arguments, losses, moved, False

    @property
    def _place(self) -> str:
        return f"criterion {self._criterion.name}"

    def _run(self, arguments: Any) -> tuple[Tensor, dict[Key, Any]]:
        devices = [tensor.device for _, tensor in tensors_at(arguments)]
        try:
            with torch.no_grad(), forked_randomness(devices, SEED):
                by_place, by_name = self._lifting.lowered(arguments)
                found = self._criterion.losses(*by_place, **by_name).detach()
            return found, self._state.moved()
        finally:
            self._state.restore()

    def _require_fewer(self, arguments: Any, size: int, base: Tensor) -> dict[Path, int]:
        """Leave one example out, and return which of the arguments hold the batch, and where."""
        example = size - 1
        failure: Exception | None = None
        for axes in batch_axes(arguments, size):
            batch = Batch(arguments, axes, size)
            try:
                fewer, _ = self._run(batch.without(example))
            except Exception as error:
                failure = failure or error
                continue
            if fewer.shape == (size - 1,):
                self._require_equal(base, fewer, [example], "were left out")
                return axes
        came = "" if failure is None else f" ({where_raised(failure)})"
        raise CrossSampleLeakError(
            f"cannot be evaluated without one of the examples{came}: it depends on how many there are, or is given "
            "what remembers that",
            where=self._place,
            cure=f"Pass everything that belongs to an example in its arguments, with one row for each example (padded, "
            f"not joined end to end); make objects of the whole batch (torch.distributions) in the criterion, of "
            f"tensors. {CURE}",
        ) from None

    def _require_separate_through_model(self, batch: Batch, runs: Runs, places: Mapping[Path, Path]) -> None:
        """The same with the values that the model itself gave: scalars among its outputs may carry the batch."""
        base, _ = self._run(_with_outputs(batch.value, runs.whole, places))
        try:
            changed, _ = self._run(_with_outputs(batch.value, runs.exchanged, places))
        except Exception:
            return  # the exchanged examples' own values are out of the criterion's range
        self._require_equal(base, changed, runs.chosen, "were exchanged")
        if runs.fewer is not None:
            fewer, _ = self._run(_with_outputs(batch.without(runs.left_out), runs.fewer, places))
            self._require_equal(base, fewer, [runs.left_out], "were left out")
        for width, output, left in runs.alone:
            self._require_same_alone(base, batch, width, output, left, places)

    def _require_same_alone(
        self, base: Tensor, batch: Batch, width: OwnWidth, output: Any, left: bool, places: Mapping[Path, Path]
    ) -> None:
        """A short record must have the loss that it has at its own width."""

        def cut(path: Path, tensor: Tensor) -> Tensor:
            return cut_to(tensor, width, self.axes.get(path), left)

        try:
            found, _ = self._run(_with_outputs(with_tensors(batch.only([width.row]), cut), output, places))
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


def _with_outputs(arguments: Any, output: Any, places: Mapping[Path, Path]) -> Any:
    """Return the arguments with what a model returned, or parts of it, in these places."""
    parts = {(): output, **dict(tensors_at(output))}

    def visit(path: Path, part: Any) -> Any:
        return parts.get(places[path], part) if path in places else DESCEND

    return with_parts(arguments, visit)
