"""Models that `fully_shard` made: the same step, the same account, and every guard, in several processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from test_processes import told

from hushgrad.accounting import read_ledger
from hushgrad.gradients.machine import CPU

Processes = Callable[..., list[Any]]

TWO = [
    "blocks", "kept after a forward", "given back after a forward", "root alone", "blocks alone", "nested", "in groups",
    "uneven", "tied", "bare weight", "views", "derived", "checkpointed", "offloaded", "checkpointed by backwards",
    "frozen in part", "by columns", "in another order",
]  # fmt: skip


@pytest.fixture
def sharded(in_processes: Processes) -> Processes:
    return partial(in_processes, worker="sharded_worker.py")


def require_same_update(
    one: list[Any], several: list[Any], forms: list[str], *, is_scattered: bool = False, lets_go: bool = False
) -> None:
    told(one)
    first, *others = told(several)
    assert set(first) == set(forms)
    for form, found in first.items():
        assert found["error"] <= 5e-7, form
        assert found["left"] == [], form
        assert found["report"] == [True], form
        assert found["scattered"] == is_scattered, form
        assert bool(found["let go"]) == lets_go, form
        assert all(process[form] == found for process in others), form


def test_the_step_of_one_process_is_taken_by_two_that_share_a_model(sharded: Processes) -> None:
    """Guarantee: the update is that of one process on the same draw, however `fully_shard` was called."""
    require_same_update(sharded(1, "updates", forms=TWO), sharded(2, "updates", forms=TWO), TWO)


def test_the_step_of_one_process_is_taken_by_two_copies_on_two_processes_each(sharded: Processes) -> None:
    forms = ["copies", "uneven copies"]
    require_same_update(sharded(1, "updates", forms=forms), sharded(4, "updates", forms=forms), forms)


def test_sums_that_are_scattered_after_each_item_give_the_update_of_one_process(
    sharded: Processes, scattering: None
) -> None:
    """Guarantee: the update is that of one process, whether sums are added up once for a logical batch or by items."""
    forms = ["blocks alone", "uneven", "frozen in part", "by columns", "offloaded"]
    require_same_update(
        sharded(1, "updates", forms=forms), sharded(2, "updates", forms=forms), forms, is_scattered=True
    )


def test_sums_that_are_formed_inside_the_backward_are_those_of_one_process(
    sharded: Processes, request: pytest.FixtureRequest
) -> None:
    """Guarantee: the update is that of one process, whether operands live until the norms are known or not."""
    forms = ["uneven", "tied", "checkpointed"]
    one = sharded(1, "updates", forms=forms)
    request.getfixturevalue("letting_go")
    several = sharded(2, "updates", forms=forms)
    require_same_update(one, several, forms, is_scattered=True, lets_go=True)


@pytest.mark.parametrize("clipping", ["flat", pytest.param("per-layer", marks=pytest.mark.slow)])
def test_a_budget_for_operands_of_one_process_is_that_of_all(clipping: str, sharded: Processes, tmp_path: Path) -> None:
    """Guarantee: the processes of a model that none of them has whole go the same way, each time.

    Also where one of them has no record of an item.
    """
    path = tmp_path / "of one process"
    path.write_text(json.dumps({"cpu": asdict(replace(CPU, operand_bytes=0, sum_bytes=0))}))
    first, second = told(sharded(2, "one_budget", machine=str(path), clipping=clipping))
    shares, others = first.pop("shares"), second.pop("shares")
    assert 0 in shares + others
    assert any(a or b for a, b in zip(shares, others, strict=True))
    assert first == second
    assert first["scattered"]
    assert first["let go"] >= 6


@pytest.mark.slow
def test_sums_of_every_form_may_be_formed_inside_the_backward(
    sharded: Processes, request: pytest.FixtureRequest
) -> None:
    forms, copies = [form for form in TWO if form != "checkpointed by backwards"], ["copies", "uneven copies"]
    one, one_of_copies = sharded(1, "updates", forms=forms), sharded(1, "updates", forms=copies)
    request.getfixturevalue("letting_go")
    require_same_update(one, sharded(2, "updates", forms=forms), forms, is_scattered=True, lets_go=True)
    several = sharded(4, "updates", forms=copies)
    require_same_update(one_of_copies, several, copies, is_scattered=True, lets_go=True)


@pytest.mark.slow
def test_sums_of_every_form_may_be_scattered(sharded: Processes, scattering: None) -> None:
    require_same_update(sharded(1, "updates", forms=TWO), sharded(2, "updates", forms=TWO), TWO, is_scattered=True)
    forms = ["copies", "uneven copies"]
    require_same_update(
        sharded(1, "updates", forms=forms), sharded(4, "updates", forms=forms), forms, is_scattered=True
    )


def test_a_process_keeps_its_own_part_of_scattered_sums_and_tells_where_it_cannot_form_them(
    sharded: Processes, scattering: None
) -> None:
    """Guarantee: it holds 4 bytes for each value of its part, and padding; each item hands over 4 for each value.

    Two processes with parts of 43 rows have one of 22 and one of 21: rows are padded by less than one in each of them.
    """
    first, second = told(sharded(2, "scattered"))
    assert first["held"] == second["held"]
    assert first["handed"] == second["handed"]
    values = first["values"]
    open_ones = [held for held in first["held"] if held]
    assert len(open_ones) >= 4
    assert all(values <= handed / 4 <= 1.1 * values for handed in first["handed"])
    assert all(values / 2 <= held / 4 <= 1.1 * values / 2 for held in open_ones)
    assert [first["error"], second["error"]] == ["PeerFailedError", "ArithmeticError"]
    assert first["released"] == second["released"] == 2


@pytest.mark.parametrize("lets_go", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_sums_of_a_model_in_16_bits_are_added_up_in_32(
    lets_go: bool, sharded: Processes, request: pytest.FixtureRequest
) -> None:
    """Guarantee: whatever FSDP would reduce gradients in; a whole copy in 16 bits gives the same sums, row by row."""
    if lets_go:
        request.getfixturevalue("letting_go")
    first, second = told(sharded(2, "bfloat16"))
    assert first == second
    assert first["error"] <= 5e-7


@pytest.mark.statistical
@pytest.mark.parametrize("is_scattered", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_noise_of_all_parts_is_what_is_charged_and_uncorrelated(
    is_scattered: bool, sharded: Processes, request: pytest.FixtureRequest
) -> None:
    """Over 308,170 values: 0.5% is 3.9 standard errors, a false alarm in 0.01% of keys; the key is fixed.

    Correlations of halves of 77,000 values have a standard error of 0.0036; 0.02 is above five of them.
    """
    if is_scattered:
        request.getfixturevalue("scattering")
    first, second = told(sharded(2, "noise", form="large", steps=2, key=11))
    assert first == second
    assert first["count"] >= 180_000
    assert first["std"] == pytest.approx(1.0, rel=0.005)
    assert first["correlation"] < 0.02


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("is_scattered", [False, True])
def test_copies_of_a_part_share_its_noise_out(
    is_scattered: bool, sharded: Processes, request: pytest.FixtureRequest
) -> None:
    """Over 308,170 values, as above: of four processes each adds noise to a half of its part."""
    if is_scattered:
        request.getfixturevalue("scattering")
    first, *others = told(sharded(4, "noise", form="large copies", steps=2, key=11))
    assert all(process == first for process in others)
    assert first["std"] == pytest.approx(1.0, rel=0.005)
    assert first["correlation"] < 0.02


def test_an_evaluation_changes_nothing_and_a_loop_goes_on_after_a_failure(sharded: Processes, tmp_path: Path) -> None:
    """Guarantee: no forward runs on weights of before an update, wherever a loop evaluates.

    Draws of no record and of one run in step, and what a loop clears or breaks is refused or dropped as in one process.
    """
    first, second = told(sharded(2, "life", ledger=str(tmp_path / "ledger")))
    assert first == second
    assert first["evaluations"] == [True, True, True]
    assert first["few"][0] == 12 == read_ledger(tmp_path / "ledger.few").steps
    assert "gradients were cleared" in first["cleared"]
    assert first["after a discard"] == first["after a failure"] == 1
    assert "weight_decay" in first["regularizer"]
    assert first["penalty"].startswith("UncoveredParameterUseError")


@pytest.mark.parametrize("is_scattered", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_sharded_run_goes_on_with_another_number_of_processes(
    is_scattered: bool, sharded: Processes, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Guarantee: one file holds all of the model and of its optimizer, and any number of processes loads it."""
    if is_scattered:
        request.getfixturevalue("scattering")
    where = {"ledger": str(tmp_path / "ledger"), "checkpoint": str(tmp_path / "checkpoint")}
    left, charged = "", 0
    for count, form in ((2, "uneven"), (1, "uneven"), (4, "uneven copies")):
        first, *others = told(sharded(count, "resumed", form=form, steps=2, **where))
        charged += 2
        assert all(process == first for process in others)
        assert first["loaded"] == left
        assert first["steps"] == charged == read_ledger(where["ledger"]).steps
        left = first["left"]


