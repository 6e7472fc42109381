"""Writes bad-inputs.md: each row of its table is a call that was made, and the error that came.

Run `python docs/bad_inputs.py` to write the page anew; a test checks that it is current.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

from hushgrad import DPSGD, FlatClipping, PoissonSampling, PrivacyEngine, privatize
from hushgrad.errors import HushgradError
from hushgrad.losses import PerExampleLoss
from hushgrad.randomness import KeyStream

PAGE = Path(__file__).with_name("bad-inputs.md")

HEAD = """# Bad inputs

What happens to arguments, data, models and loops that cannot be trained privately. Every row is a call that was made
and the error it raised; the page is written by `python docs/bad_inputs.py`, and a test checks that it is current.
Everything under "Set-up" is refused before a record is read. No message contains a value of the data. The codes are
explained under [Errors](errors.md).
"""


class Unread(Dataset[Any]):
    """Records that nobody may look at."""

    def __init__(self, count: int = 40) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> NoReturn:
        raise AssertionError("data was read during set-up")


class Endless(IterableDataset[Any]):
    """A stream of records."""

    def __iter__(self) -> NoReturn:
        raise AssertionError("data was read during set-up")


class NoLength(Dataset[Any]):
    """Records, nobody knows how many."""

    def __getitem__(self, index: int) -> NoReturn:
        raise AssertionError("data was read during set-up")


class _Centred(nn.Linear):
    """A model that takes the mean of the batch off its output."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Mix the examples, after the last use of a parameter."""
        h = super().forward(x)
        return h - h.mean(0)


def _network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


def _sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def _arguments(**changes: Any) -> dict[str, Any]:
    model = changes.pop("module", None) or _network()
    optimizer = changes.pop("optimizer", _sgd)
    return {
        "module": model,
        "optimizer": optimizer(model) if callable(optimizer) else optimizer,
        "data_loader": DataLoader(Unread(), batch_size=8),
        "max_grad_norm": 1.0,
        **changes,
    }


def _make(engine: PrivacyEngine | None = None, **changes: Any) -> Any:
    """Call make_private, or make_private_with_epsilon where a target is among the changes."""
    arguments = _arguments(**changes)
    engine = engine or PrivacyEngine()
    if arguments.keys() & {"target_epsilon", "target_delta", "epochs"}:
        targets = {"target_epsilon": 3.0, "target_delta": 1e-5, "epochs": 1}
        return engine.make_private_with_epsilon(**{**targets, **arguments})
    return engine.make_private(**{"noise_multiplier": 1.0, **arguments})


def _loader(dataset: Any = None, **options: Any) -> DataLoader[Any]:
    return DataLoader(Unread() if dataset is None else dataset, **options)


def _changed(change: Callable[[nn.Module], Any]) -> nn.Module:
    model = _network()
    change(model)
    return model


