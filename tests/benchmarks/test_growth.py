"""Exponents are those of the powers they are fitted to; plot and figures hold every axis."""

import json

import pytest
from benchmarks.contestants import HUSHGRAD, ORDINARY
from benchmarks.growth import AXES, Axis, GrowthResults, draw, fitted_exponent, grow, growth_table
from benchmarks.machine import Machine
from benchmarks.workloads import encoder
from hypothesis import given
from hypothesis import strategies as st

pytestmark = pytest.mark.filterwarnings("ignore::hushgrad.errors.HushgradWarning")


@given(st.floats(-3, 3), st.floats(1e-3, 1e3))
def test_the_exponent_of_a_power_law_is_its_power_without_error(power, factor):
    sizes = [2, 4, 8, 32]
    exponent, error = fitted_exponent(sizes, [factor * size**power for size in sizes])
    assert exponent == pytest.approx(power, abs=1e-9)
    assert error == pytest.approx(0, abs=1e-6)


def test_the_standard_error_is_that_of_least_squares():
    # log2 of the sizes is 0, 1, 2 and of the times 0, 2, 2: slope 1, residuals -1/3, 2/3, -1/3, so SE² = (6/9) / 2.
    assert fitted_exponent([1, 2, 4], [1, 4, 4]) == (pytest.approx(1.0), pytest.approx((1 / 3) ** 0.5))


def test_two_sizes_are_too_few_for_an_exponent():
    with pytest.raises(ValueError, match="three different sizes"):
        fitted_exponent([2, 4, 4], [1, 2, 2])


@pytest.mark.parametrize("name", AXES)
def test_along_an_axis_one_size_grows_and_the_model_or_batch_with_it(name):
    axis = AXES[name]
    assert list(axis.sizes) == sorted(set(axis.sizes))
    first, second = axis.workload(axis.sizes[0]), axis.workload(axis.sizes[1])
    parameters = [sum(p.numel() for p in workload.model().parameters()) for workload in (first, second)]
    values = [workload.batch()[0].numel() for workload in (first, second)]
    assert (parameters[0] < parameters[1]) or (values[0] < values[1])


def test_a_run_is_drawn_written_and_tabled_with_both_curves(tmp_path):
    pytest.importorskip("matplotlib")
    axis = Axis("batch size B", (1, 2, 3), lambda size: encoder(size, 4, 8, 1, vocabulary=7, heads=2))
    machine = Machine("Some CPU", "x86_64", "AVX2", 2, 1, 0.1, {})
    results = GrowthResults("command", machine, 6, 1, {"batch": grow(axis, pairs=6, warm_up=1)})
    draw(results, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
    fields = json.loads(results.to_json())["axes"]["batch"]
    assert set(fields["curves"]) == {ORDINARY, HUSHGRAD}
    assert len(fields["ratios"]) == len(fields["curves"][HUSHGRAD]["step_ms"]) == 3
    heads, row = growth_table(results)
    assert len(row) == len(heads)
    assert row[:2] == ["batch size B", "1 … 3"]
