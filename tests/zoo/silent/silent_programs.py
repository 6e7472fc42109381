"""How a program of the silent zoo is run: noise 0, fixed batches, and how far one record moves the clipped sum.

S is the distance between the clipped sums of two runs that differ in one record, in units of C. Honest is S <= 1 where
the record is removed, S <= 2 where it is replaced by another, and 0 for a record of an earlier batch.
"""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hushgrad import PrivacyEngine
from hushgrad.errors import HushgradError

WAYS = ("per_example", "session", "scalar")
REMOVED, REPLACED, EARLIER = 1.0, 2.0, 0.0
SLACK = 1e-4

REFUSED, EXACT, TRUSTED, SILENT, UNTYPED = "refused", "exact", "on trust and said", "SILENT", "untyped"
OUTCOMES = (REFUSED, EXACT, TRUSTED, SILENT, UNTYPED)


class Kept(torch.optim.SGD):
    """Ordinary SGD that remembers the gradients it was handed last."""

    seen: Tensor

    def step(self, closure: Any = None) -> Any:
        self.seen = torch.cat([p.grad.flatten().clone() for g in self.param_groups for p in g["params"]])
        return super().step(closure)


@dataclass(frozen=True)
class Measured:
    """What two runs showed: S, and the names of the conditions that the guarantee states; `note` says more."""

    moved: float
    conditions: frozenset[str] = frozenset()
    note: str = ""


@dataclass(frozen=True)
class Found:
    """What became of a program: one of `OUTCOMES`, with S if it ran, and the code or the kind of its error if not."""

    outcome: str
    moved: float = math.nan
    error: str = ""
    conditions: frozenset[str] = frozenset()
    note: str = ""


@dataclass(frozen=True)
class Program:
    """A small program that is leaky, or its clean look-alike.

    Attributes:
        measure: runs it in one of its ways.
        limit: the largest honest S.
        slack: how much more rounding may add.
        trust: names of conditions of which one must be stated if the program runs and is leaky all the same. Only for
            programs of which docs/probe.md shows that they cannot be seen.
        told: names of conditions that a clean program may state with `per_example`; others state none.
        unguarded: S in a hand-written step that clips each example's gradient and looks at nothing; None where such a
            step has no meaning.
    """

    name: str
    measure: Callable[[str], Measured]
    is_clean: bool = False
    ways: tuple[str, ...] = WAYS
    limit: float = REMOVED
    slack: float = SLACK
    trust: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
    unguarded: Callable[[str], float] | None = None

    def run(self, way: str) -> Found:
        """Run the program and judge it."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                measured = self.measure(way)
            except HushgradError as error:
                note = " ".join(getattr(error, "__notes__", ()))
                if error.what and error.cure:
                    return Found(REFUSED, error=error.code, note=note)
                return Found(UNTYPED, error=f"{error.code} without a cure", note=note)
            except Exception as error:
                return Found(UNTYPED, error=type(error).__name__)
        if measured.moved <= self.limit + self.slack:
            outcome = EXACT
        else:
            outcome = TRUSTED if measured.conditions & set(self.trust) else SILENT
        return Found(outcome, measured.moved, conditions=measured.conditions, note=measured.note)


@dataclass(frozen=True)
class Kind:
    """Programs that fail in silence for one reason, and what docs/probe.md says of them.

    Attributes:
        examined, when, trusted: cells of the table: what is looked at, when, and what stays on trust.
    """

    title: str
    examined: str
    when: str
    trusted: str
    programs: tuple[Program, ...]

    @property
    def leaky(self) -> tuple[Program, ...]:
        return tuple(program for program in self.programs if not program.is_clean)

    @property
    def clean(self) -> tuple[Program, ...]:
        return tuple(program for program in self.programs if program.is_clean)


def square(out: Tensor, target: Tensor) -> Tensor:
    """One loss for each example, `[B]`: the sum of the squares of its outputs."""
    return out.square().flatten(1).sum(1)


def given(model: nn.Module, batch: Any) -> Any:
    """Call the model with what the batch holds."""
    if isinstance(batch, dict):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple) else model(batch)


@dataclass(frozen=True, kw_only=True)
class Training:
    """A loop over all of its records.

    Attributes:
        records, others: the data of the two runs, which differ in one record.
        call: what the loop does with the model and a batch; returns the output.
        loss: `(output, targets)` to one loss for each example.
        scalar: the loop's own loss `(output, targets)` where it is not the mean of `loss`.
        targets: `[B]` or more of a batch, zeros if None.
        after: what the loop does with the model and a batch between its backward and the step.
        later: the same after the step.
        hand: gives the model, before it trains, some of what trains it, by name; the step by hand has plain objects.
    """

    make: Callable[[], nn.Module]
    records: Sequence[Any]
    others: Sequence[Any]
    call: Callable[[Any, Any], Any] = given
    loss: Callable[[Any, Any], Tensor] = square
    scalar: Callable[[Any, Any], Tensor] | None = None
    targets: Callable[[Any], Any] | None = None
    after: Callable[[Any, Any], None] | None = None
    later: Callable[[Any, Any], None] | None = None
    hand: Callable[[Any, Mapping[str, Any]], None] | None = None
    collate: Callable[[Any], Any] = torch.stack
    batches: int = 1
    clip: float = 0.05
    settings: dict[str, Any] = field(default_factory=dict)

    def measure(self, way: str) -> Measured:
        """Return S of hushgrad's own sums."""
        first, conditions = self._sum(self.records, way)
        second, _ = self._sum(self.others, way)
        moved = float((first.double() - second.double()).norm()) / self.clip
        return Measured(math.inf if math.isnan(moved) else moved, conditions)

    def unguarded(self, way: str) -> float:
        """Return S of sums of gradients that are clipped by hand, one backward for each example."""
        difference = self._by_hand(self.records, way) - self._by_hand(self.others, way)
        return float(difference.norm()) / self.clip

    def _targets(self, batch: Any, count: int) -> Any:
        return torch.zeros(count) if self.targets is None else self.targets(batch)

    def _sum(self, records: Sequence[Any], way: str) -> tuple[Tensor, frozenset[str]]:
        torch.manual_seed(0)
        model, engine, count = self.make(), PrivacyEngine(), len(records) // self.batches
        optimizer = Kept([p for p in model.parameters() if p.requires_grad], lr=1e-9)
        reading = DataLoader(records, batch_size=count, collate_fn=self.collate)  # type: ignore[arg-type]
        _, _, loader = engine.make_private(
            module=model,
            optimizer=optimizer,
            data_loader=reading,
            noise_multiplier=0.0,
            max_grad_norm=self.clip,
            poisson_sampling=False,
            **self.settings,
        )
        criterion = engine.per_example(self.loss)
        if self.hand is not None:
            trains = {"engine": engine, "session": engine.session, "loader": loader, "data loader": reading}
            self.hand(model, {**trains, "criterion": criterion})
        for batch in loader:
            torch.manual_seed(7)
            out = self.call(model, batch)
            targets = self._targets(batch, count)
            if way == "per_example":
                criterion(out, targets).backward()
            elif way == "session":
                engine.session.backward(self.loss(out, targets))
            else:
                self._scalar(out, targets).backward()
            if self.after is not None:
                self.after(model, batch)
            optimizer.step()
            if self.later is not None:
                self.later(model, batch)
        names = frozenset(condition.name for condition in engine.session.guarantee(1e-5, "rdp").conditions)
        engine.session.close()
        return optimizer.seen * (1 if self.settings.get("loss_reduction") == "sum" else count), names

    def _scalar(self, out: Any, targets: Any) -> Tensor:
        return self.loss(out, targets).mean() if self.scalar is None else self.scalar(out, targets)

    def _by_hand(self, records: Sequence[Any], way: str) -> Tensor:
        """Of each example: what its rows of the outputs hand back of the loss's gradient."""
        torch.manual_seed(0)
        model, count = self.make(), len(records) // self.batches
        if self.hand is not None:
            self.hand(model, defaultdict(SimpleNamespace))
        parameters = [p for p in model.parameters() if p.requires_grad]
        total = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
        for start in range(0, count * self.batches, count):
            batch = self.collate(records[start : start + count])
            torch.manual_seed(7)
            out = self.call(model, batch)
            targets = self._targets(batch, count)
            loss = self._scalar(out, targets) * count if way == "scalar" else self.loss(out, targets).sum()
            outs = [part for part in (out.values() if isinstance(out, dict) else [out]) if part.requires_grad]
            parts = torch.autograd.grad(loss, outs, retain_graph=True)
            total.zero_()
            for row in range(count):
                mine = sum((one[row] * part[row]).sum() for one, part in zip(outs, parts, strict=True))
                found = torch.autograd.grad(mine, parameters, retain_graph=True, allow_unused=True)  # type: ignore[arg-type]
                flat = torch.cat(
                    [
                        torch.zeros_like(p).flatten() if g is None else g.flatten()
                        for p, g in zip(parameters, found, strict=True)
                    ]
                ).double()
                total += flat * min(1.0, self.clip / max(float(flat.norm()), 1e-300))
            if self.after is not None:
                self.after(model, batch)
            if self.later is not None:
                self.later(model, batch)
        return total


