"""Command-line options made from settings: the fields of a run's configuration and of a sweep's grid."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import click

from hushgrad.cli.groups import GroupedOption
from hushgrad.study.named_settings import DEFAULT_TASK, PARTS, SETTINGS
from hushgrad.study.settings import Setting, parse
from hushgrad.study.tasks.task import Recipe

Command = TypeVar("Command", bound=Callable[..., Any])

_FOUND_FOR_A_TASK = frozenset(field.name for field in fields(Recipe))
_OF_THE_MODEL = frozenset({"model", "hidden_sizes", "activation", "depth", "width", "lora_rank"})
_OF_PRIVACY = frozenset({"noise_multipliers", "target_epsilons", "max_grad_norms"})
"""Of a sweep."""
_OF_THE_MACHINE = frozenset({"max_physical_batch_size", "device", "threads"})
LONGEST_CHOICE = 60
"""Choices that are longer together stand in the help's text, where lines break."""
_CLICK_TYPES: Mapping[Any, Any] = {
    int: click.INT,
    float: click.FLOAT,
    str: click.STRING,
    Path: click.Path(path_type=Path),
}


class _Parsed(click.ParamType):  # type: ignore[type-arg]
    """What a setting's kind makes of the text."""

    def __init__(self, found: Setting) -> None:
        self.name = found.kind.metavar
        self._found = found

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return parse(self._found, value) if isinstance(value, str) else value


def setting_option(found: Setting, *, help: str | None = None) -> Callable[[Command], Command]:
    """Return the option of a setting. A command that is called without it gets None, or () where it may be repeated."""
    kind = found.kind
    is_long = len(kind.metavar) > LONGEST_CHOICE
    said = found.help + (f" {kind.example.capitalize()}." if kind.choices and is_long else "") + _default(found)
    kind_of_value = click.Choice(kind.choices) if kind.choices else _CLICK_TYPES.get(kind.parse, _Parsed(found))
    return click.option(
        *found.all_flags,
        found.name,
        cls=GroupedOption,
        group=group_of_setting(found.name),
        type=kind_of_value,
        metavar="NAME" if kind.choices and is_long else None if kind.choices else kind.metavar,
        multiple=kind.repeats,
        help=said if help is None else help,
    )


def group_of_setting(name: str) -> str:
    """Return in which group of a help a setting stands: by the part of the configuration that it belongs to."""
    if name in PARTS["options"] or name == "task":
        return "Data"
    if name in PARTS["privacy"] or name in _OF_PRIVACY:
        return "Privacy"
    return "Model" if name in _OF_THE_MODEL else "Machine" if name in _OF_THE_MACHINE else "Training"


def run_options(*names: str) -> Callable[[Command], Command]:
    """Add options of a run by name; without names all of them, `--config` and `--set`."""

    def add(command: Command) -> Command:
        options = [setting_option(SETTINGS[name]) for name in names or SETTINGS]
        for option in reversed(options if names else [*options, *_SOURCES]):
            command = option(command)
        return command

    return add


SET = click.option(
    "--set",
    "assignments",
    metavar="NAME=VALUE",
    multiple=True,
    help="A setting by its name; may be given several times.",
)
_SOURCES = (
    click.option(
        "--config",
        "file",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Settings from a file, TOML or the config.json of a run. --set and other options win over it.",
    ),
    SET,
)


def options_of(found: Iterable[Setting]) -> Callable[[Command], Command]:
    """Add the options of settings."""

    def add(command: Command) -> Command:
        for option in reversed([setting_option(setting) for setting in found]):
            command = option(command)
        return command

    return add


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those options that a command line names. One that may be repeated comes as () where it was not named."""
    repeated = {name for name, found in SETTINGS.items() if found.kind.repeats}
    return {name: value for name, value in options.items() if value is not None and (value or name not in repeated)}


def _default(found: Setting) -> str:
    """Say the default where it is the same for every task."""
    value = DEFAULT_TASK if found.name == "task" else found.default
    if found.name in _FOUND_FOR_A_TASK or value is None or isinstance(value, tuple):
        return ""
    return f"  [default: {value:g}]" if isinstance(value, float) else f"  [default: {value}]"
