"""The README's code runs as it is written, each block by itself, on the core install."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def names_after(block: str) -> dict[str, Any]:
    """Run a block with no name defined, and return those that it defines."""
    names: dict[str, Any] = {}
    exec(compile(block, "README.md", "exec"), names)
    return names


def test_every_block_has_a_test() -> None:
    assert len(BLOCKS) == 3


def test_no_block_imports_what_only_an_extra_brings() -> None:
    imported = {name for block in BLOCKS for name in re.findall(r"^(?:import|from) (\w+)", block, flags=re.MULTILINE)}
    assert imported == {"hushgrad", "torch"}


def test_the_first_block_trains_and_prints_its_guarantee(capsys: pytest.CaptureFixture[str]) -> None:
    names = names_after(BLOCKS[0])
    printed = capsys.readouterr().out
    assert "differential privacy" in printed
    assert "add/remove-one" in printed
    inputs, labels = names["data"].tensors
    assert (names["model"].eval()(inputs).argmax(1) == labels).float().mean() > 0.5  # of ten classes


def test_the_block_of_the_custom_loop_takes_a_private_step() -> None:
    names = names_after(BLOCKS[1])
    assert names["session"].steps == 1
    assert names["session"].epsilon(1e-5) > 0


def test_the_block_of_logical_batches_takes_one_step_for_each() -> None:
    names = names_after(BLOCKS[2])
    assert names["session"].steps == len(names["loader"]) == names["scheduler"].last_epoch == 50
