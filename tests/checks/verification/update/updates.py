"""An update by hand, with everything in it that may be wrong; and what is measured of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hushgrad.checks.verification.checks.noise import NoiseReading, read_noise
from hushgrad.checks.verification.mistakes.clipping import Belief
from hushgrad.checks.verification.update.contributions import Contributions, read_contributions
from hushgrad.checks.verification.update.paired_update import FunctionUpdate, arrays
from hushgrad.checks.verification.update.stimuli import Form, Stimuli

SIGMA, C, B = 1.3, 0.6, 50.0
BELIEF = Belief(SIGMA, C, B, B)
FORM = Form.of({"weight": (24, 20), "bias": (24,)}, torch.float32)
COUNT = 5

Gradients = dict[str, Tensor]


@dataclass(frozen=True)
class Update:
    """Clip, sum, add noise, divide.

    `limit` is what contributions are clipped to, `std` the noise for n examples, `last` the sum that is remembered.
    """

    limit: float = C
    std: Callable[[int], float] = lambda count: SIGMA * C
    selects: bool = True
    remembers: bool = False
    divisor: float = B
    last: Gradients = field(default_factory=dict)

    def __call__(self, gradients: Gradients) -> Gradients:
        flat = torch.cat([value.flatten(1) for value in gradients.values()], 1)
        norms = flat.norm(dim=1)
        factors = (self.limit / norms.clamp(min=1e-30)).clamp(max=1.0)
        keep = norms.isfinite() if self.selects else torch.ones_like(norms, dtype=torch.bool)
        found = {}
        for name, value in gradients.items():
            shape = (-1, *[1] * (value.ndim - 1))
            total = (torch.where(keep.reshape(shape), value, 0.0) * factors.nan_to_num(0).reshape(shape)).sum(0)
            noise = torch.randn_like(total) * self.std(len(norms))
            found[name] = (total + self.last.get(name, 0.0) + noise) / self.divisor
            if self.remembers:
                self.last[name] = total
        return found


def measured(update: Callable[[Gradients], Gradients]) -> tuple[Contributions, NoiseReading]:
    """Return what contributions and noise are found to be; false alarm 1e-6 each."""
    torch.manual_seed(7)
    loop = FunctionUpdate(lambda stimulus: FORM.read(update(FORM.hand_over(stimulus))))
    stimuli = Stimuli(FORM.shapes, C, COUNT)
    noise = read_noise(
        [arrays(draw) for draw in loop.draw(stimuli.zeros(COUNT), 60)], SIGMA * C / B, 1e-6, loop.word_bits
    )
    loop.find_pairing(stimuli.zeros(COUNT))
    return read_contributions(loop, stimuli, BELIEF, noise, 1e-6), noise
