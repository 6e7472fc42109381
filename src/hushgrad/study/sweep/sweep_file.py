"""A sweep as a TOML file, and the sweeps that come with hushgrad.

name = "Noise on my table"
noise_multipliers = [0, 1, 4]       # or target_epsilons = [1, 3, 8]
seeds = [0, 1, 2]
max_grad_norms = [0.5, 1]           # optional, like batch_sizes and learning_rates

[settings]                          # optional, for all subjects: fields of a run
epochs = 20

[[subjects]]
label = "people"
task = "csv"                        # or function = "module:function"
data = "people.csv"                 # inside the folder of --data, where that is given
target = "income"
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from importlib import resources
from pathlib import Path
from typing import Any

from hushgrad.errors import InvalidArgumentError
from hushgrad.printable import printable
from hushgrad.study.configuration import RunConfig
from hushgrad.study.settings import frozen, settings_of
from hushgrad.study.sweep.plan import PRIVATE, Grid, Subject, SweepPlan, make_plan
from hushgrad.study.tasks import TaskOptions

MAX_BYTES = 1 << 20
# What a sweep itself sets, and therefore a file's [settings] cannot.
OWNED = frozenset({"task", "seed"})
SETTINGS = settings_of(RunConfig).keys() - OWNED | PRIVATE
OPTIONS = settings_of(TaskOptions).keys()
# These bring their data and refuse any other.
TASKS_WITHOUT_DATA = ("digits",)
GRID = frozenset(Grid.__dataclass_fields__)


def shipped() -> tuple[str, ...]:
    """Return the names of the sweeps that come with hushgrad."""
    files = resources.files("hushgrad.study.sweep") / "files"
    return tuple(sorted(Path(file.name).stem for file in files.iterdir() if file.name.endswith(".toml")))


def read_sweep(source: str, data: Path | None = None) -> SweepPlan:
    """Return the plan in the file `source`, or in the shipped sweep of that name. `data` goes to subjects without data.

    Raises InvalidArgumentError for a file that is missing, is not TOML, or holds anything that means nothing here.
    """
    path = Path(source)
    if path.is_file():
        content = path.read_bytes()[: MAX_BYTES + 1]
        if len(content) > MAX_BYTES:
            raise InvalidArgumentError(
                f"it must hold at most {MAX_BYTES} bytes",
                where="the sweep file",
                cure="Check that this is the right file",
            )
    elif source in shipped():
        content = (resources.files("hushgrad.study.sweep") / "files" / f"{source}.toml").read_bytes()
    else:
        raise InvalidArgumentError(
            f"it is neither a file nor one of {', '.join(shipped())}",
            where=f"sweep {printable(source)!r}",
            cure="Check the name",
        )
    try:
        value = tomllib.loads(content.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(
            f"it is not valid TOML: {error}", where="the sweep file", cure="Repair that line"
        ) from error
    return plan_from(value, data)


def plan_from(value: Mapping[str, Any], data: Path | None = None) -> SweepPlan:
    """Return the plan that a sweep file's content describes."""
    _refuse_unknown("the sweep file", value, GRID | {"name", "settings", "subjects"})
    settings = _table("settings", value.get("settings", {}))
    _refuse_unknown("[settings]", settings, SETTINGS)
    entries = value.get("subjects")
    if not isinstance(entries, list) or not entries:
        raise InvalidArgumentError(
            "it must have at least one [[subjects]]", where="the sweep file", cure="Add one, with a task or a function"
        )
    subjects = tuple(_subject(_table("subjects", entry), settings, data) for entry in entries)
    if settings and all(subject.task is None for subject in subjects):
        raise InvalidArgumentError(
            f"a function takes no {', '.join(sorted(settings))}",
            where="[settings]",
            cure="Set these in the function itself",
        )
    name = value.get("name", "sweep")
    if not isinstance(name, str):
        raise InvalidArgumentError("must be text", where="name of the sweep", cure="Put it in quotes")
    axes = {key: _values(key, inner) for key, inner in value.items() if key in GRID}
    return make_plan(name, subjects, Grid(**axes))


def _subject(entry: Mapping[str, Any], shared: Mapping[str, Any], data: Path | None) -> Subject:
    own = {"label", "task", "function"}
    _refuse_unknown("[[subjects]]", entry, OPTIONS | SETTINGS | own)
    label = entry.get("label", entry.get("task", entry.get("function", "")))
    if not isinstance(label, str):
        raise InvalidArgumentError("must be text", where="label of a subject", cure="Put it in quotes")
    if "function" in entry:
        mine = {key: inner for key, inner in entry.items() if key in SETTINGS | OPTIONS}
        return Subject(label, task=entry.get("task"), function=str(entry["function"]), settings=mine)
    options = {key: frozen(inner) for key, inner in entry.items() if key in OPTIONS}
    own_data = options.get("data")
    place = Path(data or ".", own_data) if own_data is not None else data
    if entry.get("task") in TASKS_WITHOUT_DATA:
        place = None
    options["data"] = place.resolve() if place is not None else None
    settings = {key: frozen(inner) for key, inner in {**shared, **entry}.items() if key in SETTINGS}
    return Subject(label, task=entry.get("task"), options=TaskOptions(**options), settings=settings)


def _values(name: str, value: Any) -> Any:
    """Return a grid's value: lists become tuples; "seeds = 3" means 0, 1, 2."""
    if name == "seeds" and isinstance(value, int) and not isinstance(value, bool):
        return tuple(range(value))
    if name in ("delta", "baseline"):
        return value
    if not isinstance(value, list):
        raise InvalidArgumentError(
            f"must be a list, got {type(value).__name__}", where=f"{name} of the sweep", cure="Put it in brackets"
        )
    return tuple(value)


def _table(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InvalidArgumentError(
            f"must be a table, got {type(value).__name__}",
            where=f"{name} of the sweep file",
            cure=f"Write it as [{name}] or [[{name}]]",
        )
    return value


def _refuse_unknown(where: str, value: Mapping[str, Any], known: AbstractSet[str]) -> None:
    unknown = sorted(set(value) - known)
    if unknown:
        raise InvalidArgumentError(
            f"these names are unknown: {', '.join(map(printable, unknown))}",
            where=where,
            cure=f"Choose from {', '.join(sorted(known))}",
        )
