"""Small messages between the processes of a world: each tells all, or the first one tells the rest.

Messages are JSON in bytes, never pickles: what another process sends is read, not run. Every exchange begins with one
header of fixed size, so that two processes at different calls find out, and one that failed can say so to the others
wherever they are.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import torch
import torch.distributed as dist

import hushgrad.errors as errors
from hushgrad.errors import DesyncError, HushgradError, PeerFailedError
from hushgrad.parallel.world import World
from hushgrad.randomness import KEY_BYTES, KeyStream

T = TypeVar("T")

LOST = (
    "A process was lost, raised outside of the library, or runs another program than this one. This process released "
    "nothing of the step; what was charged stays charged. Start all processes again (torchrun does), and go on from "
    "the last checkpoint with the same ledger"
)
SAME_CALLS = (
    "Make the same calls in every process: make_private, every item and step, discard, checkpoints, and passes over "
    "the loader"
)
TOLD = "The other processes were told of it, and go no further with this either."
"""The note on an error that all of them know."""
_NAME = 64


def exchanged(world: World, call: str, message: Any = None, number: int = 0, *, has_failed: bool = False) -> list[Any]:
    """Return `(number, message)` of all processes, by rank; each gives its own. A message of None costs nothing.

    Args:
        call: what this exchange is for; all have to come to the same one.
        message: JSON.
        number: at most 2**56.
        has_failed: this process goes no further, and its message says why; the others may be at any call.

    Raises:
        PeerFailedError: another process has failed, or is gone, or did not come within the group's timeout.
        DesyncError: another process came to another call.
    """
    text = b"" if message is None else json.dumps(message).encode()
    header = torch.tensor([digest_of(call), len(text), number, int(has_failed)])
    rows = [torch.zeros_like(header) for _ in range(world.size)]
    _reached(lambda: dist.all_gather(rows, header, group=world.control))
    table: list[list[int]] = [row.tolist() for row in rows]
    failed = [rank for rank, row in enumerate(table) if row[3]]
    calls = {row[0] for row in table}
    if not failed and len(calls) > 1:
        raise _at_other_calls(world, call, [row[0] for row in table])
    longest = max(row[1] for row in table)
    parts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(world.size)]
    if longest:
        own = torch.zeros(longest, dtype=torch.uint8)
        own[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8) if text else own[:0]
        _reached(lambda: dist.all_gather(parts, own, group=world.control))
    told = [
        (row[2], json.loads(bytes(part[: row[1]].tolist())) if row[1] else None)
        for row, part in zip(table, parts, strict=True)
    ]
    if failed and not has_failed:
        raise _failed(failed[0], told[failed[0]][1] or {})
    return told


def told_by_first(world: World, call: str, message: Callable[[], T]) -> T:
    """Run `message` in the first process and return what it returned, in all of them; it is JSON.

    An error of its is raised in all of them, of the same kind and with the same text.

    Raises what `exchanged` raises.
    """
    if world.is_alone:
        return message()
    failure: BaseException | None = None
    said: dict[str, Any] | None = None
    if world.is_first:
        try:
            said = {"value": message()}
        except BaseException as error:
            failure = error
            said = {"error": described(error)}
    told: dict[str, Any] = exchanged(world, call, said)[0][1]
    if failure is not None:
        failure.add_note(TOLD)
        raise failure
    if "error" in told:
        raise _raised_by_first(told["error"])
    value: T = told["value"]
    return value


def agreed_stream(world: World, own: KeyStream) -> KeyStream:
    """Return a stream that all processes have: under a key of the first one's, for the draws of records alone.

    It is sent over the wire between the processes, which is one domain of trust with their memory. Noise is drawn under
    a key of each process's own.
    """
    if world.is_alone or not own.is_secret:  # a key for tests is the same in all of them
        return own
    return KeyStream(bytes.fromhex(told_by_first(world, "draws of records", lambda: os.urandom(KEY_BYTES).hex())), True)


def tell_failure(world: World, error: BaseException, **more: Any) -> None:
    """Tell the others, at whatever call they are or come to, that this process goes no further; each error once."""
    if world.is_alone or is_known_to_all(error):
        return
    error.add_note(TOLD)
    with suppress(PeerFailedError):  # nobody is left to tell, and the error itself is what must be heard
        exchanged(world, "failure", {**described(error), **more}, has_failed=True)


def is_known_to_all(error: BaseException) -> bool:
    """Return whether the other processes were told of an error, or raise it, too."""
    return isinstance(error, PeerFailedError | DesyncError) or TOLD in getattr(error, "__notes__", ())


def described(error: BaseException) -> dict[str, Any]:
    """Return an error as JSON: its parts where it is one of ours, else its class alone; a text may hold a value."""
    if isinstance(error, HushgradError):
        kind = type(error).__name__
        return {"kind": kind, "what": error.what, "where": error.where, "cure": error.cure}
    return {"kind": type(error).__name__}


def digest_of(text: str) -> int:
    """Return 56 bits of a text's digest."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def _failed(rank: int, error: Mapping[str, Any]) -> PeerFailedError:
    where = f"{error['where']}: " if error.get("where") else ""
    said = f": {where}{error['what']}" if error.get("what") else ""
    failure = PeerFailedError(
        f"it raised {error['kind']}{said}", where=f"the process of rank {rank}", cure=error.get("cure") or LOST
    )
    failure.is_finding = bool(error.get("is_finding"))
    failure.conditions = list(error.get("conditions", ()))
    return failure


def _at_other_calls(world: World, call: str, digests: list[int]) -> DesyncError:
    """Return the refusal that names the calls of all."""
    name = call.encode()[:_NAME]
    own = torch.zeros(_NAME, dtype=torch.uint8)
    own[: len(name)] = torch.frombuffer(bytearray(name), dtype=torch.uint8)
    names = [torch.zeros(_NAME, dtype=torch.uint8) for _ in digests]
    _reached(lambda: dist.all_gather(names, own, group=world.control))
    calls = [bytes(part.tolist()).rstrip(b"\0").decode(errors="replace") for part in names]
    rank = next(rank for rank, digest in enumerate(digests) if digest != digests[0])
    return DesyncError(f"rank {rank} came to the {calls[rank]}, and rank 0 to the {calls[0]}", cure=SAME_CALLS)


def _raised_by_first(error: dict[str, Any]) -> HushgradError:
    """Return the error that the first process raised: of the same kind where it is one of ours."""
    kind = getattr(errors, error["kind"], None)
    if isinstance(kind, type) and issubclass(kind, HushgradError):
        raised: HushgradError = kind(error["what"], where=error["where"], cure=error["cure"])
        raised.add_note(TOLD)
        return raised
    return _failed(0, error)


def _reached(message: Callable[[], Any]) -> None:
    """Run a collective operation; what torch raises where a peer is gone or too late has no type of its own."""
    try:
        message()
    except RuntimeError as error:
        raise unreachable(f"the other processes could not be reached ({type(error).__name__})") from error


def unreachable(what: str) -> PeerFailedError:
    """Return the error of a process that reaches the others no more."""
    failure = PeerFailedError(what, where="torch.distributed", cure=LOST)
    failure.is_last = True
    return failure
