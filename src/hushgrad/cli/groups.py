"""The help of a command with many options, in groups."""

from __future__ import annotations

from typing import Any

import click

THE_RUN = "The run"
GROUPS = ("Data", "Privacy", "Model", "Training", "Machine", THE_RUN)
"""In the order of the help. An option that names none is about the run as a whole."""


class GroupedOption(click.Option):
    """An option that says in which group of the help it stands."""

    def __init__(self, *args: Any, group: str, **kwargs: Any) -> None:
        if group not in GROUPS:
            raise ValueError(f"{group!r} is none of {', '.join(GROUPS)}")
        super().__init__(*args, **kwargs)
        self.group = group


def group_of(parameter: click.Parameter) -> str:
    """Return the group of an option."""
    return parameter.group if isinstance(parameter, GroupedOption) else THE_RUN


class GroupedCommand(click.Command):
    """A command whose help has a section for each group."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options of each group, in the order in which they were declared."""
        for group in GROUPS:
            options = [found for found in self.get_params(ctx) if found.param_type_name == "option"]
            found = [option for option in options if group_of(option) == group]
            records = [record for record in (parameter.get_help_record(ctx) for parameter in found) if record]
            if records:
                with formatter.section(group):
                    formatter.write_dl(records)
