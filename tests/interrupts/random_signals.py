"""Trains while an alarm interrupts steps at random moments, and looks at what each of them did to the weights.

Run as a program: `random_signals.py SIGNALS THREADS RUNTIME SEED` (runtime: openmp or python); prints one JSON object.
Batches are empty draws, so that an update is noise and nothing else, of standard deviation σC/B = 500.

Each step gets one alarm at most, whose handler raises an exception of its own; where it comes is random, and events are
counted, never times.
"""

from __future__ import annotations

import json
import random
import signal
import sys
import time
from types import FrameType

import torch
from torch import Tensor, nn

from hushgrad import DPSGD, FlatClipping, PoissonSampling, privatize
from hushgrad.noise import threads
from hushgrad.noise.gaussian import backend
from hushgrad.randomness import KeyStream

STD = 500.0
PARTS = 32


class AlarmError(Exception):
    """What the handler raises."""


def main(signals: int, count: int, runtime: str, seed: int) -> None:
    """Interrupt so many steps and print what was found."""
    torch.set_num_threads(count)
    if runtime == "python":
        threads._openmp = lambda: None  # type: ignore[assignment]
    model = nn.Linear(1024, 512)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    mechanism = DPSGD(
        noise_multiplier=1e3, clipping=FlatClipping(1.0), sampling=PoissonSampling(0.5), expected_batch_size=2
    )
    session = privatize(model, optimizer, mechanism, key=KeyStream.fixed_for_tests(seed))
    raised = heard = updates = bare = 0
    dropped: list[str] = []
    sys.unraisablehook = lambda lost: dropped.append(f"{lost.exc_value!r} in {lost.object!r}")

    def ring(number: int, frame: FrameType | None) -> None:
        nonlocal raised
        raised += 1
        raise AlarmError

    signal.signal(signal.SIGALRM, ring)
    chance, span = random.Random(seed), 0.0
    for step in range(20 * signals):
        session.backward(torch.zeros(0))
        before = [parameter.detach().clone() for parameter in model.parameters()]
        begun = time.perf_counter()
        is_over = False
        try:
            if step >= 10:
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-6, span))
            optimizer.step()
            is_over = True
            signal.setitimer(signal.ITIMER_REAL, 0)
        except AlarmError as error:
            heard += alarms_in(error)
        if step < 10:
            span = 1.2 * (time.perf_counter() - begun)  # aims the alarms; nothing is judged by it
        changes = [after.detach() - former for after, former in zip(model.parameters(), before, strict=True)]
        moved = [change for change in changes if bool(change.any())]
        bare += sum(not has_its_noise(change) for change in moved)
        updates += bool(moved)
        if not is_over:
            torch.set_grad_enabled(True)  # an interrupt in torch's own optimizers may leave it switched off
            session.discard()
        if raised >= signals:
            break
    charged = sum(times for _, times in session.charged)
    result = {
        "backend": backend().__name__,
        "openmp": threads._openmp() is not None,
        "steps": step + 1,
        "raised": raised,
        "heard": heard,
        "dropped": dropped,
        "updates": updates,
        "charged": charged,
        "bare": bare,
        "verdict": session.noise_monitor.verdict,
    }
    print(json.dumps(result))


def alarms_in(error: BaseException) -> int:
    """Return how many alarms an exception tells of: itself, and those it came upon."""
    return isinstance(error, AlarmError) + (0 if error.__context__ is None else alarms_in(error.__context__))


def has_its_noise(change: Tensor) -> bool:
    """Say whether each part has noise of the level charged: within 30%.

    That is 54 standard errors of the weight's parts of 16,384 values and 9 of the bias' 512.
    """
    parts = change.view(PARTS if change.ndim > 1 else 1, -1).std(1) / STD
    return bool(((parts > 0.7) & (parts < 1.3)).all())


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
