"""Which examples take part in which step, and the loader that hands them out."""

from hushgrad.sampling.balls_in_bins import BallsInBinsSampling
from hushgrad.sampling.contribution_bounds import bounded_contributions
from hushgrad.sampling.cyclic import CyclicPoissonSampling
from hushgrad.sampling.disjoint import DisjointBatches
from hushgrad.sampling.fixed_order import FixedOrderBatches
from hushgrad.sampling.fixed_size import FixedSizeSampling
from hushgrad.sampling.loader import PrivateLoader
from hushgrad.sampling.poisson import PoissonSampling
from hushgrad.sampling.records import BatchObserver, Cutting, PhysicalBatch
from hushgrad.sampling.scheme import Sampler, SamplingScheme
from hushgrad.sampling.torch_loader import LoadingOptions
from hushgrad.sampling.truncated_poisson import TruncatedPoissonSampling
from hushgrad.sampling.users import UserSampling

__all__ = [
    "BallsInBinsSampling",
    "BatchObserver",
    "Cutting",
    "CyclicPoissonSampling",
    "DisjointBatches",
    "FixedOrderBatches",
    "FixedSizeSampling",
    "LoadingOptions",
    "PhysicalBatch",
    "PoissonSampling",
    "PrivateLoader",
    "Sampler",
    "SamplingScheme",
    "TruncatedPoissonSampling",
    "UserSampling",
    "bounded_contributions",
]
