"""What capture does to an ordinary program: nothing but keep parameter gradients away, and record them per example."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hushgrad.capture.scope import Scope
from hushgrad.capture.uses import UsePool
from hushgrad.clipping import FlatClipping
from hushgrad.errors import (
    CrossSampleLeakError,
    HushgradError,
    PrivacyUnitError,
    PrivateBufferError,
    SparseGradientError,
    UncoveredParameterUseError,
    UnsupportedModelError,
)
from hushgrad.gradients.clipped_sum import clipped_sums
from hushgrad.gradients.oracle import clipped_sum_of, one_at_a_time

B = 5
C = 0.7


class Attached:
    """A model with capture on it, and what was recorded."""

    def __init__(self, model: nn.Module, batch_size: int | None = B) -> None:
        self.model, self.pool = model, UsePool()
        self.pool.batch_size = batch_size
        self.scope = Scope(model, self.pool)

    def sums(self) -> dict[str, Tensor]:
        return clipped_sums(self.pool.take(), factors=FlatClipping(C).factors)


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


@pytest.fixture
def attached(model: nn.Module) -> Iterator[Attached]:
    found = Attached(model)
    yield found
    found.scope.detach()


def batch() -> Tensor:
    return torch.randn(B, 4, dtype=torch.float64)


def losses(out: Tensor) -> Tensor:
    return out.flatten(1).sin().sum(1)


def wanted(model: nn.Module, *losses_of_row: Callable[[nn.Module, int], Tensor]) -> dict[str, Tensor]:
    """The clipped sums of Σ over the given losses, one example at a time, on an ordinary copy of the model."""
    alone = copy.deepcopy(model)
    runs = [lambda i=i: torch.stack([loss(alone, i) for loss in losses_of_row]).sum() for i in range(B)]
    return clipped_sum_of(one_at_a_time(alone, runs), C)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-12)


class Model(nn.Module):
    """A model whose forward is given."""

    def __init__(self, forward: Callable[..., Tensor], **children: Any) -> None:
        super().__init__()
        self.run = forward
        for name, child in children.items():
            setattr(self, name, child)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.run(self, *inputs)


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
@pytest.mark.parametrize("layer", [nn.Linear(4, 3), nn.PReLU(4), nn.LayerNorm(4), nn.Bilinear(4, 4, 2)], ids=repr)
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


# Programs that are refused -------------------------------------------------------------------------------------------


def refused(
    error: type[HushgradError], match: str, forward: Callable[..., Tensor], *inputs: Tensor, **children: Any
) -> None:
    """Check that a model is refused by the end of its backward, and that nothing is recorded."""
    attached = Attached(Model(forward, **children))
    try:
        with pytest.raises(error, match=match):
            losses(attached.model(*inputs)).sum().backward()
    finally:
        attached.scope.detach()
    assert attached.pool.take() == {}
    assert all(parameter.grad is None for parameter in attached.model.parameters())


X = torch.randn(B, 4)
P = nn.Parameter(torch.randn(4))


def test_a_weight_penalty_inside_the_forward_is_refused() -> None:
    refused(UncoveredParameterUseError, "weight_decay", lambda m, x: m.p.square().sum().expand(B, 1), X, p=P)


def test_a_penalty_that_joins_the_loss_outside_the_forward_is_refused() -> None:
    kept = []

    def forward(m: Model, x: Tensor) -> Tensor:
        kept.append(m.layer.weight.square().sum())
        return m.layer(x)

    attached = Attached(Model(forward, layer=nn.Linear(4, 2)))
    with pytest.raises(UncoveredParameterUseError, match="weight_decay"):
        (losses(attached.model(X)).sum() + kept[0]).backward()
    assert attached.pool.take() == {}


def _filled(x: Tensor, value: Tensor) -> Tensor:
    buffer = torch.zeros_like(x)
    buffer.copy_(value)
    return x + buffer


def _constant_filled(x: Tensor, value: Tensor) -> Tensor:
    buffer = torch.zeros(4)
    buffer[:] = value
    return x + buffer


def _written_out(x: Tensor, value: Tensor) -> Tensor:
    buffer = torch.empty(4)
    torch.mul(value, 2, out=buffer)
    return x + buffer


def _through_data(x: Tensor, value: Tensor) -> Tensor:
    buffer = x.clone()
    buffer.index_copy_(1, torch.arange(4), value.expand_as(x))
    return buffer


@pytest.mark.parametrize(
    "use",
    [
        lambda x, p: x + p.mul_(2),
        lambda x, p: x + p.__iadd__(1),
        lambda x, p: x * p.fill_(1.0),
        lambda x, p: x + (p * 1).add_(x[0]),
        lambda x, p: p.__setitem__(0, 1.0) or x * p,
        _constant_filled,
        _written_out,
        _through_data,
    ],
)
def test_a_parameter_changed_or_written_in_place_is_refused(use: Callable[[Tensor, Tensor], Tensor]) -> None:
    refused(UncoveredParameterUseError, "in place|writes", lambda m, x: use(x, m.p), X, p=P)


def test_a_buffer_filled_with_a_parameter_beside_data_is_exact() -> None:
    attached = Attached(Model(lambda m, x: _filled(x, m.p).tanh(), p=nn.Parameter(torch.randn(4))).double())
    x = batch()
    losses(attached.model(x)).sum().backward()
    assert_same(attached.sums(), wanted(attached.model, lambda m, i: losses(m(x[i : i + 1])).sum()))
    attached.scope.detach()


class Square(torch.autograd.Function):
    """A custom function, which no mode can see."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


