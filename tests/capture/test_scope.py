"""Where capture is on, and what an output in which examples were mixed is refused for."""

from __future__ import annotations

import copy
import gc
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from attached import Attached, B, Model, assert_same, batch, losses, wanted
from private_loops import Training
from torch import Tensor, nn

from hushgrad.capture.scope import Scope
from hushgrad.capture.uses import UsePool
from hushgrad.errors import CrossSampleLeakError, PrivacyUnitError
from hushgrad.torch_internals import EagerCode, order_modes


class Mixes(nn.Module):
    """A layer, and something done to its output."""

    def __init__(self, after: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.after = after

    def forward(self, x: Tensor) -> Any:
        return self.after(self.layer(x))


MIXING: dict[str, Callable[[Tensor], Tensor]] = {
    "the batch's mean taken off": lambda h: h - h.mean(0),
    "divided by the batch's maximum": lambda h: h / h.max(),
    "a softmax over the batch": lambda h: h.softmax(0),
    "another order": lambda h: h[torch.randperm(len(h))],
    "distances to each other": lambda h: torch.cdist(h, h)[:, :2],
}


@pytest.mark.parametrize("name", MIXING)
def test_examples_mixed_after_the_last_parameter_are_refused(name: str) -> None:
    training = Training(model=Mixes(MIXING[name]), physical=None)
    item = next(iter(training.loader))
    with pytest.raises(PrivacyUnitError, match="an output of the model"):
        training.work(item)
    assert training.session.steps == 0


def test_a_statistic_of_the_batch_beside_the_output_may_be_looked_at() -> None:
    """Only a backward through it is refused: what has no row for each example harms nobody in itself."""
    training = Training(model=Mixes(lambda h: (h, {"mean": h.mean(0)})), physical=None)
    for x, y in training.loader:
        output, others = training.model(x)
        torch.autograd.grad(others["mean"].sum(), others["mean"], retain_graph=True)
        nn.functional.mse_loss(output, y).backward()
        training.optimizer.step()
    assert training.session.steps == 3


def test_an_output_that_mixes_examples_is_refused_also_where_no_gradient_comes_back_through_it() -> None:
    """Its values may reach the loss as a target or a weight, where nobody sees it (a teacher's centred outputs)."""
    training = Training(model=Mixes(lambda h: (h, {"centred": (h - h.mean(0)).detach()})), physical=None)
    x, y = next(iter(training.loader))
    output, others = training.model(x)
    nn.functional.mse_loss(output, y + others["centred"]).backward()
    with pytest.raises(CrossSampleLeakError, match="mixes the examples"):
        training.optimizer.step()
    assert training.session.steps == 0


def test_a_model_that_returns_its_scalar_loss_is_trained() -> None:
    training = Training(model=Mixes(lambda h: h.square().sum(1).mean()), physical=None)
    for x, _ in training.loader:
        training.model(x).backward()
        training.optimizer.step()
    assert training.session.steps == 3


@pytest.mark.parametrize(
    "after",
    [
        lambda h: h.log_softmax(1),
        lambda h: nn.functional.normalize(h, dim=1),
        lambda h: h[:, :1].squeeze(1),
        lambda h: h.view(h.shape[0], 2, 1),
        lambda h: h - h.mean(1, keepdim=True),
        lambda h: h.clamp(-1, 1).topk(1).values,
        lambda h: torch.where(h > 0, h, 0.1 * h),
        lambda h: torch.stack([h, h]).sum(0).tanh().logsumexp(1),
    ],
)
def test_what_keeps_the_examples_apart_is_not_refused(after: Callable[[Tensor], Tensor]) -> None:
    training = Training(model=Mixes(after), physical=None)
    for x, _ in training.loader:
        training.model(x).reshape(x.shape[0], -1).sum(1).mean().backward()
        training.optimizer.step()
    assert training.session.steps == 3


@pytest.mark.parametrize("failure", [KeyboardInterrupt, SystemExit, ValueError])
def test_a_forward_that_is_left_by_an_exception_has_no_effect_afterwards(failure: type[BaseException]) -> None:
    stop = [True]

    def forward(m: Model, x: Tensor) -> Tensor:
        h = m.first(x)
        if stop[0]:
            raise failure
        return m.second(h)

    attached = Attached(Model(forward, first=nn.Linear(4, 4), second=nn.Linear(4, 2)).double())
    model = attached.model
    with pytest.raises(failure):
        model(batch())
    # An ordinary use of a parameter, with an ordinary gradient.
    weight = next(model.parameters())
    (weight * 2).sum().backward()
    assert torch.equal(weight.grad, torch.full_like(weight, 2))
    weight.grad = None
    other = nn.Linear(4, 4).double()
    other(batch()).sum().backward()
    assert other.weight.grad is not None
    # The next forward is captured as if nothing had been.
    stop[0] = False
    x = batch()
    losses(model(x)).sum().backward()
    assert_same(attached.sums(), wanted(model, lambda m, i: losses(m(x[i : i + 1])).sum()))
    attached.scope.detach()
    assert torch.overrides._get_current_function_mode_stack() == []


class Graphs:
    """A backend that compiles nothing and keeps what it was given: the operators of each graph."""

    def __init__(self) -> None:
        torch._dynamo.reset()
        gc.collect()
        for key, who in list(EagerCode._wanted.items()):  # loops of earlier tests that were left in an item
            EagerCode._release(key, who)
        order_modes([])
        self.made: list[list[str]] = []

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.made.append([node.name for node in graph.graph.nodes if node.op.startswith("call")])
        return graph.forward

    def taken(self) -> list[list[str]]:
        made, self.made = self.made, []
        return made


def words() -> nn.Module:
    layers = nn.Embedding(9, 4), nn.LayerNorm(4), nn.Linear(4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6, 2)
    return nn.Sequential(*layers).double()


def test_a_captured_forward_runs_as_it_is_in_a_compiled_call_and_the_code_around_it_is_compiled() -> None:
    graphs = Graphs()
    attached = Attached(words())
    model = attached.model

    def around(ids: Tensor) -> Tensor:
        return losses(model(ids) * 2)

    compiled = torch.compile(around, backend=graphs)
    for _ in range(2):
        ids = torch.randint(9, (B, 2))
        compiled(ids).sum().backward()
        assert_same(attached.sums(), wanted(model, lambda m, i: losses(m(ids[i : i + 1]) * 2).sum()))  # noqa: B023
    assert graphs.taken() == [["mul", "flatten", "sin", "sum_1"]]
    with torch.no_grad():
        compiled(ids)
    assert len(graphs.taken()) == 1  # of the whole evaluation
    attached.scope.detach()


@pytest.mark.parametrize("failure", [KeyboardInterrupt, ValueError])
def test_parts_that_are_compiled_run_as_they_are_in_a_captured_forward_and_nowhere_else(
    failure: type[BaseException],
) -> None:
    graphs = Graphs()
    frozen = torch.compile(nn.Linear(4, 4).double().requires_grad_(False), backend=graphs)
    stop = [True]

    def forward(m: Model, x: Tensor) -> Tensor:
        h = m.frozen(x).tanh()
        if stop[0]:
            raise failure
        return m.head(h)

    attached = Attached(Model(forward, frozen=frozen, head=nn.Linear(4, 2).double()))
    model, x = torch.compile(attached.model, backend=graphs), batch()
    with pytest.raises(failure):
        model(x)
    stop[0] = False
    losses(model(x)).sum().backward()
    assert_same(attached.sums(), wanted(attached.model, lambda m, i: losses(m(x[i : i + 1])).sum()))
    assert graphs.taken() == []
    frozen(x)
    assert graphs.taken() == [["linear"]]
    attached.scope.detach()


def test_an_exception_that_the_forward_handles_itself_changes_nothing() -> None:
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4))

        def forward(self, x: Tensor) -> Tensor:
            raise ValueError

    def forward(m: Model, x: Tensor) -> Tensor:
        try:
            x = m.failing(x)
        except ValueError:
            x = m.layer(x)
        return m.layer(x).tanh()

    attached = Attached(Model(forward, failing=Failing(), layer=nn.Linear(4, 4)).double())
    x = batch()
    losses(attached.model(x)).sum().backward()
    expected = wanted(attached.model, lambda m, i: losses(m(x[i : i + 1])).sum())
    found = attached.sums()
    assert_same(found, {name: value for name, value in expected.items() if name in found})
    assert set(expected) - set(found) == {"failing.weight"}
    attached.scope.detach()


