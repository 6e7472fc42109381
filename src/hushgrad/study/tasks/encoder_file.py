"""encoding.json: an encoder, and the names of the classes that its model tells apart, as a run's folder keeps them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hushgrad.errors import InvalidArgumentError
from hushgrad.study.tasks.encoders import ArrayEncoder, PictureEncoder, SentenceEncoder, TableEncoder
from hushgrad.study.tasks.task import COUNTED, Encoder
from hushgrad.study.tasks.words import FROM_TRAINING, HASHED, LISTED


def encoding_as_json(encoder: Encoder, classes: Sequence[str]) -> dict[str, Any]:
    """Return what the file holds."""
    return {**encoder.as_json(), "classes": list(classes)}


def encoding_digest(value: Mapping[str, Any]) -> str:
    """Return the digest of what the file holds, which the summary of a run keeps, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def encoding_from_json(value: Mapping[str, Any]) -> tuple[Encoder, tuple[str, ...] | None]:
    """Return the encoder and the classes that `encoding_as_json` described; None in files of before it kept classes.

    Raises InvalidArgumentError for anything else.
    """
    try:
        fields = {name: _frozen(inner) for name, inner in value.items() if name not in ("kind", "classes")}
        kind, is_whole = _KINDS[value["kind"]]
        made: Encoder = kind(**fields)
        classes = _frozen(value.get("classes"))
    except (KeyError, TypeError, AttributeError) as error:
        raise _damaged() from error
    if not is_whole(made) or not (classes is None or _are(classes, str)):
        raise _damaged()
    return made, classes


def _damaged() -> InvalidArgumentError:
    return InvalidArgumentError(
        "the file is damaged, or of another version", where="encoding.json", cure="Restore it from a copy"
    )


def _frozen(value: Any) -> Any:
    return tuple(_frozen(inner) for inner in value) if isinstance(value, list) else value


def _is_whole_table(made: TableEncoder) -> bool:
    return (
        _are(made.columns, str)
        and len(set(made.columns)) == len(made.columns) > 0
        and _are(made.categorical, str)
        and set(made.categorical) <= set(made.columns)
        and _are(made.bounds, tuple)
        and all(
            len(one) == 3 and isinstance(one[0], str) and _is_number(one[1]) and _is_number(one[2]) and one[1] < one[2]
            for one in made.bounds
        )
        and _is_count(made.features)
    )


def _is_whole_vocabulary(made: SentenceEncoder) -> bool:
    return (
        made.vocabulary in (HASHED, COUNTED, LISTED, FROM_TRAINING)
        and _is_count(made.size)
        and _are(made.words, str)
        and _are(made.buckets, int)
    )


def _is_whole_array(made: ArrayEncoder) -> bool:
    return _is_count(made.rows) and _is_count(made.columns) and _is_number(made.largest) and made.largest > 0


def _are(values: Any, kind: type) -> bool:
    return isinstance(values, tuple) and all(
        isinstance(value, kind) and not isinstance(value, bool) for value in values
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_KINDS: dict[str, tuple[Any, Callable[[Any], bool]]] = {
    "table": (TableEncoder, _is_whole_table),
    "sentences": (SentenceEncoder, _is_whole_vocabulary),
    "arrays": (ArrayEncoder, _is_whole_array),
    "pictures": (PictureEncoder, lambda _: True),
}
