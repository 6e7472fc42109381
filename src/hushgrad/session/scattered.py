"""Clipped sums of a sharded model of which each process keeps its own part alone, added up after each item."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hushgrad.errors import DesyncError, HushgradError
from hushgrad.gradients.contribution import accumulation_dtype
from hushgrad.parallel.grid import Grid
from hushgrad.parallel.messages import digest_of, exchanged, unreachable
from hushgrad.parallel.reduction import Outgoing, Reduction
from hushgrad.parallel.rows import from_owner, is_from_here, shape_in_row
from hushgrad.parallel.shards import Scattering, Shards
from hushgrad.parallel.world import ALONE
from hushgrad.session.draws import Draw, draws_of
from hushgrad.torch_sharding import device_of


@dataclass
class _Item:
    """The item in work: sums that wait for others of their draw, the draws that were sent, and the last of these."""

    sends: bool
    given: dict[str, Tensor | None] = field(default_factory=dict)
    sent: list[int] = field(default_factory=list)
    under_way: tuple[int, Scattering] | None = None


class ScatteredSums:
    """The sums over all items of a logical batch, and over the processes that have a part each.

    A process has its part of them without noise until it adds noise to it, at the end of the logical batch: of copies
    of a part each to its own slice. Of what all processes of a row have whole, the owner alone has sums.

    Guarantee: of each value one process alone adds noise to it, once, at the end of the logical batch.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], owners: Mapping[str, int | None], grid: Grid) -> None:
        """Make empty sums of those of the parameters that are split over processes with other examples."""
        splits = {name: split for name, p in parameters.items() if (split := Shards.of(p, grid)) is not None}
        self._grid = grid
        self.names = list(splits)
        own = [parameters[name] for name in self.names]
        self.shapes: list[Tensor] = [
            torch.empty(shape_in_row(p, grid), dtype=accumulation_dtype(p.dtype), device="meta") for p in own
        ]
        self._devices = [device_of(p) for p in own]
        self.draws: Sequence[Draw] = draws_of(self.shapes, list(splits.values()), [owners[name] for name in self.names])
        self._own: list[Tensor | None] = [None] * len(self.draws)
        self._draw_of = {self.names[place]: number for number, draw in enumerate(self.draws) for place in draw.places}
        self._item = _Item(sends=False)

    # An item whose sums come one by one, inside its backward ----------------------------------------------------------

    def begin(self, *, in_order: bool) -> None:
        """An item begins. `in_order`: its sums come in the same order in all processes, so that they may be sent."""
        self._item = _Item(sends=in_order)

    def give(self, name: str, total: Tensor | None) -> None:
        """Take one sum of the item; None for nothing. A draw is handed over as soon as all of its sums came.

        Raises:
            PeerFailedError: another process is gone.
        """
        item, number = self._item, self._draw_of[name]
        item.given[name] = total
        draw = self.draws[number]
        if not item.sends or not is_from_here(draw.owner, self._grid.model):
            return
        if all(self.names[place] in item.given for place in draw.places):
            rows = self._rows(draw, item.given.pop)
            with _reaching():
                self._send(number, rows)

    def end(self) -> None:
        """All sums of the item came: hand over what was not yet. Raises what `add` raises."""
        self.add(lambda name: self._item.given.pop(name, None))

    # A whole item -----------------------------------------------------------------------------------------------------

    def add(self, take: Callable[[str], Tensor | None]) -> None:
        """Add the sums of one item, or the rest of them; all processes come here with it, and each gives its own.

        One draw is formed while the one before it is on its way. Where this process fails, the rest of its sums are
        handed over as NaN, so that nobody waits for them, and the error is raised at the end.

        Args:
            take: gives a sum, which it forgets; None for nothing.

        Raises:
            PeerFailedError: another process has failed before, or is gone.
            DesyncError: sums that were handed over before came in another order there.
        """
        # Who failed before this says so here, and not to a wait for its sums.
        # Those that have the same part of each layer hand over the same draws.
        order = (digest_of(str(self._item.sent)) >> 16 << 16) + self._grid.model.rank
        orders = {number for number, _ in exchanged(self._grid.world, "sums of an item", number=order)}
        if len(orders) > self._grid.model.size:
            raise DesyncError(
                "sums that were formed inside the backward were handed over in another order than in other processes",
                where="operand_bytes",
                cure="Run the same operators in the same order in all processes, whatever the records are",
            )
        failure: Exception | None = None
        with _reaching():
            for number, draw in enumerate(self.draws):
                if not is_from_here(draw.owner, self._grid.model) or number in self._item.sent:
                    continue
                rows = None
                if failure is None:
                    try:
                        rows = self._rows(draw, take)
                    except Exception as error:
                        failure = error
                self._send(number, self._filled(draw, math.nan) if rows is None else rows)
            self._all_arrive()
        self._item = _Item(sends=False)
        if failure is not None:
            raise failure

    def _send(self, number: int, rows: Tensor) -> None:
        """Begin to hand over a draw, and wait for the one before it: one is formed while the last is on its way."""
        sent = Scattering(_split(self.draws[number]), rows)
        self._all_arrive()
        self._item.under_way = number, sent
        self._item.sent.append(number)

    def _all_arrive(self) -> None:
        if self._item.under_way is not None:
            self._arrive(*self._item.under_way)
            self._item.under_way = None

    def _arrive(self, place: int, sent: Scattering) -> None:
        sent.wait()
        own = self._own[place]
        self._own[place] = sent.own if own is None else own.add_(sent.own)

    def _rows(self, draw: Draw, take: Callable[[str], Tensor | None]) -> Tensor:
        totals = []
        for place in draw.places:
            total, shape = take(self.names[place]), self.shapes[place]
            if total is None:
                total = torch.zeros(shape.shape, dtype=shape.dtype, device=self._devices[place])
            totals.append(total.to(self._devices[place], shape.dtype))
        return _split(draw).rows_of(totals)

    def _filled(self, draw: Draw, value: float) -> Tensor:
        """Return rows of one value."""
        shape = _split(draw).rows_of([self.shapes[place] for place in draw.places])
        return torch.full(shape.shape, value, dtype=shape.dtype, device=self._devices[draw.places[0]])

    def take(self) -> list[Outgoing]:
        """Return this process's parts, draw by draw, to be added up over copies of them; forget them."""
        found: list[Outgoing] = []
        for place, draw in enumerate(self.draws):
            own = self._own[place]
            if own is None:  # no item came, or another process of the row has it
                own = self._filled(draw, 0.0)[0].clone()
            copies = _split(draw).copies if is_from_here(draw.owner, self._grid.model) else ALONE
            found.append(from_owner(self._grid.model, draw.owner, Reduction(copies, own)))
        self.drop()
        return found

    def taken_apart(self, sums: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return this process's part of each parameter, by name, from those of all draws."""
        return {
            self.names[place]: part
            for draw, own in zip(self.draws, sums, strict=True)
            for place, part in zip(draw.places, draw.taken_apart(own, self.shapes), strict=True)
        }

    def drop(self) -> None:
        """Forget what was added."""
        self._own = [None] * len(self.draws)
        self._item = _Item(sends=False)


@contextmanager
def _reaching() -> Iterator[None]:
    """Inside, an error of torch's is one of the messages."""
    try:
        yield
    except HushgradError:
        raise
    except RuntimeError as error:
        raise unreachable(f"the sums of an item could not be added up ({type(error).__name__})") from error


def _split(draw: Draw) -> Shards:
    assert draw.split is not None
    return draw.split
