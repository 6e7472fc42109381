"""The clipped sums of one logical batch, and the noised update that is made of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hushgrad.clipping.bound import BoundRule
from hushgrad.errors import SensitivityMismatchError
from hushgrad.gradients.accumulation import AsTheyCome, InFloat64
from hushgrad.gradients.clipped_sum import Weighed, clipped_sums, pending_sums
from hushgrad.gradients.contribution import Contribution, Plan, accumulation_dtype
from hushgrad.gradients.in_passing import GroupByGroup, TwoPasses
from hushgrad.gradients.weights import Told
from hushgrad.guards.monitoring.alarms import Alarms
from hushgrad.guards.monitoring.noise import VALUES, NoiseMonitor
from hushgrad.guards.monitoring.sensitivity import Look, SensitivityMonitor
from hushgrad.mechanism import Mechanism
from hushgrad.noise.gaussian import Noised
from hushgrad.parallel.agreement import together
from hushgrad.parallel.grid import WHOLE, Grid
from hushgrad.parallel.reduction import Outgoing, Reduction, add_up
from hushgrad.parallel.rows import across_row, bytes_of_sums, from_owner, is_from_here, owners_of, shape_in_row
from hushgrad.parallel.shards import Exchange, Shards
from hushgrad.parallel.world import ALONE
from hushgrad.randomness import Address, KeyStream
from hushgrad.session.adaptive_norm import AdaptiveNorm
from hushgrad.session.draws import Draw, draws_of, owners_of_their_memory
from hushgrad.session.scattered import ScatteredSums
from hushgrad.session.sparse_tables import SparseTables
from hushgrad.torch_sharding import device_of, distributed_among, like, local_part


@dataclass(frozen=True, slots=True)
class Written:
    """What is public of a written update, beside `p.grad`.

    Attributes:
        noise_std: the standard deviation of the noise on the sum of each parameter, in units of the gradient.
        count: the noised count of an adaptive clip rule; None without one.
        count_std: the standard deviation of the noise on it.
    """

    noise_std: Mapping[str, float]
    count: float | None
    count_std: float | None


class Update:
    """Sums that nobody else can read, until they are written to `p.grad` with noise.

    Guarantee: every trainable parameter gets noise in every update, used or not.
    Guarantee: no noise is drawn twice, and an update is written whole or not at all.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        mechanism: Mechanism,
        noise: KeyStream,
        plan: Plan | None,
        alarms: Alarms = Alarms.RAISED,
        grid: Grid = WHOLE,
    ) -> None:
        self._parameters = parameters
        self._grid = grid
        self._owners = owners_of(parameters, grid)
        self.across = across_row(grid, self._owners, parameters)
        """The processes that have other parts of the same examples' gradients."""
        self.norm = AdaptiveNorm(mechanism)
        self._bound = (mechanism, self._bound_to(mechanism))
        self._stream = noise
        self._noise = mechanism.noise.start(noise)
        self._tables = SparseTables(mechanism.sparse_rows, parameters, noise)
        self._next_step = 0
        self._plan = plan
        self._sums: dict[str, Tensor] = {}
        self._scattered: ScatteredSums | None = None
        self._is_begun = False
        self._in_float64 = mechanism.noise.sums_in_float64
        self._coordinates = sum(parameter.numel() for parameter in parameters.values())
        self._accumulation = self._afresh()
        self._number = 0
        self._is_written = False
        self.written = Written({}, None, None)
        self.monitor = NoiseMonitor(alarms)
        self.monitor.begin(mechanism.noise.strategy)
        self.sensitivity_monitor = SensitivityMonitor(alarms)

    @torch.no_grad()  # what was recorded may still hang on the graph of the forward
    def add(
        self, uses: MutableMapping[str, list[Contribution]], scale: float, mechanism: Mechanism, examples: int
    ) -> None:
        """Add the clipped sum of one physical batch, and empty it.

        Where sums are scattered, all processes come here with each item, those without a record with no uses.

        Args:
            uses: what its backwards recorded.
            scale: undoes the division of its mean loss.
            mechanism: that of the step which the sum is for.
            examples: how many were drawn; some may have used no parameter.
        """
        clip = self.clip_of(mechanism)
        given = self._given(clip, scale)
        before = self.norm.counted
        counts = self._tables.counts_of(uses)
        self._is_begun = self._is_begun or bool(uses)
        if self._scattered is None:
            self._sums = clipped_sums(uses, clip=clip, **given, into=self._sums)
        else:
            pending = pending_sums(uses, clip=clip, **given)
            self._scattered.add(pending.take)
            pending.add_to(self._sums)
        self._tables.add(counts)
        self._ended(mechanism, examples, before)

    def _given(self, clip: BoundRule, scale: float) -> dict[str, Any]:
        """Return what sums of an item are formed by, beside the clip rule."""

        def look(weighed: Weighed) -> None:
            self.sensitivity_monitor.check(self._number, weighed, clip)

        return {
            "scale": scale,
            "plan": self._plan,
            "watch": look if self._is_looked_at else None,
            "on_excess": self.sensitivity_monitor.exceeded,
            "on_norms": self.norm.count if self.norm.is_adaptive else None,
            "accumulation": self._accumulation,
            "across": self.across,
        }

    @property
    def _is_looked_at(self) -> bool:
        return not self._is_begun and self.sensitivity_monitor.is_due(self._number)

    def _ended(self, mechanism: Mechanism, examples: int, counted: int) -> None:
        """An item of so many examples was added; `counted` were counted before it."""
        self._require_near(mechanism)
        self.norm.count_unused(examples - (self.norm.counted - counted), len(self.clip_of(mechanism).groups))

    # Sums that are formed inside a backward ---------------------------------------------------------------------------

    def begin_in_passing(self, *, in_order: bool) -> None:
        """Sums of an item come one by one; `in_order`: in the same order in all processes, which may then send them."""
        if self._scattered is not None:
            self._scattered.begin(in_order=in_order)

    def group_by_group(
        self, expected: Collection[str], scale: float, mechanism: Mechanism, examples: int
    ) -> GroupByGroup:
        """Return what sums each group of an item's uses as soon as it is whole."""
        clip = self.clip_of(mechanism)
        given, self._is_begun = self._given(clip, scale), self._is_begun or examples > 0
        return GroupByGroup(clip, expected, examples, self.take_in, given)

    def two_passes(self, scale: float, mechanism: Mechanism, examples: int) -> TwoPasses:
        """Return what measures an item's uses in a first pass, and sums them in a second."""
        clip = self.clip_of(mechanism)
        is_looked_at, self._is_begun = self._is_looked_at, self._is_begun or examples > 0

        def watch(weighed: Weighed) -> Look | None:
            return self.sensitivity_monitor.look(self._number, weighed, clip) if is_looked_at else None

        return TwoPasses(
            clip,
            scale,
            self._plan or Plan(),
            examples,
            told=Told(self.sensitivity_monitor.exceeded, self.norm.count),
            watch=watch,
            close=self.sensitivity_monitor.close,
            accumulation=self._accumulation,
            across=self.across,
        )

    def take_in(self, name: str, total: Tensor | None) -> None:
        """Add the sum of one parameter of an item; None where nothing contributes to it."""
        if self._scattered is not None and name in self._scattered.names:
            self._scattered.give(name, total)
        elif total is not None:
            before = self._sums.get(name)
            self._sums[name] = total if before is None else before.add_(total)

    def end_in_passing(self, mechanism: Mechanism, examples: int, counted: int) -> None:
        """All sums of an item came; `counted` examples were counted before it."""
        if self._scattered is not None:
            self._scattered.end()
        self._ended(mechanism, examples, counted)

    def clip_of(self, mechanism: Mechanism) -> BoundRule:
        """Return the clip rule of a step, bound to what is trained."""
        if mechanism is not self._bound[0]:  # with a schedule, or an adaptive norm, each step has one of its own
            self._bound = (mechanism, self._bound_to(mechanism))
        return self._bound[1]

    def _afresh(self) -> AsTheyCome:
        return InFloat64() if self._in_float64 else AsTheyCome()

    def _require_near(self, mechanism: Mechanism) -> None:
        """Refuse sums that rounding may have taken farther from the exact ones than the noise is made for."""
        if not self._in_float64:
            return
        rounding = mechanism.noise.rounding(mechanism.sensitivity, self._coordinates)
        if rounding is not None and not self._accumulation.error <= rounding.error:
            self.sensitivity_monitor.exceeded(
                SensitivityMismatchError(
                    f"rounding in float64 may have moved the sum of this logical batch by more than the "
                    f"{rounding.error:g} that the noise is made for",
                    where="sums in float64",
                    cure='Take smaller logical batches, or shorter records; or noise="gaussian", which leaves rounding '
                    "out of account",
                )
            )

    @property
    def split_bytes(self) -> int:
        """How much memory this process's sums of parameters take that are split over processes with other examples."""
        split = {name: p for name, p in self._parameters.items() if Shards.of(p, self._grid) is not None}
        return bytes_of_sums(split, self._owners, self._grid)

    @property
    def is_scattered(self) -> bool:
        """Whether this process keeps its own part alone of sums that are split."""
        return self._scattered is not None

    @property
    def may_scatter(self) -> bool:
        """Whether its sums all get noise of one level, as those that are scattered do, and no count beside them."""
        clip = self._bound[1]
        return clip.count_relative is None and all(times == 1 for times in clip.relative.values())

    def scatter(self) -> None:
        """Keep from here on no sum whole that is split over the processes; in all of them, before the first item."""
        self._scattered = ScatteredSums(self._parameters, self._owners, self._grid)

    def _bound_to(self, mechanism: Mechanism) -> BoundRule:
        return BoundRule(
            mechanism.clipping,
            self._parameters,
            sensitivity=mechanism.sensitivity,
            sizes={name: parameter.numel() for name, parameter in self._parameters.items()},
            noise_multiplier=mechanism.noise_multiplier,
            beside=0.0 if mechanism.sparse_rows is None else mechanism.sparse_rows.count_share,
        )

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """What is trained, by name; `.grad` holds a written update."""
        return self._parameters

    @property
    def number(self) -> int:
        """How many updates were written."""
        return self._number

    def drop(self) -> None:
        """Forget the sums."""
        self._sums, self._is_begun, self._accumulation = {}, False, self._afresh()
        self.norm.drop()
        self._tables.drop()
        if self._scattered is not None:
            self._scattered.drop()

    def write(self, mechanism: Mechanism, step: int) -> None:
        """Hand (sum + noise) / divisor to the optimizer, in `p.grad`, and forget the sums. Charge before.

        Where `step` does not follow the last one that was written whole, its noise begins a block: it is independent of
        that of all steps before.

        Parameters that are frozen now get nothing, so that the optimizer leaves them alone; their sums are dropped.
        """
        # Without torch.no_grad, which no operation here needs: sums have no graph, and an interrupt inside of its exit
        # would leave gradients switched off in the whole process.
        sums, self._sums, self._is_begun, self._accumulation = self._sums, {}, False, self._afresh()
        number, self._number = self._number, self._number + 1
        if step != self._next_step:
            self._noise = mechanism.noise.start(self._stream)
            self.monitor.begin(mechanism.noise.strategy)
        self._next_step = -1  # an interrupt leaves it so
        self._is_written = True
        try:
            trained = {name: parameter for name, parameter in self._parameters.items() if parameter.requires_grad}
            self._hand_out(trained, sums, number, mechanism)
        except BaseException:
            self.clear()  # no partial update; the charge stands
            raise
        finally:
            self.norm.drop()
            self._tables.drop()
        self._next_step = step + 1

    @property
    def sparse_tables(self) -> tuple[str, ...]:
        """The names of the tables of which some rows alone are updated."""
        return self._tables.names

    def add_terms(self, gradients: Mapping[str, Tensor]) -> None:
        """Add gradients of terms of parameters alone to the written update."""
        for name, gradient in gradients.items():
            written = self._parameters[name].grad
            if written is not None:
                written.add_(gradient)

    def clear(self) -> None:
        """Take a written update away again, used or not."""
        if self._is_written:
            for parameter in self._parameters.values():
                parameter.grad = None
            self._is_written = False

    def _hand_out(
        self, trained: Mapping[str, nn.Parameter], sums: dict[str, Tensor], number: int, mechanism: Mechanism
    ) -> None:
        clip, std = self.clip_of(mechanism), mechanism.noise_std
        chosen = self._tables.choose(mechanism, number)
        spread = distributed_among(trained)
        updates, noised = self._updates(trained, spread, sums, number, mechanism, chosen)
        count = None
        if noised is not None:
            noised = noised * mechanism.divisor
            count = float(noised)
            self.norm.move(noised, mechanism)
        count_std = None if clip.count_relative is None else std * clip.count_relative
        self.written = Written({name: std * clip.relative[name] for name in trained}, count, count_std)
        for name, parameter in trained.items():
            if name in chosen:
                values = _in_dtype(updates[name], parameter.dtype, not std > 0)
                parameter.grad = self._tables.update_of(name, chosen[name], values)
                continue
            local = local_part(parameter) if name in spread else parameter
            update = _laid_out_as(local, updates[name].to(local.device), not std > 0)
            parameter.grad = like(parameter, update) if name in spread else update

    def _updates(
        self,
        trained: Mapping[str, nn.Parameter],
        spread: Collection[str],
        sums: dict[str, Tensor],
        number: int,
        mechanism: Mechanism,
        chosen: Mapping[str, Tensor],
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """Return by what each parameter is updated, its part in this process; and the count of an adaptive clip rule.

        Of a table of which some rows are `chosen` it is what these are updated by, `[k, d]`. Those that are `spread`
        lie on several processes.

        Each sum is divided by its relative noise, gets noise as all others do, and is multiplied by it again.
        """
        scattered, clip, has_noise = self._scattered, self.clip_of(mechanism), mechanism.noise_std > 0
        names = [name for name in trained if scattered is None or name not in scattered.names]
        totals = [
            self._tables.sum_of(name, chosen[name], sums.pop(name, None))
            if name in chosen
            else self._total(sums, name, is_spread=name in spread)
            for name in names
        ]
        relative = [clip.relative[name] if has_noise else 1.0 for name in names]
        splits = [Shards.of(trained[name], self._grid) if name in spread else None for name in names]
        owners = [self._owners[name] for name in names]
        if clip.count_relative is not None and totals:
            totals.append(self.norm.take(totals[0].device))
            relative.append(clip.count_relative)
            splits.append(None)
            owners.append(None if self._grid.model.is_alone else 0)  # all of a row count the same examples
        for place, times in enumerate(relative):
            if times != 1:
                totals[place] = totals[place] / times
        draws = draws_of(totals, splits, owners)
        updates = self._of_draws(draws, totals, number, mechanism)
        found = list(totals)
        for draw, update in zip(draws, updates[: len(draws)], strict=True):
            for place, part in zip(draw.places, draw.taken_apart(update, totals), strict=True):
                found[place] = part if relative[place] == 1 else part * relative[place]
        by_name = dict(zip(names, found, strict=False))
        if scattered is not None:
            by_name |= scattered.taken_apart(updates[len(draws) :])
        return by_name, found[-1] if len(found) > len(names) else None

    def _of_draws(
        self, draws: Sequence[Draw], totals: list[Tensor], number: int, mechanism: Mechanism
    ) -> Sequence[Tensor]:
        """Return the noised updates of all draws, then of sums that were scattered; `totals` lets its memory go."""
        laid_out = []
        for draw in draws:
            laid_out.append(draw.laid_out(totals))
            for place in draw.places if draw.split is not None else ():  # its shape is needed
                totals[place] = totals[place].to("meta")
        may_overwrite = owners_of_their_memory(draws, laid_out)
        grid = self._grid
        if grid.world.is_alone and all(draw.split is None for draw in draws):
            return self._noised(laid_out, may_overwrite, number, mechanism)
        with together(grid.world, "sums", {"step": number}):  # from here on all wait for each other's
            outgoing: list[Outgoing] = [
                _outgoing(grid, draw, total if is_owner else total.clone(memory_format=torch.contiguous_format))
                for draw, total, is_owner in zip(draws, laid_out, may_overwrite, strict=True)
            ]
            outgoing += [] if self._scattered is None else self._scattered.take()
        del laid_out  # each goes as its sum has come
        return self._noised_together(outgoing, number, mechanism)

    def _noised(
        self, sums: Sequence[Tensor], owners: Sequence[bool], number: int, mechanism: Mechanism
    ) -> Sequence[Tensor]:
        """Return (sum + noise) / divisor of each; `owners` says which may be overwritten."""
        sample = self.monitor.before(sums)
        updates = mechanism.updates(
            self._noise,
            [
                Noised(total, Address(number, item), overwrite=is_owner)
                for item, (total, is_owner) in enumerate(zip(sums, owners, strict=True))
            ],
        )
        self.monitor.after(sample, updates, mechanism.noise_std, mechanism.divisor)
        return updates

    def _noised_together(self, sums: Sequence[Outgoing], number: int, mechanism: Mechanism) -> Sequence[Tensor]:
        """Return the same of the sums of all processes: each adds noise to its own part, then they are added up.

        Of sums that are split over the processes this process's part is returned.

        Guarantee: no sum leaves a process before its own noise is in it, and none is of use where noise is missing.

        Of sums that were scattered, item by item, this is the part of this process, which alone adds noise to it.
        """
        drawn: list[Tensor] = []

        def prepare(place: int) -> None:
            total = sums[place]
            noised = self._noised_slice(total.part, Address(number, place), mechanism)
            total.values.div_(mechanism.divisor)
            total.part.copy_(noised)
            if noised.numel():
                drawn.append(noised.reshape(-1)[:VALUES].clone())  # what the monitor looks at

        with together(self._grid.world, "draw of noise", {"step": number}):
            sample = self.monitor.before([total.part for total in sums if total.part.numel()])
            add_up(sums, prepare)
            self.monitor.after(sample, drawn, mechanism.noise_std, mechanism.divisor)
        return [total.own for total in sums]

    def _noised_slice(self, own: Tensor, address: Address, mechanism: Mechanism) -> Tensor:
        if not own.numel():
            return own
        [noised] = mechanism.updates(self._noise, [Noised(own, address, overwrite=False)])
        return noised

    def _total(self, sums: dict[str, Tensor], name: str, *, is_spread: bool) -> Tensor:
        parameter, total = self._parameters[name], sums.pop(name, None)
        if is_spread:  # of one dtype in every process, and on the device that it is computed on
            device, dtype = device_of(parameter), accumulation_dtype(parameter.dtype)
            if total is None:
                return torch.zeros(shape_in_row(parameter, self._grid), dtype=dtype, device=device)
            return total.to(device, dtype)
        if total is None:
            total = torch.zeros_like(
                parameter, dtype=accumulation_dtype(parameter.dtype), memory_format=torch.contiguous_format
            )
        return total.double() if self._in_float64 else total


def _outgoing(grid: Grid, draw: Draw, laid_out: Tensor) -> Outgoing:
    """Return the sum of a draw, which the processes with other examples add up, and those of a row get of its owner."""
    total: Outgoing
    if not is_from_here(draw.owner, grid.model):
        total = Reduction(ALONE, laid_out if draw.split is None else torch.empty_like(laid_out[draw.split.place]))
    elif draw.split is None:
        total = Reduction(grid.data, laid_out)
    else:
        total = Exchange(draw.split, laid_out)
    return from_owner(grid.model, draw.owner, total)


def _laid_out_as(parameter: Tensor, update: Tensor, is_bare: bool) -> Tensor:
    """Return the (contiguous) update in the parameter's dtype and memory layout; fused optimizers pair raw memory."""
    update = _in_dtype(update, parameter.dtype, is_bare)
    return update if parameter.is_contiguous() else torch.empty_like(parameter).copy_(update)


def _in_dtype(update: Tensor, dtype: torch.dtype, is_bare: bool) -> Tensor:
    """Return the update in the parameter's dtype.

    A bare one, without noise, is not made larger by rounding to fewer bits, so that it shows what was clipped.
    """
    if update.dtype == dtype:
        return update
    return _towards_zero(update, dtype) if is_bare else update.to(dtype)


def _towards_zero(update: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the values in a narrower dtype, of 16 or 32 bits, none larger than it was."""
    rounded = update.to(dtype)
    is_larger = rounded.to(update.dtype).abs() > update.abs()
    # Sign and magnitude, of any binary format: the word before is the next value nearer to 0.
    word = torch.int16 if dtype.itemsize == 2 else torch.int32
    return (rounded.view(word) - is_larger.to(word)).view(dtype)
