"""To import the table is to register every rule there is."""

from __future__ import annotations

import re
from pathlib import Path

from hushgrad.capture.operators import registration, table

FOLDER = Path(table.__file__).parent


def test_every_file_that_registers_a_rule_is_imported_by_the_table() -> None:
    registering = {
        path.stem
        for path in FOLDER.glob("*.py")
        if re.search(r"(?<!def )\b(captures|opens|asked_first)\(", path.read_text(encoding="utf-8"))
        and path.stem != "registration"
    }
    assert registering == {module.__name__.rpartition(".")[2] for module in table.MODULES}


def test_what_the_table_shows_is_what_was_registered() -> None:
    assert table.RULES is registration.RULES
    assert table.COMPOSITES is registration.COMPOSITES
    assert table.FIRST is registration.FIRST
    assert all((table.RULES, table.COMPOSITES, table.FIRST))
