"""Which rows of huge tables get noise: those whose noised count of records is above a threshold (DP-AdaFEST).

Let every record i add v_i, the rows that it touches, clipped to the L2 norm L, to the counts of a step, and its clipped
gradient, of the norm C at most, to the sum. Counts of *all* rows get noise of the standard deviation σ_c · L, the sums
of *all* rows noise of σ_g · C. In units of their noise both together are one vector, which a record moves by at most

    √((L / (σ_c L))² + (C / (σ_g C))²) = √(1/σ_c² + 1/σ_g²) = 1/σ

so that all of it is one Gaussian mechanism of the noise multiplier σ, over one draw of records, and a step is charged
as any other: PoissonSampled(q, σ), say. A record that is replaced moves both by twice as much, as it does a sum
without counts, so that this holds for every neighbouring relation. What leaves is a function of it: the rows whose
noised count is above the threshold, and the noised sums of these rows. Noise on the sums of other rows would be thrown
away, so it is not drawn, and that on the counts of rows that nobody touched is drawn as what it is: which of them pass
(`selection.py`).

Ghazi et al. 2023, "Sparsity-Preserving Differentially Private Training of Large Embedding Models", arXiv 2311.08357,
Algorithm 1, with C_1 = L, σ_1 = σ_c, C_2 = C, σ_2 = σ_g.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

from hushgrad.arguments import open_unit_interval, positive_number, whole_number
from hushgrad.errors import InvalidArgumentError

ALL_ROWS = -math.inf
"""A threshold that every row passes: `verify` reads the noise of whole tables so."""


@final
@dataclass(frozen=True, kw_only=True)
class SparseRows:
    """Tables of which a step updates some rows alone, chosen by noised counts of the records that touch them.

    A record touches the rows of a table where its gradient is not 0. Of `rows_per_record` = m rows or fewer, in all
    tables together, it adds 1 to the count of each; of n > m rows √(m/n), so that what it adds has the norm √m at most.
    A row is updated where its count, with noise, is above `threshold`.

    The charge stays that of the noise multiplier σ: counts have noise of σ_c · √m with σ_c = σ / √s, s being
    `count_share`, and gradients a little more noise, σ_g · C with σ_g = σ / √(1 − s), so that 1/σ² = 1/σ_c² + 1/σ_g².
    Which rows are updated is a function of the noised counts, so it is public.

    Attributes:
        tables: the names of parameters `[rows, dim]` that the model looks up rows of and does nothing else with.
        threshold: in records; greater than 0.
        rows_per_record: m, the rows that an ordinary record touches: one for each feature that is looked up.
        count_share: s, in (0, 1). More of it makes better choices and noisier gradients.

    Raises `InvalidArgumentError` for a value out of range.

    Guarantee: counts and gradients together cost a step what the noise multiplier says.
    Guarantee: a class that is derived from it is refused, so that what goes by this name is this rule.
    """

    tables: tuple[str, ...]
    threshold: float
    rows_per_record: int = 1
    count_share: float = 0.1

    def __init_subclass__(cls, **_: Any) -> None:
        raise InvalidArgumentError(
            f"{cls.__name__} would be taken for SparseRows, in ledgers too, whatever it computes",
            cure="Take SparseRows itself, with other constants",
        )

    def __post_init__(self) -> None:
        given = self.tables
        if isinstance(given, str) or not isinstance(given, Sequence) or not given:
            raise InvalidArgumentError(
                f"must be the names of one or more tables, got {type(given).__name__}",
                where="tables",
                cure='Pass a tuple of parameter names, such as ("users.weight",)',
            )
        names = tuple(given)
        if not all(isinstance(name, str) and name.isprintable() for name in names) or len(set(names)) < len(names):
            raise InvalidArgumentError(
                "must be different names of parameters", where="tables", cure="Name each table once"
            )
        object.__setattr__(self, "tables", names)
        if self.threshold != ALL_ROWS:
            object.__setattr__(self, "threshold", positive_number("threshold", self.threshold))
        object.__setattr__(self, "rows_per_record", whole_number("rows_per_record", self.rows_per_record, minimum=1))
        object.__setattr__(self, "count_share", open_unit_interval("count_share", self.count_share))

    @property
    def count_limit(self) -> float:
        """L = √m, the largest L2 norm of what one record adds to all counts."""
        return math.sqrt(self.rows_per_record)

    def count_noise_multiplier(self, noise_multiplier: float) -> float:
        """Return σ_c = σ / √s, the noise multiplier of the counts where σ is charged."""
        return noise_multiplier / math.sqrt(self.count_share)

    def gradient_noise_multiplier(self, noise_multiplier: float) -> float:
        """Return σ_g = σ / √(1 − s), that of the gradients."""
        return noise_multiplier / math.sqrt(1 - self.count_share)

    def count_std(self, noise_multiplier: float) -> float:
        """Return σ_c · L, the standard deviation of the noise on each count, in records."""
        return self.count_noise_multiplier(noise_multiplier) * self.count_limit

    def untouched_probability(self, noise_multiplier: float) -> float:
        """Return how probable it is that a row is chosen in a step although no record touched it."""
        std = self.count_std(noise_multiplier)
        if std == 0 or self.threshold == ALL_ROWS:
            return float(self.threshold < 0)
        from scipy.special import ndtr  # on use: it takes a tenth of a second to import

        return float(ndtr(-self.threshold / std))

    def weights(self, touched_B: Tensor) -> Tensor:
        """Return what each record adds to the count of each row that it touches, `[B]`, of so many touched rows.

        √(m / n) at most 1, in float64: the norm of what it adds, over n rows, is at most √m.
        """
        return (self.rows_per_record / touched_B.double().clamp(min=1)).clamp(max=1).sqrt()

    def describe(self) -> str:
        """Return the rule with all its constants in one line: a ledger is continued only under the same text."""
        return (
            f"SparseRows(tables={list(self.tables)}, threshold={self.threshold!r}, "
            f"rows_per_record={self.rows_per_record}, count_share={self.count_share!r})"
        )


def require_sparse_rows(value: object) -> SparseRows:
    """Return `value`, or raise `InvalidArgumentError` where it is no `SparseRows`."""
    if type(value) is not SparseRows:
        raise InvalidArgumentError(
            f"must be a SparseRows or None, got {type(value).__name__}",
            where="sparse_rows",
            cure='Pass hushgrad.SparseRows(tables=("users.weight",), threshold=...)',
        )
    return value
