import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushgrad.accounting.events.balls_in_bins import BallsInBins
from hushgrad.accounting.events.cyclic_poisson import CyclicPoisson
from hushgrad.accounting.events.disjoint_pass import DisjointPass
from hushgrad.accounting.events.event import Event
from hushgrad.accounting.events.fixed_order import FixedOrder
from hushgrad.accounting.events.fixed_order_buffered import FixedOrderBuffered
from hushgrad.accounting.events.fixed_size import FixedSizeSampled
from hushgrad.accounting.events.gaussian import Gaussian
from hushgrad.accounting.events.poisson import PoissonSampled
from hushgrad.accounting.events.random_allocation import RandomAllocation
from hushgrad.accounting.events.registry import event_from_json
from hushgrad.accounting.events.truncated_poisson import TruncatedPoisson
from hushgrad.errors import InvalidArgumentError
from hushgrad.strategies.buffered import BufferedStrategy

noise = st.floats(0, 1e300, allow_nan=False)
events = st.one_of(
    st.builds(Gaussian, noise),
    st.builds(PoissonSampled, st.floats(0, 1), noise),
    st.builds(DisjointPass, noise, st.integers(0, 2**40)),
    st.builds(CyclicPoisson, st.floats(0, 1), noise, st.integers(1, 2**40), st.integers(0, 2**40)),
    st.builds(FixedOrder, noise, st.integers(1, 2**40), st.integers(0, 2**40)),
    st.builds(
        lambda slow, fast, weight: FixedOrderBuffered.of(1.5, 9, BufferedStrategy((slow, fast), (weight, weight)), 2),
        st.floats(0.6, 0.9999),
        st.floats(0.01, 0.5),
        st.floats(0.001, 0.5),
    ),
    st.builds(BallsInBins, st.integers(1, 2**40), noise, st.integers(0, 2**40)),
    st.builds(RandomAllocation, st.integers(64, 2**40), noise, st.integers(0, 2**40), st.integers(1, 64)),
    st.builds(TruncatedPoisson, st.floats(0, 1), noise, st.integers(1, 2**40), st.integers(1, 2**40)),
    st.builds(FixedSizeSampled, st.integers(1, 2**20), st.integers(2**20, 2**40), noise),
)


@given(events)
def test_reading_what_was_written_gives_an_equal_event(event: Event) -> None:
    """Guarantee: reading what was written gives an equal event."""
    assert event_from_json(json.loads(json.dumps(event.to_json()))) == event


@pytest.mark.parametrize(
    "change",
    [
        {"type": "laplace"},
        {"type": ["gaussian"]},
        {"type": None},
        {"version": 2},
        {"version": True},
        {"version": "1"},
        {"noise_multiplier": -1.0},
        {"noise_multiplier": "1"},
        {"noise_multiplier": True},
        {"noise_multiplier": float("nan")},
        {"sampling_rate": 0.1},
    ],
)
def test_anything_else_is_refused(change: dict[str, object]) -> None:
    """Guarantee: anything else is refused."""
    with pytest.raises(InvalidArgumentError):
        event_from_json({**Gaussian(1.0).to_json(), **change})


def test_a_missing_field_is_refused() -> None:
    value = PoissonSampled(0.1, 1.0).to_json()
    del value["sampling_rate"]
    with pytest.raises(InvalidArgumentError, match="sampling_rate"):
        event_from_json(value)


@pytest.mark.parametrize("value", [None, [], "gaussian", 1])
def test_an_event_that_is_not_an_object_is_refused(value: object) -> None:
    with pytest.raises(InvalidArgumentError, match="JSON object"):
        event_from_json(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (Gaussian, (float("inf"),)),
        (Gaussian, (1 + 2j,)),
        (PoissonSampled, (1.5, 1.0)),
        (PoissonSampled, (-0.1, 1.0)),
        (PoissonSampled, (float("nan"), 1.0)),
        (DisjointPass, (1.0, -1)),
        (DisjointPass, (1.0, 0.5)),
    ],
)
def test_values_out_of_range_are_refused(kind: type, arguments: tuple[object, ...]) -> None:
    with pytest.raises(InvalidArgumentError):
        kind(*arguments)


def test_the_written_form_of_version_one_never_changes() -> None:
    assert Gaussian(2).to_json() == {"type": "gaussian", "version": 1, "noise_multiplier": 2.0}
    assert PoissonSampled(0.5, 2).to_json() == {
        "type": "poisson_sampled_gaussian",
        "version": 1,
        "sampling_rate": 0.5,
        "noise_multiplier": 2.0,
    }
    assert DisjointPass(2, 3).to_json() == {
        "type": "disjoint_pass_gaussian",
        "version": 1,
        "noise_multiplier": 2.0,
        "pass_index": 3,
    }
