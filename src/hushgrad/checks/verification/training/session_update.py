"""One step of a new session as an update under test, also where the model draws random numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from hushgrad.capture.axes.batch_axes import tensors_in
from hushgrad.checks.verification.checks.noise import NoiseReading
from hushgrad.checks.verification.training.copies import TrainingReplica
from hushgrad.checks.verification.update.groups import SEED, GroupReading, WholeUsers, take
from hushgrad.checks.verification.update.paired_update import Output, narrowest, norm, rounding_error, seeded
from hushgrad.checks.verification.verdict import Check
from hushgrad.errors import UnsupportedModelError
from hushgrad.guards.probing.deterministic_mode import DeterministicMode
from hushgrad.mechanism import Mechanism
from hushgrad.session.update import Written

WITHOUT_RANDOMNESS = (
    "The model draws random numbers (dropout, say), and other ones for other groups of examples: what examples add "
    "together was measured with constants in their place, and as they are drawn only what each adds alone"
)


class SessionUpdate:
    """A `PairedUpdate`: one step of a new session, whose key the seed makes.

    Under one seed the random numbers of the model repeat themselves for one batch and not for a part of it: a mask
    drawn for three examples is not the mask drawn for four. A model that draws (`is_quiet`, once `find_randomness` has
    looked) runs with constants in their place.
    """

    def __init__(self, replica: TrainingReplica) -> None:
        self._replica = replica
        self.word_bits = 32
        self.is_quiet = False
        self.is_narrow = False
        self.written = Written({}, None, None)
        """How much noise the parts of the last update had."""

    def find_randomness(self) -> None:
        """Find out whether the model draws random numbers.

        Raises:
            UnsupportedModelError: by an operator in whose place there is no constant.
        """
        silence = DeterministicMode()
        with seeded(SEED), silence:
            self._replica.gradients_of(0)
        if silence.unknown is not None:
            raise UnsupportedModelError(
                f"the model draws random numbers by {silence.unknown}, so that what one example adds cannot be told "
                f"from other numbers drawn for the others",
                cure="Verify the model with that part in eval(), or with a constant in its place",
            )
        self.is_quiet = silence.was_needed

    def call(self, stimulus: Any, seed: int | None = None) -> Output:
        """Return the update of one step of a new session; a batch without rows is an empty draw."""
        with self.randomness(seed):
            return self._update(stimulus, seed)

    def call_as_drawn(self, stimulus: Any, seed: int, drawn_from: int) -> Output:
        """Return the update with the model's random numbers as they are drawn from a seed of their own."""
        with seeded(drawn_from):
            return self._update(stimulus, seed)

    @contextmanager
    def randomness(self, seed: int | None) -> Iterator[None]:
        """The model's random numbers as they are in `call`."""
        with seeded(seed), DeterministicMode() if self.is_quiet else nullcontext():
            yield

    def _update(self, stimulus: Any, seed: int | None) -> Output:
        running = self._replica.session(seed=seed)
        try:
            leaves = list(tensors_in(stimulus.item if isinstance(stimulus, WholeUsers) else stimulus))
            found = running.update(stimulus if leaves and leaves[0].shape[0] else None)
            self.is_narrow |= running.session.is_narrow
            self.written = running.session.written
        finally:
            running.session.close()
        self.word_bits = narrowest(found)
        return found

    def error_of_difference(self, noise_std: float) -> float:
        """Return the error of rounding: under one key noise cancels."""
        return rounding_error(noise_std * first_step(self._replica.mechanism), self.word_bits)


def first_step(mechanism: Mechanism) -> float:
    """Return by what the noise of the first step of a session is greater than what is whitened of it."""
    return 1 / float(mechanism.noise.strategy.coefficients(1)[0])


def rounding(update: SessionUpdate, contributions: GroupReading, noise: NoiseReading) -> float:
    """Return how far rounding may take an update from what it is without its noise."""
    size = sum(value.numel() for value in contributions.alone[0].values())
    return 3 * update.error_of_difference(noise.std) * math.sqrt(size)


def reads_as_drawn(update: SessionUpdate, batch: Any, contributions: GroupReading, noise: NoiseReading) -> Check:
    """Run each example alone with the model's random numbers as they are drawn, also with its inputs scaled up."""
    base, unit = contributions.probe.base, contributions.unit
    norms: list[float] = []
    for row in contributions.alone:
        for scale in (1.0, 1e3):
            found = update.call_as_drawn(take(batch, [row], scale), SEED, drawn_from=len(norms))
            norms.append(norm({name: value.double() - base[name] for name, value in found.items()}))
    room = rounding(update, contributions, noise) + 1e-4 * unit
    return Check(
        code="sensitivity-as-drawn",
        part="sensitivity",
        claim="with the model's random numbers as they are drawn, one example alone adds at most C",
        measured=f"up to {max(norms) / unit:.5g} C",
        passed=max(norms) <= unit + room,
        sample_size=len(norms),
        statistic=max(norms) / unit,
        power=f"every excess above {room / unit:.2g} C on these examples",
    )