@pytest.mark.slow
def test_torchs_distributed_checkpoint_is_written_between_steps(sharded: Processes, tmp_path: Path) -> None:
    first, second = told(sharded(2, "distributed_checkpoint", steps=2, ledger=str(tmp_path / "ledger")))
    assert first == second
    [alone] = told(sharded(1, "distributed_checkpoint", steps=1, ledger=str(tmp_path / "ledger")))
    assert alone["loaded"] == first["left"]
    assert alone["steps"] == 4


def test_what_mixes_records_is_found_in_a_sharded_model(sharded: Processes) -> None:
    """Guarantee: an examination that is due in one process alone keeps no other one waiting."""
    first, second = told(sharded(2, "leaks"))
    for kind in ("Mixing", "MixingGradients"):
        assert first[kind] == second[kind]
        assert f"since mean in FSDP{kind}.forward" in first[kind]
    for how in ("by losses", "by values"):  # in the second process alone, after two steps
        assert second[how].startswith("CrossSampleLeakError")
        assert first[how].startswith("PeerFailedError")
        assert first[f"epsilon {how}"] == second[f"epsilon {how}"] == "inf"


@pytest.mark.parametrize("point", ["in a forward", "in a backward", "before the sums are exchanged"])
def test_a_process_that_dies_leaves_a_true_account_of_a_sharded_model(
    point: str, sharded: Processes, tmp_path: Path
) -> None:
    """Guarantee: nothing is released that is not charged. Within FSDP's own messages the error is torch's."""
    ledger, released = tmp_path / "ledger", tmp_path / "released"
    first, second = sharded(2, "dies", ledger=str(ledger), released=str(released), point=point)
    assert second.status == 9
    assert first.told is not None, first.errors[-2000:]
    is_charged = point == "before the sums are exchanged"
    assert first.told["error"] in ("PeerFailedError", *([] if is_charged else ["RuntimeError"]))
    assert first.told["grads"] == []
    assert int(Path(f"{released}.0").read_text()) == 2
    assert read_ledger(ledger).steps == 2 + is_charged


