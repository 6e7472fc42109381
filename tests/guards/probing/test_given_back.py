"""The model that comes back is the model that went in, after its first forward; and what it made must hold no batch."""

from __future__ import annotations

import copy
import warnings
import weakref
from collections.abc import Callable
from types import FunctionType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import DPSGD, FlatClipping, PoissonSampling, PrivacyEngine, doctor, verify
from hushgrad.errors import CrossSampleLeakError, HushgradError, PrivateBufferError

WIDTH, CLASSES, BATCH = 6, 3, 8


class Body(nn.Module):
    """A small classifier; subclasses make something in their first forward."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.box = SimpleNamespace()
        self.handle = self.head.register_forward_pre_hook(lambda module, args: (args[0] * 2,))

    def forward(self, x: Tensor) -> Tensor:
        self.prepare(x)
        return self.after(self.head(self.first(x).tanh()))

    def prepare(self, x: Tensor) -> None:
        """Before everything else."""

    def after(self, out: Tensor) -> Tensor:
        return out


class FlagAndHooks(Body):
    def prepare(self, x: Tensor) -> None:
        if "is_ready" not in vars(self):
            self.first.register_forward_hook(lambda module, args, out: out + 1)
            self.first.register_forward_hook(lambda module, args, out: out * 1.5, prepend=True)
            self.is_ready = True


class FlagInAnObject(Body):
    def prepare(self, x: Tensor) -> None:
        if "is_ready" not in vars(self.box):
            self.first.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
            self.box.is_ready = True


class FlagOfTheClass(Body):
    is_ready = False
    calls = 0

    def prepare(self, x: Tensor) -> None:
        type(self).calls += 1
        if not type(self).is_ready:
            self.first.register_forward_hook(lambda module, args, out: out * 1.5)
            type(self).is_ready = True


READY: weakref.WeakSet[nn.Module] = weakref.WeakSet()


class FlagInARegistry(Body):
    def prepare(self, x: Tensor) -> None:
        if self not in READY:
            self.first.register_forward_hook(lambda module, args, out: out * 1.5)
            READY.add(self)


class OwnBuffer(Body):
    def prepare(self, x: Tensor) -> None:
        if "mask" not in self._buffers:
            self.register_buffer("mask", torch.full((CLASSES,), 2.0), persistent=False)

    def after(self, out: Tensor) -> Tensor:
        return out * self.mask


class OwnPart(Body):
    def prepare(self, x: Tensor) -> None:
        if "scale" not in self._modules:
            self.scale = nn.Tanh()

    def after(self, out: Tensor) -> Tensor:
        return self.scale(out)


class OtherHooks(Body):
    def prepare(self, x: Tensor) -> None:
        if not self.head._backward_hooks:
            self.head.register_full_backward_hook(lambda module, inner, outer: None)
            self.register_state_dict_pre_hook(lambda *args: None)
            self.register_load_state_dict_post_hook(lambda *args: None)


class HookTakenAway(Body):
    def prepare(self, x: Tensor) -> None:
        self.handle.remove()


class OtherModes(Body):
    def prepare(self, x: Tensor) -> None:
        self.first.eval()
        self.calls = vars(self).get("calls", 0) + 1


HONEST = [
    FlagAndHooks,
    FlagInAnObject,
    FlagOfTheClass,
    FlagInARegistry,
    OwnBuffer,
    OwnPart,
    OtherHooks,
    HookTakenAway,
    OtherModes,
]


def held(model: nn.Module) -> dict[str, Any]:
    """Return what every module has: parts, hooks in their order, and plain values."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, dict):
                found[f"{name}.{key}"] = [
                    part.__code__.co_code
                    if isinstance(part, FunctionType)
                    else type(part)
                    if "hook" in key
                    else str(entry)
                    for entry, part in value.items()
                ]
            elif isinstance(value, (bool, int, str, set, SimpleNamespace, type(None))):
                found[f"{name}.{key}"] = str(value)
    return found


def attached(model: nn.Module, data: TensorDataset, **options: Any) -> tuple[PrivacyEngine, Any, Any]:
    engine = PrivacyEngine(test_key=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=options.pop("lr", 0.0))
    _, _, loader = engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(data, batch_size=BATCH),
        noise_multiplier=0.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
        **options,
    )
    return engine, optimizer, loader


def data(count: int = 2 * BATCH) -> TensorDataset:
    return TensorDataset(torch.randn(count, WIDTH), torch.arange(count) % CLASSES)


def train(model: nn.Module) -> PrivacyEngine:
    engine, optimizer, loader = attached(model, data())
    for x, y in loader:
        engine.per_example(nn.CrossEntropyLoss())(model(x), y).backward()
        optimizer.step()
    return engine


