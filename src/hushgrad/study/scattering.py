"""Scattering features of images: fixed wavelets, nothing learned and nothing fitted on data.

A scattering transform of order 2 (Bruna & Mallat 2013, "Invariant scattering convolution networks", §2): an image x,
the moduli |x ∗ ψ| of its responses to Morlet wavelets ψ of two scales and eight directions, and the moduli
||x ∗ ψ| ∗ ψ'| of the finer moduli's responses to the coarser wavelets, each smoothed by a Gaussian and read at every
fourth pixel. Under clipping and noise a linear model on such features beats small convolutional networks (Tramèr &
Boneh 2021, "Differentially private learning needs better features (or much more data)").

Every number here is a public constant, so an image's features cost no privacy, whatever they are used for afterwards.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hushgrad.errors import InvalidArgumentError

DIRECTIONS = 8
FINE, COARSE = 0, 1
SMALLEST_SIDE = 8
STEP = 4  # pixels between two places at which features are read
PATHS = 1 + 2 * DIRECTIONS + DIRECTIONS**2  # the image, one modulus, two
NORM = 20.0
"""The Euclidean norm of an image's features: a clipping norm and a learning rate of about 1 then suit the model."""

_RADII = {FINE: 5, COARSE: 8}  # pixels, where the envelopes have fallen to 1% and 5% of their middle
_FAINT = 0.1  # of the norm of full contrast: fainter images are not brought to NORM, which would enlarge rounding
_SMOOTHING = 1.6  # pixels: the standard deviation of the Gaussian
_SMOOTHING_RADIUS = 5  # of the pixels that it is applied to
_GROUPS = (1, *(DIRECTIONS,) * (2 + DIRECTIONS))  # the image; one modulus, fine and coarse; two, by the first one


