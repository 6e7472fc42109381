"""A noise mechanism: what is added to a sum of clipped gradients, and what that costs together with a sampling.

A kind is a file: a frozen dataclass. Whoever needs to know something of the noise asks it; nobody else asks which kind
it is (a test reads the sources).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Self

from torch import Tensor

from hushgrad.accounting.events.event import Event
from hushgrad.accounting.ledger.contract import Rounding
from hushgrad.errors import InvalidArgumentError, UnprovenMechanismError
from hushgrad.noise.gaussian import Noised
from hushgrad.randomness import KeyStream
from hushgrad.sampling.scheme import SamplingScheme
from hushgrad.strategies.banded import INDEPENDENT
from hushgrad.strategies.strategy import Strategy


class NoiseMechanism(ABC):
    """The noise of a step, as a frozen value that can be compared; `start` and `updates` run it.

    What a run remembers of its noise (the stream it comes from; earlier noise, where steps share some) is not in the
    value but in the state that `start` returns: the value of a step may differ from that of the step before, by a
    schedule, and the state stays.

    Attributes:
        noise_multiplier: σ, a field or property of every kind: what calibration searches and schedules multiply. More
            of it never costs more. 0 is no noise, and no privacy.
        strategy: how the noise of a step is correlated with that of earlier ones: that of step t is row t of C⁻¹Z. The
            identity for noise that is independent in every step.
        follows_rule: whether it costs the same where it differs as a clip rule asks for: from step to step, with a norm
            that follows from what was released, and from group to group, whose sums are divided by a number before and
            multiplied by it after.
    """

    noise_multiplier: float
    strategy: Strategy = INDEPENDENT
    follows_rule: ClassVar[bool] = False
    sums_in_float64: ClassVar[bool] = False
    """Whether `updates` wants sums that were added up in float64, within the error that `rounding` names."""

    @abstractmethod
    def std(self, sensitivity: float) -> float:
        """Return the standard deviation of the noise on each value of the sum, in units of the gradient.

        Of noise that is correlated between steps, that of Z, as `strategy` whitens it. Proportional to `sensitivity`.
        It is what the noise of every step is measured against, in training and by `verify`, which also compares it with
        the noise multiplier of the event.
        """

    @abstractmethod
    def start(self, stream: KeyStream) -> Any:
        """Return the state of a new block, which `updates` gets in every step; `stream` is for this run's noise alone.

        A block is an unbroken run of steps. Where a step was left out or interrupted, the next one begins a block with
        the same stream, of which no address comes twice. Noise that needs several draws for one address forks the
        stream, once for each.
        """

    @abstractmethod
    def updates(self, state: Any, totals: Sequence[Noised], *, sensitivity: float, divisor: float) -> list[Tensor]:
        """Return `(total + noise) / divisor` for each total, in its shape, dtype and device.

        Called once in a step, with the noise of that step as `self`. Addresses say which step and which total it is; no
        address comes twice. `noisy_updates` and `noisy_update` (hushgrad.noise.gaussian) draw Gaussian noise.
        """

    @abstractmethod
    def event(self, sampling: SamplingScheme, index: int = 0) -> Event:
        """Return what one step costs with this sampling; `index` numbers the passes or blocks that it counts in.

        Noise that amounts to independent Gaussian noise in every step returns `sampling.event(noise_multiplier,
        index)`, and noise of a strategy what `sampling.correlated_event` does. Raises `UnprovenMechanismError` where
        nobody has proven what the pair costs.
        """

    @abstractmethod
    def with_noise_multiplier(self, noise_multiplier: float) -> Self:
        """Return the same noise with another noise multiplier."""

    def rounding(self, sensitivity: float, coordinates: int) -> Rounding | None:
        """Return the grid that `updates` rounds sums of so many values to, for the ledger; None where there is none."""
        return None

    def describe(self) -> str:
        """Return in words what the noise is."""
        return f"{type(self).__name__} with the noise multiplier {self.noise_multiplier:g}"

    def unproven(self, sampling: SamplingScheme, *, cure: str) -> UnprovenMechanismError:
        """Return the error for a sampling with which it is not known what this noise costs."""
        return UnprovenMechanismError(
            f"it is not known what {self.describe()} costs with this sampling: {sampling.describe()}", cure=cure
        )


def require_noise(noise: object) -> NoiseMechanism:
    """Return `noise`, or raise `InvalidArgumentError` where it is no noise mechanism."""
    if not isinstance(noise, NoiseMechanism):
        raise InvalidArgumentError(
            f"noise must be a noise mechanism, got {type(noise).__name__}",
            cure="Give GaussianNoise(noise_multiplier) or a NoiseMechanism of your own",
        )
    return noise
