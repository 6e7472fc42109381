"""Runs sessions whose updates hold chosen rows alone (`SparseRows`), and looks at which rows those are.

Steps without records show the noise on counts of untouched rows; steps over one batch that on counts of touched ones;
and steps without noise, at thresholds beside the counts that a batch should have, what records add to counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy import stats

from hushgrad.checks.verification.checks import statistics as st
from hushgrad.checks.verification.checks.chosen_rows import (
    Rows,
    UntouchedReading,
    as_rows,
    read_charge,
    read_counts,
    read_touched,
    read_untouched,
)
from hushgrad.checks.verification.checks.noise import NoiseReading
from hushgrad.checks.verification.training.copies import TrainingReplica
from hushgrad.checks.verification.update.paired_update import Output
from hushgrad.checks.verification.verdict import Check
from hushgrad.clipping.adaptation import LARGEST_COUNT
from hushgrad.clipping.bound import BoundRule
from hushgrad.session.update import Written
from hushgrad.sparse_rows.counts import RowSpace
from hushgrad.sparse_rows.rule import ALL_ROWS, SparseRows

_ENOUGH, _MOST_AT_ONCE, _MOST_STEPS, _TOUCHED_STEPS = 20_000, 100_000, 300, 60
_ONE_SIGMA = 0.15865525393145707  # passes a threshold of one standard deviation
_BESIDE = 1e-3


def with_all_rows(replica: TrainingReplica) -> TrainingReplica:
    """Return training in which every row is chosen in each step: its updates can be read as dense ones."""
    rule = replica.mechanism.sparse_rows
    if rule is None:
        return replica
    return replace(replica, mechanism=replace(replica.mechanism, sparse_rows=replace(rule, threshold=ALL_ROWS)))


def row_checks(
    replica: TrainingReplica,
    batch: Any,
    gradients: Mapping[int, Output],
    noise: NoiseReading,
    written: Written,
    charged: float,
    alpha: float,
) -> tuple[Check, ...]:
    """Look at the rows that updates have; nothing where all of what is trained is updated.

    Args:
        replica: the training as it is claimed.
        batch: an item.
        gradients: those of the examples that make up the batch, by ordinary autograd, `[1, *shape]` for each parameter.
        noise: what was read of the noise, in units of what is claimed of it.
        written: how much noise the parts of an update have.
        charged: the noise multiplier in the ledger.
        alpha: the false alarm of all these checks together.
    """
    rule = replica.mechanism.sparse_rows
    if rule is None:
        return ()
    runs = _Runs(replica, rule)
    each = alpha / 4
    untouched = runs.untouched(each)
    counts = runs.reference(gradients)
    touched = runs.touched(batch, counts, each)
    exact = read_counts(runs.beside(batch, counts))
    return *untouched.checks, touched, exact, _charge(replica, noise, written, untouched, rule, charged, each)


class _Runs:
    """Sessions of one training with other thresholds and noise, whose optimizer moves nothing."""

    def __init__(self, replica: TrainingReplica, rule: SparseRows) -> None:
        self._replica, self._rule = replica, rule
        self._sigma = replica.mechanism.noise_multiplier
        self._std = _claimed_std(rule, self._sigma)
        shapes = {name: parameter.shape for name, parameter in replica.model.named_parameters()}
        self._space = RowSpace.of({name: shapes[name][0] for name in rule.tables})

    def untouched(self, alpha: float) -> UntouchedReading:
        """Read steps without records, at a threshold that one row in six passes, or fewer of a huge table."""
        rows = self._space.total
        p = min(_ONE_SIGMA, _MOST_AT_ONCE / rows)
        threshold = self._std * float(stats.norm.isf(p))
        steps = 2 * min(_MOST_STEPS // 2, math.ceil(_ENOUGH / (2 * p * rows)))
        chosen = self._chosen(threshold, self._sigma, None, max(4, steps))
        return read_untouched(chosen, rows=rows, threshold=threshold, std=self._std, false_alarm=alpha)

    def touched(self, batch: Any, counts: Mapping[int, float], alpha: float) -> Check:
        """Read steps over one batch, at a threshold that its touched rows pass in about half of them."""
        threshold = max(float(np.median(list(counts.values()))), self._std * 1e-3)
        chosen = self._chosen(threshold, self._sigma, batch, _TOUCHED_STEPS)
        return read_touched(chosen, counts=counts, threshold=threshold, std=self._std, false_alarm=alpha)

    def beside(self, batch: Any, counts: Mapping[int, float]) -> dict[int, tuple[bool, bool]]:
        """Return whether each touched row passes just below its count and just above it, where there is no noise.

        A row that no record should touch, and that passes nearly 0, is among them as one that passes both.
        """
        least = min(counts.values(), default=1.0) * _BESIDE
        found = {row: (True, True) for row in self._chosen(least, 0.0, batch, 1)[0].tolist() if row not in counts}
        for value in sorted(set(counts.values())):
            below, above = (
                set(self._chosen(value * factor, 0.0, batch, 1)[0].tolist()) for factor in (1 - _BESIDE, 1 + _BESIDE)
            )
            found |= {row: (row in below, row in above) for row, own in counts.items() if own == value}
        return found

    def reference(self, gradients: Mapping[int, Output]) -> dict[int, float]:
        """Return the counts of the rows that examples touch, by their ordinary gradients, one example at a time."""
        total = np.zeros(self._space.total)
        for own in gradients.values():
            touched = torch.cat([(own[name][0] != 0).any(1) for name in self._rule.tables]).numpy()
            norm = math.sqrt(touched.sum())
            total += touched * min(1.0, math.sqrt(self._rule.rows_per_record) / max(norm, 1.0))
        return {int(row): round(float(total[row]), 9) for row in np.flatnonzero(total)}

    def _chosen(self, threshold: float, sigma: float, item: Any, steps: int) -> list[Rows]:
        mechanism = replace(
            self._replica.mechanism.with_noise_multiplier(sigma),
            sparse_rows=replace(self._rule, threshold=threshold),
        )
        still = replace(
            self._replica, mechanism=mechanism, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0)
        )
        running = still.session(seed=None)
        try:
            found = [running.chosen(item) for _ in range(steps)]
        finally:
            running.session.close()
        return [
            as_rows(np.concatenate([self._space.offsets[name] + own.numpy() for name, own in step.items()]))
            for step in found
        ]


def _charge(
    replica: TrainingReplica,
    noise: NoiseReading,
    written: Written,
    untouched: UntouchedReading,
    rule: SparseRows,
    charged: float,
    alpha: float,
) -> Check:
    """Add up what gradients, counts of rows and the count of the clip rule cost, by the noise that was measured."""
    mechanism = replica.mechanism
    times = noise.std * mechanism.divisor / mechanism.noise_std  # of what is said of each part
    clip = BoundRule(
        mechanism.clipping,
        replica.names,
        sensitivity=mechanism.sensitivity,
        sizes={name: parameter.numel() for name, parameter in replica.model.named_parameters()},
        noise_multiplier=mechanism.noise_multiplier,
    )
    shares = [limit / written.noise_std[group[0]] for group, limit in zip(clip.groups, clip.limits, strict=True)]
    if written.count_std is not None:
        shares.append(LARGEST_COUNT / written.count_std)
    of_rows = math.sqrt(rule.rows_per_record) / untouched.std
    measured = 0.0
    if times > 0 and math.isfinite(of_rows):
        measured = 1 / math.sqrt(sum((share / times) ** 2 for share in shares) + of_rows**2)
    reach = float(-st.ndtri(alpha / 2)) / math.sqrt(2 * noise.count) + rule.count_share * untouched.reach
    return read_charge(
        charged=charged, measured=measured, room=2e-3 + reach, sample_size=noise.count, false_alarm=alpha
    )


def _claimed_std(rule: SparseRows, noise_multiplier: float) -> float:
    """Return the standard deviation of the noise on a count that the claim means: σ / √s · √m, in records.

    Written apart from what the noise is drawn by.
    """
    return noise_multiplier * math.sqrt(rule.rows_per_record / rule.count_share)
