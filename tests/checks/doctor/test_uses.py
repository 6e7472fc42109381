"""One row for each operator of each module."""

from __future__ import annotations

from patients import Patient, ids

from hushgrad import doctor


def test_every_use_of_every_parameter_has_a_row() -> None:
    diagnosis = doctor(Patient(), ids())
    assert diagnosis.is_ready
    assert diagnosis.batch_size == 4
    rows = {(use.operator, use.parameters): use for use in diagnosis.uses}
    assert rows[("linear", ("twice.weight", "twice.bias"))].calls == 2
    assert ("embedding", ("tokens.weight",)) in rows
    assert any(use.operator == "linear" and use.parameters == ("tokens.weight",) for use in diagnosis.uses)
    assert any(use.parameters == ("scale",) for use in diagnosis.uses)
    assert all(use.private_flops >= use.ordinary_flops > 0 for use in diagnosis.uses)
    assert diagnosis.cost is not None
    assert diagnosis.cost >= 1
    notes = {note.where: note.what for note in diagnosis.notes}
    assert "frozen" in notes["frozen.weight"]
    assert "not used" in notes["unused.weight"]