class Scattering(nn.Module):
    """Images [B, channels, H, W] to features [B, `features`], float32.

    Their Euclidean norm is NORM; less for an image with hardly any contrast.

    Within an image, paths that differ in their last direction alone are normalised together, over all places ("group
    normalisation" without parameters: Wu & He 2018); then all features are brought to one norm. Colours are treated one
    by one. The filters are buffers that no file keeps, because they are the same everywhere.

    Guarantee: the features of an image depend on that image alone.
    """

    fine: Tensor
    coarse: Tensor
    smoothing: Tensor
    halved_smoothing: Tensor

    def __init__(self, input_shape: tuple[int, ...]) -> None:
        """Raises InvalidArgumentError unless `input_shape` is (channels, H, W) with sides of at least SMALLEST_SIDE."""
        super().__init__()
        if len(input_shape) != 3 or min(input_shape[1:]) < SMALLEST_SIDE:
            raise InvalidArgumentError(
                f"scattering needs images of at least {SMALLEST_SIDE}×{SMALLEST_SIDE} pixels, got inputs of shape "
                f"{input_shape}",
                where="model",
                cure="Use model 'mlp'",
            )
        self.input_shape = input_shape
        self.register_buffer("fine", morlets(FINE), persistent=False)
        self.register_buffer("coarse", morlets(COARSE), persistent=False)
        self.register_buffer("smoothing", gaussian(_SMOOTHING), persistent=False)
        self.register_buffer("halved_smoothing", gaussian(_SMOOTHING / 2), persistent=False)

    @property
    def features(self) -> int:
        """How many features an image has."""
        channels, height, width = self.input_shape
        return channels * PATHS * math.ceil(height / STEP) * math.ceil(width / STEP)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return [B, features]. Raises InvalidArgumentError for other shapes, and for what is not float32."""
        if tuple(images_BCHW.shape[1:]) != self.input_shape or images_BCHW.dtype != torch.float32:
            raise InvalidArgumentError(
                f"must be float32 images of shape {self.input_shape}, got {images_BCHW.dtype} of shape "
                f"{tuple(images_BCHW.shape[1:])}",
                where="the scattering's input",
                cure="Bring the images to that shape, and to float32",
            )
        groups = torch.split(self.paths(images_BCHW), list(_GROUPS), dim=2)
        features_BF = torch.cat([F.layer_norm(group, group.shape[2:]).flatten(1) for group in groups], 1)
        lengths_B1 = features_BF.norm(dim=1, keepdim=True).clamp_min(_FAINT * math.sqrt(self.features))
        scaled_BF: Tensor = features_BF * (NORM / lengths_B1)
        return scaled_BF

    def paths(self, images_BCHW: Tensor) -> Tensor:
        """Return the transform itself, before normalisation, [B, channels, PATHS, ⌈H / STEP⌉, ⌈W / STEP⌉]."""
        channels, height, width = self.input_shape
        one_N1HW = images_BCHW.reshape(-1, 1, height, width)
        fine_NDHW = _moduli(one_N1HW, self.fine, 1)
        coarse_NDhw = _moduli(one_N1HW, self.coarse, 2)
        twice_MDhw = _moduli(fine_NDHW.reshape(-1, 1, height, width), self.coarse, 2)
        twice_NQhw = twice_MDhw.reshape(-1, DIRECTIONS**2, *twice_MDhw.shape[2:])
        parts = (
            _smoothed(one_N1HW, self.smoothing, STEP),
            _smoothed(fine_NDHW, self.smoothing, STEP),
            _smoothed(coarse_NDhw, self.halved_smoothing, STEP // 2),
            _smoothed(twice_NQhw, self.halved_smoothing, STEP // 2),
        )
        paths_NPhw = torch.cat(parts, 1)
        return paths_NPhw.reshape(-1, channels, *paths_NPhw.shape[1:])


def morlets(scale: int) -> Tensor:
    """Return the wavelets of a scale, [2 · DIRECTIONS, 1, K, K] float32: the real parts, then the imaginary ones.

    ψ(u) = envelope(u) · (exp(iξ u₁) − κ) for u turned by the direction: σ = 0.8 · 2^scale pixels along the wave and
    twice that across it, ξ = ¾π / 2^scale, and κ such that a constant image has no response.
    """
    sigma, xi, slant = 0.8 * 2**scale, 0.75 * math.pi / 2**scale, 4 / DIRECTIONS
    reach = torch.arange(-_RADII[scale], _RADII[scale] + 1, dtype=torch.float64)
    down, right = torch.meshgrid(reach, reach, indexing="ij")
    waves = []
    for direction in range(DIRECTIONS):
        angle = math.pi * direction / DIRECTIONS
        along, across = (
            math.cos(angle) * right + math.sin(angle) * down,
            math.cos(angle) * down - math.sin(angle) * right,
        )
        envelope = torch.exp(-(along**2 + (slant * across) ** 2) / (2 * sigma**2)) * slant / (2 * math.pi * sigma**2)
        wave = torch.stack((envelope * torch.cos(xi * along), envelope * torch.sin(xi * along)))
        waves.append(wave - envelope * (wave.sum((1, 2), keepdim=True) / envelope.sum()))
    return torch.stack(waves, 1).flatten(0, 1).unsqueeze(1).float()


def gaussian(deviation: float) -> Tensor:
    """Return a Gaussian of so many pixels, [K] float32, with sum 1."""
    reach = torch.arange(-_SMOOTHING_RADIUS, _SMOOTHING_RADIUS + 1, dtype=torch.float64)
    bell = torch.exp(-(reach**2) / (2 * deviation**2))
    return (bell / bell.sum()).float()


def _moduli(maps_N1HW: Tensor, waves: Tensor, stride: int) -> Tensor:
    """Return the moduli of the responses to complex wavelets, [N, DIRECTIONS, H / stride, W / stride]."""
    padded = F.pad(maps_N1HW, (waves.shape[-1] // 2,) * 4, mode="replicate")
    real, imaginary = F.conv2d(padded, waves, stride=stride).chunk(2, 1)
    return (real.square() + imaginary.square()).sqrt()


def _smoothed(maps_NKHW: Tensor, bell_W: Tensor, step: int) -> Tensor:
    """Return every map smoothed and read at the middle of every `step` pixels, [N, K, ⌈H / step⌉, ⌈W / step⌉]."""
    count, kinds, height, width = maps_NKHW.shape
    middle, reach = step // 2, len(bell_W) // 2
    one_M1HW = maps_NKHW.reshape(-1, 1, height, width)
    padded = F.pad(one_M1HW, (reach - middle, reach + middle) * 2, mode="replicate")
    down = F.conv2d(padded, bell_W[None, None, :, None], stride=(step, 1))
    both = F.conv2d(down, bell_W[None, None, None, :], stride=(1, step))
    return both.reshape(count, kinds, *both.shape[2:])
