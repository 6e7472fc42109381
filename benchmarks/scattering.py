"""Fixed features of 28×28 images: a scattering transform of second order (Mallat 2012), by FFT, fitted on no data.

Two scales, eight directions, Morlet wavelets: 81 channels on 7×7 places.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

SIDE, SCALES, DIRECTIONS, CHANNELS = 32, 2, 8, 81
_AT_ONCE = 250


def _gabor(spread: float, angle: float, frequency: float, slant: float) -> tuple[np.ndarray, np.ndarray]:
    """Return a wave under a Gaussian envelope, and the envelope, in the plane."""
    places = np.arange(SIDE) - SIDE // 2
    y, x = np.meshgrid(places, places, indexing="ij")
    along = math.cos(angle) * x + math.sin(angle) * y
    across = math.cos(angle) * y - math.sin(angle) * x
    envelope = np.exp(-(along**2 + (slant * across) ** 2) / (2 * spread**2)) * slant / (2 * math.pi * spread**2)
    return envelope * np.exp(1j * frequency * along), envelope


def _filters() -> tuple[list[tuple[int, Tensor]], Tensor]:
    """Return the wavelets with their scales, and the low-pass filter, all in frequencies."""
    wavelets = []
    for scale in range(SCALES):
        for direction in range(DIRECTIONS):
            angle = math.pi * direction / DIRECTIONS
            wave, envelope = _gabor(0.8 * 2**scale, angle, 3 * math.pi / 4 / 2**scale, 4 / DIRECTIONS)
            wave = wave - envelope * wave.sum() / envelope.sum()  # no answer to constants
            wavelets.append((scale, torch.from_numpy(np.fft.fft2(np.fft.ifftshift(wave))).to(torch.complex64)))
    smooth = np.fft.fft2(np.fft.ifftshift(_gabor(0.8 * 2 ** (SCALES - 1), 0.0, 0.0, 1.0)[1]))
    return wavelets, torch.from_numpy(smooth / smooth[0, 0]).to(torch.complex64)


@torch.no_grad()
def scattered(images: Tensor) -> Tensor:
    """Return `[N, 81, 7, 7]` features of `[N, 28, 28]` images in 0..1."""
    wavelets, smooth = _filters()

    def low(values: Tensor) -> Tensor:
        return torch.fft.ifft2(torch.fft.fft2(values) * smooth).real[..., ::4, ::4]

    def through(values: Tensor, wavelet: Tensor) -> Tensor:
        return torch.fft.ifft2(torch.fft.fft2(values) * wavelet).abs()

    found = []
    for part in images.split(_AT_ONCE):
        x = functional.pad(part[:, None], (2, 2, 2, 2), mode="reflect")[:, 0]
        channels = [low(x)]
        for scale, wavelet in wavelets:
            once = through(x, wavelet)
            channels.append(low(once))
            channels += [low(through(once, other)) for finer, other in wavelets if finer > scale]
        found.append(torch.stack(channels, 1)[:, :, :7, :7].contiguous())
    return torch.cat(found)


def pooled_features(images: Tensor) -> Tensor:
    """Return `[N, 1296]`: scattering, normalised within each image and channel group, averaged to 4×4 places."""
    normal = functional.group_norm(scattered(images), 27)
    return functional.adaptive_avg_pool2d(normal, 4).flatten(1) * 0.2
