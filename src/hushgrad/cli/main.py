"""`hushgrad`: the group of commands. Each is imported only when it runs, so that `hushgrad epsilon` needs no torch."""

from __future__ import annotations

import difflib
import importlib
from typing import Any

import click

from hushgrad._version import __version__
from hushgrad.cli.spelling import spell_what_cannot_be_written
from hushgrad.errors import HushgradError

COMMANDS = {
    "attack": ("hushgrad.cli.attack", "attack", "Attack a run's model by the losses of its training records."),
    "audit": ("hushgrad.cli.audit", "audit", "Bound epsilon from below by an attack, beside the claim."),
    "calibrate": ("hushgrad.cli.calibrate", "calibrate", "Find the noise multiplier for a target epsilon."),
    "compare": ("hushgrad.cli.compare", "compare", "Compare samplers and accountants for one plan."),
    "curve": ("hushgrad.cli.curve", "curve", "Print or draw epsilon over delta, and the power of attacks."),
    "data": ("hushgrad.cli.data", "data", "Show what is understood of a table; write a schema to sign."),
    "demo": ("hushgrad.cli.demo", "demo", "Train on digits with and without privacy, side by side."),
    "doctor": ("hushgrad.cli.doctor", "doctor", "Examine a model: what private training costs, what is refused."),
    "epsilon": ("hushgrad.cli.epsilon", "epsilon", "Compute the epsilon of a plan or of a ledger."),
    "export": ("hushgrad.cli.export", "export", "Write a run's model for other programs, with a model card."),
    "noise": ("hushgrad.cli.noise", "noise", "Say whether correlated noise is better for a plan."),
    "predict": ("hushgrad.cli.predict", "predict", "Use a run's model on new rows."),
    "release": ("hushgrad.cli.release", "release", "Release a statistic of private records, noised and charged."),
    "report": ("hushgrad.cli.report", "report", "Make a page, JSON and a model card of a run or a sweep; check them."),
    "sweep": ("hushgrad.cli.sweep", "sweep", "See what noise does: many runs, a table, pictures."),
    "ledger": ("hushgrad.cli.ledger", "ledger", "Show or verify the record of what a run spent."),
    "machine": ("hushgrad.cli.machine", "machine", "Show or measure the constants by which costs are estimated."),
    "migrate": ("hushgrad.cli.migrate", "migrate", "Print the changes that a script for Opacus needs, as a diff."),
    "status": ("hushgrad.cli.status", "status", "Sum what the runs in a folder have spent on the same data."),
    "train": ("hushgrad.cli.train", "train", "Train a model with differential privacy."),
    "verify": ("hushgrad.cli.verify", "verify", "Measure whether training does what its epsilon claims."),
}


class LazyGroup(click.Group):
    """A group that knows its commands' names and one-line helps, and imports a command when it is used."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command line, spelling out what the output cannot write."""
        spell_what_cannot_be_written()
        return super().main(*args, **kwargs)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return the command, or None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        module, name, _ = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(module), name)
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}.{name} is not a click command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that a line begins with; where there is none of its name, the error names the nearest."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            if not near:
                raise
            raise click.UsageError(f"{error.message} Did you mean {near[0]!r}?", ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from the table above, importing none of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, _, summary) in sorted(COMMANDS.items())])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. An error of hushgrad's own is one line on stderr and exit code 1, never a traceback."""
        try:
            return super().invoke(ctx)
        except HushgradError as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(1)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="hushgrad")
def main() -> None:
    """Differentially private training for PyTorch."""


if __name__ == "__main__":
    main()