def forget(make: type[Body]) -> None:
    if make is FlagOfTheClass:
        FlagOfTheClass.is_ready, FlagOfTheClass.calls = False, 0


@pytest.mark.parametrize("make", HONEST)
def test_what_a_first_forward_makes_is_made_once(make: type[Body]) -> None:
    """Hooks with their flag, parts, buffers, modes: all as in a model that was never probed."""
    forget(make)
    model, x = make(), torch.randn(BATCH, WIDTH)
    twin = copy.deepcopy(model)
    engine = train(model)
    assert engine.session.probe_report.examined
    engine.session.close()
    calls = FlagOfTheClass.calls
    forget(make)
    twin(x), twin(x)
    assert calls == FlagOfTheClass.calls
    assert held(model) == held(twin)
    assert torch.equal(model.eval()(x), twin.eval()(x))


@pytest.mark.parametrize("make", [make for make in HONEST if make is not FlagInARegistry])
def test_doctor_leaves_no_first_forward_behind(make: type[Body]) -> None:
    forget(make)
    model = make()
    before = held(model)
    assert doctor(model, torch.randn(BATCH, WIDTH)).uses
    assert held(model) == before
    assert FlagOfTheClass.calls == 0 or make is not FlagOfTheClass


class HookOfABatch(Body):
    def after(self, out: Tensor) -> Tensor:
        if "is_ready" not in vars(self):
            mean = out.detach().mean(0)
            self.head.register_forward_hook(lambda module, args, out: out - mean)
            self.is_ready = True
        return out


class HookOfEveryBatch(Body):
    def after(self, out: Tensor) -> Tensor:
        mean = out.detach().mean(0)
        self.head.register_forward_hook(lambda module, args, out: out - mean)
        return out


class PartOfABatch(Body):
    def after(self, out: Tensor) -> Tensor:
        if "minus" in self._modules:
            return self.minus(out)
        mean = out.detach().mean(0)

        class Minus(nn.Module):
            def forward(self, h: Tensor) -> Tensor:
                return h - mean

        self.minus = Minus()
        return out


class BufferOfABatch(Body):
    def prepare(self, x: Tensor) -> None:
        if "mean" not in self._buffers:
            self.register_buffer("mean", x.mean(0))


class ClassOfABatch(Body):
    largest = 0.0

    def prepare(self, x: Tensor) -> None:
        type(self).largest = float(x.max())


class ObjectOfABatch(Body):
    def prepare(self, x: Tensor) -> None:
        self.box.largest = float(x.max())


LEAKY = [HookOfABatch, HookOfEveryBatch, PartOfABatch, BufferOfABatch, ClassOfABatch, ObjectOfABatch]


@pytest.mark.parametrize("make", LEAKY)
def test_what_a_first_forward_makes_of_its_batch_is_refused(make: type[Body]) -> None:
    with pytest.raises(PrivateBufferError):
        train(make())


def test_a_part_that_a_registry_says_is_there_is_asked_for_before_training() -> None:
    """What the forward noted elsewhere cannot be taken back: the message says what to do, and that works."""

    class Needed(Body):
        def prepare(self, x: Tensor) -> None:
            if self not in READY:
                self.outputs: list[Tensor] = []
                self.first.register_forward_hook(lambda module, args, out: self.outputs.append(out))
                READY.add(self)
            self.outputs.clear()

    with pytest.raises(CrossSampleLeakError, match=r"fails when it is run again.*run one on inputs of your own"):
        train(Needed())
    model = Needed()
    model(torch.zeros(1, WIDTH))
    assert train(model).session.steps == 2


# Objects of this library as attributes ------------------------------------------------------------------------------


class Trainer:
    """Holds everything, and what it is told to remember."""

    def __init__(self, **parts: Any) -> None:
        vars(self).update(parts)


def keep(model: nn.Module, what: str, engine: PrivacyEngine, optimizer: Any, loader: Any) -> None:
    parts: dict[str, Callable[[], Any]] = {
        "engine": lambda: engine,
        "session": lambda: engine.session,
        "criterion": lambda: engine.per_example(nn.CrossEntropyLoss()),
        "optimizer": lambda: optimizer,
        "loader": lambda: loader,
        "list": lambda: [engine, {"session": engine.session}],
        "trainer": lambda: Trainer(
            engine=engine, session=engine.session, optimizer=optimizer, loader=loader, model=model
        ),
    }
    if what == "itself":
        vars(model)["me"] = model
    else:
        setattr(model, what, parts[what]())


