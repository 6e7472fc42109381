"""Settings: fields of a run's configuration, each with its kind, its help and its flags, spelled once.

The command line, configuration files, `--set` and the summary of a run are made from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from hushgrad.arguments import one_of, real_number, whole_number
from hushgrad.errors import InvalidArgumentError
from hushgrad.printable import printable

_KEY = "setting"


@dataclass(frozen=True, slots=True)
class Kind:
    """What values a setting takes.

    Attributes:
        parse: text of a command line to a value. Raises ValueError for what is none.
        check: raises InvalidArgumentError with the name for a value that is of the wrong type or out of range.
        metavar: what a help text calls a value.
        example: words for an error: a value that parses.
        choices: all values, where these are few words.
        repeats: the value is a tuple, and a command line gives one item at a time.
    """

    parse: Callable[[str], Any]
    check: Callable[[str, Any], object]
    metavar: str
    example: str
    choices: tuple[str, ...] = ()
    repeats: bool = False


@dataclass(frozen=True, slots=True)
class Setting:
    """A field of a configuration as users see it.

    Attributes:
        name: the field's name, in files and for `--set`.
        kind: what values it takes; None too, where that is the field's default.
        help: one sentence.
        flags: shorter flags than the one of the name.
        key: what the summary of a run calls it; None where a summary says it in another way.
        default: the field's own default; None where it has none.
        optional: whether the value may be None.
    """

    name: str
    kind: Kind
    help: str
    flags: tuple[str, ...]
    key: str | None
    default: Any
    optional: bool

    @property
    def all_flags(self) -> tuple[str, ...]:
        """The flags of the command line, that of the name first."""
        return (f"--{self.name.replace('_', '-')}", *self.flags)


def setting(kind: Kind, help: str, *flags: str, key: str | None = "") -> Mapping[str, Any]:
    """Return the metadata of a dataclass' field that is a setting; `key` is the field's name where it is not given."""
    return {_KEY: (kind, help, flags, key)}


def settings_of(kind: type) -> dict[str, Setting]:
    """Return the settings among the fields of a dataclass, by name and in their order."""
    found = {}
    for field in fields(kind):
        if _KEY in field.metadata:
            own, help, flags, key = field.metadata[_KEY]
            key = field.name if key == "" else key
            default = None if field.default is MISSING else field.default
            found[field.name] = Setting(field.name, own, help, flags, key, default, field.default is None)
    return found


def check_settings(configuration: Any) -> None:
    """Raise InvalidArgumentError for a field that is of the wrong type or out of range, with the field's name."""
    for name, found in settings_of(type(configuration)).items():
        value = getattr(configuration, name)
        if value is not None or not found.optional:
            found.kind.check(name, value)


def parse(found: Setting, text: str) -> Any:
    """Return the value that `text` stands for. Raises InvalidArgumentError."""
    try:
        return found.kind.parse(text)
    except InvalidArgumentError:
        raise
    except ValueError:
        raise InvalidArgumentError(
            f"{found.name} is written {found.kind.metavar}, got {printable(text)!r}", cure=f"Give {found.kind.example}"
        ) from None


def frozen(value: Any) -> Any:
    """Return a value of JSON or TOML with tuples in place of lists."""
    return tuple(frozen(inner) for inner in value) if isinstance(value, list | tuple) else value


# Kinds ---------------------------------------------------------------------------------------------------------------


def number(check: Callable[[str, Any], object], metavar: str = "FLOAT") -> Kind:
    """A real number."""
    return Kind(float, check, metavar, "a number, such as 0.5")


def whole(minimum: int, metavar: str = "INTEGER") -> Kind:
    """A whole number of at least `minimum`."""
    return Kind(
        int, lambda name, value: whole_number(name, value, minimum=minimum), metavar, "a whole number, such as 8"
    )


def choice(names: Iterable[str]) -> Kind:
    """One of a few words."""
    known = tuple(names)
    return Kind(
        str,
        lambda name, value: one_of(name, value, known),
        "|".join(known),
        f"one of {', '.join(known)}",
        choices=known,
    )


def text(metavar: str = "TEXT") -> Kind:
    """Any text."""
    return Kind(str, _text, metavar, "any text")


def path() -> Kind:
    """A path of the file system."""
    return Kind(Path, _path, "PATH", "a path")


def names(metavar: str) -> Kind:
    """Several names, on a command line with commas between them."""
    return Kind(
        lambda given: tuple(name.strip() for name in given.split(",")),
        _names,
        metavar,
        "names with commas between them",
    )


def several(kind: Kind) -> Kind:
    """A list of values of one kind, on a command line with commas between them."""

    def check(name: str, value: Any) -> None:
        if not isinstance(value, tuple):
            raise InvalidArgumentError(f"must be a list, got {type(value).__name__}", where=name, cure="Pass a tuple")
        for item in value:
            kind.check(name, item)

    return Kind(
        lambda given: tuple(kind.parse(part) for part in given.split(",")),
        check,
        "N,N,…",
        "numbers with commas between them, such as 1,2,4",
    )


def fraction(name: str, value: Any) -> float:
    """Check a number in [0, 1)."""
    found = real_number(name, value)
    if not 0 <= found < 1:
        raise InvalidArgumentError(
            f"must be in [0, 1), got {found}", where=name, cure="Pass a number from 0 up to, but not, 1"
        )
    return found


def _text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise InvalidArgumentError(f"must be text, got {type(value).__name__}", where=name, cure="Pass text")


def _path(name: str, value: Any) -> None:
    if not isinstance(value, Path):
        raise InvalidArgumentError(
            f"must be a path, got {type(value).__name__}", where=name, cure="Pass a pathlib.Path"
        )


def _names(name: str, value: Any) -> None:
    if not isinstance(value, tuple) or not all(isinstance(item, str) for item in value):
        raise InvalidArgumentError(
            f"must be names, got {type(value).__name__}", where=name, cure="Pass a tuple of text, such as ('a', 'b')"
        )
