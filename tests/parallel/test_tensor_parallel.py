"""Models that `parallelize_module` split: the same step, the same account, and every guard, in several processes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from test_processes import told
from test_sharded_models import require_same_update

from hushgrad.accounting import read_ledger

Processes = Callable[..., list[Any]]

TWO = ["columns and rows", "all styles", "frozen but for queries"]
MORE = ["words", "positions", "features", "heads", "uneven words", "tied words", "checkpointed rows", "norm of weights"]
SHARDED = ["sharded columns", "sharded heads", "rows of two of three dimensions"]
FOUR = ["copies of rows", *SHARDED]


@pytest.fixture
def rows(in_processes: Processes) -> Processes:
    return partial(in_processes, worker="row_worker.py")


def test_the_step_of_one_process_is_taken_by_two_that_have_parts_of_its_layers(rows: Processes) -> None:
    """Guarantee: the update is that of one process on the same draw, by columns, rows, positions and words alike."""
    require_same_update(rows(1, "updates", forms=TWO), rows(2, "updates", forms=TWO), TWO)


@pytest.mark.slow
def test_the_step_of_one_process_is_taken_by_two_in_more_forms(rows: Processes) -> None:
    require_same_update(rows(1, "updates", forms=MORE), rows(2, "updates", forms=MORE), MORE)


@pytest.mark.slow
def test_the_step_of_one_process_is_taken_by_rows_and_columns_of_four(rows: Processes) -> None:
    """Copies of a tensor parallel model, and one that `fully_shard` has split again over its columns."""
    require_same_update(rows(1, "updates", forms=FOUR), rows(4, "updates", forms=FOUR), FOUR)


@pytest.mark.slow
def test_sums_of_columns_that_are_scattered_after_each_item_give_the_update_of_one_process(
    rows: Processes, scattering: None
) -> None:
    """Guarantee: the update is that of one process, whether sums are added up once for a logical batch or by items."""
    one, several = rows(1, "updates", forms=SHARDED), rows(4, "updates", forms=SHARDED)
    require_same_update(one, several, SHARDED, is_scattered=True)


@pytest.mark.slow
def test_sums_of_rows_that_are_formed_inside_the_backward_are_those_of_one_process(
    rows: Processes, request: pytest.FixtureRequest
) -> None:
    """Guarantee: the update is that of one process, whether operands live until the norms are known or not."""
    forms = [*TWO, "tied words", "checkpointed rows"]
    two, four = rows(1, "updates", forms=forms), rows(1, "updates", forms=SHARDED)
    request.getfixturevalue("letting_go")
    require_same_update(two, rows(2, "updates", forms=forms), forms, lets_go=True)
    require_same_update(four, rows(4, "updates", forms=SHARDED), SHARDED, is_scattered=True, lets_go=True)


def test_operands_in_16_bits_are_cut_as_they_are(rows: Processes) -> None:
    """The update of two processes is that of one to the rounding of activations in bfloat16, 8 bits."""
    told(rows(1, "narrow", form="all styles"))
    first, second = told(rows(2, "narrow", form="all styles"))
    assert first == second
    assert first["held"] > 0
    assert first["error"] < 0.02


@pytest.mark.statistical
def test_what_all_of_a_row_have_whole_gets_noise_once(rows: Processes) -> None:
    """Over 308,170 values, of which three quarters are whole: 0.5% is 3.9 standard errors, a false alarm in 0.01% of
    keys; the key is fixed. Noise of both processes in each of these would have a std of 1.41.

    Correlations of halves of 77,000 values have a standard error of 0.0036; 0.02 is above five of them.
    """
    first, second = told(rows(2, "noise", form="large whole", steps=2, key=11))
    assert first == second
    assert first["count"] >= 180_000
    assert first["std"] == pytest.approx(1.0, rel=0.005)
    assert first["correlation"] < 0.02


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize(
    ("form", "processes", "is_scattered"),
    [("large rows", 2, False), ("large sharded columns", 4, False), ("large sharded columns", 4, True)],
)
def test_the_noise_of_all_parts_of_rows_is_what_is_charged(
    form: str, processes: int, is_scattered: bool, rows: Processes, request: pytest.FixtureRequest
) -> None:
    """Over 308,170 values, as above."""
    if is_scattered:
        request.getfixturevalue("scattering")
    first, *others = told(rows(processes, "noise", form=form, steps=2, key=11))
    assert all(process == first for process in others)
    assert first["std"] == pytest.approx(1.0, rel=0.005)
    assert first["correlation"] < 0.02


@pytest.mark.slow
def test_what_all_of_a_row_have_whole_stays_bit_identical(rows: Processes) -> None:
    """Guarantee: after 20 steps of Adam with noise, under another seed in each process; and ε is the same in all."""
    first, second = told(rows(2, "replicas", form="all styles", steps=20))
    assert first["whole"] == second["whole"]
    assert len(first["whole"]) == 14
    assert all(first["parts"][name] != second["parts"][name] for name in first["parts"])
    assert first["epsilon"] == second["epsilon"]
    assert first["steps"] == second["steps"] == 20


@pytest.mark.slow
@pytest.mark.parametrize("form", ["all styles", "columns and rows"])
def test_adaptive_and_group_wise_clip_rules_are_those_of_one_process(form: str, rows: Processes) -> None:
    """The count is of all examples once, and its noise is one draw, so that all of a row go on with one norm."""
    (alone,) = told(rows(1, "clip_rules", form=form, sigma=0.0))
    first, second = told(rows(2, "clip_rules", form=form, sigma=0.0))
    assert first == second
    for clipping, found in first.items():
        assert found["error"] < 1e-5
        assert found["norms"] == alone[clipping]["norms"]
    first, second = told(rows(2, "clip_rules", form=form, sigma=1.0))
    assert first == second
    quantile = next(found for clipping, found in first.items() if clipping.startswith("quantile"))
    assert len({norm for norm, _ in quantile["norms"]}) == 3


@pytest.mark.slow
def test_all_of_a_row_take_the_records_of_their_column(rows: Processes) -> None:
    first, second, third, fourth = told(rows(4, "drawn", form="copies of rows"))
    assert first == second
    assert third == fourth
    assert len(first) == len(third) == 8
    assert not any(set(one) & set(other) for one, other in zip(first, third, strict=True))


@pytest.mark.slow
def test_guards_of_a_loop_hold_in_tensor_parallel_models(rows: Processes, tmp_path: Path) -> None:
    """Evaluations between a backward and a step, few records, a forward that fails, and what is refused."""
    first, second = told(rows(2, "life", form="all styles", ledger=str(tmp_path / "ledger")))
    assert first == second
    assert first["evaluations"] == [True, True, True]
    assert first["few"][0] == 12 == read_ledger(tmp_path / "ledger.few").steps
    assert "gradients were cleared" in first["cleared"]
    assert first["after a discard"] == first["after a failure"] == 1
    assert "weight_decay" in first["regularizer"]
    assert first["penalty"].startswith("UncoveredParameterUseError")


@pytest.mark.slow
def test_a_tensor_parallel_run_goes_on_with_another_number_of_processes(rows: Processes, tmp_path: Path) -> None:
    """Guarantee: one file holds all of the model and of its optimizer, and any number of processes loads it."""
    where = {"ledger": str(tmp_path / "ledger"), "checkpoint": str(tmp_path / "checkpoint")}
    left, charged = "", 0
    for count, form in ((2, "all styles"), (1, "all styles"), (4, "sharded columns"), (2, "heads")):
        first, *others = told(rows(count, "resumed", form=form, steps=2, **where))
        charged += 2
        assert all(process == first for process in others)
        assert first["loaded"] == left
        assert first["steps"] == charged == read_ledger(where["ledger"]).steps
        left = first["left"]


@pytest.mark.slow
def test_torchs_distributed_checkpoint_of_a_tensor_parallel_model_is_loaded_in_one_process(
    rows: Processes, tmp_path: Path
) -> None:
    where = {"form": "all styles", "ledger": str(tmp_path / "ledger")}
    first, second = told(rows(2, "distributed_checkpoint", steps=2, **where))
    assert first == second
    [alone] = told(rows(1, "distributed_checkpoint", steps=1, **where))
    assert alone["loaded"] == first["left"]
    assert alone["steps"] == 4


def test_what_mixes_records_is_found_in_a_tensor_parallel_model(rows: Processes) -> None:
    """Guarantee: as in one process, also inside of what a process has alone; all of a row come to one verdict."""
    first, second = told(rows(2, "leaks"))
    for kind in ("Mixing", "MixingInside", "MixingGradients"):
        assert first[kind] == second[kind]
        assert f"since mean in {kind}.forward" in first[kind]
    for found in (first["Hooked"], second["Hooked"]):  # a hook in the second process alone
        assert found.startswith("CrossSampleLeakError")
        assert "the gradient of one example depends on the others" in found


def test_processes_of_a_row_that_have_other_rows_are_refused(rows: Processes) -> None:
    """Guarantee: no row of an output is made of one record here and of another one there."""
    first, second = told(rows(2, "permuted"))
    assert first == second
    for how in ("order", "values"):
        assert first[how].startswith("DesyncError")
        assert "by the same random numbers in all processes of a row" in first[how]
    assert first["same values"] == ""


@pytest.mark.slow
def test_what_one_process_of_a_row_finds_later_is_heard_by_the_others(rows: Processes) -> None:
    first, second = told(rows(2, "late_leaks"))
    for how in ("by losses", "by values"):
        assert second[how].startswith("CrossSampleLeakError")
        assert first[how].startswith("PeerFailedError")
        assert first[f"epsilon {how}"] == second[f"epsilon {how}"] == "inf"


@pytest.mark.slow
@pytest.mark.parametrize("point", ["in a forward", "in a backward", "before the sums are exchanged"])
def test_a_process_of_a_row_that_dies_leaves_a_true_account(point: str, rows: Processes, tmp_path: Path) -> None:
    """Guarantee: nothing is released that is not charged. Within torch's own messages the error is torch's."""
    ledger, released = tmp_path / "ledger", tmp_path / "released"
    first, second = rows(2, "dies", form="all styles", ledger=str(ledger), released=str(released), point=point)
    assert second.status == 9
    assert first.told is not None, first.errors[-2000:]
    is_charged = point == "before the sums are exchanged"
    assert first.told["error"] in ("PeerFailedError", *([] if is_charged else ["RuntimeError"]))
    assert first.told["grads"] == []
    assert int(Path(f"{released}.0").read_text()) == 2
    assert read_ledger(ledger).steps == 2 + is_charged


def test_what_is_not_supported_of_tensor_parallel_models_is_refused_with_the_cure(rows: Processes) -> None:
    first, second = told(rows(2, "refusals"))
    for found in (first, second):
        assert "Leave the axis of the batch whole" in found["batch"]
        assert "Leave the axis of the batch whole" in found["batch of outputs"]
        for name in ("distributed outputs", "parts of outputs", "loss parallel"):
            assert "output_layouts=Replicate()" in found[name], name
        assert "inside of DistributedDataParallel" in found["wrapped"]
        assert "what is trained was fixed by make_private" in found["later"]
        for name in ("context parallel", "context parallel, one record at a time"):
            assert "leave context_parallel out" in found[name], name
        assert "different from rank 0 in" in found["pipeline"]
        assert "parameters: rank 1" in found["pipeline"]


@pytest.mark.slow
def test_meshes_that_do_not_tell_who_has_the_same_records_are_refused(rows: Processes) -> None:
    first, *others = told(rows(4, "meshes"))
    assert all(process == first for process in others)
    for name in ("two meshes", "two dimensions"):
        assert "which of them have the same examples cannot be told" in first[name], name
    assert "a part of the processes" in first["sharded by rows"]
    assert "the copies of a split model have other weights" in first["other copies"]
