"""Which noise mechanisms are hushgrad's own."""

from __future__ import annotations

from hushgrad.mechanism.correlated import CorrelatedNoise
from hushgrad.mechanism.gaussian import GaussianNoise
from hushgrad.mechanism.noise import NoiseMechanism

OWN: tuple[type[NoiseMechanism], ...] = (GaussianNoise, CorrelatedNoise)
"""A class derived from one of them is somebody else's, and named in every guarantee."""