KEPT = ["engine", "session", "criterion", "optimizer", "loader", "list", "trainer", "itself"]


@pytest.mark.parametrize("path", ["criterion", "losses", "scalar"])
@pytest.mark.parametrize("what", KEPT)
def test_a_model_may_keep_what_trains_it(what: str, path: str) -> None:
    model = Body()
    twin = copy.deepcopy(model)
    updated = []
    for part, keeps in ((model, True), (twin, False)):
        engine, optimizer, loader = attached(part, TensorDataset(*[t[:BATCH] for t in data().tensors]), lr=0.1)
        if keeps:
            keep(part, what, engine, optimizer, loader)
        torch.manual_seed(0)
        for x, y in [(torch.randn(BATCH, WIDTH), torch.arange(BATCH) % CLASSES)]:
            for _ in loader:
                if path == "criterion":
                    engine.per_example(nn.CrossEntropyLoss())(part(x), y).backward()
                elif path == "losses":
                    engine.session.backward(F.cross_entropy(part(x), y, reduction="none"))
                else:
                    F.cross_entropy(part(x), y).backward()
                optimizer.step()
        assert engine.session.steps == 1
        updated.append(part.head.weight.detach())
    assert torch.equal(*updated)


@pytest.mark.parametrize("what", KEPT)
def test_state_beside_what_trains_it_is_still_looked_at(what: str) -> None:
    class Follows(Body):
        def prepare(self, x: Tensor) -> None:
            holder = vars(self).get("trainer", self.box)
            holder.largest = float(x.max())

    model = Follows()
    engine, optimizer, loader = attached(model, data())
    keep(model, what, engine, optimizer, loader)
    x, y = next(iter(loader))
    F.cross_entropy(model(x), y).backward()
    with pytest.raises(PrivateBufferError, match="largest"):
        optimizer.step()
    assert engine.session.steps == 0


# verify --------------------------------------------------------------------------------------------------------------


def test_verify_leaves_model_criterion_and_random_numbers_as_they_were() -> None:
    """Guarantee: model, criterion and global random numbers are afterwards what they were."""

    class Counting(nn.Module):
        calls = 0

        def __init__(self) -> None:
            super().__init__()
            self.body, self.dropout = nn.Linear(WIDTH, CLASSES), nn.Dropout(0.2)

        def forward(self, x: Tensor) -> Tensor:
            type(self).calls += 1
            return self.dropout(self.body(x))

    class CountingLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, out: Tensor, y: Tensor) -> Tensor:
            self.calls += 1
            return F.cross_entropy(out, y, reduction="none")

    model, criterion, records = Counting(), CountingLoss(), data(64)
    engine, _, _ = attached(model, records)
    model.session = engine.session  # type: ignore[assignment]
    before, state = held(model), torch.get_rng_state()
    mechanism = DPSGD(
        noise_multiplier=1.0, clipping=FlatClipping(1.0), sampling=PoissonSampling(0.25), expected_batch_size=16
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        verify(model, DataLoader(records, batch_size=16), criterion, mechanism, resolution=0.3)
    assert (Counting.calls, criterion.calls) == (0, 0)
    assert held(model) == before
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("when", ["forward", "backward", "step"])
def test_parameters_frozen_for_a_while_are_examined_when_they_come_back(when: str) -> None:
    model = Body()
    engine, optimizer, loader = attached(model, data(4 * BATCH))
    calls = []
    for place, (x, y) in enumerate(loader):
        model.first.requires_grad_(not (place == 0 and when == "forward"))
        out = model(x)
        model.first.requires_grad_(not (place == 0 and when == "backward"))
        engine.session.backward(F.cross_entropy(out, y, reduction="none"))
        model.first.requires_grad_(not (place == 0 and when == "step"))
        optimizer.step()
        model.first.requires_grad_(True)
        calls.append(engine.session.probe_report.calls)
    assert calls == ([1, 2, 2, 2] if when == "forward" else [1, 1, 1, 1])


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_a_gradient_that_mixes_is_found_when_its_parameters_come_back() -> None:
    class Mixing(Body):
        def __init__(self) -> None:
            super().__init__()
            self.first.register_full_backward_pre_hook(lambda module, outer: (outer[0] / outer[0].norm(),))

    model = Mixing()
    engine, optimizer, loader = attached(model, data())
    for place, (x, y) in enumerate(loader):
        model.first.requires_grad_(place > 0)
        F.cross_entropy(model(x), y).backward()
        if place == 0:
            optimizer.step()
        else:
            with pytest.raises(HushgradError):
                optimizer.step()
            break
    assert engine.session.steps == 1
