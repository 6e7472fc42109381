"""The file that Opacus' `PrivacyEngine.save_checkpoint` writes, read without running anything that is in it."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import safe_globals

from hushgrad.errors import CheckpointError
from hushgrad.migration.opacus.charges import Steps, read_history
from hushgrad.printable import printable

ACCOUNTANTS = ("rdp", "gdp", "prv")
"""The accountants of Opacus. All keep the same history; the ε that each makes of it is not taken over."""

_MODEL, _ACCOUNT, _OPTIMIZER = "module_state_dict", "privacy_accountant_state_dict", "optimizer_state_dict"
_SCHEDULES = {
    "noise_scheduler_state_dict": "noise",
    "grad_clip_scheduler_state_dict": "clip norm",
}
_PREFIXES = ("_module.", "module.")  # of GradSampleModule, and of a distributed model inside it
_LONGEST = 200


@dataclass(frozen=True, slots=True)
class Stored:
    """What the file holds: weights by name, without the prefixes of Opacus' wrappers; the other parts as they are."""

    weights: dict[str, Tensor]
    optimizer: dict[str, Any] | None
    history: tuple[Steps, ...]
    accountant: str
    schedules: dict[str, dict[str, Any]]
    others: dict[str, Any]
    sha256: str
    is_of_1_4_or_1_5: bool


class _NamedAccountant:
    """In the place of an accountant's class, of which Opacus 1.4 and 1.5 stored a bound method."""

    name: str


class _Rdp(_NamedAccountant):
    name = "rdp"


class _Gdp(_NamedAccountant):
    name = "gdp"


class _Prv(_NamedAccountant):
    name = "prv"


class _OldName(str):
    """The name of an accountant, as a file of Opacus 1.4 or 1.5 has it."""


def _method_of(holder: Any, method: Any) -> str:
    """Stand in for `getattr` while such a file is read: it knows one attribute of three classes, and calls nothing."""
    if isinstance(holder, type) and issubclass(holder, _NamedAccountant) and method == "mechanism":
        return _OldName(holder.name)
    raise pickle.UnpicklingError("getattr of something else")


_STAND_INS: list[Any] = [
    (_method_of, "builtins.getattr"),
    (_Rdp, "opacus.accountants.rdp.RDPAccountant"),
    (_Gdp, "opacus.accountants.gdp.GaussianAccountant"),
    (_Prv, "opacus.accountants.prv.PRVAccountant"),
]


def read_file(path: str | os.PathLike[str]) -> Stored:
    """Read a checkpoint of Opacus 1.4 to 1.6 with torch's `weights_only` loader, tensors on the CPU.

    Guarantee: no object of the file is called or built but tensors and plain values.

    Raises `CheckpointError` for a file that is missing, damaged, something else, or holds other objects.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"it cannot be read: {error.strerror or type(error).__name__}",
            where="the checkpoint",
            cure="Pass the path that Opacus' save_checkpoint was given",
        ) from None
    content = _loaded(data)
    missing = [name for name in (_MODEL, _ACCOUNT) if not isinstance(content.get(name), dict)]
    if missing:
        raise CheckpointError(
            f"it lacks {' and '.join(missing)}, so it is none of Opacus' PrivacyEngine.save_checkpoint",
            where="the checkpoint",
            cure="Pass such a file. One that holds a state_dict() alone has no account: what its weights have cost "
            "cannot be known from it",
        )
    account = content[_ACCOUNT]
    name = account.get("mechanism")
    if name not in ACCOUNTANTS:
        raise CheckpointError(
            "its account was kept by none of Opacus' accountants (rdp, gdp, prv), so what its history means is unknown",
            where="the checkpoint",
            cure="Charge its steps by hand: hushgrad.accounting.Ledger with a contract whose noise_source is "
            "'not observed'",
        )
    known = {_MODEL, _ACCOUNT, _OPTIMIZER, *_SCHEDULES}
    return Stored(
        weights=_without_prefixes(content[_MODEL]),
        optimizer=content.get(_OPTIMIZER) or None,
        history=read_history(account.get("history")),
        accountant=str(name),
        schedules={what: content[part] for part, what in _SCHEDULES.items() if content.get(part)},
        others={part: value for part, value in content.items() if part not in known},
        sha256=hashlib.sha256(data).hexdigest(),
        is_of_1_4_or_1_5=isinstance(name, _OldName),
    )


def _loaded(data: bytes) -> dict[str, Any]:
    try:
        with safe_globals(_STAND_INS):
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        found = re.search(r"Unsupported (?:global|class): (?:GLOBAL )?([\w.]+)", str(error))
        what = f"it holds {printable(found[1], _LONGEST)}" if found else f"it is damaged ({type(error).__name__})"
        raise CheckpointError(
            f"{what}, and nothing but tensors and plain values is loaded: another pickle could run any code",
            where="the checkpoint",
            cure="Where you trust the file, load it where it was trained, and save it again without that object (a "
            "scheduler of a function of yours, say)",
        ) from None
    if not isinstance(content, dict):
        raise CheckpointError(
            f"it holds a {type(content).__name__}, and no dictionary",
            where="the checkpoint",
            cure="Pass a file of Opacus' PrivacyEngine.save_checkpoint",
        )
    return content


def _without_prefixes(state: dict[Any, Any]) -> dict[str, Tensor]:
    weights = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    for prefix in _PREFIXES:
        if weights and all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights
