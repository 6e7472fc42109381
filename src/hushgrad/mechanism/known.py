"""Which noise mechanisms are hushgrad's own, and by which names they are asked for."""

from __future__ import annotations

from hushgrad.arguments import one_of
from hushgrad.mechanism.gaussian import GaussianNoise
from hushgrad.mechanism.grid import GridNoise
from hushgrad.mechanism.noise import NoiseMechanism

OWN: tuple[type[NoiseMechanism], ...] = (GaussianNoise, GridNoise)
"""A class derived from one of them is somebody else's, and named in every guarantee."""

DIVISIBLE: tuple[type[NoiseMechanism], ...] = (GaussianNoise,)
"""Those that each of several processes may draw a part of."""

NAMED: dict[str, type[GaussianNoise] | type[GridNoise]] = {"gaussian": GaussianNoise, "grid": GridNoise}
"""Independent noise by its name, which takes a noise multiplier alone."""


def noise_named(name: str, noise_multiplier: float) -> NoiseMechanism:
    """Return the noise of that name. Raises `InvalidArgumentError` for another name or a σ out of range."""
    return NAMED[one_of("noise", name, tuple(NAMED))](noise_multiplier)
