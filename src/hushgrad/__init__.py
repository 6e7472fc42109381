"""hushgrad: differentially private training for PyTorch."""

from hushgrad._version import __version__
from hushgrad.clipping import FlatClipping
from hushgrad.engine import PrivacyEngine
from hushgrad.mechanism import DPSGD
from hushgrad.sampling.specs import DisjointBatches, PoissonSampling
from hushgrad.session import Session, privatize

__all__ = [
    "DPSGD",
    "DisjointBatches",
    "FlatClipping",
    "PoissonSampling",
    "PrivacyEngine",
    "Session",
    "__version__",
    "privatize",
]
