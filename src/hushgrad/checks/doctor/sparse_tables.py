"""What the doctor says of tables whose rows are chosen privately: how they are used, how many rows a step updates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor

from hushgrad.checks.doctor.findings import Finding
from hushgrad.checks.doctor.recording import Recorded
from hushgrad.gradients.rows import Rows
from hushgrad.session.sparse_tables import used_otherwise
from hushgrad.sparse_rows.rule import SparseRows


def other_uses(rule: SparseRows, recorded: Iterable[Recorded]) -> Iterator[Finding]:
    """Yield the tables that the model does more with than looking up rows: they are refused when it is trained."""
    wrong = {
        part.parameter for part in recorded if part.parameter in rule.tables and not isinstance(part.contribution, Rows)
    }
    yield from (Finding.of(used_otherwise(name)) for name in rule.tables if name in wrong)


def notes_of_tables(rule: SparseRows, parameters: Mapping[str, Tensor]) -> Iterator[Finding]:
    """Yield for each table how many of its rows pass on noise alone: what a step costs that touches none of them."""
    probability = rule.untouched_probability(1.0)
    for name in rule.tables:
        if name not in parameters or parameters[name].ndim != 2:
            continue  # a problem, and told as such
        rows, dim = parameters[name].shape
        yield Finding(
            "",
            name,
            f"of its {rows} rows a step updates those that more than {rule.threshold:g} records touch, by a count with "
            f"noise of {rule.count_std(1.0):.3g} at a noise multiplier of 1: about {probability * rows:.3g} rows that "
            f"no record touched pass, too, with {dim} values of noise each. Raise threshold for fewer",
        )
