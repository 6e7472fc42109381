"""Does an example's output depend on how far it is padded? Short records run alone, cut ones as they were before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

from hushgrad.errors import CrossSampleLeakError, HushgradError
from hushgrad.guards.probing.calls import Outcome, Runner
from hushgrad.guards.probing.laws import follows_batch, what_follows
from hushgrad.guards.probing.narrowing import cut_like, cut_to, narrowed, shortened, widened
from hushgrad.guards.probing.rows import Batch, all_agree, blocks, others_differ, split_examples
from hushgrad.guards.probing.trees import Path, tensors_at
from hushgrad.guards.probing.widths import Drawn, OwnWidth

NOT_TOLD = "that an example does not depend on how far it is padded"


@dataclass(frozen=True, eq=False)
class PaddingProbe:
    """Compares what one call gives for other widths.

    Attributes:
        runner, batch: what is run.
        base: what it gave for the batch; without randomness where random numbers are drawn.
        axes: the axis of the examples in each output.
        is_quiet: whether runs are to be without randomness.
        name: what messages call the model.
        cuts: lengths that are known to be constants to which the loop cuts its batches.
    """

    runner: Runner
    batch: Batch
    base: Outcome
    axes: Mapping[Path, int]
    is_quiet: bool
    name: str
    cuts: Set[int] = frozenset()

    def alone(self, widths: Sequence[OwnWidth]) -> Iterator[tuple[OwnWidth, Any, bool] | str]:
        """Run short records alone, each at its own width: they must give what they give beside longer ones.

        Yields what each gave, and whether padding was on its left; or what could not be told.

        Raises:
            CrossSampleLeakError: one gave something else.
        """
        for width in widths:
            found = self._alone_shifted_or_cut(width)
            if found is not None:
                yield found
            elif width.is_sure:
                yield NOT_TOLD

    def require_same_uncut(self, drawn: Drawn) -> None:
        """Run two records of a batch that the loop cut to its longest as they were before: padding may show nothing.

        Raises:
            CrossSampleLeakError: they give something else.
        """
        found = widened(drawn, self.batch)
        if found is None:
            return
        wide, length, former = found
        rows = split_examples(self.batch.size)[0][:2]
        outcome = self._run(wide.only(rows), len(rows))
        if outcome is None or outcome.unknown is not None:
            return
        back = OwnWidth(0, {former: length}, {}, False)
        there = dict(tensors_at(outcome.output))
        cut = {path: cut_to(there[path], back, axis, False) for path, axis in self.axes.items() if path in there}
        base = {path: tensor for path, tensor in tensors_at(self.base.output) if path in self.axes}
        places = {(path,): axis for path, axis in self.axes.items()}
        if others_differ(base, cut, places, (rows, range(len(rows))), (self.batch.size, len(rows))):
            raise self._shows()

    def _alone_shifted_or_cut(self, width: OwnWidth) -> tuple[OwnWidth, Any, bool] | None:
        try:
            return self._alone(width)
        except CrossSampleLeakError:
            lengths = shortened(self.batch, width)
            if not lengths or not lengths <= self.cuts:
                raise
            found = self._alone(replace(width, shift=0))
            if found is None:
                raise
            return found

    def _alone(self, width: OwnWidth) -> tuple[OwnWidth, Any, bool] | None:
        for inputs, left in narrowed(self.batch, width):
            outcome = self._run(inputs, 1)
            if outcome is None:
                continue
            there = dict(tensors_at(self.base.output))
            base = {
                path: blocks(there[path], axis, self.batch.size)[width.row].movedim(0, axis)
                for path, axis in self.axes.items()
            }
            own = {path: tensor for path, tensor in tensors_at(outcome.output) if path in self.axes}
            cut = {path: cut_like(tensor, own[path], left) for path, tensor in base.items() if path in own}
            if outcome.unknown is None and not all_agree(cut, own, same_kernels=False):
                raise self._shows()
            if followed := what_follows(self.base.laws, outcome.laws, (), 1):  # a layer behind it may hide its scale
                raise follows_batch(followed, self.name)
            return width, outcome.output, left
        return None

    def _run(self, inputs: Any, count: int) -> Outcome | None:
        """Run some examples; None where the model cannot take inputs of this width, which the loop would not make."""
        try:
            return self.runner.run(inputs, quiet=self.is_quiet, share=count / self.batch.size)
        except HushgradError:
            raise
        except Exception:
            return None

    def _shows(self) -> CrossSampleLeakError:
        return CrossSampleLeakError(
            "gives an example other outputs when it is padded to a longer one of its batch than it gives it alone",
            where=self.name,
            cure="Leave padding out of every mean, maximum, convolution, attention and last state: mask it, divide by "
            "the example's own length, or pad all batches to one constant length",
        )
