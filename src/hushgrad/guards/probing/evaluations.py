"""The evaluations of criteria in the batch in work, kept until they are examined."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from hushgrad.capture.public import PublicTensors
from hushgrad.guards.probing.lifting import lifted
from hushgrad.guards.probing.looks import Looks
from hushgrad.guards.probing.loss_probe import Criterion, CriterionProbe, Runs
from hushgrad.guards.probing.rows import Batch, fits
from hushgrad.guards.probing.state import State
from hushgrad.guards.probing.trees import Path, copied, places_of
from hushgrad.losses import Arguments

FEW = 4
"""How many examples of a criterion that was examined before are looked at again."""


@dataclass(eq=False)
class Evaluation:
    """What a criterion was given: the arguments themselves, to know outputs among them again, and the values of then.

    `losses`: what it gave for the examples that are kept; None where they are all, and the criterion is not known.
    `before`: what the criterion kept before.
    """

    criterion: Criterion
    given: Arguments
    values: Arguments
    losses: Tensor | None = None
    before: State | None = None
    is_reached: bool = False


class Evaluations:
    """Those of one batch; and which criteria were examined.

    Args:
        looks: decides whether a criterion that was examined is looked at again.
        is_accumulating: whether the backward that runs accumulates gradients of the model.
        public: what was declared, and is no part of any batch.
    """

    def __init__(self, looks: Looks, is_accumulating: Callable[[], bool], public: PublicTensors | None = None) -> None:
        self._public = public
        self._looks = looks
        self._is_accumulating = is_accumulating
        self._known: WeakKeyDictionary[Any, Mapping[Path, int]] = WeakKeyDictionary()  # with the axes of its arguments
        self._kept: dict[Criterion, Evaluation] = {}
        self._before: State | None = None  # what the criterion keeps that is being called
        self.examined = 0
        """How many criteria were examined; those that are looked at again count once."""

    def clear(self) -> None:
        """The batch is over."""
        self._kept.clear()
        self._before = None

    def begin(self, criterion: Criterion) -> None:
        """A criterion is going to be called: keep what it keeps, if it is to be examined."""
        self._before = State(criterion.watched) if self._looks.wanted or criterion not in self._known else None

    def note(self, criterion: Criterion, arguments: Arguments, losses: Tensor) -> bool:
        """Keep what a criterion was given if it is to be examined; return whether it is."""
        is_known = criterion in self._known
        if is_known and not (self._looks.wanted and losses.shape[0] > 1):
            return False
        if criterion not in self._kept or not self._kept[criterion].is_reached:
            kept = self._part(criterion, arguments, losses) if is_known else None
            evaluation = kept or Evaluation(criterion, arguments, copied(arguments, self._public))
            evaluation.before = self._before
            self._kept[criterion] = evaluation
            losses.register_hook(self._mark(evaluation))  # type: ignore[no-untyped-call]
        return True

    def reached(self) -> list[Evaluation]:
        """Return those that a backward came back through."""
        return [part for part in self._kept.values() if part.is_reached]

    def examine(self, evaluation: Evaluation, size: int, runs: Runs | None, output: Any = None) -> list[str]:
        """Probe one of a batch of `size` examples; `runs` are the model's on altered ones, `output` is what it gave.

        Returns what the criterion keeps and could not be looked into, in words.

        Raises:
            CrossSampleLeakError: naming the criterion.
        """
        if evaluation.losses is not None:
            size, runs = evaluation.losses.shape[0], None
        probe = CriterionProbe(evaluation.criterion, evaluation.before)
        places = {} if runs is None else places_of(evaluation.given, output)
        if probe.examine(evaluation.values, size, runs if places else None, evaluation.losses, places):
            self._known.setdefault(evaluation.criterion, probe.axes)
        if evaluation.losses is None:
            self.examined += 1
        return probe.unread

    def _part(self, criterion: Criterion, arguments: Arguments, losses: Tensor) -> Evaluation | None:
        """Keep a few examples; None where it is not told which parts belong to which."""
        size = losses.shape[0]
        lifting = lifted(arguments, size, outer=2)
        axes = self._known[criterion]
        if not fits(axes, lifting.value, size):
            return None
        rows = sorted(self._looks.some(size, FEW))
        part = lifting.lowered(Batch(lifting.value, axes, size).only(rows))
        chosen = losses.detach()[torch.tensor(rows, device=losses.device)]
        return Evaluation(criterion, arguments, part, chosen)

    def _mark(self, evaluation: Evaluation) -> Callable[[Tensor], None]:
        is_accumulating, kept = self._is_accumulating, weakref.ref(evaluation)  # which holds what this hook is on

        def hook(gradient: Tensor) -> None:
            known = kept()
            if known is not None and is_accumulating():
                known.is_reached = True

        return hook
