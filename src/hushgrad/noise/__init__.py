"""Noise: Gaussian values from the library's own keyed stream."""

from hushgrad.noise.gaussian import noisy_update, standard_normal

__all__ = ["noisy_update", "standard_normal"]
