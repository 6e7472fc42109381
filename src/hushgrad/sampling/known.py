"""Which sampling schemes are hushgrad's own."""

from __future__ import annotations

from hushgrad.sampling.balls_in_bins import BallsInBinsSampling
from hushgrad.sampling.cyclic import CyclicPoissonSampling
from hushgrad.sampling.disjoint import DisjointBatches
from hushgrad.sampling.fixed_order import FixedOrderBatches
from hushgrad.sampling.fixed_size import FixedSizeSampling
from hushgrad.sampling.poisson import PoissonSampling
from hushgrad.sampling.scheme import SamplingScheme
from hushgrad.sampling.truncated_poisson import TruncatedPoissonSampling
from hushgrad.sampling.users import UserSampling

OWN: tuple[type[SamplingScheme], ...] = (
    PoissonSampling,
    TruncatedPoissonSampling,
    BallsInBinsSampling,
    FixedSizeSampling,
    DisjointBatches,
    CyclicPoissonSampling,
    FixedOrderBatches,
    UserSampling,
)
"""A class derived from one of them is somebody else's, and named in every guarantee."""
