"""Models that want gradients to be recorded run again as well, and their leaks are found."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import PrivacyEngine, doctor
from hushgrad.capture.scope import Scope
from hushgrad.capture.uses import UsePool
from hushgrad.errors import CrossSampleLeakError, HushgradError
from hushgrad.guards.probing.calls import Call, Runner
from hushgrad.guards.probing.state import State

WIDTH, CLASSES, BATCH = 6, 3, 8
MOST_FORWARDS = 16
"""Of a first batch and a look: with hooks, which may change large or small gradients only, four more than without."""

Want = Callable[[Tensor], None]


def look(gradient: Tensor) -> None:
    """A hook that reads."""


def halve(gradient: Tensor) -> Tensor:
    return gradient / 2


def retain(h: Tensor) -> None:
    h.retain_grad()


def hang_a_hook(h: Tensor) -> None:
    h.register_hook(look)


def hang_a_hook_that_halves(h: Tensor) -> None:
    h.register_hook(halve)


def require_gradients(h: Tensor) -> None:
    assert torch.is_grad_enabled()


def require_a_graph(h: Tensor) -> None:
    if h.grad_fn is None:
        raise ValueError("no graph")


def nothing(h: Tensor) -> None:
    """Runs without gradients as well."""


WANTS = [retain, hang_a_hook, hang_a_hook_that_halves, require_gradients, require_a_graph]


def mean(h: Tensor) -> Tensor:
    return h - h.mean(0)


def by_value(h: Tensor) -> Tensor:
    return h - h.detach().mean(0)


def in_half_of_it(h: Tensor) -> Tensor:
    return torch.cat([h[:1], h[1:] + h[:-1].detach()])


def through_gradients(h: Tensor) -> Tensor:
    if h.requires_grad:
        h.register_hook(lambda gradient: gradient - gradient.mean(0))
    return h * 1


MIXES = [mean, by_value, in_half_of_it, through_gradients]


class Body(nn.Module):
    """A small classifier whose forward wants gradients to be recorded, and may mix examples after that."""

    def __init__(self, want: Want, mix: Callable[[Tensor], Tensor] = lambda h: h, dropout: float = 0.1) -> None:
        super().__init__()
        self.first, self.dropout, self.head = nn.Linear(WIDTH, WIDTH), nn.Dropout(dropout), nn.Linear(WIDTH, CLASSES)
        self.want, self.mix = [want], [mix]

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).tanh()
        self.want[0](h)
        return self.head(self.dropout(self.mix[0](h)))


def train(model: nn.Module, path: str = "criterion", steps: int = 2) -> PrivacyEngine:
    engine = PrivacyEngine(test_key=1)
    _, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), 0.1),
        data_loader=DataLoader(
            TensorDataset(torch.randn(steps * BATCH, WIDTH), torch.arange(steps * BATCH) % CLASSES), batch_size=BATCH
        ),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
    )
    try:
        for x, y in loader:
            optimizer.zero_grad()
            if path == "criterion":
                engine.per_example(nn.CrossEntropyLoss())(model(x), y).backward()
            elif path == "losses":
                engine.session.backward(F.cross_entropy(model(x), y, reduction="none"))
            else:
                F.cross_entropy(model(x), y).backward()
            optimizer.step()
    except HushgradError:
        assert engine.session.steps == 0
        raise
    return engine


@pytest.mark.parametrize("path", ["criterion", "losses", "scalar"])
@pytest.mark.parametrize("want", WANTS)
def test_a_model_that_wants_gradients_in_its_forward_trains(want: Want, path: str) -> None:
    engine = train(Body(want), path)
    report = engine.session.probe_report
    assert engine.session.steps == 2
    assert report.examined
    assert report.calls == 1
    assert report.notes == ()
    assert report.forwards <= MOST_FORWARDS


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("want", [nothing, *WANTS])
def test_a_model_that_wants_gradients_and_mixes_examples_is_refused(
    want: Want, mix: Callable[[Tensor], Tensor], dropout: float
) -> None:
    with pytest.raises(HushgradError, match=r"mixes the examples|depends on the others|told apart|examples of the"):
        train(Body(want, mix, dropout), "losses")


@pytest.mark.parametrize("mix", [by_value, in_half_of_it])
@pytest.mark.parametrize("want", WANTS)
def test_doctor_tells_the_same_of_models_that_want_gradients(want: Want, mix: Callable[[Tensor], Tensor]) -> None:
    assert doctor(Body(want), torch.randn(BATCH, WIDTH)).problems == ()
    assert doctor(Body(want, mix), torch.randn(BATCH, WIDTH)).problems


def test_what_such_a_model_keeps_of_a_batch_is_refused() -> None:
    class Keeping(Body):
        def __init__(self) -> None:
            super().__init__(retain)
            self.register_buffer("seen", torch.zeros(WIDTH))

        def forward(self, x: Tensor) -> Tensor:
            self.seen += x.mean(0)
            return super().forward(x)

    with pytest.raises(HushgradError, match="seen: "):
        train(Keeping())


def test_a_model_that_fails_on_every_second_run_is_refused_as_before() -> None:
    calls: SimpleQueue[int] = SimpleQueue()

    def once(h: Tensor) -> None:
        if calls.qsize():
            raise RuntimeError
        calls.put(1)

    with pytest.raises(CrossSampleLeakError, match=r"fails when it is run again.*keeps something from one call"):
        train(Body(once))


def runner(model: nn.Module) -> tuple[Runner, Any]:
    inputs = ((torch.randn(BATCH, WIDTH),), {})
    call = Call.begun(model, model, *inputs)
    return Runner(call, call.state, Scope(model, UsePool()), [torch.device("cpu")]), inputs


def test_gradients_are_recorded_only_where_the_first_run_wants_them_and_for_all_runs_after_it() -> None:
    seen: SimpleQueue[bool] = SimpleQueue()  # lists are put back after each run
    for want, expected in ((lambda h: None, [False, False]), (retain, [False, True, True])):
        model = Body(lambda h, want=want: (seen.put(torch.is_grad_enabled()), want(h))[1])
        again, inputs = runner(model)
        for _ in range(2):
            assert not again.run(inputs, quiet=False).output.requires_grad
        assert [seen.get() for _ in range(seen.qsize())] == expected
        assert again.forwards == len(expected)


def test_a_run_that_fails_after_one_has_come_to_its_end_is_not_run_again() -> None:
    def positive(h: Tensor) -> None:
        seen.put(1)
        if bool(h.isnan().any()):
            raise ValueError("NaN")

    seen: SimpleQueue[int] = SimpleQueue()
    again, inputs = runner(Body(positive))
    again.run(inputs, quiet=False)
    with pytest.raises(ValueError, match="NaN"):
        again.run(((torch.full((BATCH, WIDTH), float("nan")),), {}), quiet=False)
    assert seen.qsize() == 2


def test_no_memory_is_no_reason_to_record_gradients() -> None:
    seen: SimpleQueue[int] = SimpleQueue()

    def full(h: Tensor) -> None:
        seen.put(1)
        raise torch.OutOfMemoryError

    again, inputs = runner(Body(full))
    with pytest.raises(torch.OutOfMemoryError):
        again.run(inputs, quiet=False)
    assert seen.qsize() == 1


def test_the_graph_of_a_run_is_dropped_at_once() -> None:
    held: SimpleQueue[weakref.ref[Tensor]] = SimpleQueue()

    def note(h: Tensor) -> None:
        h.retain_grad()
        held.put(weakref.ref(h))

    again, inputs = runner(Body(note))
    outcome = again.run(inputs, quiet=False)
    gc.collect()
    assert outcome.output.shape == (BATCH, CLASSES)
    assert held.qsize() == 1
    assert held.get()() is None


def test_capture_sees_nothing_of_such_a_run() -> None:
    model = Body(retain)
    pool = UsePool()
    scope = Scope(model, pool)
    inputs: Any = ((torch.randn(BATCH - 1, WIDTH),), {})
    call = Call.begun(model, model, *inputs)
    pool.batch_size = BATCH
    Runner(call, State(model), scope, [torch.device("cpu")]).run(inputs, quiet=False)
    assert pool.batch_size == BATCH
    assert not scope.paused


def test_a_random_operator_that_cannot_be_made_quiet_stops_no_honest_model_and_is_told() -> None:
    def mask(h: Tensor) -> Tensor:
        return h * torch.binomial(torch.ones(1, WIDTH), torch.full((1, WIDTH), 0.5))

    engine = train(Body(nothing, mask))
    assert engine.session.steps == 2
    assert any("aten::binomial draws random numbers" in note for note in engine.session.probe_report.notes)
