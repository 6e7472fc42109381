"""Small messages between the processes of a world: each tells all, or the first one tells the rest.

Messages are JSON in bytes, never pickles: what another process sends is read, not run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist

import hushgrad.errors as errors
from hushgrad.errors import HushgradError, PeerFailedError
from hushgrad.parallel.world import World
from hushgrad.randomness import KEY_BYTES, KeyStream

T = TypeVar("T")

LOST = (
    "A process was lost, raised outside of the library, or runs another program than this one. Nothing of this step "
    "was released; what was charged stays charged. Start all processes again (torchrun does), and go on from the last "
    "checkpoint with the same ledger"
)


def told_by_all(world: World, message: Any) -> list[Any]:
    """Return the messages of all processes, by rank; each gives its own.

    Raises:
        PeerFailedError: one of them is gone, or did not come within the group's timeout.
    """
    if world.is_alone:
        return [message]
    own = torch.frombuffer(bytearray(json.dumps(message).encode()), dtype=torch.uint8)
    sizes = torch.zeros(world.size, dtype=torch.int64)
    sizes[world.rank] = len(own)
    _reached(lambda: dist.all_reduce(sizes, group=world.control))
    parts = [torch.zeros(int(sizes.max()), dtype=torch.uint8) for _ in range(world.size)]
    padded = torch.zeros(int(sizes.max()), dtype=torch.uint8)
    padded[: len(own)] = own
    _reached(lambda: dist.all_gather(parts, padded, group=world.control))
    return [json.loads(bytes(part[:size].tolist())) for part, size in zip(parts, sizes.tolist(), strict=True)]


def numbers_of_all(world: World, numbers: list[int]) -> list[list[int]]:
    """Return the numbers that each process gives, by rank; all give as many. The cheapest message.

    Raises `PeerFailedError` as `told_by_all`.
    """
    if world.is_alone:
        return [numbers]
    table = torch.zeros(world.size, len(numbers), dtype=torch.int64)
    table[world.rank] = torch.tensor(numbers, dtype=torch.int64)
    _reached(lambda: dist.all_reduce(table, group=world.control))
    found: list[list[int]] = table.tolist()
    return found


def told_by_first(world: World, message: Callable[[], T]) -> T:
    """Run `message` in the first process and return what it returned, in all of them; it is JSON.

    An error of its is raised in all of them, of the same kind and with the same text.

    Raises `PeerFailedError` as `told_by_all`, and where the first process failed otherwise.
    """
    if world.is_alone:
        return message()
    failure: BaseException | None = None
    said: dict[str, Any] = {}
    if world.is_first:
        try:
            said = {"value": message()}
        except BaseException as error:
            failure = error
            said = {"error": described(error)}
    told: dict[str, Any] = told_by_all(world, said)[0]
    if failure is not None:
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
    told = torch.frombuffer(bytearray(os.urandom(KEY_BYTES)), dtype=torch.uint8)
    _reached(lambda: dist.broadcast(told, 0, group=world.control))
    return KeyStream(bytes(told.tolist()), True)


def described(error: BaseException) -> dict[str, str]:
    """Return an error as JSON: its parts where it is one of ours, else its class alone; a text may hold a value."""
    if isinstance(error, HushgradError):
        kind = type(error).__name__
        return {"kind": kind, "what": error.what, "where": error.where, "cure": error.cure}
    return {"kind": type(error).__name__}


def _raised_by_first(error: dict[str, str]) -> HushgradError:
    """Return the error that the first process raised: of the same kind where it is one of ours."""
    kind = getattr(errors, error["kind"], None)
    if isinstance(kind, type) and issubclass(kind, HushgradError):
        return kind(error["what"], where=error["where"], cure=error["cure"])
    return PeerFailedError(f"it raised {error['kind']}", where="the process of rank 0", cure=LOST)


def _reached(message: Callable[[], Any]) -> None:
    """Run a collective operation; what torch raises where a peer is gone or too late has no type of its own."""
    try:
        message()
    except RuntimeError as error:
        raise PeerFailedError(
            f"the other processes could not be reached ({type(error).__name__})", where="torch.distributed", cure=LOST
        ) from error
