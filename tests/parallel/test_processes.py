"""Several processes train as one does: the same step, the same account, one draw of records and of noise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from benchmarks.large_scale import MESSAGES
from parallel_models import MODELS

from hushgrad.accounting import epsilon, read_ledger
from hushgrad.accounting.composition import require_established
from hushgrad.accounting.conditions import discarded, third_party
from hushgrad.accounting.ledger.view import conditions_of
from hushgrad.errors import NotEstablishedError

Processes = Callable[..., list[Any]]


def told(ended: list[Any]) -> list[Any]:
    assert [process.status for process in ended] == [0] * len(ended), [process.errors[-2000:] for process in ended]
    return [process.told for process in ended]


def test_the_step_of_one_process_is_taken_by_two(in_processes: Processes) -> None:
    """Guarantee: the update is that of one process on the same draw, whether the model is plain or in DDP."""
    told(in_processes(1, "updates", steps=1))
    first, second = told(in_processes(2, "updates", steps=2))
    assert set(first) == {f"{name}, {form}" for name in MODELS for form in ("plain", "ddp")}
    for name, found in first.items():
        assert found["error"] <= 5e-7, name
        assert second[name]["error"] == found["error"]
        assert found["items"] == second[name]["items"] > 2
        for own, others in zip(found["drawn"], second[name]["drawn"], strict=True):
            assert not set(own) & set(others)
            assert abs(len(own) - len(others)) <= 1


def test_replicas_are_bit_identical_and_epsilon_is_the_same_everywhere(in_processes: Processes, tmp_path: Path) -> None:
    """Guarantee: every process says the same ε, guarantee and receipt; one of them writes the file."""
    first, second = told(in_processes(2, "replicas", ledger=str(tmp_path / "ledger")))
    assert first == second
    for form in ("plain", "ddp"):
        view = read_ledger(tmp_path / f"ledger.{form}")
        assert view.steps == 20
        assert first[form]["receipt"]["steps"] == 20
        assert "under add/remove-one neighbours, after 20 steps" in first[form]["guarantee"]
        assert 0 < first[form]["epsilon"] < 20


def test_adaptive_norms_and_noise_for_each_group_are_those_of_one_process(in_processes: Processes) -> None:
    """Counts and norms are the same numbers; noise of 1,000 values and more is right to 10%: 4.5 standard errors."""
    [alone] = told(in_processes(1, "clip_rules", steps=2))
    first, second = told(in_processes(2, "clip_rules", steps=2))
    assert first == second
    for name, found in first.items():
        if name.startswith("per-layer"):
            assert found["stds"] == alone[name]["stds"]
        if name.endswith(", 0.0"):
            assert found["norms"] == alone[name]["norms"]
            assert found["first"] == pytest.approx(alone[name]["first"], rel=1e-5)
        else:
            assert found["measured"] == pytest.approx([1.0] * len(found["measured"]), rel=0.1)
            assert found["measured"]
    quantile, per_layer = (
        next(found for name, found in first.items() if name.startswith(kind) and name.endswith("1000.0"))
        for kind in ("quantile", "per-layer")
    )
    assert len({norm for norm, _ in quantile["norms"]}) == 2
    assert len(set(per_layer["stds"])) > 1
    assert per_layer["norms"] == [[0.5, None]] * 2


@pytest.mark.statistical
def test_the_noise_of_all_slices_is_what_is_charged_and_uncorrelated(in_processes: Processes) -> None:
    """Over 190,000 values: 0.5% is 3.1 standard errors, a false alarm in 0.2% of keys; the key is fixed.

    Correlations of halves of 48,000 values have a standard error of 0.0046; 0.02 is above four of them.
    """
    first, second = told(in_processes(2, "noise", steps=2, key=11))
    assert first == second
    assert first["count"] >= 180_000
    assert first["std"] == pytest.approx(1.0, rel=0.005)
    assert first["correlation"] < 0.02


@pytest.mark.parametrize("form", ["plain", "ddp"])
def test_the_wire_carries_each_trained_value_once_for_a_logical_batch(form: str, in_processes: Processes) -> None:
    """4 bytes for each trained value and less than 1 kB besides: a message has 32 bytes, and an item one message."""
    for found in told(in_processes(2, "wire", form=form)):
        assert found["items"] == 4
        assert found["handed"]["sums"] == 4 * found["trained"]
        assert found["handed"]["messages"] < 1000
        assert found["calls"]["messages"] == found["items"] + MESSAGES
        assert found["calls"]["sums"] == 2  # one for the parameter of 90,000 values, one for all others


def test_a_run_goes_on_with_another_number_of_processes(in_processes: Processes, tmp_path: Path) -> None:
    """Guarantee: how many processes there are changes nothing of the account."""
    where = {"ledger": str(tmp_path / "ledger"), "checkpoint": str(tmp_path / "checkpoint"), "key": None}
    charged = 0
    for count, steps in ((2, 3), (1, 2), (4, 2)):
        everybody = told(in_processes(count, "resumed", steps=steps, **where))
        charged += steps
        assert all(process == everybody[0] for process in everybody)
        assert everybody[0]["steps"] == charged == read_ledger(where["ledger"]).steps
        assert everybody[0]["lost"] == (-1 if charged == 3 else 0)
        assert everybody[0]["epsilon"] == epsilon_in(where["ledger"])


def epsilon_in(ledger: str) -> float:
    return epsilon(read_ledger(ledger).events, 1e-5)


def test_a_distributed_checkpoint_holds_the_receipt_and_goes_on_with_another_number_of_processes(
    in_processes: Processes, tmp_path: Path
) -> None:
    """Guarantee: weights of torch.distributed.checkpoint go on with their account; steps after it stay charged."""
    ledger = str(tmp_path / "ledger")
    charged, taken, weights = 0, 0, ""
    for count, steps in ((2, 3), (1, 2), (4, 1)):
        [found, *others] = told(
            in_processes(count, "distributed_checkpoint", ledger=ledger, where=str(tmp_path / "dcp"), steps=steps)
        )
        assert all(other == found for other in others)
        charged, taken = charged + steps + 1, taken + steps
        assert found["steps"] == charged == read_ledger(ledger).steps
        assert found["adam"] == taken  # the one that is lost is no step of these weights
        assert "another" in found["refused"]  # under a ledger that lacks its steps
        assert found["before"] == weights
        assert found["epsilon"] == epsilon_in(ledger)
        assert "written to by the loop" not in found["guarantee"]
        weights = found["after"]


@pytest.mark.slow
def test_torchrun_starts_lost_processes_again_and_they_go_on_from_the_checkpoint(tmp_path: Path) -> None:
    """Guarantee: a run that lost a process ends with the steps that were planned for it, all of them charged once."""
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts",
            "1", str(Path(__file__).with_name("restarted_worker.py")), str(tmp_path),
        ],
        # torch 2.13 with restarts: without it, processes find the addresses of the last attempt (pytorch#135712).
        env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"told.{rank}").read_text()) for rank in range(2))
    assert first == second
    assert first["attempt"] == 1
    assert first["lost"] in (1, 2)  # the process died in its third step after the checkpoint
    assert first["taken"] == 6
    assert first["steps"] == 6 + first["lost"] == read_ledger(tmp_path / "ledger").steps
    assert first["epsilon"] == epsilon_in(str(tmp_path / "ledger"))


def test_disjoint_batches_are_those_of_the_first_process(in_processes: Processes) -> None:
    first, second = told(in_processes(2, "disjoint"))
    everything = sorted(index for drawn in (first["drawn"], second["drawn"]) for own in drawn for index in own)
    assert everything == list(range(96))
    assert first["epsilon"] == second["epsilon"] > 0


@pytest.mark.slow
def test_random_batches_are_those_of_one_allocation(in_processes: Processes) -> None:
    first, second = told(in_processes(2, "allocated"))
    everything = sorted(index for drawn in (first["drawn"], second["drawn"]) for own in drawn for index in own)
    assert first["steps"] == 8
    assert everything == list(range(96))
    assert first["epsilon"] == second["epsilon"] > 0


def test_a_distributed_sampler_is_read_for_the_number_of_processes(in_processes: Processes) -> None:
    first, second = told(in_processes(2, "sampler"))
    assert first["batch size"] == 12
    assert first["length"] == 8
    assert "PoissonSampling(rate=0.125)" in first["mechanism"]
    for own, others in zip(first["drawn"], second["drawn"], strict=True):
        assert not set(own) & set(others)
    assert "process 0 of 4" in first["refused"]
    assert "without num_replicas and rank" in first["refused"]
    assert "Leave the sampler out" in first["also"]


def test_a_disagreement_at_the_set_up_is_named_in_each_field(in_processes: Processes) -> None:
    """Guarantee: processes that differ in what they train do not begin, and every one of them says in what."""
    first, second = told(in_processes(2, "disagreements"))
    assert first == second
    assert len(first) == 20
    for what, text in first.items():
        assert "DP601" in text, (what, text)
        assert {"clip rule": "mechanism", "number of records": "mechanism"}.get(what, what) in text
        assert "rank 1" in text


@pytest.mark.parametrize("what", ["trained parameters", "options of the optimizer", "regularizers", "item"])
def test_a_disagreement_at_a_step_is_named_and_releases_nothing(what: str, in_processes: Processes) -> None:
    for found in told(in_processes(2, "disagreement", what=what)):
        assert found["error"] == "DesyncError", found
        assert "rank 1" in found["text"]
        assert (what if what != "item" else "rank 1 came to the end of an item, and rank 0 to the step") in found[
            "text"
        ]
        assert found["steps"] == (0 if what == "regularizers" else 1)


@pytest.mark.parametrize("scenario", ["finding", "found_in_the_loss"])
def test_what_is_found_in_one_process_ends_the_account_of_all(
    scenario: str, in_processes: Processes, tmp_path: Path
) -> None:
    """Guarantee: a finding in any process is in the ledger, and every process says ε = ∞.

    Also one in the losses, outside of optimizer.step(), while the others come to another call.
    """
    ledger = tmp_path / "ledger"
    first, second = told(in_processes(2, scenario, ledger=str(ledger)))
    assert second["error"] == "CrossSampleLeakError"
    assert first["error"] == "PeerFailedError"
    assert "the process of rank 1: it raised CrossSampleLeakError" in first["text"]
    assert first["epsilon"] == second["epsilon"] == "inf"
    with pytest.raises(NotEstablishedError):
        require_established(read_ledger(ledger).events)


def test_a_batch_that_one_process_cannot_read_is_told_in_the_ledger(in_processes: Processes, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    first, second = told(in_processes(2, "lost", ledger=str(ledger)))
    assert second["error"] == "OSError"
    assert first["error"] == "PeerFailedError"
    assert "the process of rank 1" in first["text"]
    assert "0.123456" not in first["text"]
    view = read_ledger(ledger)
    assert view.steps == 2
    assert any(condition.name == discarded(1).name for condition in conditions_of(view.notes))


def test_processes_at_different_calls_say_which_they_are(in_processes: Processes, tmp_path: Path) -> None:
    """Guarantee: processes that come to different calls are told apart at once, and none waits for the others."""
    for found in told(in_processes(2, "other_calls", checkpoint=str(tmp_path / "checkpoint"))):
        assert found["error"] == "DesyncError"
        assert "rank 1 came to the step, and rank 0 to the writing of a checkpoint" in found["text"]


def test_replicas_that_round_otherwise_take_over_the_first_ones_values(in_processes: Processes) -> None:
    """Unlike processors: each step rounds in the last place, which adds up until all weights are compared again."""
    first, second = told(in_processes(2, "unlike", by=2.0**-23, steps=10))
    assert first["error"] is second["error"] is None
    assert first["apart"] != second["apart"]
    assert first["together"] == second["together"]


def test_replicas_that_move_apart_end_training(in_processes: Processes) -> None:
    for found in told(in_processes(2, "unlike", by=1e-3, steps=10)):
        assert found["error"] == "DesyncError"
        assert "rank 1 came to the release of step" in found["text"]
        assert found["steps"] < 3  # it shows in the next step


def test_receipts_are_the_same_after_every_call_and_the_close_loses_nothing(
    in_processes: Processes, tmp_path: Path
) -> None:
    """Guarantee: all processes know where the ledger stands, and what one took on trust is in it at the end."""
    ledger = tmp_path / "ledger"
    first, second = told(in_processes(2, "same_calls", ledger=str(ledger)))
    assert first == second
    view = read_ledger(ledger)
    assert str(view.anchor) == first["anchor"]
    names = {condition.name for condition in conditions_of(view.notes)}
    assert discarded(1).name in names
    assert third_party("operator", "planted").name in names
    assert "planted" in first["guarantee"]


def test_what_is_not_supported_is_refused_with_the_cure(in_processes: Processes) -> None:
    first, second = told(in_processes(2, "refusals"))
    assert first == second
    assert "static_graph=True" in first["static graph"]
    assert "communication hook" in first["hook"]
    assert "torchrun" in first["data parallel"]
    assert "Wrap the whole model" in first["inside"]
    assert "session.batches(dataset)" in first["declared"]
    assert "map-style dataset" in first["stream"]