def test_a_custom_autograd_function_is_followed_through_the_operators_in_it() -> None:
    model = Model(lambda m, x: x + m.b(Square.apply(m.a(x))), a=nn.Linear(4, 4), b=nn.Linear(4, 4)).double()
    attached = Attached(model)
    x = batch()
    losses(model(x)).sum().backward()
    assert_same(attached.sums(), wanted(model, lambda m, i: losses(m(x[i : i + 1])).sum()))
    attached.scope.detach()


class Hidden(torch.autograd.Function):
    """A custom function that computes outside torch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.tensor(x.tolist())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class OwnLinear(torch.autograd.Function):
    """A custom function with a weight gradient of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x @ weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        (x,) = ctx.saved_tensors
        return None, x.T @ gradient


def test_data_that_was_computed_out_of_sight_is_refused_rather_than_taken_for_a_constant() -> None:
    layers = {"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)}
    match = "custom autograd function"
    refused(PrivacyUnitError, match, lambda m, x: m.b(Hidden.apply(m.a(x))), X, **layers)
    refused(PrivacyUnitError, match, lambda m, x: x + m.b(Hidden.apply(m.a(x))), X, **layers)
    refused(PrivacyUnitError, match, lambda m, x: Hidden.apply(m.a(x)) * m.p, X, a=layers["a"], p=P)
    refused(UncoveredParameterUseError, "meeting the batch", lambda m, x: m.a(Hidden.apply(x)), X, a=nn.Linear(4, 4))


def test_a_custom_function_that_forms_a_weight_gradient_leaves_it_in_grad_for_all_to_see() -> None:
    attached = Attached(Model(lambda m, x: OwnLinear.apply(x, m.w), w=nn.Parameter(torch.randn(4, 3))))
    losses(attached.model(X)).sum().backward()
    assert attached.model.get_parameter("w").grad is not None
    attached.scope.detach()


def test_a_tensor_kept_from_an_earlier_forward_is_refused() -> None:
    kept: list[Tensor] = []

    def forward(m: Model, x: Tensor) -> Tensor:
        kept.append(m.a(x))
        return m.b(kept[0])

    attached = Attached(Model(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 4)))
    losses(attached.model(X)).sum().backward()
    attached.pool.clear()
    with pytest.raises(PrivacyUnitError, match="outside this forward"):
        losses(attached.model(X)).sum().backward()
    attached.scope.detach()


