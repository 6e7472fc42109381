"""Runs a program as its user wrote it, and compares its sum with that of one example at a time."""

from __future__ import annotations

import copy
import functools
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from hushgrad import PrivacyEngine, Session, session_of
from hushgrad.errors import HushgradError, ProtocolError

B, T, D = 6, 4, 4
EXACT, ROUNDED = 1e-5, 2e-2
"""The largest relative error in float32, and where a program computes in 16 bits."""


class Kept(torch.optim.SGD):
    """Ordinary SGD that remembers the gradients it was handed last."""

    seen: dict[int, Tensor]

    def step(self, closure: Any = None) -> Any:
        parts = [p for group in self.param_groups for p in group["params"]]
        self.seen = {id(p): p.grad.double() for p in parts if p.grad is not None}
        return super().step(closure)


@dataclass
class Run:
    """What a program has in hand."""

    written: Written
    model: Any
    optimizer: Any
    ledger: Path
    engine: PrivacyEngine = field(init=False)
    loader: Any = field(init=False)

    @property
    def session(self) -> Session:
        return self.engine.session

    def make_private(self, **changed: Any) -> None:
        """As in a script, with the settings of the program."""
        given: dict[str, Any] = {"noise_multiplier": 0.0, "poisson_sampling": False, **self.written.settings, **changed}
        size = given.pop("batch_size", len(self.written.records))
        self.engine = PrivacyEngine(**self.written.engine, **given.pop("engine", {}))
        reading = DataLoader(
            self.written.dataset(self.written.records), batch_size=size, collate_fn=self.written.collate
        )
        *_, self.loader = self.engine.make_private(
            module=self.model, optimizer=self.optimizer, data_loader=given.pop("data_loader", reading), **given
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Written:
    """A program that makes one update of all of its records.

    Attributes:
        loop: the program after its set-up; it may return the items it trained on, where it made something of records.
        alone: the loss of one record, or item, by an ordinary copy of the model.
        term: of the parameters alone, what is added to the update.
        begin: what comes in the place of `make_private`.
        optimizer: of the model.
        clip: None is the median of the norms of the records' gradients.
    """

    make: Callable[[], nn.Module]
    records: Sequence[Any]
    loop: Callable[[Run], Any]
    alone: Callable[[Any, Any], Tensor]
    term: Callable[[Any], Tensor] | None = None
    begin: Callable[[Run], Any] = Run.make_private
    optimizer: Callable[[nn.Module], Any] = lambda model: Kept(
        [p for p in model.parameters() if p.requires_grad], lr=0.0
    )
    collate: Callable[[Any], Any] = default_collate
    dataset: Callable[[Any], Any] = list
    settings: dict[str, Any] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)
    tolerance: float = EXACT
    clip: float | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Brought:
    """A program that people bring, and what to write instead where it is refused.

    Attributes:
        code: of the refusal; empty where the program is exact.
        instead: one line that says the cure, and the program that follows it.
        why: what to know where nothing stands in its place.
    """

    program: Written
    code: str = ""
    instead: str = ""
    cured: Written | None = None
    why: str = ""


@dataclass(frozen=True)
class Outcome:
    """The code of the refusal or "", and what ran: the program, or what cures it.

    Attributes:
        error: relative, of the clipped sum.
        conditions: names of those that the guarantee states.
    """

    code: str
    error: float | None
    conditions: frozenset[str] = frozenset()
    message: str = ""


@contextmanager
def _own_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name, mock.patch.dict(os.environ, HUSHGRAD_STATE=name):
        yield Path(name)


def _gradient(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Of each trained parameter, in float64; an example that is not finite contributes 0."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    parts = {
        name: (torch.zeros_like(p) if g is None else g).double()
        for (name, p), g in zip(named.items(), found, strict=True)
    }
    return parts if all(bool(g.isfinite().all()) for g in parts.values()) else {k: 0 * p for k, p in named.items()}


def _norm(parts: dict[str, Tensor]) -> float:
    return float(torch.stack([part.square().sum() for part in parts.values()]).sum().sqrt())


