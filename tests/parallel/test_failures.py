"""A process that dies, raises or hangs: never a release without its charge, and every other one says what happened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from process_worker import POINTS

from hushgrad.accounting import read_ledger

Processes = Callable[..., list[Any]]


def require_true_account(ended: list[Any], rank: int, tmp_path: Path, *, has_begun: bool, most: float = 3) -> None:
    charged = read_ledger(tmp_path / "ledger").steps if (tmp_path / "ledger").exists() else 0
    released = [
        (tmp_path / f"released.{place}").stat().st_size if (tmp_path / f"released.{place}").exists() else 0
        for place in range(len(ended))
    ]
    assert max(released) <= charged <= max(released) + 1
    assert charged >= 2 * has_begun
    for place, process in enumerate(ended):
        if place != rank:
            assert process.told is not None, process.errors[-2000:]
            assert process.told["error"] in ("PeerFailedError", "LedgerError"), process.told
            assert process.told["grads"] == 0
            assert released[place] <= most


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("point", POINTS)
def test_a_process_that_dies_leaves_a_true_account_and_typed_errors(
    point: str, rank: int, in_processes: Processes, tmp_path: Path
) -> None:
    """Guarantee: wherever a process dies, nothing was released that is not charged, and no other one goes on."""
    ended = in_processes(
        2, "failure", point=point, rank=rank, how="dies", ledger=str(tmp_path / "ledger"),
        released=str(tmp_path / "released"),
    )  # fmt: skip
    assert ended[rank].status == 9
    require_true_account(ended, rank, tmp_path, has_begun=POINTS.index(point) >= 2)


@pytest.mark.parametrize("point", ["before its vote", "before the draw of noise", "before the charge"])
def test_a_process_that_raises_in_a_step_is_named_by_the_others(
    point: str, in_processes: Processes, tmp_path: Path
) -> None:
    """Guarantee: no sum leaves a process before its own noise is in it, and none is of use where noise is missing."""
    ended = in_processes(
        2, "failure", point=point, rank=1, how="raises", ledger=str(tmp_path / "ledger"),
        released=str(tmp_path / "released"),
    )  # fmt: skip
    assert ended[1].told["error"] == "own"
    assert ended[0].told["added up"] == [True, True, *([False] if point == "before the draw of noise" else [])]
    require_true_account(ended, 1, tmp_path, has_begun=True)


def test_a_process_that_hangs_is_waited_for_no_longer_than_the_timeout(in_processes: Processes, tmp_path: Path) -> None:
    ended = in_processes(
        2, "failure", point="in a forward", rank=1, how="hangs", ledger=str(tmp_path / "ledger"),
        released=str(tmp_path / "released"),
    )  # fmt: skip
    require_true_account(ended, 1, tmp_path, has_begun=True)


@pytest.mark.parametrize(
    "where", ["make_private", "closure", "sums", "end of the step", "before the draw", "checkpoint"]
)
def test_an_error_in_one_process_ends_the_step_in_all_at_once(where: str, in_processes: Processes) -> None:
    """Guarantee: an error that this process raises in a step, or as it hands out an item, ends the step in all of them.

    The process that raised stays, so that no closed connection tells the others.
    """
    first, second = (process.told for process in in_processes(2, "told_at_once", where=where))
    assert first["error"] == "PeerFailedError", first
    assert "the process of rank 1" in first["text"]
    own = {"make_private": "InvalidArgumentError", "checkpoint": "ProtocolError"}
    assert second["error"] == own.get(where, "ArithmeticError")
    assert first["is quick"]
    assert second["is quick"]


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_a_process_that_is_killed_at_any_moment_leaves_a_true_account(
    part: int, in_processes: Processes, tmp_path: Path
) -> None:
    """A hundred times: set-up, items, steps, charges, sums and checkpoints are met as often as they take time."""
    random = Random(part)
    for number in range(10):
        folder = tmp_path / str(number)
        folder.mkdir()
        count = random.choice((2, 2, 2, 3))
        rank = random.randrange(count)
        ended = in_processes(
            count, "failure", point="", rank=rank, how="is killed", ledger=str(folder / "ledger"),
            released=str(folder / "released"), most=10_000, after_s=random.uniform(0.0, 1.5),
        )  # fmt: skip
        assert ended[rank].status == -9
        require_true_account(ended, rank, folder, has_begun=False, most=10_000)