def test_a_process_that_dies_as_sums_are_scattered_leaves_nothing_released(
    sharded: Processes, scattering: None, tmp_path: Path
) -> None:
    """Guarantee: the others have a typed error, and the step is neither charged nor released."""
    ledger, released = tmp_path / "ledger", tmp_path / "released"
    point = "as the sums of an item are scattered"
    first, second = sharded(2, "dies", ledger=str(ledger), released=str(released), point=point)
    assert second.status == 9
    assert first.told is not None, first.errors[-2000:]
    assert first.told == {"error": "PeerFailedError", "grads": []}
    assert int(Path(f"{released}.0").read_text()) == 2 == read_ledger(ledger).steps


def test_copies_with_other_weights_are_told_apart(sharded: Processes) -> None:
    for found in told(sharded(4, "copies")):
        assert "the copies of a split model have other weights" in found["different"]
        assert found["same"] == ""


def test_what_is_not_supported_of_sharded_models_is_refused_with_the_cure(sharded: Processes) -> None:
    first, *others = told(sharded(4, "refusals"))
    assert all(process == first for process in others)
    assert "fully_shard instead" in first["first kind"]
    assert "a hook would run" in first["hook"]
    assert "reshard_after_forward is a number" in first["number"]
    assert "a mesh of two dimensions" in first["replicated"]
    assert "a part of the processes" in first["halves"]
    assert "what is trained was fixed by make_private" in first["later"]
