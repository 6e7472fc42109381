"""A run's settings as JSON, for plans on disk and for processes that are started with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hushgrad.errors import InvalidArgumentError
from hushgrad.study.configuration import Privacy, RunConfig
from hushgrad.study.settings import frozen
from hushgrad.study.tasks import TaskOptions

PATHS = ("data", "schema", "base")
"""Options that are paths."""


def config_to_json(config: RunConfig) -> dict[str, Any]:
    """Return the settings as JSON values; `config_from_json` gives them back.

    Guarantee: settings survive the way to JSON and back unchanged.
    """
    value = asdict(config)
    for name in PATHS:
        path = getattr(config.options, name)
        value["options"][name] = None if path is None else str(path)
    return value


def config_from_json(value: Mapping[str, Any]) -> RunConfig:
    """Return the settings that `config_to_json` wrote. Raises InvalidArgumentError for anything else."""
    try:
        options = {name: frozen(inner) for name, inner in value["options"].items()}
        options |= {name: Path(options[name]) for name in PATHS if options.get(name) is not None}
        privacy = value["privacy"]
        rest = {name: frozen(inner) for name, inner in value.items() if name not in ("options", "privacy")}
        return RunConfig(
            options=TaskOptions(**options), privacy=None if privacy is None else Privacy(**privacy), **rest
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise InvalidArgumentError(
            "the settings are not as this version of hushgrad writes them", where="settings", cure="Plan the run anew"
        ) from error
