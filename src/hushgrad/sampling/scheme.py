"""How examples are drawn, as values: what the mechanism is charged for and what a report says."""

from __future__ import annotations

from hushgrad.sampling.disjoint import DisjointBatches
from hushgrad.sampling.poisson import PoissonSampling
from hushgrad.sampling.truncated_poisson import TruncatedPoissonSampling

RandomSampling = PoissonSampling | TruncatedPoissonSampling
"""Sampling of which every step draws afresh, with the probability `rate` for each record."""

Sampling = PoissonSampling | TruncatedPoissonSampling | DisjointBatches
