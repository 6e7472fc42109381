"""The sum of costs takes only what accountants can charge, whoever adds it."""

import math
from collections.abc import Callable

import pytest

from hushgrad.accounting.events.costs import Costs
from hushgrad.errors import AccountingError, InvalidArgumentError


@pytest.mark.parametrize("noise", [-1.0, math.nan, math.inf, -0.1])
@pytest.mark.parametrize(
    "add",
    [
        lambda costs, noise: costs.add_release(noise, 1),
        lambda costs, noise: costs.add_sampled(0.1, noise, 1),
        lambda costs, noise: costs.add_truncated(0.1, noise, 100, 20, 1),
        lambda costs, noise: costs.add_fixed_size(0.1, noise, 1),
        lambda costs, noise: costs.add_step_of_pass("toy", 0, noise),
    ],
)
def test_a_noise_multiplier_that_no_accountant_can_charge_is_refused(
    add: Callable[[Costs, float], None], noise: float
) -> None:
    """Guarantee: what no accountant can charge is refused, whichever kind of event adds it."""
    with pytest.raises(AccountingError, match="noise multiplier"):
        add(Costs(), noise)


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, math.nan])
@pytest.mark.parametrize(
    "add",
    [
        lambda costs, rate: costs.add_sampled(rate, 1.0, 1),
        lambda costs, rate: costs.add_truncated(rate, 1.0, 100, 20, 1),
        lambda costs, rate: costs.add_fixed_size(rate, 1.0, 1),
    ],
)
def test_a_rate_that_no_accountant_can_charge_is_refused(add: Callable[[Costs, float], None], rate: float) -> None:
    """Guarantee: what no accountant can charge is refused, whichever kind of event adds it."""
    with pytest.raises(AccountingError, match="sampling rate"):
        add(Costs(), rate)


def test_a_sampled_step_that_counts_as_unsampled_is_not_added_as_sampled() -> None:
    for rate, noise in ((1.0, 1.0), (0.1, 1e-4), (0.1, 0.0)):
        with pytest.raises(AccountingError):
            Costs().add_sampled(rate, noise, 1)


@pytest.mark.parametrize("count", [0, -1, 1.5, True])
def test_a_step_that_did_not_run_once_is_refused(count: int) -> None:
    """Guarantee: what no accountant can charge is refused, whichever kind of event adds it."""
    with pytest.raises(InvalidArgumentError, match="count"):
        Costs().add_release(1.0, count)
