"""`hushgrad data`: what a table looks like, and a schema to sign."""

from __future__ import annotations

from pathlib import Path

import click

from hushgrad.cli.options import JSON
from hushgrad.cli.output import print_json, print_table
from hushgrad.cli.settings import run_options


@click.command(name="data")
@click.argument("file", type=click.Path(path_type=Path, exists=True))
@run_options("delimiter", "encoding", "decimal")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("schema.json"), show_default=True, help="The schema's file."
)
@JSON
def data(
    file: Path, delimiter: str | None, encoding: str | None, decimal: str | None, out: Path, as_json: bool
) -> None:
    """Show what is understood of a table, and write a schema that you edit, sign and give to train --schema.

    No cell is shown, and none is in the schema. What is shown was counted without noise, and no epsilon covers it.

    Example: hushgrad data patients.csv --encoding latin-1 --out patients.schema.json
    """
    from hushgrad.errors import InvalidArgumentError
    from hushgrad.printable import printable
    from hushgrad.result_file import claim_file, write_file
    from hushgrad.study.tasks.table import read_table
    from hushgrad.study.tasks.tables.looking import look_at
    from hushgrad.study.tasks.tables.schema import Schema, schema_json

    if out.exists():
        raise InvalidArgumentError(
            "the file is there already, and somebody may have signed it", where="--out", cure="Name another file"
        )
    claimed = claim_file("--out", out)
    declared = Schema({}, delimiter, encoding, decimal)
    table = read_table(file, delimiter=delimiter, encoding=encoding)
    spelling = declared.spelling(table.delimiter)
    looks = look_at(table, spelling)
    proposed = {look.name: look.proposed() for look in looks}
    write_file("--out", claimed, schema_json(proposed, table.delimiter, encoding, spelling.decimal))
    if as_json:
        columns = [
            {"name": look.name, "type": look.type, "missing": look.missing, "different": look.different,
             "proposed": proposed[look.name][0], "note": proposed[look.name][1]}
            for look in looks
        ]  # fmt: skip
        file_format = {"delimiter": table.delimiter, "encoding": encoding, "decimal": spelling.decimal}
        print_json({"rows": len(table.rows), **file_format, "columns": columns, "schema": str(out)})
        return
    mark = {"\t": "tab"}.get(table.delimiter, table.delimiter)
    click.echo(f"{len(table.rows)} rows, {len(looks)} columns; cells end with {mark}, decimal mark {spelling.decimal}")
    print_table(
        ["column", "read as", "missing", "different", "proposed"],
        [
            [printable(look.name, 30), look.type, f"{look.missing}", f"{look.different}", proposed[look.name][0]]
            for look in looks
        ],
        right=("missing", "different"),
    )
    for look in looks:
        if proposed[look.name][1]:
            click.echo(f"{printable(look.name)}: {proposed[look.name][1]}")
    click.echo("Counted without noise: no epsilon covers it, so keep it to yourself.")
    click.echo(f"Wrote {printable(str(out), 400)}: read it, say what is public, sign it, give it to train --schema.")
