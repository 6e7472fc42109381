"""A linear head by least squares, from one release of second moments."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hushgrad.arguments import clip_norm, positive_number, whole_number
from hushgrad.releases.query import Query, clipped, read_by, vector_of


def _features_and_target(record: Any) -> tuple[Any, Any]:
    features, target = record
    return features, target


@dataclass(frozen=True)
class LeastSquares(Query):
    """The weights W `[d, k]` that bring xᵀW nearest to y for all records, with a ridge: a head on frozen features.

    What is released is the sum of (x xᵀ, x yᵀ) over all records, once; the weights are computed from it. Of x xᵀ, which
    is symmetric, the upper half with √2 beside the diagonal: of norm ‖x‖², at most R². So the sensitivity is
    √(R⁴ + R²Y²) (Dwork et al. 2014, "Analyze Gauss"; Wang 2018, arXiv:1803.02596; on features: arXiv:2211.13403).

    For classes y is one-hot, and the largest of xᵀW is the class. For an intercept add a constant to the features.

    Attributes:
        features: d.
        targets: k.
        feature_norm: R, to which features are clipped.
        target_norm: Y, to which targets are clipped; 1 for classes.
        of: a function of one record, that returns its d features and its k targets; by default the record is such a
            pair. The features must follow from public or released weights: a backbone that was trained on these records
            without noise makes none of this private.
        ridge: λ of x xᵀ + λ I; by default 2·std·√d, the size of the noise's own largest eigenvalue.
    """

    features: int
    targets: int
    feature_norm: float
    target_norm: float = 1.0
    of: Callable[[Any], tuple[Any, Any]] = _features_and_target
    ridge: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", whole_number("features", self.features, minimum=1))
        object.__setattr__(self, "targets", whole_number("targets", self.targets, minimum=1))
        object.__setattr__(self, "feature_norm", clip_norm("feature_norm", self.feature_norm))
        object.__setattr__(self, "target_norm", clip_norm("target_norm", self.target_norm))
        if self.ridge is not None:
            object.__setattr__(self, "ridge", positive_number("ridge", self.ridge))

    @property
    def width(self) -> int:
        """d(d + 1)/2 + d·k."""
        return self.features * (self.features + 1) // 2 + self.features * self.targets

    @property
    def sensitivity(self) -> float:
        """√(R⁴ + R²Y²)."""
        return self.feature_norm * math.hypot(self.feature_norm, self.target_norm) * (1 + 2.0**-40)

    def row(self, record: Any) -> Tensor:
        """Return features and targets, one after the other."""
        features, targets = read_by(self.of, record)
        return torch.cat([vector_of(features, self.features), vector_of(targets, self.targets)])

    def total(self, rows: Tensor) -> Tensor:
        """Return the sums of x xᵀ, its upper half, and of x yᵀ."""
        is_finite = torch.isfinite(rows).all(dim=1, keepdim=True)
        rows = torch.where(is_finite, rows, 0.0)
        x = clipped(rows[:, : self.features], self.feature_norm)
        y = clipped(rows[:, self.features :], self.target_norm)
        places, weights = self._upper_half
        upper = (x.T @ x)[*places] * weights
        return torch.cat([upper, (x.T @ y).reshape(-1)])

    def answer(self, noised: Tensor, population: int, noise_std: float) -> Tensor:
        """Return the weights, float64 `[d, k]`."""
        d = self.features
        upper, products = noised[: -d * self.targets], noised[-d * self.targets :].view(d, self.targets)
        moments = torch.zeros(d, d, dtype=torch.float64)
        places, weights = self._upper_half
        moments[*places] = upper / weights
        moments = moments + moments.triu(1).T
        ridge = 2 * noise_std * math.sqrt(d) if self.ridge is None else self.ridge
        values, vectors = torch.linalg.eigh(moments)
        # Σ x xᵀ has no negative eigenvalue: what is below 0 is noise.
        inverse = 1 / (values.clamp(min=0.0) + max(ridge, 1e-300))
        solved: Tensor = vectors @ (inverse.unsqueeze(1) * (vectors.T @ products))
        return solved

    def describe(self) -> str:
        """Return what it is, with d, k, R and Y."""
        return (
            f"second moments of {self.features} features (norm {self.feature_norm:g}) with {self.targets} targets "
            f"(norm {self.target_norm:g}), for least squares"
        )

    @cached_property
    def _upper_half(self) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Places in x xᵀ and their weights, 1 on the diagonal and √2 beside it; the same for every chunk of records."""
        rows, columns = torch.triu_indices(self.features, self.features)
        return (rows, columns), torch.where(rows == columns, 1.0, math.sqrt(2.0)).double()
