"""The page of the model for hundreds of GPUs holds what its script computes."""

import pytest
from benchmarks.large_scale import (
    CASES,
    GPUS,
    PAGE,
    Decoder,
    Linear,
    Machine,
    fitting,
    inside_s,
    memory,
    memory_inside,
    step,
    with_tables,
)


def test_every_figure_of_the_page_is_computed():
    page = PAGE.read_text(encoding="utf-8")
    assert page.count("| 512 |") == 10
    assert with_tables(page) == page


def test_the_models_have_the_sizes_that_they_are_called_by():
    assert CASES[0].model.values == pytest.approx(6.74e9, rel=2e-3)
    assert CASES[1].model.values == pytest.approx(69.0e9, rel=2e-3)
    assert CASES[1].trained == 80 * 16 * (16_384 + 2 * 9_216 + 16_384 + 3 * 36_864)


def test_operations_bytes_and_seconds_are_those_of_the_formulas():
    small = Decoder(width=4, depth=2, inner=6, keys=2, vocabulary=10)
    assert small.linears[0] == Linear(4, 4)
    assert small.block == 16 + 8 + 8 + 16 + 24 + 24 + 24
    assert small.forward(3) == 2 * (2 * 120 + 40) + 2 * 3 * 4 * 2
    machine = Machine()
    assert machine.gathered(8e9, 8) == pytest.approx(8e9 * 7 / 8 / (450e9 * 0.8))
    assert machine.gathered(8e9, 64) == pytest.approx(8e9 * 63 / 64 / (400e9 * 0.8))


def test_a_private_step_takes_more_than_an_ordinary_one_and_fits():
    machine = Machine()
    for case in CASES:
        for gpus in GPUS:
            rows = fitting(case, gpus, machine)
            found = step(case, gpus, rows, machine)
            assert found.private_s > found.ordinary_s
            assert found.ordinary_memory < found.private_memory <= 0.9 * machine.memory_gib * 2**30
            assert rows * gpus == case.batch_size or memory(case, gpus, 2 * rows)[1] > 0.9 * machine.memory_gib * 2**30


def test_a_step_inside_the_backward_takes_less_memory_for_a_record_and_more_time():
    machine, case = Machine(), CASES[0]
    for gpus in GPUS:
        rows = fitting(case, gpus, machine, is_inside=True)
        assert rows >= fitting(case, gpus, machine)
        assert case.states(gpus) < memory_inside(case, gpus, rows) <= 0.9 * machine.memory_gib * 2**30
        assert memory_inside(case, gpus, rows) < memory(case, gpus, rows)[1]
        once, twice = (inside_s(case, gpus, rows, machine, runs=runs) for runs in (1, 2))
        assert 1.4 * once < twice < 1.7 * once