def _saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), _saved], ids=["deepcopy", "pickle", "save"]
)
def test_a_copy_of_an_attached_model_is_an_ordinary_model(
    attached: Attached, copied: Callable[[nn.Module], nn.Module]
) -> None:
    ordinary = copied(attached.model)
    losses(ordinary(batch())).sum().backward()
    assert all(parameter.grad is not None for parameter in ordinary.parameters())
    assert attached.pool.backwards == 0


def test_a_saved_model_loads_without_this_library(attached: Attached) -> None:
    assert b"hushgrad" not in pickle.dumps(attached.model)


def test_detaching_gives_back_an_ordinary_model(attached: Attached) -> None:
    attached.scope.detach()
    losses(attached.model(batch())).sum().backward()
    assert all(parameter.grad is not None for parameter in attached.model.parameters())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in attached.model.modules())
    assert all(not m._forward_hooks_always_called for m in attached.model.modules())


def test_capture_puts_no_attribute_on_modules_or_parameters(model: nn.Module) -> None:
    before = [set(vars(part)) for part in (*model.modules(), *model.parameters())]
    attached = Attached(model)
    losses(model(batch())).sum().backward()
    assert [set(vars(part)) for part in (*model.modules(), *model.parameters())] == before
    attached.scope.detach()


def test_a_paused_scope_leaves_the_forward_alone(attached: Attached) -> None:
    attached.scope.paused = True
    losses(attached.model(batch())).sum().backward()
    assert all(parameter.grad is not None for parameter in attached.model.parameters())


