"""Which noise mechanisms are hushgrad's own, and by which names they are asked for."""

from __future__ import annotations

from hushgrad.arguments import one_of
from hushgrad.errors import UnprovenMechanismError
from hushgrad.mechanism.correlated import CorrelatedNoise
from hushgrad.mechanism.gaussian import GaussianNoise
from hushgrad.mechanism.grid import GridNoise
from hushgrad.mechanism.noise import NoiseMechanism
from hushgrad.strategies.banded import INDEPENDENT
from hushgrad.strategies.strategy import Strategy

OWN: tuple[type[NoiseMechanism], ...] = (GaussianNoise, GridNoise, CorrelatedNoise)
"""A class derived from one of them is somebody else's, and named in every guarantee."""

DIVISIBLE: tuple[type[NoiseMechanism], ...] = (GaussianNoise,)
"""Those that each of several processes may draw a part of."""

NAMED: dict[str, type[GaussianNoise] | type[GridNoise]] = {"gaussian": GaussianNoise, "grid": GridNoise}
"""Independent noise by its name, which takes a noise multiplier alone."""


def noise_named(name: str, noise_multiplier: float, strategy: Strategy = INDEPENDENT) -> NoiseMechanism:
    """Return the noise of that name, correlated between steps by `strategy`.

    Raises `InvalidArgumentError` for another name or a σ out of range, and `UnprovenMechanismError` for noise on a grid
    that is correlated: C⁻¹Z of whole numbers Z is on no grid.
    """
    kind = NAMED[one_of("noise", name, tuple(NAMED))]
    if strategy == INDEPENDENT:
        return kind(noise_multiplier)
    if kind is not GaussianNoise:
        raise UnprovenMechanismError(
            f"it is not known what noise on a grid costs that is correlated between steps ({type(strategy).__name__}): "
            f"what is taken back of earlier noise is on no grid",
            where="noise",
            cure='Take noise="grid" without a strategy, or correlated noise without noise_kind="grid"',
        )
    return CorrelatedNoise(noise_multiplier, strategy)
