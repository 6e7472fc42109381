"""Options of a long help stand in groups, each in one, and fit 80 columns."""

from __future__ import annotations

import re

import click
import pytest
from click.testing import CliRunner

from hushgrad.cli.groups import GROUPS, THE_RUN, GroupedOption, group_of
from hushgrad.cli.main import main
from hushgrad.cli.sweep import sweep
from hushgrad.cli.train import train
from hushgrad.study.named_settings import SETTINGS


def sections(text: str) -> dict[str, str]:
    """Return the text of a help below each of its group's headings, in their order."""
    found: dict[str, str] = {}
    heading = ""
    for line in text.splitlines():
        if line.removesuffix(":") in GROUPS and line.endswith(":"):
            heading = line.removesuffix(":")
            found[heading] = ""
        elif heading:
            found[heading] += f"{line}\n"
    return found


@pytest.mark.parametrize("command", [train, sweep])
def test_every_option_stands_in_its_group_and_only_there(command: click.Command) -> None:
    result = CliRunner().invoke(main, [str(command.name), "--help"], terminal_width=80)
    found = sections(result.output)
    assert tuple(found) == GROUPS
    for parameter in command.params:
        if parameter.param_type_name != "option":
            continue
        for flag in parameter.opts:
            written = re.compile(rf"(?:  |, ){re.escape(flag)}(?![-\w])")
            holding = [group for group, text in found.items() if written.search(text)]
            assert holding == [group_of(parameter)], flag
    assert max(map(len, result.output.splitlines())) <= 80


def test_every_setting_of_a_run_says_what_it_is_about() -> None:
    """What stands under "The run" is no setting, so that one that is added has a place among the others."""
    about_the_run = {parameter.name for parameter in train.params if group_of(parameter) == THE_RUN}
    assert not about_the_run & set(SETTINGS)


def test_a_group_that_is_none_is_an_error_of_the_program() -> None:
    with pytest.raises(ValueError, match="'Elsewhere' is none of Data"):
        GroupedOption(["--x"], group="Elsewhere")
    assert group_of(click.Option(["--x"])) == THE_RUN
