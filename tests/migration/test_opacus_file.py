"""A file of somebody else's runs nothing: what is not a tensor or a plain value is refused."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from opacus_runs import FIXTURES, SAID
from torch import nn

from hushgrad.errors import CheckpointError
from hushgrad.migration.opacus import read_checkpoint
from hushgrad.migration.opacus.file import read_file

RAN: list[str] = []


def runs(text: str) -> str:
    """Stand for what an attacker's pickle would call."""
    RAN.append(text)
    return text


class Attack:
    """Calls something when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.parts = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.parts


@pytest.mark.parametrize(
    "attack",
    [
        Attack(runs, "called"),
        Attack(getattr, dict, "fromkeys"),
        Attack(getattr, "text", "upper"),
        Attack(eval, "RAN.append('called')"),
    ],
)
def test_no_object_of_the_file_is_called_or_built_but_tensors_and_plain_values(attack: Attack, tmp_path: Path) -> None:
    """Guarantee: no object of the file is called or built but tensors and plain values."""
    account = {"history": [(1.0, 0.25, 7)], "mechanism": attack}
    content = {"module_state_dict": nn.Linear(1, 1).state_dict(), "privacy_accountant_state_dict": account}
    torch.save(content, tmp_path / "opacus.pt")
    with pytest.raises(CheckpointError, match="could run any code") as caught:
        read_checkpoint(tmp_path / "opacus.pt", **SAID)
    assert "save it again without that object" in caught.value.cure
    assert not RAN


def test_reading_leaves_torchs_list_of_safe_objects_as_it_was() -> None:
    before = set(torch.serialization.get_safe_globals())
    read_file(FIXTURES / "1.4.0" / "rdp.pt")
    assert set(torch.serialization.get_safe_globals()) == before


def saved(tmp_path: Path, content: Any) -> Path:
    torch.save(content, tmp_path / "opacus.pt")
    return tmp_path / "opacus.pt"


ACCOUNT = {"history": [(1.0, 0.25, 7)], "mechanism": "rdp"}
MODEL = {"weight": torch.zeros(1)}


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ([1, 2], "no dictionary"),
        (MODEL, "it lacks module_state_dict and privacy_accountant_state_dict"),
        ({"module_state_dict": MODEL}, "it lacks privacy_accountant_state_dict"),
        (
            {"module_state_dict": MODEL, "privacy_accountant_state_dict": {**ACCOUNT, "mechanism": "mine"}},
            "none of Opacus",
        ),
        ({"module_state_dict": MODEL, "privacy_accountant_state_dict": {"mechanism": "rdp"}}, "its history is no list"),
        *(
            (
                {"module_state_dict": MODEL, "privacy_accountant_state_dict": {**ACCOUNT, "history": [entry]}},
                "its history",
            )
            for entry in ((1.0, 0.25), (1.0, 0.25, 0), (1.0, 0.25, 1.5), (-1.0, 0.25, 7), (1.0, 1.5, 7), ("a", 0.25, 7))
        ),
    ],
)
def test_a_file_that_is_no_checkpoint_of_opacus_is_refused(content: Any, part: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=part) as caught:
        read_checkpoint(saved(tmp_path, content), **SAID)
    assert caught.value.cure


def test_a_missing_or_damaged_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        read_file(tmp_path / "none.pt")
    whole = (FIXTURES / "1.4.0" / "rdp.pt").read_bytes()
    for data in (b"", b"text", whole[: len(whole) // 2]):
        (tmp_path / "cut.pt").write_bytes(data)
        with pytest.raises(CheckpointError):
            read_file(tmp_path / "cut.pt")
    with zipfile.ZipFile(tmp_path / "empty.pt", "w") as file:
        file.writestr("nothing", "")
    with pytest.raises(CheckpointError):
        read_file(tmp_path / "empty.pt")


def test_what_the_user_kept_beside_it_is_given_back(tmp_path: Path) -> None:
    content = {"module_state_dict": MODEL, "privacy_accountant_state_dict": ACCOUNT, "epoch": 3}
    assert read_checkpoint(saved(tmp_path, content), **SAID).stored.others == {"epoch": 3}


def test_prefixes_of_wrappers_are_taken_off(tmp_path: Path) -> None:
    state = {f"_module.module.{name}": torch.zeros(2) for name in ("weight", "bias")}
    content = {"module_state_dict": state, "privacy_accountant_state_dict": ACCOUNT}
    assert [*read_file(saved(tmp_path, content)).weights] == ["weight", "bias"]
