"""What one step does to the data and what it costs, as frozen values."""

from hushgrad.mechanism.correlated import CorrelatedNoise
from hushgrad.mechanism.dpsgd import DPSGD
from hushgrad.mechanism.gaussian import GaussianNoise
from hushgrad.mechanism.grid import GridNoise
from hushgrad.mechanism.mechanism import Mechanism
from hushgrad.mechanism.noise import NoiseMechanism

__all__ = ["DPSGD", "CorrelatedNoise", "GaussianNoise", "GridNoise", "Mechanism", "NoiseMechanism"]
