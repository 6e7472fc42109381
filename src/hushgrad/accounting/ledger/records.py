"""Lines of a ledger file: canonical JSON objects in a hash chain.

A record is `{"kind", "seq", "previous", ..., "hash"}`: `seq` counts from 0, `previous` is the hash of the record
before, and `hash` is SHA-256 over the canonical JSON of everything else. The line must *be* the canonical JSON, byte
for byte, so there is no byte of a ledger that can change without being noticed. What cannot be noticed from the file
alone is the loss of whole records at its end; for that, keep an `LedgerHead` elsewhere (in a checkpoint, say).

A later version adds what it needs as further kinds; a reader refuses a kind that it does not know.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hushgrad.errors import LedgerError

NO_HASH = "0" * 64
RESTORE = (
    "Restore it only from a copy that holds every step since, which an anchor or the run's summary.json shows: an "
    "older copy forgets steps, and epsilon would come out too small"
)
_WHERE = "the ledger"


@dataclass(frozen=True, slots=True)
class LedgerHead:
    """A point of a ledger: record `seq` had this `hash`. A ledger that lacks it has lost records or is another one."""

    seq: int
    hash: str


def canonical(value: dict[str, Any]) -> str:
    """Return `value` as JSON with one spelling: sorted keys, no spaces, ASCII, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest(fields: dict[str, Any]) -> str:
    """Return the SHA-256 of a record's fields without its hash, in hexadecimal."""
    return hashlib.sha256(canonical(fields).encode("ascii")).hexdigest()


def encode(kind: str, seq: int, previous: str, body: dict[str, Any]) -> tuple[bytes, str]:
    """Return the line of a record, newline included, and its hash."""
    fields = {**body, "kind": kind, "seq": seq, "previous": previous}
    own = digest(fields)
    return canonical({**fields, "hash": own}).encode("ascii") + b"\n", own


def decode(data: bytes) -> Iterator[dict[str, Any]]:
    """Yield the records of a ledger file, each verified against the chain.

    Guarantee: a changed, missing, repeated or reordered byte anywhere before the end of the file is refused.

    Raises `LedgerError` naming the first bad record.
    """
    if not data:
        raise LedgerError("it is empty, and a ledger always begins with a header", where=_WHERE, cure=RESTORE)
    previous = NO_HASH
    lines = data.split(b"\n")
    tail = lines.pop()
    for seq, line in enumerate(lines):
        record = _parse(line, seq)
        own = record.pop("hash", None)
        if record.get("seq") != seq or type(record.get("seq")) is not int:
            raise _bad(seq, "is out of order")
        if record.get("previous") != previous:
            raise _bad(seq, "does not follow the record before it")
        if own != digest(record):
            raise _bad(seq, "does not match its hash")
        previous = own
        record["hash"] = own
        if canonical(record).encode("ascii") != line:
            raise _bad(seq, "is not in canonical form")
        yield record
    if tail:
        raise LedgerError(
            "it is incomplete: the file was cut off there, or the machine stopped while it was written",
            where=record_at(len(lines)),
            cure=f"{RESTORE}. Without one, account for that step and those before it in a new ledger",
        )


def _parse(line: bytes, seq: int) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("ascii"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise _bad(seq, "is not a JSON object") from None
    if not isinstance(record, dict):
        raise _bad(seq, "is not a JSON object")
    return record


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def _bad(seq: int, what: str) -> LedgerError:
    return LedgerError(f"it {what}: the file was damaged or edited", where=record_at(seq), cure=RESTORE)


def record_at(seq: int) -> str:
    """Return how messages name a record."""
    return f"record {seq} of the ledger"
