"""Which examples take part in which step, and the loader that hands them out."""

from hushgrad.sampling.loader import PrivateLoader
from hushgrad.sampling.records import BatchObserver, Cutting, PhysicalBatch
from hushgrad.sampling.specs import DisjointBatches, PoissonSampling, Sampling, TruncatedPoissonSampling
from hushgrad.sampling.torch_loader import LoadingOptions

__all__ = [
    "BatchObserver",
    "Cutting",
    "DisjointBatches",
    "LoadingOptions",
    "PhysicalBatch",
    "PoissonSampling",
    "PrivateLoader",
    "Sampling",
    "TruncatedPoissonSampling",
]
