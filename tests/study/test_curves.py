import math

import pytest

from hushgrad.study.curves import draw_curves
from hushgrad.study.outcome import Measurement


def measurements(epsilons):
    return [
        Measurement(n + 1, 1, 1.0 / (n + 1), 0.5, 0.6 if n % 2 else None, epsilon, 10.0, 1.0)
        for n, epsilon in enumerate(epsilons)
    ]


@pytest.mark.parametrize(
    ("epsilons", "delta"),
    [
        ([0.5, 0.7, 0.9], 1e-5),
        ([math.inf] * 3, 1e-5),
        ([None] * 3, None),
        ([0.5], 1e-5),
        ([], 1e-5),
        ([0.0, 0.0], 1e-5),
    ],
)
def test_a_picture_is_drawn_for_private_and_other_runs_of_any_length(epsilons, delta):
    assert draw_curves(measurements(epsilons), title="t", delta=delta).startswith(b"\x89PNG")


def test_a_loss_that_is_not_finite_still_gives_a_picture():
    rows = [Measurement(n, 1, math.nan if n else math.inf, 0.5, 0.5, 1.0, 1.0, 1.0) for n in range(3)]
    assert draw_curves(rows, title="t", delta=1e-5).startswith(b"\x89PNG")
