"""Which rows pass the threshold, with noise on the counts of all rows of which that of most is never drawn.

Rows that no record touched have the count 0, so each of them passes with the probability p = P(σ_c L z > threshold),
independently of all others. A Poisson draw of *all* rows at the rate p is, on those that nobody touched, exactly that;
the rows of the draw that were touched are left out of it, because each of these has noise of its own. It takes time and
memory by the rows that pass and by those that were touched (`sampling/poisson.py`: a size from the binomial law, then
a uniform subset of that size).
"""

from __future__ import annotations

import torch
from torch import Tensor

from hushgrad.noise.gaussian import standard_normal
from hushgrad.randomness import Address, KeyStream
from hushgrad.sampling.poisson import PoissonSampler
from hushgrad.sparse_rows.counts import Counts
from hushgrad.sparse_rows.rule import SparseRows


class RowSelection:
    """Chooses rows of `total` ones by noised counts, in step after step.

    Guarantee: rows are chosen with the same law as by independent Gaussian noise on the counts of all rows, to a total
    variation distance of 2**-64 and what `hushgrad.noise.strips` and the float64 tail probability say.
    Guarantee: no noise is drawn twice, and nothing is as large as the number of rows.
    """

    def __init__(self, rule: SparseRows, total: int, stream: KeyStream) -> None:
        """Choose by `rule`, with bits of `stream` that nobody else draws from."""
        self._rule, self._total = rule, total
        self._touched, self._untouched = stream.fork("counts of touched rows"), stream.fork("untouched rows")
        self._sampler: tuple[float, PoissonSampler] | None = None

    def choose(self, counts: Counts, noise_multiplier: float, step: int) -> Tensor:
        """Return the numbers of the rows whose noised count is above the threshold, `[k]`, ascending, int64.

        Args:
            counts: of the records of a step.
            noise_multiplier: σ, what the step is charged.
            step: which one it is; none comes twice.
        """
        std = self._rule.count_std(noise_multiplier)
        noised = counts.values
        if std > 0:
            shape = counts.values.shape
            noise = standard_normal(
                shape, dtype=torch.float64, device="cpu", stream=self._touched, address=Address(step)
            )
            noised = noised + std * noise
        passed = counts.numbers[noised > self._rule.threshold]
        others = self._others(noise_multiplier, step)
        if len(counts.numbers) and len(others):
            places = torch.searchsorted(counts.numbers, others).clamp_(max=len(counts.numbers) - 1)
            others = others[counts.numbers[places] != others]
        return torch.cat([passed, others]).sort().values

    def _others(self, noise_multiplier: float, step: int) -> Tensor:
        """Return which rows pass on noise alone, of all rows."""
        rate = self._rule.untouched_probability(noise_multiplier)
        if rate == 0:
            return torch.empty(0, dtype=torch.int64)
        if self._sampler is None or self._sampler[0] != rate:  # a schedule changes the noise
            self._sampler = rate, PoissonSampler(self._total, rate, self._untouched)
        return torch.from_numpy(self._sampler[1].draw(step))
