"""Loops and Trainers of other packages train in several processes as in one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hushgrad.accounting import read_ledger

Processes = Callable[..., list[Any]]


def told(ended: list[Any]) -> list[Any]:
    assert [process.status for process in ended] == [0] * len(ended), [process.errors[-3000:] for process in ended]
    return [process.told for process in ended]


def require_the_same(found: dict[str, Any], alone: dict[str, Any], names: tuple[str, ...]) -> None:
    """The plan and the account are those of one process, and without noise so are the weights, but for rounding."""
    assert found["processes"] == 2
    for name in names:
        assert found[name] == alone[name], name
    assert found["moved"] == pytest.approx(alone["moved"], rel=1e-5)


@pytest.mark.packages
def test_a_loop_of_accelerate_is_private_in_several_processes(in_processes: Processes, tmp_path: Path) -> None:
    """As everywhere in Accelerate, the loader's batch size is that of one process: 6 records in each of two."""
    [alone] = told(in_processes(1, "accelerate", state=str(tmp_path / "one")))
    first, second = told(in_processes(2, "accelerate", state=str(tmp_path / "two")))
    assert {**first, "items": 0} == {**second, "items": 0}
    assert first["processes"] == 2
    assert first["form"] == "DistributedDataParallel"
    for name in ("mechanism", "steps", "length", "epsilon"):
        assert first[name] == alone[name]
    assert first["steps"] == 4 == read_ledger(tmp_path / "two.ledger").steps


@pytest.mark.packages
def test_a_trainer_is_private_in_several_processes_and_goes_on(in_processes: Processes, tmp_path: Path) -> None:
    """Its batch is per_device_train_batch_size × gradient_accumulation_steps × processes: 8 of 40 records."""
    [alone] = told(in_processes(1, "trainer", out=str(tmp_path / "one")))
    first, second = told(in_processes(2, "trainer", out=str(tmp_path / "two")))
    assert first == second
    assert first["first"]["processes"] == 2
    for part in ("first", "again"):
        for name in ("mechanism", "steps", "global step", "lost", "epsilon"):
            assert first[part][name] == alone[part][name]
    assert (first["first"]["steps"], first["first"]["global step"]) == (10, 10)
    assert (first["again"]["steps"], first["again"]["global step"], first["again"]["lost"]) == (16, 10, 6)
    assert read_ledger(tmp_path / "two" / "ledger.jsonl").steps == 16


@pytest.mark.packages
def test_trls_trainer_of_texts_is_private_in_several_processes(in_processes: Processes, tmp_path: Path) -> None:
    [alone] = told(in_processes(1, "sft", out=str(tmp_path / "one")))
    first, second = told(in_processes(2, "sft", out=str(tmp_path / "two")))
    assert first == second
    require_the_same(first, alone, ("mechanism", "steps", "global step"))


@pytest.mark.packages
def test_a_loop_of_fabric_is_private_in_several_processes(in_processes: Processes, tmp_path: Path) -> None:
    """As everywhere in Fabric, the loader's batch size is that of one process: 6 records in each of two."""
    [alone] = told(in_processes(1, "fabric", state=str(tmp_path / "one")))
    first, second = told(in_processes(2, "fabric", state=str(tmp_path / "two")))
    assert first == second
    require_the_same(first, alone, ("mechanism", "steps", "lost", "length"))
    assert (first["steps"], first["lost"]) == (4, 2)
    assert first["again"] == first["moved"]  # those of the saved state


@pytest.mark.packages
def test_lightnings_trainer_is_private_in_several_processes_and_goes_on(
    in_processes: Processes, tmp_path: Path
) -> None:
    [alone] = told(in_processes(1, "lightning", root=str(tmp_path / "one")))
    first, second = told(in_processes(2, "lightning", root=str(tmp_path / "two")))
    assert first == second
    for part, steps in (("first", 12), ("again", 18)):
        require_the_same(first[part], alone[part], ("mechanism", "steps", "global step", "lost"))
        assert first[part]["steps"] == first[part]["global step"] == steps
