import math

import pytest

from hushgrad.accounting import Gaussian, PoissonSampled
from hushgrad.accounting.guarantee import guarantee
from hushgrad.accounting.ledger.monitors import ALARM, NOISE, SENSITIVITY, normal
from hushgrad.accounting.meaning import in_plain_words, percent_up
from hushgrad.accounting.risk import membership_advantage, true_positive_rate

STEPS = [(PoissonSampled(0.01, 1.0), 500)]


def told(events):
    return in_plain_words(guarantee(events, 1e-5), events)


def test_what_an_attacker_gains_is_what_risk_computes_rounded_up():
    attacker, _ = told(STEPS)
    right = (1 + membership_advantage(STEPS)) / 2
    assert f"right at most {percent_up(right)} of the time" in attacker
    assert f"At 1% false alarms at most {percent_up(true_positive_rate(STEPS, 0.01))} of those" in attacker
    assert "whether one record took part" in attacker
    for share in (right, 0.62341, 1.0):
        assert 100 * share <= float(percent_up(share)[:-1]) <= 100 * share * 1.01


@pytest.mark.parametrize(("noise", "kind"), [(8.0, "strong"), (2.0, "reasonable"), (0.3, "weak")])
def test_an_epsilon_is_placed_among_usual_values(noise, kind):
    events = [(Gaussian(noise), 1)]
    assert told(events)[-1].endswith(f"is {kind}.")


def test_nothing_is_said_of_an_infinite_epsilon():
    assert math.isinf(guarantee([(Gaussian(0.0), 1)], 1e-5).epsilon)
    assert told([(Gaussian(0.0), 1)]) == ()


def test_what_is_normal_is_said_of_every_monitor():
    """By the names that notes have, and with the limit at which training ends."""
    from hushgrad.guards.monitoring.noise import NoiseMonitor

    assert NoiseMonitor().verdict in normal(NOISE)
    assert f"beyond ±{ALARM}" in normal(NOISE)
    assert "within the clip norm" in normal(SENSITIVITY)
    assert normal("anything else") == "–"
