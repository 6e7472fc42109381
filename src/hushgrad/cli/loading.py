"""Names on a command line, `module:name` or `file.py:name`, to the objects they stand for. This runs user code."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from hushgrad.errors import InvalidArgumentError, where_raised
from hushgrad.printable import printable

PREFIX = "hushgrad_examined_"
"""Begins the name of a module that was given as a file, so that it takes no other one's place."""


def load(reference: str, option: str, announce: Callable[[str], None]) -> Any:
    """Return what `module:name` stands for.

    What user code prints goes to stderr, so that stdout holds the answer only. The current folder is looked through
    after everything that is installed: a file in it cannot take the place of a library.

    Args:
        reference: "package.module:name" or "path/to/file.py:name".
        option: what messages call it.
        announce: told the file before it runs.

    Raises:
        InvalidArgumentError: one line that says what failed.
    """
    place, colon, name = reference.rpartition(":")
    if not colon or not place or not name.isidentifier():
        raise InvalidArgumentError(
            f"{printable(reference)!r} does not name an object",
            where=option,
            cure="Write module:name or file.py:name, such as models:make_model",
        )
    with redirect_stdout(sys.stderr), _failures_told(option, place, tell_text=True):
        module = _imported(place, option, announce)
    if name not in vars(module):
        raise InvalidArgumentError(
            f"{printable(place)} has no {name!r}", where=option, cure="Name what the module defines at its top level"
        )
    return vars(module)[name]


def made_by(value: Any, reference: str, option: str, *, tell_text: bool) -> Any:
    """Return what a function or class gives when it is called without arguments; any other value is itself.

    `tell_text`: whether the text of an exception may be shown; that of code that reads data may hold data.
    """
    if isinstance(value, nn.Module) or not callable(value):
        return value
    with redirect_stdout(sys.stderr), _failures_told(option, f"{reference}()", tell_text=tell_text):
        return value()


@contextmanager
def _failures_told(option: str, what: str, *, tell_text: bool) -> Iterator[None]:
    try:
        yield
    except InvalidArgumentError:
        raise
    except (Exception, SystemExit) as error:
        text = printable(" ".join(str(error).split()), 300) if tell_text else ""
        raise InvalidArgumentError(
            f"{printable(what)} raised {where_raised(error)}" + (f": {text}" if text else ""),
            where=option,
            cure="Correct it there, and run the command again",
        ) from None


def _imported(place: str, option: str, announce: Callable[[str], None]) -> ModuleType:
    if place.endswith(".py"):
        path = Path(place).resolve()
        if not path.is_file():
            raise InvalidArgumentError(f"there is no file {printable(place)}", where=option, cure="Check the path")
        name = f"{PREFIX}{path.stem}"
        if name in sys.modules and sys.modules[name].__file__ == str(path):
            return sys.modules[name]
        announce(printable(str(path), 400))
        with _findable(path.parent):
            spec = importlib.util.spec_from_file_location(name, path)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module  # dataclasses and pickles look their module up
            try:
                spec.loader.exec_module(module)
            except BaseException:
                del sys.modules[name]
                raise
        return module
    if place in sys.modules:
        return sys.modules[place]
    with _findable(Path.cwd()):
        spec = _spec_of(place)
        if spec is None and Path(place).is_file():
            raise InvalidArgumentError(
                f"{printable(place)} is not a Python file",
                where=option,
                cure="Name a file that ends in .py, or a module that can be imported",
            )
        if spec is None:
            raise InvalidArgumentError(
                f"there is no module {printable(place)!r}",
                where=option,
                cure="Name a module that can be imported from this folder, or a file: path/to/file.py:name",
            )
        announce(printable(str(spec.origin or place), 400))
        return importlib.import_module(place)


@contextmanager
def _findable(folder: Path) -> Iterator[None]:
    """Look through a folder too, last: what it holds cannot shadow the standard library or anything installed."""
    sys.path.append(str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _spec_of(name: str) -> ModuleSpec | None:
    """Find a dotted module without running its packages, as `importlib.util.find_spec` would."""
    path, spec = None, None
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        spec = PathFinder.find_spec(".".join(parts[:end]), path)
        if spec is None:
            return None
        path = spec.submodule_search_locations
    return spec
