"""What capture does to an ordinary program: nothing but keep parameter gradients away, and record them per example."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from attached import Attached, B, Model, assert_same, batch, losses, wanted
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Ordinary gradients --------------------------------------------------------------------------------------------------


def test_no_parameter_receives_an_ordinary_gradient(attached: Attached) -> None:
    losses(attached.model(batch())).sum().backward()
    assert all(parameter.grad is None for parameter in attached.model.parameters())
    assert attached.pool.backwards == 1


def test_a_first_layer_forms_no_input_gradient(attached: Attached, monkeypatch: pytest.MonkeyPatch) -> None:
    from hushgrad.capture.operators.linear import Linear

    needed = []
    original = Linear.input_gradients

    def seen(self: Linear, saved: Any, gradient: Tensor, wanted: Any) -> Any:
        needed.append(bool(wanted[0]))
        return original(self, saved, gradient, wanted)

    monkeypatch.setattr(Linear, "input_gradients", seen)
    losses(attached.model(batch())).sum().backward()
    assert needed == [True, False]


def test_an_input_that_wants_its_gradient_gets_the_ordinary_one(attached: Attached) -> None:
    x = batch().requires_grad_()
    losses(attached.model(x)).sum().backward()
    again = x.detach().clone().requires_grad_()
    losses(copy.deepcopy(attached.model)(again)).sum().backward()
    torch.testing.assert_close(x.grad, again.grad)


def test_a_gradient_with_respect_to_inputs_is_an_ordinary_call_and_records_nothing(attached: Attached) -> None:
    x = batch().requires_grad_()
    (found,) = torch.autograd.grad(losses(attached.model(x)).sum(), x)
    (ordinary,) = torch.autograd.grad(losses(copy.deepcopy(attached.model)(x)).sum(), x)
    torch.testing.assert_close(found, ordinary)
    assert attached.pool.backwards == 0
    assert attached.pool.take() == {}


def test_a_gradient_with_respect_to_parameters_is_refused_by_torch(attached: Attached) -> None:
    with pytest.raises(RuntimeError, match="not have been used in the graph"):
        torch.autograd.grad(losses(attached.model(batch())).sum(), list(attached.model.parameters()))


@pytest.mark.parametrize("loss", [lambda out: out.sum(), lambda out: out.square().sum()], ids=["linear", "square"])
@pytest.mark.parametrize("layer", [nn.Linear(4, 3), nn.LayerNorm(4), nn.Bilinear(4, 4, 2)], ids=repr)
def test_a_gradient_penalty_raises_and_is_never_dropped(layer: nn.Module, loss: Callable[[Tensor], Tensor]) -> None:
    attached = Attached(
        Model(lambda m, x: m.layer(x, x) if isinstance(m.layer, nn.Bilinear) else m.layer(x), layer=layer)
    )
    x = torch.randn(B, 4, requires_grad=True)
    out = attached.model(x)
    (gradient,) = torch.autograd.grad(loss(out), x, create_graph=True)
    with pytest.raises(RuntimeError, match="DP305"):
        (loss(out) + gradient.square().sum()).backward()
    attached.scope.detach()


# Several backwards ---------------------------------------------------------------------------------------------------


def test_two_backwards_add_up_per_example_before_clipping(attached: Attached) -> None:
    x = batch()
    out = attached.model(x)
    losses(out).sum().backward(retain_graph=True)
    out.square().sum().backward()
    assert_same(
        attached.sums(),
        wanted(attached.model, lambda m, i: losses(m(x[i : i + 1])).sum(), lambda m, i: m(x[i : i + 1]).square().sum()),
    )


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_forwards_may_run_backward_in_either_order(attached: Attached, order: tuple[int, int]) -> None:
    x = [batch(), batch()]
    found = [losses(attached.model(part)).sum() for part in x]
    for place in order:
        found[place].backward()
    assert_same(
        attached.sums(),
        wanted(attached.model, *[lambda m, i, part=part: losses(m(part[i : i + 1])).sum() for part in x]),
    )


def test_a_forward_without_gradients_in_between_changes_nothing(attached: Attached) -> None:
    x = batch()
    out = attached.model(x)
    attached.model.eval()
    with torch.no_grad():
        shown = attached.model(torch.randn(9, 4, dtype=torch.float64))
    assert not shown.requires_grad
    attached.model(torch.randn(2, 4, dtype=torch.float64))  # with gradients, never run backward
    attached.model.train()
    losses(out).sum().backward()
    assert_same(attached.sums(), wanted(attached.model, lambda m, i: losses(m(x[i : i + 1])).sum()))


def test_an_aborted_backward_leaves_nothing_recorded(attached: Attached) -> None:
    x = batch().requires_grad_()

    def fail(gradient: Tensor) -> None:
        raise ValueError("a hook of the user")

    x.register_hook(fail)
    with pytest.raises(ValueError, match="a hook of the user"):
        losses(attached.model(x)).sum().backward()
    assert attached.pool.backwards == 0
    assert attached.pool.take() == {}
    y = batch()
    losses(attached.model(y)).sum().backward()
    assert_same(attached.sums(), wanted(attached.model, lambda m, i: losses(m(y[i : i + 1])).sum()))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize(
    "block",
    [
        nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)),
        nn.Sequential(nn.PReLU(4), nn.LayerNorm(4)),
        nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Tanh()),
        nn.Bilinear(4, 4, 4),
    ],
    ids=["linear", "prelu and norm", "weight norm", "bilinear"],
)
def test_checkpointing_that_recomputes_a_block_gives_the_same_sums(block: nn.Module) -> None:
    block = copy.deepcopy(block).double()

    def forward(m: Model, x: Tensor) -> Tensor:
        inner = (lambda h: m.block(h, h)) if isinstance(m.block, nn.Bilinear) else m.block
        return m.head(checkpoint(inner, m.stem(x), use_reentrant=False))

    attached = Attached(Model(forward, stem=nn.Linear(4, 4), block=block, head=nn.Linear(4, 2)).double())
    x = batch()
    losses(attached.model(x)).sum().backward()
    assert_same(attached.sums(), wanted(attached.model, lambda m, i: losses(m(x[i : i + 1])).sum()))
    attached.scope.detach()


def test_reentrant_checkpointing_of_the_whole_model_gives_the_same_sums(attached: Attached) -> None:
    x = batch().requires_grad_()
    losses(checkpoint(attached.model, x, use_reentrant=True)).sum().backward()
    y = x.detach()
    assert_same(attached.sums(), wanted(attached.model, lambda m, i: losses(m(y[i : i + 1])).sum()))


def test_reentrant_checkpointing_inside_the_model_gives_the_same_sums() -> None:
    recompute = [True]

    def forward(m: Model, x: Tensor) -> Tensor:
        h = m.stem(x)
        return m.head((checkpoint(m.block, h, use_reentrant=True) if recompute[0] else m.block(h)).tanh())

    attached = Attached(Model(forward, stem=nn.Linear(4, 4), block=nn.Linear(4, 4), head=nn.Linear(4, 2)).double())
    x = batch()
    losses(attached.model(x)).sum().backward()
    recompute[0] = False
    assert_same(attached.sums(), wanted(attached.model, lambda m, i: losses(m(x[i : i + 1])).sum()))
    attached.scope.detach()


# Interruptions and ordinary models -----------------------------------------------------------------------------------


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


def test_a_parameter_used_outside_the_forward_gets_an_ordinary_gradient(attached: Attached) -> None:
    weight = next(attached.model.parameters())
    (losses(attached.model(batch())).sum() + weight.square().sum()).backward()
    assert weight.grad is not None
