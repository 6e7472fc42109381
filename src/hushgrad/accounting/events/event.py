"""Privacy events: what one step did, completely enough to be charged and to be read again in years.

An event is data. It holds no curve and no accountant: `hushgrad.accounting.accountants` interprets it. A type or a
version that was once written to a ledger is never removed from this folder.

Neighbouring relations (the "adjacency" printed beside every epsilon):

- add/remove-one: the two data sets differ by the presence of one record;
- zero-out: one record of the one is replaced, in its place, by a record that contributes nothing;
- replace-one: one record of the one is replaced, in its place, by any other record.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeAlias

ADD_REMOVE_ONE = "add/remove-one"
ZERO_OUT = "zero-out"
REPLACE_ONE = "replace-one"

JSON: TypeAlias = dict[str, Any]


def fields_to_json(event: Any) -> JSON:
    """Return an event as a JSON object with its type and version."""
    values = {field.name: getattr(event, field.name) for field in fields(event)}
    return {"type": event.type, "version": event.version, **values}