def removed(records: Any) -> dict[str, Any]:
    """Return data of which the last record is left out in the second run."""
    return {"records": list(records), "others": list(records)[:-1], "limit": REMOVED}


def replaced(records: Any, place: int, value: Any, *, earlier: bool = False) -> dict[str, Any]:
    """Return data of which the record at `place` is another one in the second run."""
    others = list(records)
    others[place] = value
    return {"records": list(records), "others": others, "limit": EARLIER if earlier else REPLACED}


def leaky(
    name: str,
    data: dict[str, Any],
    *,
    ways: tuple[str, ...] = WAYS,
    trust: tuple[str, ...] = (),
    by_hand: bool = True,
    **training: Any,
) -> Program:
    """Return a leaky program; `by_hand` is False where the gradients of single examples do not show the leak."""
    given_data = {key: data[key] for key in ("records", "others")}
    run = Training(**given_data, **training)
    return Program(
        name, run.measure, ways=ways, limit=data["limit"], trust=trust, unguarded=run.unguarded if by_hand else None
    )


def clean(name: str, data: dict[str, Any], *, told: tuple[str, ...] = (), **training: Any) -> Program:
    """Return a program that must train."""
    return replace(leaky(name, data, **training), is_clean=True, told=told)


class Of(nn.Module):
    """A module whose forward is `f(parts, *inputs)`."""

    def __init__(self, f: Callable[..., Any], *parts: nn.Module) -> None:
        super().__init__()
        self.f, self.m = f, nn.ModuleList(parts)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.f(self.m, *inputs, **named)


def made(f: Callable[..., Any], *parts: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Return what makes an `Of` with fresh parts."""
    return lambda: Of(f, *(part() for part in parts))


def linear(inputs: int = 4, outputs: int = 3) -> Callable[[], nn.Module]:
    """Return what makes a linear layer."""
    return lambda: nn.Linear(inputs, outputs)