def _frozen(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.requires_grad_(False)


def _with_gradient(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)


def _private_loader() -> Any:
    return _make()[2]


def _same_engine_twice() -> None:
    engine = PrivacyEngine()
    _make(engine)
    _make(engine)


def _same_model_twice() -> None:
    model = _network()
    _make(module=model)
    _make(module=model)


def _set_twice(name: str, values: list[Any], **others: Any) -> dict[str, Callable[[], Any]]:
    return {f"`{name}={value!r}`": (lambda value=value: _make(**{name: value, **others})) for value in values}


SECRET = 31.4159
"""The value of all data in the loops below; no message may show it."""

NAN, INF = float("nan"), float("inf")

SETUP: dict[str, Callable[[], Any]] = {
    **_set_twice("noise_multiplier", [-1.0, NAN, INF, True, "1.0", 1 + 2j]),
    **_set_twice("max_grad_norm", [0, -1.0, NAN, INF, None]),
    **_set_twice("target_epsilon", [0, -1, NAN]),
    "`target_epsilon=1e-9, target_delta=1e-12`, full batches": lambda: _make(
        target_epsilon=1e-9, target_delta=1e-12, data_loader=_loader(batch_size=40)
    ),
    **_set_twice("target_delta", [0, 1, NAN]),
    "`make_private(target_epsilon=3.0, target_delta=1e-5)`": lambda: PrivacyEngine().make_private(
        **_arguments(noise_multiplier=1.0, target_epsilon=3.0, target_delta=1e-5)
    ),
    "`max_epsilon=3.0` without `max_delta`": lambda: _make(max_epsilon=3.0),
    "`max_epsilon=0, max_delta=1e-5`": lambda: _make(max_epsilon=0, max_delta=1e-5),
    "`max_epsilon=3.0, max_delta=1`": lambda: _make(max_epsilon=3.0, max_delta=1),
    **_set_twice("epochs", [0, 1.5]),
    **_set_twice("loss_reduction", ["none"]),
    **_set_twice("clipping", ["per_layer"]),
    **_set_twice("poisson_sampling", ["yes"]),
    **_set_twice("max_physical_batch_size", [0, 2.5]),
    '`PrivacyEngine(accountant="gdp")`': lambda: PrivacyEngine(accountant="gdp"),
    "`get_epsilon(delta=0)`": lambda: PrivacyEngine().get_epsilon(0),
    "`get_epsilon(delta=nan)`": lambda: PrivacyEngine().get_epsilon(NAN),
    "`steps=2.0` in `DPSGD`": lambda: DPSGD(
        noise_multiplier=1, clipping=FlatClipping(1), sampling=PoissonSampling(0.1), expected_batch_size=4, steps=2.0
    ),
    "`PoissonSampling(rate=1.5)`": lambda: PoissonSampling(1.5),
    "a secret key shared between sessions": lambda: privatize(
        (model := _network()), _sgd(model), _mechanism(), key=KeyStream.from_operating_system()
    ),
    "an empty dataset": lambda: _make(data_loader=_loader(Subset(Unread(), []), batch_size=8)),
    "a batch larger than the dataset": lambda: _make(data_loader=_loader(Unread(3), batch_size=8)),
    "an `IterableDataset`": lambda: _make(data_loader=_loader(Endless(), batch_size=8)),
    "a dataset without `__len__`": lambda: _make(
        data_loader=_loader(NoLength(), batch_size=8, sampler=SequentialSampler(range(40)))
    ),
    "a list for a `DataLoader`": lambda: _make(data_loader=[1, 2, 3]),
    "a loader that is private already": lambda: _make(data_loader=_private_loader()),
    "`batch_size=None`": lambda: _make(data_loader=_loader(batch_size=None)),
    "`SubsetRandomSampler`": lambda: _make(data_loader=_loader(batch_size=4, sampler=SubsetRandomSampler([1, 2]))),
    "`WeightedRandomSampler`": lambda: _make(
        data_loader=_loader(batch_size=4, sampler=WeightedRandomSampler([1.0] * 40, 40))
    ),
    "`RandomSampler(replacement=True)`": lambda: _make(
        data_loader=_loader(batch_size=4, sampler=RandomSampler(range(40), replacement=True))
    ),
    "`DistributedSampler`": lambda: _make(
        data_loader=_loader(batch_size=4, sampler=DistributedSampler(range(40), num_replicas=2, rank=0))
    ),
    "a batch sampler of one's own": lambda: _make(
        data_loader=_loader(batch_sampler=type("Own", (BatchSampler,), {})(SequentialSampler(range(40)), 4, False))
    ),
    "a function for a model": lambda: _make(module=torch.relu, optimizer=torch.optim.SGD(_network().parameters())),
    "a model in `eval()` mode": lambda: _make(module=_network().eval()),
    "a model without trainable parameters": lambda: _make(module=_changed(_frozen)),
    "`BatchNorm1d`": lambda: _make(module=nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))),
    "`BatchNorm1d(affine=False)`": lambda: _make(
        module=nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, affine=False))
    ),
    "`BatchNorm1d(track_running_stats=False)` in `eval()`": lambda: _make(
        module=nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False).eval())
    ),
    "`SyncBatchNorm`": lambda: _make(module=nn.Sequential(nn.Linear(4, 3), nn.SyncBatchNorm(3))),
    "`InstanceNorm1d(track_running_stats=True)`": lambda: _make(
        module=nn.Sequential(nn.Linear(4, 3), nn.InstanceNorm1d(3, track_running_stats=True))
    ),
    "`Embedding(sparse=True)`": lambda: _make(module=nn.Embedding(4, 3, sparse=True)),
    "a lazy module": lambda: _make(module=nn.LazyLinear(3), optimizer=lambda m: torch.optim.SGD(m.parameters())),
    "a model on the meta device": lambda: _make(module=nn.Linear(4, 3, device="meta")),
    "complex parameters": lambda: _make(module=nn.Linear(4, 3, dtype=torch.complex64)),
    "parameters in 8 bits": lambda: _make(
        module=nn.ParameterList([nn.Parameter(torch.zeros(3, dtype=torch.float8_e4m3fn))])
    ),
    "a hook on a parameter's gradient": lambda: _make(
        module=_changed(lambda model: model[0].weight.register_hook(lambda gradient: gradient))
    ),
    "a gradient left from before": lambda: _make(module=_changed(_with_gradient)),
    "`DataParallel`": lambda: _make(module=nn.DataParallel(_network())),
    "a part in TorchScript": lambda: _make(module=nn.Sequential(torch.jit.script(nn.Linear(2, 3)), nn.Linear(3, 1))),
    "a model that is private already": _same_model_twice,
    "an engine that is in use": _same_engine_twice,
    "`LBFGS`": lambda: _make(optimizer=lambda model: torch.optim.LBFGS(model.parameters())),
    "`SparseAdam`": lambda: _make(optimizer=lambda model: torch.optim.SparseAdam(model.parameters())),
    "a scheduler for an optimizer": lambda: _make(
        optimizer=lambda model: torch.optim.lr_scheduler.StepLR(_sgd(model), 1)
    ),
    "an optimizer without some of the parameters": lambda: _make(
        optimizer=lambda model: torch.optim.SGD(model[0].parameters(), lr=0.1)
    ),
    "an optimizer with another model's parameters": lambda: _make(
        optimizer=lambda model: torch.optim.SGD([*model.parameters(), nn.Parameter(torch.zeros(1))], lr=0.1)
    ),
    "`per_example(CrossEntropyLoss(reduction='sum'))`": lambda: _criterion(nn.CrossEntropyLoss(reduction="sum")),
    "`per_example` of a criterion that learns": lambda: _criterion(nn.Linear(2, 1)),
    "`per_example(CrossEntropyLoss)`, the class": lambda: _criterion(nn.CrossEntropyLoss),
    "`per_example` before `make_private`": lambda: PrivacyEngine().per_example(nn.MSELoss()),
}


