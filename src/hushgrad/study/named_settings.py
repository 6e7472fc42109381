"""Settings by name, from a file, from `--set name=value` and from flags, to the configuration of a run.

A later source wins over an earlier one. What none of them names is as found for the task (`suggested_run`).
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hushgrad.errors import InvalidArgumentError
from hushgrad.printable import printable
from hushgrad.study.config_json import PATHS
from hushgrad.study.configuration import Privacy, RunConfig, max_grad_norm_for, named_model, suggested_run
from hushgrad.study.directory import from_json
from hushgrad.study.settings import frozen, parse, settings_of
from hushgrad.study.tasks import TaskOptions

DEFAULT_TASK = "digits"
MOST_BYTES = 1 << 20
PARTS = {"privacy": settings_of(Privacy), "options": settings_of(TaskOptions)}
SETTINGS = {**settings_of(RunConfig), **PARTS["privacy"], **PARTS["options"]}
"""All settings of a run by name. In a file those of privacy and of the task may stand in tables of these names."""

AIMS = frozenset({"noise_multiplier", "target_epsilon"})
"""Two ways to say how much noise: a later source that names one takes the place of the other."""

Values = Mapping[str, Any]


def values_from_file(file: Path) -> dict[str, Any]:
    """Return the settings in a file: TOML, or the config.json that a run leaves.

    Raises InvalidArgumentError for a file that cannot be read, and for a name that is no setting.
    """
    try:
        content = file.read_bytes()[: MOST_BYTES + 1]
    except OSError as error:
        raise InvalidArgumentError(
            f"the file of settings cannot be read ({error.strerror})", where=printable(str(file)), cure="Check the path"
        ) from error
    if len(content) > MOST_BYTES:
        raise InvalidArgumentError(
            f"a file of settings must hold at most {MOST_BYTES} bytes",
            where="--config",
            cure="Check that this is the right file",
        )
    try:
        read = from_json if file.suffix == ".json" else tomllib.loads
        found = read(content.decode("utf-8"))
    except ValueError as error:
        language = "JSON" if file.suffix == ".json" else "TOML"
        raise InvalidArgumentError(
            f"the file is not valid {language} ({printable(str(error))})",
            where=printable(str(file)),
            cure="Repair that line",
        ) from error
    if not isinstance(found, dict):
        raise InvalidArgumentError(
            "a file of settings must hold names and values", where=printable(str(file)), cure="Write name = value"
        )
    return _flat(found, printable(str(file)))


def values_from_text(assignments: Iterable[str]) -> dict[str, Any]:
    """Return the settings that texts such as "epochs=3" set. Raises InvalidArgumentError."""
    values: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, given = assignment.partition("=")
        name = name.strip()
        if not equals:
            raise InvalidArgumentError(
                f"{printable(assignment)!r} sets nothing",
                where="--set",
                cure="Write it as name=value, such as epochs=3",
            )
        require_known([name], "--set")
        value = parse(SETTINGS[name], given.strip())
        values[name] = (*values.get(name, ()), value) if SETTINGS[name].kind.repeats else value
    return values


def merged(*sources: Values) -> dict[str, Any]:
    """Return the settings of all sources, of which a later one wins."""
    values: dict[str, Any] = {}
    for source in sources:
        if any(source.get(name) is not None for name in AIMS):
            values = {name: value for name, value in values.items() if name not in AIMS}
        values |= source
    return values


def configured(values: Values) -> RunConfig:
    """Return the private run that `values` describe, with settings as found for its task where they name none.

    Raises InvalidArgumentError for what RunConfig, Privacy and TaskOptions refuse, and for an unknown name.
    """
    require_known(values, "the settings")
    options = TaskOptions(**{name: values[name] for name in PARTS["options"] if name in values})
    task, model = values.get("task", DEFAULT_TASK), named_model(values.get("model"), options)
    private = {name: values[name] for name in PARTS["privacy"] if name in values}
    private.setdefault("max_grad_norm", max_grad_norm_for(task, private.get("target_epsilon"), model))
    suggested = suggested_run(task, privacy=Privacy(**private), options=options, model=model)
    return replace(suggested, **{name: values[name] for name in settings_of(RunConfig) if name in values})


def values_of(config: RunConfig) -> dict[str, Any]:
    """Return every setting of a run by name; those of privacy are left out of an ordinary run."""
    parts = ((RunConfig, config), (Privacy, config.privacy), (TaskOptions, config.options))
    return {name: getattr(part, name) for kind, part in parts if part is not None for name in settings_of(kind)}


def require_known(names: Iterable[str], where: str) -> None:
    """Raise InvalidArgumentError for a name that is no setting, with the nearest that is."""
    for name in names:
        if name not in SETTINGS:
            raise InvalidArgumentError(
                f"there is no setting {printable(name)!r}", where=where, cure=f"Write {nearest(name)}"
            )


def nearest(name: str) -> str:
    """Return the setting whose name or flag is nearest to `name`, or all settings where none is near."""
    spellings = {flag.strip("-").replace("-", "_"): key for key, found in SETTINGS.items() for flag in found.all_flags}
    near = difflib.get_close_matches(name.strip("-").replace("-", "_").lower(), spellings, n=1, cutoff=0.6)
    return spellings[near[0]] if near else f"one of {', '.join(SETTINGS)}"


def _flat(found: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the settings of a file without its tables, lists as tuples and paths as paths."""
    values: dict[str, Any] = {}
    for name, value in found.items():
        if name not in PARTS:
            values[name] = value
        elif isinstance(value, dict):
            _require_once(values, value, where)
            values |= value
        elif value is not None:
            raise InvalidArgumentError(
                f"{name} must be a table, got {type(value).__name__}", where=where, cure=f"Write it as [{name}]"
            )
    require_known(values, where)
    values = {name: frozen(value) for name, value in values.items()}
    return {name: Path(value) if name in PATHS and isinstance(value, str) else value for name, value in values.items()}


def _require_once(values: Values, more: Values, where: str) -> None:
    twice = sorted(values.keys() & more.keys())
    if twice:
        raise InvalidArgumentError(f"{', '.join(map(printable, twice))} stands twice", where=where, cure="Keep one")
