"""Does one example's output depend on another's? The model is run again on the batch with one example altered.

One example is left out, exchanged and poisoned; the others' outputs must stay as they were, and so must everything
the model keeps between forwards. What values do not show (a stop-gradient, a straight-through estimator), gradients do:
the captured gradient of one example must be the one that the example gives alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from hushgrad.errors import CrossSampleLeakError, HushgradError, UnsupportedModelError, where_raised
from hushgrad.guards.probing.base_run import Left, base_run, other_outputs
from hushgrad.guards.probing.calls import Outcome, Runner, are_close, sums_of
from hushgrad.guards.probing.deterministic_mode import QUANTILES
from hushgrad.guards.probing.finite import spoiled_rows
from hushgrad.guards.probing.gradient_probe import GradientProbe
from hushgrad.guards.probing.item_statistics import CURE, other_value, statistics_in
from hushgrad.guards.probing.laws import follows_batch, what_follows
from hushgrad.guards.probing.loss_probe import Runs
from hushgrad.guards.probing.loss_sizes import LARGE
from hushgrad.guards.probing.padding_probe import PaddingProbe
from hushgrad.guards.probing.place import called, cure, first_place
from hushgrad.guards.probing.probed import Probed
from hushgrad.guards.probing.rows import (
    Batch,
    are_identical,
    batch_axes,
    grown_axes,
    others_differ,
    split_examples,
)
from hushgrad.guards.probing.state_probe import StateProbe
from hushgrad.guards.probing.trees import Path, tensors_at, with_tensors
from hushgrad.guards.probing.widths import OwnWidth

FEW = 4
"""How many examples are run backward: what a backward keeps must be small beside what the first step holds."""


MOST_HOOKED = 32
"""How many are, where hooks on the outputs or custom functions may ask how many there are."""

NOT_TOLD = "no two examples of a batch had finite values and gradients, so that the next batch is examined as well"


@dataclass(frozen=True, eq=False)
class Among:
    """What examples gave among others.

    Attributes:
        output: the output for the batch that they are of.
        rows: their numbers there.
        size: the number of its examples.
    """

    output: Any
    rows: Sequence[int]
    size: int


class Examination:
    """Runs one call again on altered examples, and compares."""

    def __init__(
        self,
        probed: Probed,
        runner: Runner,
        size: int,
        left: Left,
        among: Among | None,
        widths: list[OwnWidth] | None,
    ) -> None:
        self._probed = probed
        self._widths = widths
        self._among = among
        self._left = left
        self._runner = runner
        self._size = size
        self._kept = StateProbe(probed.model, runner, size)
        self._batch = Batch(runner.call.inputs, {}, size)
        self._can_go_away = True
        self._quiet: Outcome | None = None
        self._alone: list[tuple[OwnWidth, Any, bool]] = []
        self._is_comparable = True  # whether equal seeds give equal random numbers to the unaltered examples

    def run(self) -> bool:
        """Run and compare; return whether it was possible to tell."""
        size, runner = self._size, self._runner
        known = runner.call.axes
        roles = self._probed.roles(runner.call)
        candidates = batch_axes(runner.call.inputs, size, roles) if known is None else [dict(known)]
        if not candidates:
            return True  # nothing of the batch went in; an output made of constants is the same for every example
        self._batch = Batch(runner.call.inputs, candidates[0], size)
        given = self._batch
        self._batch, base = base_run(runner, given, self._left, self._name(None))
        is_as_loops = self._batch.value is given.value and are_close(runner.call.sums, sums_of(base.output))
        if not (is_as_loops and self._stands_for_second_run(base)):
            again = runner.run(self._batch.same(), quiet=False)
            self._require_repeatable(base, again)
            if base.seeds != again.seeds:
                base = replace(base, seeds=())  # seeded by the clock or the system, and not by the batch
            del again
        if not self._probed.keeps_runs:
            runner.call.output = None  # its memory is needed now
        if base.structure is not None:
            self._kept.require_nothing_handed_on(self._batch, self._name(None))
        if size == 1:
            exchanged = self._exchanged([0])
            self._require_own_seeds(base, exchanged)
            self._kept.require_still(self._batch, base, exchanged, {}, [])
            return True
        example = self._batch.largest()
        fewer = self._run_with_fewer(candidates, example, base.drew)
        axes = grown_axes(base.output, fewer.output, size)
        self._probed.axes[runner.call.module] = self._batch.axes
        is_look = self._among is not None and self._batch.value is given.value
        if self._among is not None and is_look and not base.drew:
            self._require_as_among(self._among, base, axes)
        self._quiet = runner.run(self._batch.same(), quiet=True) if base.drew else base
        if fewer.unknown is None:
            others = [row for row in range(size) if row != example]
            inputs = self._batch.without(example)
            self._compare(self._quiet, fewer, axes, (others, range(size - 1)), inputs, base.drew, "were left out")
            self._require_same_scales(axes, example)
        if self._batch.value is given.value:
            self._require_same_width(axes, base.drew)
        grown_state = self._kept.grown(base, fewer)
        is_told, captured = self._require_own_gradient(fewer, axes, example, base.drew)
        # What comes back to one output may hold what came back to another one that was made of it.
        is_single = len(runner.call.reached) == 1 and not base.drew
        if self._probed.recorded is not None and is_single and (is_as_loops or is_look):
            for one in self._recorded_ones(example):
                self._require_gradient_of_batch(axes, one)
        less = fewer.output if self._probed.keeps_runs and not base.drew else None
        del fewer  # outputs may be as large as a step's memory
        some, rest = split_examples(size)
        exchanged = self._exchanged(some)
        self._require_own_seeds(base, exchanged)
        self._compare(base, exchanged, axes, (rest, rest), None, False, "were exchanged")
        self._kept.require_still(self._batch, base, exchanged, grown_state, rest)
        if captured is not None and captured.unknown is None:
            two = example, next(row for row in range(size) if row != example)
            self._kept.require_still_backward(captured, base, exchanged, self._run_backward(axes, base.drew), two)
        if self._probed.keeps_runs and self._is_comparable:
            self._probed.runs = Runs(base.output, exchanged.output, some, less, example, self._alone)
        del exchanged
        self._require_no_statistics(axes, base.drew)
        self._poison(base, axes, rest, some)
        if not self._is_comparable:
            self._probed.runs = None
        spoiled = spoiled_rows(base.output, size)
        if not is_told or (spoiled is not None and size - len(spoiled) < 2):
            if self._runner.call.axes is None:  # of a whole batch, not of a look
                self._probed.skipped.append(NOT_TOLD)
            return False
        return True

    # The runs ------------------------------------------------------------------------------------------------------

    def _run_with_fewer(self, candidates: Sequence[dict[Path, int]], example: int, quiet: bool) -> Outcome:
        """Leave one example out, and learn on the way which of the inputs hold the batch, and where."""
        failure: Exception | None = None
        for axes in candidates:
            self._batch = Batch(self._batch.value, axes, self._size)
            try:
                return self._runner.run(self._batch.without(example), quiet=quiet)
            except HushgradError:
                raise
            except Exception as error:
                failure = failure or error
        assert failure is not None
        raise self._depends_on_number(failure, "without one of them") from None

    def _depends_on_number(self, failure: Exception, on_what: str) -> CrossSampleLeakError:
        return CrossSampleLeakError(
            f"runs on the whole batch and fails {on_what} ({where_raised(failure)}), so it depends on how many "
            f"examples there are",
            where=self._name(None),
            cure="Take the batch size from the input's shape, do not index a fixed-size buffer by batch position, and "
            "pass dim= to squeeze()",
        )

    def _exchanged(self, chosen: Sequence[int], **settings: Any) -> Outcome:
        settings = {"quiet": False, "parameters": True, **settings}
        if self._can_go_away:
            try:
                return self._runner.run(self._batch.exchanged(chosen, away=True), **settings)
            except HushgradError:
                raise
            except Exception:  # values out of the range that the model can take
                self._can_go_away = False
        return self._run_exchanged(chosen, **settings)

    def _run_exchanged(self, chosen: Sequence[int], **settings: Any) -> Outcome:
        """Run the batch with rows in each other's place, which only a model that counts on their order refuses.

        The columns of a lone row may be ids of different tables, so that they cannot take each other's place.
        """
        settings = {"quiet": False, "parameters": True, **settings}
        try:
            try:
                return self._runner.run(self._batch.exchanged(chosen, away=False), **settings)
            except HushgradError:
                raise
            except Exception:
                if self._size > 1:
                    raise
                return self._runner.run(self._batch.halved(chosen), **settings)
        except HushgradError:
            raise
        except Exception as error:
            raise UnsupportedModelError(
                f"runs on the batch as it is and fails when some examples take each other's place "
                f"({where_raised(error)}), so it cannot be examined: it relies on the order of the examples, or on "
                f"something beside its input tensors that belongs to each of them",
                where=self._name(None),
                cure="Accept examples in any order (pack_padded_sequence and pack_sequence: enforce_sorted=False)",
            ) from None

    def _gradient_probe(self, axes: dict[Path, int]) -> GradientProbe:
        return GradientProbe(self._probed, self._runner, self._batch, axes)

    def _run_backward(self, axes: dict[Path, int], drew: bool) -> Callable[[int, int], Outcome]:
        """Return what runs one example alone, forward and backward."""
        probe = self._gradient_probe(axes)
        return lambda example, turn: probe.run_backward_alone(example, quiet=drew, turn=turn)

    def _require_own_gradient(
        self, fewer: Outcome, axes: dict[Path, int], left_out: int, drew: bool
    ) -> tuple[bool, Outcome | None]:
        """Run a few examples forward and backward under capture, and compare the gradient of one of them.

        Return whether one was found whose gradient is finite, or no gradient reached anything; and the last such run.
        """
        assert self._quiet is not None
        order = [left_out, *(row for row in (0, *split_examples(self._size)[0], *range(self._size)) if row != left_out)]
        call, probe = self._runner.call, self._gradient_probe(axes)
        is_changed = call.is_hooked or call.changes_gradients
        if call.changes_gradients and self._probed.is_divided and self._probed.loss_reduction == "mean":
            probe.require_proportional(order[-1], quiet=drew, scales=(1.0, 1 / LARGE, LARGE))
        for example, scale in self._trials(list(dict.fromkeys(order)), is_changed):
            most = FEW if scale == 1 and not call.is_hooked else MOST_HOOKED
            rows = sorted([example, *[row for row in dict.fromkeys(order) if row != example][: most - 1]])
            try:
                captured, is_told = probe.require_own_gradient(
                    rows,
                    example,
                    quiet=drew,
                    whole=self._quiet.output,
                    fewer=fewer.output if example == left_out else None,
                    scale=scale,
                )
            except HushgradError:
                raise
            except Exception as error:
                raise self._depends_on_number(error, "on a few of them") from None
            if captured is not None and captured.unknown is not None:
                self._probed.skipped.append(
                    f"the gradient of one example, since {captured.unknown} draws random numbers in a way of its own"
                )
            elif captured is not None:
                kept, inputs = (rows, range(len(rows))), self._batch.only(rows)
                self._compare(self._quiet, captured, axes, kept, inputs, drew, "were left out", same_kernels=False)
            if is_told and scale == 1:
                return True, captured
        return False, None

    def _trials(self, order: Sequence[int], is_changed: bool) -> Iterator[tuple[int, float]]:
        """Yield the examples to try, one by one until one tells; if they matter, large and small gradients first.

        Of two examples: that of the largest gradient may set a factor that all others get.
        """
        if is_changed:
            yield order[-1], LARGE
            yield order[0], 1 / LARGE
        yield from ((example, 1.0) for example in order[:FEW])

    def _recorded_ones(self, example: int) -> Sequence[int]:
        """Return the examples whose recorded gradients are compared: the largest may be what others are scaled by."""
        known = self._probed.recorded_rows
        if known is None:
            return (example, next(row for row in range(self._size) if row != example))
        rows = range(self._size) if self._among is None else self._among.rows
        return [place for place, row in enumerate(rows) if row in known]

    def _require_gradient_of_batch(self, axes: dict[Path, int], example: int) -> None:
        assert self._probed.recorded is not None
        row, size = (example, self._size) if self._among is None else (self._among.rows[example], self._among.size)
        try:
            recorded = self._probed.recorded(row)
            self._gradient_probe(axes).require_gradient_of_batch(example, place=(row, size), recorded=recorded)
        except HushgradError:
            raise
        except Exception as error:
            raise self._depends_on_number(error, "on one of them") from None

    def _poison(self, base: Outcome, axes: dict[Path, int], chosen: Sequence[int], others: Sequence[int]) -> None:
        what = "were NaN" if self._batch.is_floating else "were exchanged"
        poisoned = None
        for in_order in (False, True):
            inputs = self._batch.poisoned(chosen, in_order=in_order)
            try:
                poisoned = self._runner.run(inputs, quiet=False, parameters=True)
                break
            except HushgradError:
                raise
            except Exception:  # it wants examples in the order of their lengths
                continue
        if poisoned is None:  # NaN stops the model; the other half is still exchanged
            self._probed.skipped.append("examples of NaN stop the model, so that they could not be tried")
            inputs, what = self._batch.exchanged(chosen, away=False), "were exchanged"
            poisoned = self._run_exchanged(chosen)
        self._require_own_seeds(base, poisoned)
        self._compare(base, poisoned, axes, (others, others), inputs, False, what)
        self._kept.require_still(self._batch, base, poisoned, None, others)

    # The comparisons -----------------------------------------------------------------------------------------------

    def _stands_for_second_run(self, base: Outcome) -> bool:
        """Whether the loop's own forward repeats this run: bit by bit, which is less than rounding may change.

        Random numbers, seeds that it set and parts that it made are compared by another run.
        """
        is_plain = not base.drew and base.structure is None and all(seed is None for seed in base.seeds)
        return is_plain and are_identical(self._runner.call.output, base.output)

    def _require_repeatable(self, base: Outcome, again: Outcome) -> None:
        everyone = range(self._size)
        axes = {path: 0 for path, tensor in tensors_at(base.output) if tensor.ndim and tensor.shape[0] == self._size}
        if others_differ(base.output, again.output, axes, (everyone, everyone), (self._size, self._size)):
            raise other_outputs(self._name(None))

    def _compare(
        self,
        base: Outcome,
        changed: Outcome,
        axes: dict[Path, int],
        others: tuple[Sequence[int], Sequence[int]],
        inputs: Any,
        quiet: bool,
        what: str,
        *,
        same_kernels: bool = True,
    ) -> None:
        size = (self._size, self._size if others[0] == others[1] else len(others[1]))
        # Rows that values put together are others in each run, for other kernels: a mixture of experts.
        regrouped = self._probed.scope.regroups
        if not others_differ(
            base.output, changed.output, axes, others, size, same_kernels=same_kernels, regrouped=regrouped
        ):
            return
        if base.drew and not quiet and self._agree_quietly(axes, others, inputs):
            return
        if len(others[0]) == self._size:  # a batch so small that all of it ran again
            raise other_outputs(self._name(None))
        name = self._place(others, size, inputs, quiet)
        if base.drew_outside or changed.drew_outside:
            raise CrossSampleLeakError(
                f"draws random numbers by Python or NumPy, which fall to other examples when some of them {what}, so "
                f"that what they change cannot be told from mixing the examples of a batch",
                where=called(self._probed.model, name),
                cure="Draw them by torch (torch.randn, torch.rand, torch.randperm), whose numbers are followed",
            )
        raise CrossSampleLeakError(
            f"mixes the examples of a batch: when some of them {what}, the outputs of others changed",
            where=called(self._probed.model, name),
            cure=cure(self._probed.model, name),
        )

    def _require_same_width(self, axes: dict[Path, int], drew: bool) -> None:
        """Refuse outputs that depend on how far an example is padded."""
        assert self._quiet is not None
        probe = PaddingProbe(self._runner, self._batch, self._quiet, axes, drew, self._name(None), self._probed.cuts)
        widths = self._probed.widths(self._runner.call, self._batch) if self._widths is None else self._widths
        for found in probe.alone(widths):
            if isinstance(found, str):
                self._probed.skipped.append(found)
                continue
            self._probed.positions.learn(self._runner.call.module, self._quiet.output, found[1], axes)
            if self._probed.keeps_runs and not drew:
                self._alone.append(found)
        if self._widths is None and self._probed.drawn is not None:
            probe.require_same_uncut(self._probed.drawn)

    def _require_no_statistics(self, axes: dict[Path, int], drew: bool) -> None:
        """Refuse outputs that change with a number that `collate_fn` made of the whole batch."""
        drawn = self._probed.drawn
        if drawn is None or not drawn.statistics or self._quiet is None:
            return
        tensors, _ = statistics_in(drawn)

        def other(path: Path, tensor: Tensor) -> Tensor:
            is_statistic = path not in self._batch.axes and any(
                tensor.shape == one.shape and tensor.dtype == one.dtype and bool((tensor == one).all())
                for one in tensors
            )
            return other_value(tensor) if is_statistic else tensor

        inputs = with_tensors(self._batch.same(), other)
        if all(
            one is two for (_, one), (_, two) in zip(tensors_at(inputs), tensors_at(self._batch.same()), strict=True)
        ):
            return
        everyone = range(self._size)
        try:
            changed = self._runner.run(inputs, quiet=drew)
        except HushgradError:
            raise
        except Exception:  # a length, say, that fits no other inputs
            return
        if others_differ(self._quiet.output, changed.output, axes, (everyone, everyone), (self._size, self._size)):
            raise CrossSampleLeakError(
                "changes its outputs for all examples with a number that collate_fn makes of the whole batch",
                where=self._name(None),
                cure=CURE,
            )

    def _require_same_scales(self, axes: dict[Path, int], left_out: int) -> None:
        """Leave an example out of a few once more where numbers were drawn, which now differ by column.

        What they are multiplied by does not show in one number for all columns if a normalisation takes it away.
        """
        assert self._quiet is not None
        if not self._quiet.columns:
            return
        others = [row for row in range(self._size) if row != left_out][: FEW - 1]
        count = len(others)
        settings: dict[str, Any] = {"quiet": True, "quantile": QUANTILES[-1]}
        more = self._runner.run(self._batch.only([*others, left_out]), share=(count + 1) / self._size, **settings)
        fewer = self._runner.run(self._batch.only(others), share=count / self._size, **settings)
        is_comparable = more.columns == fewer.columns and more.unknown is None  # else the columns are examples
        kept = (range(count), range(count))
        if is_comparable and others_differ(more.output, fewer.output, axes, kept, (count + 1, count)):
            raise follows_batch("a number that random values are multiplied by", self._name(None))

    def _require_as_among(self, among: Among, base: Outcome, axes: dict[Path, int]) -> None:
        kept, sizes = (among.rows, range(self._size)), (among.size, self._size)
        # The loop's forward is captured, and takes other kernels than the runs it is compared with, on the same shapes.
        if others_differ(among.output, base.output, axes, kept, sizes, same_kernels=False):
            raise CrossSampleLeakError(
                "mixes the examples of a batch: when a few of them were run again without the others, their outputs "
                "changed",
                where=self._name(None),
                cure=cure(self._probed.model, None),
            )

    def _agree_quietly(self, axes: dict[Path, int], others: tuple[Sequence[int], Sequence[int]], inputs: Any) -> bool:
        """Whether others differ by their random numbers only: an operator may draw as many as the values decide.

        Where draws are compared with probabilities, which only some constants show, several are tried.
        """
        chosen = [row for row in range(self._size) if row not in others[0]]
        runner, before = self._runner, self._quiet
        assert before is not None
        self._is_comparable = False
        for quantile in QUANTILES:
            if quantile != QUANTILES[0]:
                before = runner.run(self._batch.same(), quiet=True, quantile=quantile)
            settings: dict[str, Any] = {"quiet": True, "quantile": quantile}
            after = self._exchanged(chosen, **settings) if inputs is None else runner.run(inputs, **settings)
            if followed := what_follows(before.laws, after.laws, chosen, self._size):
                raise follows_batch(followed, self._name(None))
            size = (self._size, self._size)
            if after.unknown is not None or others_differ(before.output, after.output, axes, others, size):
                return False
            if inputs is not None or not any(law.is_compared for law in before.laws):
                return True
        return True

    def _require_own_seeds(self, base: Outcome, changed: Outcome) -> None:
        if base.seeds and base.seeds != changed.seeds:
            raise follows_batch("the seed of a random generator", self._name(None))

    def _place(
        self, others: tuple[Sequence[int], Sequence[int]], size: tuple[int, int], inputs: Any, quiet: bool
    ) -> str | None:
        changed = [row for row in range(self._size) if row not in others[0]]

        def other() -> Outcome:
            return self._exchanged(changed) if inputs is None else self._runner.run(inputs, quiet=quiet)

        before = self._runner.forwards
        try:
            return first_place(
                self._probed.model,
                lambda: self._runner.run(self._batch.same(), quiet=quiet),
                lambda: self._runner.run(self._batch.without(changed[0]), quiet=quiet),
                other,
                others,
                size,
            )
        finally:
            self._runner.forwards = before  # to name the culprit is not part of the probe's cost

    def _name(self, name: str | None) -> str:
        if name is None:
            return self._probed.name_of(self._runner.call.module)
        return called(self._probed.model, name)
