"""The running average of a model's parameters, which is tested and released in place of the last parameters.

It is computed from noisy parameters alone, so it costs no privacy. It averages out noise that pulls successive steps
apart (De et al. 2022, "Unlocking high-accuracy differentially private image classification through scale", §3.3).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from hushgrad.arguments import open_unit_interval


class ParameterAverage:
    """The exponential average of a model's parameters over its steps.

    At step t the average keeps the share min(decay, (1 + t) / (10 + t)) of itself, so that it soon forgets early steps,
    which are far from the end of training.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Begin with the model's parameters as they are. Raises InvalidArgumentError unless 0 < decay < 1."""
        self.model = copy.deepcopy(model)
        self._decay = open_unit_interval("average_decay", decay)
        self._steps = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Add the parameters and buffers of `model` to the average, after a step."""
        self._steps += 1
        kept = min(self._decay, (1 + self._steps) / (10 + self._steps))
        for mine, theirs in zip(self.model.parameters(), model.parameters(), strict=True):
            mine.lerp_(theirs, 1 - kept)
        for held, now in zip(self.model.buffers(), model.buffers(), strict=True):
            held.copy_(now)

    def state_dict(self) -> dict[str, Any]:
        """Return the average and how many steps it holds, for a checkpoint."""
        return {"steps": self._steps, "model": dict(self.model.state_dict())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.model.load_state_dict(state_dict["model"])
        self._steps = int(state_dict["steps"])