def _mechanism() -> DPSGD:
    return DPSGD(noise_multiplier=1.0, clipping=FlatClipping(1.0), sampling=PoissonSampling(0.2), expected_batch_size=8)


def _criterion(criterion: Any) -> PerExampleLoss:
    return PerExampleLoss(criterion, loss_reduction="mean", batch_size=lambda: 8)


class _Run:
    """A session with a loader over 40 records and one item of it; batches of 8 in items of at most 4."""

    def __init__(self, **changes: Any) -> None:
        records = [(torch.full((4,), SECRET), torch.full((2,), SECRET)) for _ in range(40)]
        self.model = changes.get("module") or _network()
        self.optimizer = changes.pop("optimizer", _sgd)(self.model)
        self.schedule = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.5)
        self.engine = PrivacyEngine()
        _, _, self.loader = _make(
            self.engine,
            module=self.model,
            optimizer=self.optimizer,
            data_loader=_loader(records, batch_size=8),
            poisson_sampling=False,
            max_physical_batch_size=4,
        )
        self.items = iter(self.loader)
        self.x, self.y = next(self.items)

    def backward(self) -> _Run:
        """Run the backward of the item in work."""
        nn.functional.mse_loss(self.model(self.x), self.y).backward()
        return self

    def step(self) -> _Run:
        """Step the optimizer."""
        self.optimizer.step()
        return self

    def after(self, change: Callable[[_Run], Any]) -> _Run:
        """Do something to the run."""
        change(self)
        return self


def _scaled(run: _Run) -> None:
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(nn.functional.mse_loss(run.model(run.x), run.y)).backward()
    scaler.step(run.optimizer)


def _penalized(run: _Run) -> None:
    x = run.x.requires_grad_()
    (gradient,) = torch.autograd.grad(run.model(x).sum(), x, create_graph=True)
    gradient.square().sum().backward()
    run.step()