LAYERS: dict[str, tuple[type[HushgradError], nn.Module, Tensor]] = {
    "batch norm": (CrossSampleLeakError, nn.BatchNorm1d(4), X),
    "batch norm without affine": (CrossSampleLeakError, nn.BatchNorm1d(4, affine=False), X),
    "instance norm": (PrivateBufferError, nn.InstanceNorm1d(3, track_running_stats=True), torch.randn(B, 3, 4)),
    "max_norm": (UnsupportedModelError, nn.Embedding(9, 4, max_norm=1.0), torch.arange(B)),
    "scale_grad_by_freq": (CrossSampleLeakError, nn.Embedding(9, 4, scale_grad_by_freq=True), torch.arange(B)),
    "sparse": (SparseGradientError, nn.Embedding(9, 4, sparse=True), torch.arange(B)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_that_mixes_examples_or_shows_them_is_refused(name: str) -> None:
    error, layer, x = LAYERS[name]
    head = nn.Parameter(torch.ones(()))
    refused(error, error.code, lambda m, x: m.layer(x) * m.head, x, layer=layer, head=head)


MIXING: dict[str, Callable[[Model, Tensor], Tensor]] = {
    "mean over the batch": lambda m, x: m.layer(x - x.mean(0)),
    "softmax over the batch": lambda m, x: m.layer(x.softmax(0)),
    "flipped and back": lambda m, x: m.layer(m.layer(x).flip(0)).flip(0),
    "permuted": lambda m, x: m.layer(m.layer(x)[torch.randperm(B)]),
    "rolled": lambda m, x: m.layer(x.roll(1, 0)),
    "attention across the batch": lambda m, x: m.layer(x @ x.T @ x),
    "rows that are not the batch": lambda m, x: m.layer(x.reshape(2, -1)[:, :4]),
    "one row": lambda m, x: m.layer(x.sum(0, keepdim=True)).expand(B, -1),
    "transposed to the wrong place": lambda m, x: m.layer(F.pad(x, (0, 1)).T[:4].T[:, :4].reshape(-1).view(4, B).T),
    "sorted over the batch": lambda m, x: m.layer(x.sort(0).values),
    "doubled rows": lambda m, x: m.layer(torch.cat([x, x])).view(2, B, 4).sum(0),
    "pairs": lambda m, x: m.layer(x[:, None] - x[None]).sum(1),
}


@pytest.mark.parametrize("name", MIXING)
def test_a_parameter_used_where_examples_cannot_be_told_apart_is_refused(name: str) -> None:
    refused(PrivacyUnitError, "told apart|rows", MIXING[name], torch.randn(B, 4), layer=nn.Linear(4, 4))


@pytest.mark.parametrize("steps", [3, B])
def test_time_and_batch_may_change_places_also_where_they_are_equally_many(steps: int) -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        h = m.a(x.transpose(0, 1)) + m.places[:, None]
        h = m.norm(h).tanh().permute(1, 2, 0)
        return m.b(h.movedim(2, 0)).sum(0)

    model = Model(
        forward, a=nn.Linear(4, 4), norm=nn.LayerNorm(4), b=nn.Linear(4, 3), places=nn.Parameter(torch.randn(steps, 4))
    ).double()
    attached = Attached(model)
    x = torch.randn(B, steps, 4, dtype=torch.float64)
    losses(model(x)).sum().backward()
    assert_same(attached.sums(), wanted(model, lambda m, i: losses(m(x[i : i + 1])).sum()))
    attached.scope.detach()


def test_a_model_given_another_number_of_rows_than_records_is_refused(attached: Attached) -> None:
    for rows in (2 * B, B - 1, 1):
        with pytest.raises(PrivacyUnitError, match=f"saw {rows} rows for {B} records"):
            losses(attached.model(torch.randn(rows, 4, dtype=torch.float64))).sum().backward()
    assert attached.pool.take() == {}


def test_a_backward_whose_number_of_examples_nobody_declared_is_refused(model: nn.Module) -> None:
    attached = Attached(model, batch_size=None)
    with pytest.raises(PrivacyUnitError, match="outside"):
        losses(model(batch())).sum().backward()
    attached.scope.detach()


def test_a_broken_example_in_the_fallback_by_masks_reaches_no_other_example() -> None:
    """A recurrent layer with dropout cannot be run on slices; NaN in one example must stay there."""
    torch.manual_seed(3)
    model = Model(
        lambda m, x: m.head(m.layer(x)[0]), layer=nn.LSTM(4, 3, 2, batch_first=True, dropout=0.4), head=nn.Linear(3, 2)
    )
    attached = Attached(model)
    x = torch.randn(B, 6, 4)
    sums = []
    for value in (1.0, torch.nan):
        x[2, 3, 1] = value
        torch.manual_seed(4)  # the same dropout
        out = losses(model(x))
        keep = torch.ones(B)
        keep[2] = 0.0 if value == 1.0 else 1.0
        (out * keep).sum().backward()
        sums.append(attached.sums())
    assert_close_float32(*sums)
    assert any(value.abs().max() > 0 for value in sums[0].values())
    attached.scope.detach()


def assert_close_float32(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-5, atol=1e-6)
