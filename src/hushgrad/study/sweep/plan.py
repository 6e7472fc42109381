"""What a sweep will run: a grid over noise, clipping, batch size, learning rate and seeds, written out run by run."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from hushgrad.arguments import non_negative_number, positive_number, whole_number
from hushgrad.errors import InvalidArgumentError
from hushgrad.printable import printable
from hushgrad.study.config_json import config_from_json, config_to_json
from hushgrad.study.configuration import DEFAULT_DELTA, Privacy, RunConfig, max_grad_norm_for, suggested_run
from hushgrad.study.settings import Kind, check_settings, number, setting, settings_of, several, whole
from hushgrad.study.tasks import TaskOptions, load_task

ORDINARY = "ordinary"
MOST_RUNS = 10_000
PRIVATE = settings_of(Privacy).keys() - {"noise_multiplier", "target_epsilon", "max_epsilon", "delta"}
"""Settings of privacy that a subject may have; the others are the sweep's own."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is trained: a task of `hushgrad train` with settings of its own, or the user's `function`.

    `label` names it in tables and pictures. `settings` are fields of `RunConfig`. With a `function`
    ("module:function"), `task` is None and there are neither options nor settings.
    """

    label: str
    task: str | None = None
    options: TaskOptions = field(default_factory=TaskOptions)
    settings: Mapping[str, Any] = field(default_factory=dict)
    function: str | None = None

    def __post_init__(self) -> None:
        if (self.task is None) == (self.function is None):
            raise InvalidArgumentError(
                "must name a task or a function, and not both", where="a subject of the sweep", cure="Name one of them"
            )
        if self.function is not None and self.settings:
            raise InvalidArgumentError(
                f"a function takes no {', '.join(sorted(self.settings))}",
                where=f"subject {printable(self.label)!r}",
                cure="Set these in the function itself",
            )
        if not self.label.strip():
            raise InvalidArgumentError("must have a label", where="a subject of the sweep", cure="Give it a label")


SEEDS = Kind(
    lambda given: tuple(range(whole_number("seeds", int(given), minimum=1))),
    several(whole(0)).check,
    "N",
    "how many, such as 3",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The values to try. Exactly one of `noise_multipliers` and `target_epsilons` is not empty.

    `baseline` adds ordinary training without privacy. An empty tuple leaves a setting as the subject has it.
    """

    noise_multipliers: tuple[float, ...] = field(
        default=(),
        metadata=setting(several(number(non_negative_number)), "Noise multipliers σ to try [0,0.5,1,2,5,10]."),
    )
    target_epsilons: tuple[float, ...] = field(
        default=(),
        metadata=setting(several(number(positive_number)), "Target ε to try, in place of noise.", "--epsilons"),
    )
    baseline: bool = True
    max_grad_norms: tuple[float, ...] = field(
        default=(), metadata=setting(several(number(positive_number)), "Clipping norms C to try.")
    )
    batch_sizes: tuple[int, ...] = field(default=(), metadata=setting(several(whole(1)), "Batch sizes to try."))
    learning_rates: tuple[float, ...] = field(
        default=(), metadata=setting(several(number(positive_number)), "Learning rates to try.")
    )
    seeds: tuple[int, ...] = field(default=(0, 1, 2), metadata=setting(SEEDS, "How many seeds [3]."))
    delta: float = DEFAULT_DELTA

    def __post_init__(self) -> None:
        if bool(self.noise_multipliers) == bool(self.target_epsilons):
            raise InvalidArgumentError(
                "must have noise_multipliers or target_epsilons, and not both",
                where="the sweep",
                cure="Give one of them",
            )
        if not self.seeds:
            raise InvalidArgumentError("must have at least one seed", where="the sweep", cure="Give seeds")
        check_settings(self)
        for name, values in asdict(self).items():
            if isinstance(values, tuple) and len(set(values)) != len(values):
                raise InvalidArgumentError("must name each value once", where=name, cure="Remove the repeated values")


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One run of a sweep: what it belongs to and how it is started.

    `name` is its folder's name; `series` the label together with the settings that vary beside noise and seed;
    `aim` what it is asked for ("σ=1", "ε=3", "ordinary"). `job` is {"config": …,
    "fit_batch_size": …} for a task (whether nobody chose the batch size: few data make it smaller) and
    {"function": …, "trial": …} for a function.
    """

    name: str
    label: str
    series: str
    aim: str
    seed: int
    job: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """All runs of a sweep, in order, and the sweep's name."""

    name: str
    runs: tuple[PlannedRun, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return {"name": self.name, "runs": [asdict(run) for run in self.runs]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> SweepPlan:
        """Return the plan that `to_json` wrote. Raises InvalidArgumentError for anything else."""
        try:
            runs = tuple(PlannedRun(**run) for run in value["runs"])
            name = value["name"]
        except (KeyError, TypeError) as error:
            raise InvalidArgumentError(
                "it is not a plan of this version of hushgrad", where="plan.json", cure="Sweep anew in another folder"
            ) from error
        if not isinstance(name, str) or any(run.name != _folder_name(run.name) for run in runs):
            raise InvalidArgumentError(
                "it names a run that cannot be a folder", where="plan.json", cure="Sweep anew in another folder"
            )
        return cls(name, runs)

    def fingerprint(self) -> str:
        """Return a hash of everything that the plan says."""
        text = json.dumps(self.to_json(), sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


def make_plan(name: str, subjects: tuple[Subject, ...], grid: Grid) -> SweepPlan:
    """Return the runs of every subject at every point of the grid. All settings are checked here, before anything runs.

    Runs come seed by seed, so that a sweep that is stopped early has some of everything.
    """
    if not subjects:
        raise InvalidArgumentError("must have at least one subject", where="the sweep", cure="Add a subject")
    labels = [subject.label for subject in subjects]
    if len(set(labels)) != len(labels):
        raise InvalidArgumentError(
            "subjects must have different labels", where="the sweep", cure="Rename one of those with equal labels"
        )
    runs = tuple(
        _planned(subject, point, aim, seed, grid)
        for seed, subject in itertools.product(grid.seeds, subjects)
        for point in _points(grid)
        for aim in _aims(grid)
    )
    if len(runs) > MOST_RUNS:
        raise InvalidArgumentError(
            f"must have at most {MOST_RUNS} runs, got {len(runs)}", where="the sweep", cure="Give fewer values or seeds"
        )
    names = [run.name for run in runs]
    if len(set(names)) != len(names):
        raise InvalidArgumentError(
            "two labels give the same folder name", where="the sweep", cure="Make them differ in a letter or digit"
        )
    return SweepPlan(name, runs)


@dataclass(frozen=True, slots=True)
class _Aim:
    """What a run is asked for: a noise multiplier, an epsilon, or (neither) ordinary training."""

    noise_multiplier: float | None = None
    target_epsilon: float | None = None

    def __str__(self) -> str:
        if self.noise_multiplier is not None:
            return f"σ={self.noise_multiplier:g}"
        return ORDINARY if self.target_epsilon is None else f"ε={self.target_epsilon:g}"


def _aims(grid: Grid) -> list[_Aim]:
    ordinary = [_Aim()] if grid.baseline else []
    noises = [_Aim(noise_multiplier=float(noise)) for noise in grid.noise_multipliers]
    return [*ordinary, *noises, *(_Aim(target_epsilon=float(target)) for target in grid.target_epsilons)]


def _points(grid: Grid) -> list[dict[str, Any]]:
    """Return the settings beside noise and seed, one dictionary per point of the grid."""
    axes = {
        "max_grad_norm": grid.max_grad_norms,
        "batch_size": grid.batch_sizes,
        "learning_rate": grid.learning_rates,
    }
    used = {name: values for name, values in axes.items() if values}
    return [dict(zip(used, values, strict=True)) for values in itertools.product(*used.values())]


def _planned(subject: Subject, point: dict[str, Any], aim: _Aim, seed: int, grid: Grid) -> PlannedRun:
    letters = {"max_grad_norm": "C", "batch_size": "B", "learning_rate": "lr"}
    varied = [f"{letters[name]}={value:g}" for name, value in point.items()]
    series = ", ".join([subject.label, *varied])
    job = (
        _function_job(subject, point, aim, seed, grid)
        if subject.function
        else _task_job(subject, point, aim, seed, grid)
    )
    return PlannedRun(_folder_name(f"{series} {aim} seed={seed}"), subject.label, series, str(aim), seed, job)


def _function_job(subject: Subject, point: dict[str, Any], aim: _Aim, seed: int, grid: Grid) -> dict[str, Any]:
    if aim.target_epsilon is not None:
        raise InvalidArgumentError(
            "target_epsilons are for tasks: a function is asked for noise multipliers",
            where=f"subject {printable(subject.label)!r}",
            cure="Give noise_multipliers in place of target_epsilons",
        )
    trial = {"noise_multiplier": aim.noise_multiplier, "delta": grid.delta, "seed": seed, **point}
    return {"function": subject.function, "trial": trial}


def _task_job(subject: Subject, point: dict[str, Any], aim: _Aim, seed: int, grid: Grid) -> dict[str, Any]:
    assert subject.task is not None  # checked by Subject
    settings = {**subject.settings, **point, "seed": seed}
    model = settings.get("model")
    suited = max_grad_norm_for(subject.task, aim.target_epsilon, model)
    private = {"max_grad_norm": suited, **{name: settings.pop(name) for name in PRIVATE if name in settings}}
    privacy = None
    if str(aim) != ORDINARY:
        privacy = Privacy(
            noise_multiplier=aim.noise_multiplier, target_epsilon=aim.target_epsilon, delta=grid.delta, **private
        )
    unknown = sorted(set(settings) - settings_of(RunConfig).keys())
    if unknown:
        raise InvalidArgumentError(
            f"these settings are unknown: {', '.join(unknown)}",
            where=f"task {subject.task!r}",
            cure=f"Choose from {', '.join(sorted(RunConfig.__dataclass_fields__))}",
        )
    config = replace(suggested_run(subject.task, privacy=privacy, options=subject.options, model=model), **settings)
    return {"config": config_to_json(config), "fit_batch_size": "batch_size" not in settings}


def config_of(run: PlannedRun) -> RunConfig | None:
    """Return the settings of a run of a task, None for a run of a function."""
    return config_from_json(run.job["config"]) if "config" in run.job else None


def check_data(runs: Iterable[PlannedRun]) -> None:
    """Load the data of each task once. Raises what is wrong with them: rather here than in every run."""
    configs = [config_of(run) for run in runs]
    for task, options in dict.fromkeys((config.task, config.options) for config in configs if config is not None):
        load_task(task, options)


def _folder_name(text: str) -> str:
    """Return `text` as a name that is safe as a folder on any system: letters, digits and . = - only."""
    plain = text.replace("σ", "sigma").replace("ε", "epsilon")
    return re.sub(r"[^A-Za-z0-9.=]+", "-", plain).strip("-.")[:120] or "run"
