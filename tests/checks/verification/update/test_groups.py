"""What the examples of a batch add to an update, alone and in groups."""

from __future__ import annotations

import pytest
import torch
from loops import BATCH, ROWS, B, C, clip, gradients, measured, noised, right

from hushgrad.checks.verification.update.groups import rows_of, take
from hushgrad.checks.verification.verdict import failed_codes
from hushgrad.errors import InvalidArgumentError


def test_the_examples_of_a_batch_are_the_first_dimension_that_all_its_tensors_share() -> None:
    assert rows_of(BATCH) == rows_of({"x": BATCH[0], "y": [BATCH[1], 3.0, torch.tensor(1.0)]}) == ROWS
    for wrong in ((torch.zeros(3, 2), torch.zeros(4)), [1, "text"]):
        with pytest.raises(InvalidArgumentError, match="one number of examples"):
            rows_of(wrong)


def test_parts_are_copies_and_only_the_first_examples_floating_inputs_are_scaled() -> None:
    batch = {"x": torch.ones(4, 2), "ids": torch.arange(4), "scale": torch.tensor(2.0)}
    part = take(batch, [2, 0], 10.0)
    assert part["x"].tolist() == [[10, 10], [1, 1]]
    assert part["ids"].tolist() == [2, 0]
    assert part["scale"] == 2
    assert batch["x"].sum() == 8
    assert take(batch, [], 10.0)["x"].shape == (0, 2)


@pytest.mark.statistical
def test_a_right_loop_adds_up_by_its_clipped_gradients() -> None:
    """Fixed seeds; false alarm 1e-6."""
    reading, _ = measured(right)
    assert not failed_codes(reading.checks)
    assert reading.sensitivity == pytest.approx(C / B, rel=1e-3)
    expected = clip(gradients(BATCH)) / B
    for row, output in reading.alone.items():
        assert torch.allclose(output["0"], expected[row].double(), atol=1e-6)


@pytest.mark.statistical
def test_a_loop_that_cannot_run_on_no_examples_is_measured_without() -> None:
    """Fixed seeds."""

    def needs_one(batch: tuple[torch.Tensor, torch.Tensor]) -> list[torch.Tensor]:
        if not len(batch[0]):
            raise ValueError
        return right(batch)

    reading, _ = measured(needs_one)
    assert not failed_codes(reading.checks)
    assert "noise-empty-draw" not in {check.code for check in reading.checks}
    assert "empty draw was not tested" in reading.notes[0]


WRONG = {
    "not clipped": (lambda batch: noised(gradients(batch).sum(0)), {"sensitivity-bound"}),
    "divided by what was drawn": (lambda batch: noised(clip(gradients(batch)).mean(0) * B), {"sensitivity-additive"}),
    "one factor for all": (lambda batch: noised(clip(gradients(batch).sum(0)[None])[0]), {"sensitivity-additive"}),
    "no noise for an empty draw": (
        lambda batch: right(batch) if len(batch[0]) else [torch.zeros(40)],
        {"noise-empty-draw"},
    ),
}


@pytest.mark.statistical
@pytest.mark.parametrize("name", WRONG)
def test_each_mistake_fails_the_check_that_is_about_it(name: str) -> None:
    """Fixed seeds."""
    loop, codes = WRONG[name]
    assert codes <= failed_codes(measured(loop)[0].checks)
