"""`hushgrad migrate`: the changes that a script for Opacus needs, as a diff."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import click

from hushgrad.errors import InvalidArgumentError
from hushgrad.migration.script.migrate import Migration
from hushgrad.migration.script.migrate import migrate as rewritten
from hushgrad.printable import printable
from hushgrad.result_file import claim_file, replace_file


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@click.option("--write", is_flag=True, help="Also change the file itself.")
def migrate(file: str, write: bool) -> None:
    """Print what FILE, a script for Opacus, needs to train with hushgrad: a diff, and notes below it.

    The diff goes to the standard output, the notes to standard error, so that the diff can be applied with `patch`.
    Nothing of the file is run, and it is changed with --write alone.

    \b
    hushgrad migrate train.py
    hushgrad migrate train.py --write

    Exits with 1 where something is left to be done by hand.
    """
    path = Path(file)
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidArgumentError("it is not written in UTF-8", where="FILE", cure="Save it as UTF-8") from None
    found = rewritten(text)
    if not found.uses_opacus:
        click.echo(f"{printable(file)} does not import opacus: nothing to change", err=True)
        return
    click.echo(found.diff(path.name), nl=False)
    _print_notes(found, file)
    if write and found.after != text:
        mode = stat.S_IMODE(path.stat().st_mode)
        target = claim_file("FILE", path.resolve())
        replace_file(target, found.after.encode())
        os.chmod(target, mode)
        click.echo(f"{printable(file)} was changed", err=True)
    if not found.is_complete:
        sys.exit(1)


def _print_notes(found: Migration, file: str) -> None:
    for note in found.notes:
        cure = f" {note.cure[0].upper()}{note.cure[1:]}." if note.cure else ""
        kind = "by hand" if note.by_hand else "note"
        click.echo(printable(f"{file}:{note.line}: {kind}: {note.what}.{cure}", 1_000), err=True)