def compared(written: Written) -> tuple[float, frozenset[str]]:
    """Run the program; return how far its clipped sum is from that of one example at a time, and what is conditional.

    The distance is of the whole: relative to the norm of the sum.
    """
    torch.manual_seed(0)
    model = written.make()
    plain = copy.deepcopy(model)
    clip = written.clip
    if clip is None:
        norms = [_norm(_gradient(plain, written.alone(plain, record))) for record in written.records]
        clip = sorted(norms)[len(norms) // 2]
    with _own_folder() as folder:
        run = Run(written, model, written.optimizer(model), folder / "ledger.jsonl")
        try:
            written.begin(run, max_grad_norm=clip)
            torch.manual_seed(1)
            items = written.loop(run)
            conditions = frozenset(condition.name for condition in run.session.guarantee(1e-5, "rdp").conditions)
        finally:
            with suppress(ProtocolError):  # there is none
                session_of(model).close()
    alone = [_gradient(plain, written.alone(plain, item)) for item in (items or written.records)]
    scales = [min(1.0, clip / max(_norm(parts), 1e-30)) for parts in alone]
    if not min(scales) < 1:
        raise ValueError("no record is clipped, so that a sum of unclipped gradients would pass")
    divisor = 1 if written.settings.get("loss_reduction") == "sum" else len(written.records)
    names = {id(p): name for name, p in model.named_parameters()}
    found = {names[key]: value * divisor for key, value in run.optimizer.seen.items()}
    wanted = {name: sum(s * parts[name] for s, parts in zip(scales, alone, strict=True)) for name in alone[0]}
    if written.term is not None:
        wanted = {name: wanted[name] + divisor * g for name, g in _gradient(plain, written.term(plain)).items()}
    difference = {name: found.get(name, 0.0) - value for name, value in wanted.items()}
    return _norm(difference) / _norm(wanted), conditions


@functools.cache
def outcome(brought: Brought) -> Outcome:
    """What becomes of a program and of its cure; an error of another kind is nobody's outcome, and raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return Outcome("", *compared(brought.program))
        except HushgradError as error:
            code, message = error.code, str(error)
        return Outcome(code, *((None,) if brought.cured is None else compared(brought.cured)), message=message)


# What most programs have in common ---------------------------------------------------------------------------------

X = torch.randn(B, D, generator=torch.Generator().manual_seed(2))
Y = torch.arange(B) % 3
LABELLED = list(zip(X, Y, strict=True))
SEQUENCES = [(x, y) for x, y in zip(torch.randn(B, T, D, generator=torch.Generator().manual_seed(3)), Y, strict=True)]


class Of(nn.Module):
    """A module whose forward is `f(module, *inputs)`, with parts and tables by name."""

    def __init__(self, f: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.f = f
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: Any) -> Any:
        return self.f(self, *inputs)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(D, 6), nn.Tanh(), nn.Linear(6, 3))


def ordinary_loop(run: Run) -> None:
    """The loop of every tutorial."""
    for *inputs, y in run.loader:
        run.optimizer.zero_grad()
        loss = F.cross_entropy(run.model(*inputs), y)
        loss.backward()
        run.optimizer.step()


def ordinary_alone(model: Any, record: Any) -> Tensor:
    *inputs, y = record
    return F.cross_entropy(model(*(part[None] for part in inputs)), y[None])


def ordinary(**changed: Any) -> Written:
    """Return the ordinary program, but for what is changed."""
    given = {"make": network, "records": LABELLED, "loop": ordinary_loop, "alone": ordinary_alone}
    return Written(**{**given, **changed})


def by(loss: Callable[..., Tensor]) -> dict[str, Any]:
    """Return loop and oracle of a scalar loss `(model, *batch)`; the oracle's batches hold one record."""

    def loop(run: Run) -> None:
        for batch in run.loader:
            run.optimizer.zero_grad()
            loss(run.model, *batch).backward()
            run.optimizer.step()

    return {"loop": loop, "alone": lambda model, record: loss(model, *default_collate([record]))}


def by_losses(losses: Callable[..., Tensor]) -> dict[str, Any]:
    """Return loop and oracle of `session.backward(losses)`, one loss `[B]` for each record."""

    def loop(run: Run) -> None:
        for batch in run.loader:
            run.optimizer.zero_grad()
            run.session.backward(losses(run.model, *batch))
            run.optimizer.step()

    return {"loop": loop, "alone": lambda model, record: losses(model, *default_collate([record])).sum()}


def by_criterion(
    criterion: Any, *, of_one: Any = None, call: Callable[..., tuple[Any, ...]] = lambda m, x, y: (m(x), y)
) -> dict[str, Any]:
    """Return loop and oracle of `engine.per_example(criterion)`; `call` gives what the criterion is given."""

    def loop(run: Run) -> None:
        given = run.engine.per_example(criterion)
        for batch in run.loader:
            run.optimizer.zero_grad()
            given(*call(run.model, *batch)).backward()
            run.optimizer.step()

    one = of_one or criterion
    return {"loop": loop, "alone": lambda model, record: one(*call(model, *default_collate([record]))).sum()}


def exact(**changed: Any) -> Brought:
    """A program that trains as it is."""
    why = changed.pop("why", "")
    return Brought(program=ordinary(**changed), why=why)


def refused(code: str, program: dict[str, Any], instead: str, cured: dict[str, Any]) -> Brought:
    """A program that is refused, and what trains it exactly, as changes of the former."""
    return Brought(program=ordinary(**program), code=code, instead=instead, cured=ordinary(**{**program, **cured}))


def refused_for_good(code: str, why: str, **program: Any) -> Brought:
    """A program that nothing can stand for, since it mixes records by what it is."""
    return Brought(program=ordinary(**program), code=code, why=why)
