"""`hushgrad data`: what is understood of a table, and the schema that it writes."""

import json

import pytest
from click.testing import CliRunner

from hushgrad.cli.main import main

ROWS = [f"N{n};{n % 30},5;{'' if n % 4 else 'Süd'};{1 + n % 28}.03.2024;x" for n in range(40)]


@pytest.fixture
def file(tmp_path):
    (tmp_path / "data.csv").write_bytes("\n".join(["row;Größe;place;day;same", *ROWS]).encode("latin-1"))
    return tmp_path / "data.csv"


def asked(file, *more):
    out = file.parent / "schema.json"
    return CliRunner().invoke(main, ["data", str(file), "--encoding", "latin-1", "--out", str(out), *more]), out


def test_a_table_is_described_by_types_and_counts_and_by_no_value(file):
    result, out = asked(file)
    assert result.exit_code == 0, result.output
    shown = {line.split()[0]: line.split()[1:] for line in result.output.splitlines()[3:8]}
    assert shown == {
        "row": ["text", "0", "40", "drop"],
        "Größe": ["number", "0", "30", "number"],
        "place": ["text", "30", "1", "text"],
        "day": ["date", "0", "28", "date"],
        "same": ["text", "0", "1", "drop"],
    }
    assert "no epsilon covers it" in result.output
    assert not any(value in result.output + out.read_text() for value in ("N1", "Süd", "29,5", ".03.2024"))


def test_the_schema_is_written_once_and_unsigned(file):
    result, out = asked(file, "--json")
    value = json.loads(out.read_text())
    assert (value["signed_by"], value["file"]["delimiter"]) == ("", ";")
    assert {column["basis"] for column in value["columns"].values()} == {"data"}
    assert json.loads(result.output)["columns"][0]["proposed"] == "drop"
    again, _ = asked(file)
    assert again.exit_code == 1
    assert "somebody may have signed it" in again.output
