"""Tables of `SparseRows` while a session trains: counts of the step in work, and sparse updates of chosen rows.

Nothing of a step is kept over it, and nothing here is as large as a table.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

import torch
from torch import Tensor, nn

from hushgrad.errors import ContractChangedError, UnsupportedModelError
from hushgrad.gradients.combine import combine
from hushgrad.gradients.contribution import Contribution, accumulation_dtype
from hushgrad.gradients.rows import Rows
from hushgrad.gradients.touched_rows import TouchedRows, rows_of, sparse_rows
from hushgrad.mechanism import Mechanism
from hushgrad.randomness import KeyStream
from hushgrad.sparse_rows.counts import Counts, RowSpace
from hushgrad.sparse_rows.rule import SparseRows
from hushgrad.sparse_rows.selection import RowSelection


class SparseTables:
    """What the records of a step touch in the tables of one session, and which rows its update has.

    Of a mechanism without `SparseRows` there is nothing: `names` is empty.

    Guarantee: a row gets an update, with noise, exactly where its noised count is above the threshold.
    """

    def __init__(self, rule: SparseRows | None, parameters: Mapping[str, nn.Parameter], stream: KeyStream) -> None:
        """Watch the tables of `rule` among `parameters`; `stream` is the session's noise, of which this forks its own.

        The guards have looked at the tables before.
        """
        self._parameters = parameters
        self._rule = rule
        self.names: tuple[str, ...] = () if rule is None else rule.tables
        self._space = RowSpace.of({name: parameters[name].shape[0] for name in self.names})
        self._counts = Counts.none()
        if rule is not None:
            self._selection = RowSelection(rule, self._space.total, stream.fork("rows of sparse tables"))

    def counts_of(self, uses: MutableMapping[str, list[Contribution]]) -> Counts:
        """Return the rows that the records of a physical batch touch, and make what was recorded of tables sparse.

        Raises:
            UnsupportedModelError: a table was used otherwise than by looking up its rows.
            ContractChangedError: a table has another number of rows than when it was made private.
        """
        if self._rule is None:
            return Counts.none()
        tables = {name: self._touched(name, uses[name]) for name in self.names if uses.get(name)}
        for name, part in tables.items():
            uses[name] = [part]
        return Counts.of(tables, self._space, self._rule)

    def add(self, counts: Counts) -> None:
        """Add the counts of a physical batch whose clipped sum was added."""
        if self._rule is not None:
            self._counts = self._counts.plus(counts)

    def _touched(self, name: str, parts: list[Contribution]) -> TouchedRows:
        joined = combine(parts) if all(isinstance(part, Rows) for part in parts) else None
        if not isinstance(joined, Rows):
            raise used_otherwise(name)
        if joined.num_rows != self._space.sizes[name]:  # its rows would be counted for those of the next table
            raise ContractChangedError(
                f"has {joined.num_rows} rows, and had {self._space.sizes[name]} when it was made private",
                where=name,
                cure="Close the session, change the table, and make the model private again",
            )
        return TouchedRows.of(joined)

    def drop(self) -> None:
        """Forget what was counted."""
        self._counts = Counts.none()

    def choose(self, mechanism: Mechanism, number: int) -> dict[str, Tensor]:
        """Return for each table the rows that update `number` has, ascending, and forget the counts."""
        counts, self._counts = self._counts, Counts.none()
        if self._rule is None:
            return {}
        chosen = self._selection.choose(counts, mechanism.noise_multiplier, number)
        return {name: self._space.part(chosen, name) for name in self.names}

    def sum_of(self, name: str, chosen: Tensor, total: Tensor | None) -> Tensor:
        """Return the clipped sum of the chosen rows `[k, d]`, zeros where no record touched one."""
        parameter = self._parameters[name]
        rows = chosen.to(parameter.device)
        found = torch.zeros(
            len(rows), parameter.shape[1], dtype=accumulation_dtype(parameter.dtype), device=parameter.device
        )
        if total is None or not len(rows):
            return found
        touched, values = rows_of(total)
        places = torch.searchsorted(rows, touched).clamp_(max=len(rows) - 1)
        is_chosen = rows[places] == touched
        found[places[is_chosen]] = values[is_chosen].to(found.dtype)
        return found

    def update_of(self, name: str, chosen: Tensor, update: Tensor) -> Tensor:
        """Return the update of chosen rows, `[k, d]` in the table's dtype, as the sparse gradient of the table."""
        parameter = self._parameters[name]
        return sparse_rows(chosen.to(parameter.device), update, parameter.shape[0])


def used_otherwise(name: str) -> UnsupportedModelError:
    """Return the error for a table that is used by more than lookups of its rows."""
    return UnsupportedModelError(
        "it is a table of SparseRows, and was used by more than lookups of its rows (a matrix product, as of a head "
        "that is tied to it, a function of all of it): such a use touches every row",
        where=name,
        cure="Give the head weights of its own, look rows up by nn.Embedding, nn.EmbeddingBag or table[ids], or leave "
        "the table out of SparseRows(tables=...)",
    )