# Pools and observers -------------------------------------------------------------------------------------------------


class Told:
    """Notes of which forwards it was told."""

    def __init__(self) -> None:
        self.entered: list[nn.Module] = []
        self.left_with: list[Any] = []

    def entering(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        self.entered.append(module)
        return len(self.entered)

    def left(self, token: int, output: Any, hangs_hooks: bool) -> None:
        self.left_with.append((token, output))


def test_an_observer_is_told_of_outermost_forwards_with_gradients_and_of_no_others(model: nn.Module) -> None:
    told = Told()
    scope = Scope(model, UsePool(), told)
    output = model(batch())
    with torch.no_grad():
        model(batch())
    part = model[0](batch())
    assert told.entered == [model, model[0]]
    assert [token for token, _ in told.left_with] == [1, 2]
    assert told.left_with[0][1] is output
    assert told.left_with[1][1] is part
    scope.detach()


def test_a_forward_that_is_left_by_an_exception_is_told_as_left_without_an_output() -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        raise ValueError

    model, told = Model(forward, layer=nn.Linear(4, 4)), Told()
    scope = Scope(model, UsePool(), told)
    with pytest.raises(ValueError):  # noqa: PT011
        model(torch.randn(B, 4))
    scope.leave_if_stale()
    assert told.left_with == [(1, None)]
    scope.detach()


def test_forwards_for_another_pool_are_recorded_there_and_told_nobody(model: nn.Module) -> None:
    told, own, other = Told(), UsePool(), UsePool()
    own.batch_size = other.batch_size = B
    scope = Scope(model, own, told)
    with scope.recording_into(other):
        losses(model(batch())).sum().backward()
    assert len(other.take()) == 4
    assert own.take() == {}
    assert told.entered == []
    losses(model(batch())).sum().backward()
    assert len(own.take()) == 4
    assert told.entered == [model]
    scope.detach()


def test_a_graph_keeps_the_pool_that_its_forward_began_with(model: nn.Module) -> None:
    first, second = UsePool(), UsePool()
    first.batch_size = second.batch_size = B
    scope = Scope(model, first)
    found = losses(model(batch())).sum()
    scope.record_into(second)
    found.backward()
    assert len(first.take()) == 4
    assert second.take() == {}
    scope.detach()