def _second_reader(run: _Run) -> None:
    with run.loader._one_reader():
        next(iter(run.loader))


LOOP: dict[str, Callable[[], Any]] = {
    "the next batch without `optimizer.step()`": lambda: next(_Run().backward().items),
    "`optimizer.step()` without a backward": lambda: _Run().step(),
    "`optimizer.step()` twice": lambda: _Run().backward().step().step(),
    "`break` inside a logical batch, then a new pass": lambda: next(iter(_Run().backward().step().loader)),
    "a scheduler's step inside a logical batch": lambda: (
        _Run()
        .backward()
        .step()
        .after(lambda run: run.schedule.step())
        .after(lambda run: next(run.items))
        .after(lambda run: run.backward().step())
    ),
    "a weight penalty added to the loss": lambda: (
        _Run().backward().after(lambda run: run.model[0].weight.sum().backward()).step()
    ),
    "a parameter unfrozen after `make_private`": lambda: (
        _Run(module=_changed(lambda model: model[2].bias.requires_grad_(False)))
        .backward()
        .after(lambda run: run.model[2].bias.requires_grad_(True))
        .step()
    ),
    "`model.train()` with frozen `BatchNorm`": lambda: (
        _Run(module=nn.Sequential(nn.BatchNorm1d(4).eval().requires_grad_(False), nn.Linear(4, 2)))
        .backward()
        .after(lambda run: run.model.train())
        .step()
    ),
    "another number of rows than records": lambda: _Run().after(
        lambda run: nn.functional.mse_loss(run.model(run.x[:2]), run.y[:2]).backward()
    ),
    "a loss of shape `[]` for `session.backward`": lambda: _Run().engine.session.backward(torch.zeros(())),
    "time folded into the batch": lambda: _Run().after(
        lambda run: run.engine.per_example(nn.CrossEntropyLoss())(torch.zeros(12, 2), torch.zeros(12).long())
    ),
    "a loss function that gives a scalar": lambda: _Run().after(
        lambda run: run.engine.per_example(lambda output, target: output.sum())(run.model(run.x), run.y)
    ),
    "a loss function of pairs within the batch": lambda: _Run().after(
        lambda run: run.engine.per_example(lambda output, target: (output @ output.t()).logsumexp(1))(
            run.model(run.x), run.y
        )
    ),
    "`h - h.mean(0)` at the end of the model": lambda: _Run(module=_Centred(4, 2)).backward(),
    "an output `[B, 1]` against a target `[B]`": lambda: _criterion(nn.MSELoss())(torch.zeros(8, 1), torch.zeros(8)),
    "a gradient penalty": lambda: _penalized(_Run()),
    "`torch.func.vmap` of the model": lambda: _Run().after(lambda run: torch.func.vmap(run.model)(run.x)),
    "a generator's step through the model": lambda: (
        _Run().backward().step().after(lambda run: run.model(run.x).sum().backward())
    ),
    "`per_example` of three arguments, one of them less its mean over the batch": lambda: _Run().after(
        lambda run: run.engine.per_example(lambda one, two, three: (one - two + three.mean(0)).square().sum(1))(
            *[run.model(run.x)] * 3
        )
    ),
    "two threads that read one loader": lambda: _Run().after(_second_reader),
    "`GradScaler` with a fused optimizer": lambda: _scaled(
        _Run(optimizer=lambda model: torch.optim.Adam(model.parameters(), fused=True))
    ),
    "a session that was closed": lambda: (
        _Run().after(lambda run: run.engine.session.close()).backward().items.__next__()
    ),
}


def error_of(call: Callable[[], Any]) -> HushgradError:
    """Return the error that a call raises."""
    try:
        call()
    except HushgradError as error:
        return error
    raise AssertionError("nothing was raised")


def page() -> str:
    """Return the whole page."""
    sections = [HEAD.rstrip()]
    for title, rows in (("Set-up", SETUP), ("In the loop", LOOP)):
        sections += [f"\n## {title}\n", "| input | error | message |", "| --- | --- | --- |"]
        for name, call in rows.items():
            error = error_of(call)
            text = str(error).removeprefix(f"{error.code} ").replace("|", "\\|").replace("<", "&lt;")
            sections.append(f"| {name} | `{error.code}` {type(error).__name__} | {text} |")
    return "\n".join(sections) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
