"""Several views of each example, whose mean loss is that example's loss ("augmentation multiplicity").

The mean loss over K random views has one gradient, which is clipped once. So ε is the same as without views, and the
gradient varies less (De et al. 2022, "Unlocking high-accuracy differentially private image classification through
scale", §3.2). If each view were clipped by itself, the example would count K times.

Views are drawn anew for every example in every batch. In private training the random numbers must be secret and serve
nothing else. If they were known, leaving out one example would shift the views of all examples after it, and the sum
would change by more than C.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class Shifts:
    """Which views a task's images have: moved by up to `most` pixels each way (0 comes in), perhaps `mirrored`."""

    most: int
    mirrored: bool = False

    def views(self, images_BCHW: Tensor, count: int, generator: np.random.Generator) -> Tensor:
        """Return `count` random views of each image, [B, count, C, H, W]."""
        batch, _, height, width = images_BCHW.shape
        device = images_BCHW.device
        down_BK11, right_BK11 = (
            torch.from_numpy(generator.integers(0, 2 * self.most + 1, size=(batch, count, 1, 1))).to(device)
            for _ in range(2)
        )
        rows_BKH1 = down_BK11 + torch.arange(height, device=device)[:, None]
        columns_W = torch.arange(width, device=device)
        columns_BK1W = right_BK11 + columns_W
        if self.mirrored:
            is_mirrored = torch.from_numpy(generator.integers(0, 2, size=(batch, count, 1, 1)) == 1).to(device)
            columns_BK1W = torch.where(is_mirrored, right_BK11 + columns_W.flip(0), columns_BK1W)
        padded = F.pad(images_BCHW, (self.most,) * 4)
        which = torch.arange(batch, device=device)[:, None, None, None]
        return padded[which, :, rows_BKH1, columns_BK1W].movedim(-1, 2).contiguous()


class OverViews(nn.Module):
    """A model that takes views [B, K, …] and returns logits [B, K, classes]; examples stay on the first axis."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, views: Tensor) -> Tensor:
        """Run the model on all views of all examples."""
        logits: Tensor = self.model(views.flatten(0, 1)).unflatten(0, views.shape[:2])
        return logits


def mean_over_views(logits_BKL: Tensor, labels_B: Tensor, *, class_weights: Tensor | None = None) -> Tensor:
    """Return the cross-entropy of each example averaged over its views, times the weight of its class, [B].

    Guarantee: an example contributes at most C to the sum, however many views it has.
    """
    labels_BK = labels_B[:, None].expand(logits_BKL.shape[:2])
    return F.cross_entropy(logits_BKL.movedim(1, 2), labels_BK, weight=class_weights, reduction="none").mean(1)
