"""encoding.json: an encoder, and the names of the classes that its model tells apart, as a run's folder keeps them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hushgrad.errors import InvalidArgumentError
from hushgrad.study.tasks.encoders import ArrayEncoder, PictureEncoder, SentenceEncoder, TableEncoder
from hushgrad.study.tasks.tables.column import ANY, TEXT, Column
from hushgrad.study.tasks.tables.file_format import is_delimiter, is_encoding
from hushgrad.study.tasks.tables.spelling import MARKS, Spelling
from hushgrad.study.tasks.task import COUNTED, Encoder
from hushgrad.study.tasks.tokens import TokenEncoder
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
    except (KeyError, TypeError, AttributeError, ValueError, InvalidArgumentError) as error:
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


def _table(columns: Any, spelling: Any, features: int, delimiter: str | None, encoding: str | None) -> TableEncoder:
    spelled = Spelling(**{name: _frozen(inner) for name, inner in spelling.items()})
    return TableEncoder(tuple(map(Column.from_json, columns)), spelled, features, delimiter, encoding)


def _table_of_before(columns: Any, categorical: Any, bounds: Any, features: int) -> TableEncoder:
    """Return the encoder of a run of before dates were told from texts."""
    within = {name: (low, high) for name, low, high in bounds}
    if not (_are(categorical, str) and set(categorical) | set(within) <= set(columns)):
        raise _damaged()
    types = {name: TEXT for name in categorical if name not in within}
    found = tuple(Column(name, types.get(name, ANY), within.get(name)) for name in columns)
    return TableEncoder(found, Spelling(finds_dates=False), features)


def _is_whole_table(made: TableEncoder) -> bool:
    spelling = made.spelling
    return (
        len(set(made.names)) == len(made.names) > 0
        and spelling.decimal in MARKS
        and _are(spelling.missing, str)
        and isinstance(spelling.finds_dates, bool)
        and _is_count(made.features)
        and (made.delimiter is None or is_delimiter(made.delimiter))
        and (made.encoding is None or is_encoding(made.encoding))
    )


def _is_whole_vocabulary(made: SentenceEncoder) -> bool:
    return (
        made.vocabulary in (HASHED, COUNTED, LISTED, FROM_TRAINING)
        and _is_count(made.size)
        and _are(made.words, str)
        and _are(made.buckets, int)
    )


def _is_whole_tokenizer(made: TokenEncoder) -> bool:
    if not (isinstance(made.tokenizer, str) and _is_count(made.length)):
        return False
    try:
        return made.vocabulary_size > 1
    except ValueError:  # of a text that describes no tokenizer
        return False


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
    "columns": (_table, _is_whole_table),
    "table": (_table_of_before, _is_whole_table),
    "sentences": (SentenceEncoder, _is_whole_vocabulary),
    "tokens": (TokenEncoder, _is_whole_tokenizer),
    "arrays": (ArrayEncoder, _is_whole_array),
    "pictures": (PictureEncoder, lambda _: True),
}
