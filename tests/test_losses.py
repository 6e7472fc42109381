"""One loss per example, from the criterion that the user already has."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import PrivacyEngine
from hushgrad.errors import InvalidArgumentError, LossShapeError, PrivacyUnitError
from hushgrad.losses import ELEMENTWISE, ELEMENTWISE_OF_MORE, PerExampleLoss

B, K, T = 5, 4, 3


def wrap(criterion: Any, reduction: str = "mean", batch: int | None = B) -> PerExampleLoss:
    return PerExampleLoss(criterion, loss_reduction=reduction, batch_size=lambda: batch)


def scores() -> Tensor:
    return torch.randn(B, K)


def classes(*shape: int) -> Tensor:
    return torch.randint(0, K, (B, *shape))


def bits() -> Tensor:
    return torch.randint(0, 2, (B, K)).float()


def log_probabilities() -> Tensor:
    return torch.randn(B, K).log_softmax(1)


CASES: dict[str, tuple[type[nn.Module], Callable[[], Tensor], Callable[[], Tensor]]] = {
    "L1": (nn.L1Loss, scores, scores),
    "MSE": (nn.MSELoss, scores, scores),
    "SmoothL1": (nn.SmoothL1Loss, scores, scores),
    "Huber": (nn.HuberLoss, scores, scores),
    "BCE": (nn.BCELoss, lambda: torch.rand(B, K), bits),
    "BCEWithLogits": (nn.BCEWithLogitsLoss, scores, bits),
    "KLDiv": (nn.KLDivLoss, log_probabilities, lambda: torch.randn(B, K).softmax(1)),
    "PoissonNLL": (nn.PoissonNLLLoss, scores, lambda: torch.randint(0, 9, (B, K)).float()),
    "SoftMargin": (nn.SoftMarginLoss, scores, lambda: 2 * bits() - 1),
    "HingeEmbedding": (nn.HingeEmbeddingLoss, scores, lambda: 2 * bits() - 1),
    "MultiLabelMargin": (nn.MultiLabelMarginLoss, scores, lambda: torch.stack([torch.randperm(K) for _ in range(B)])),
    "MultiLabelSoftMargin": (nn.MultiLabelSoftMarginLoss, scores, bits),
    "MultiMargin": (nn.MultiMarginLoss, scores, classes),
    "CrossEntropy": (nn.CrossEntropyLoss, scores, classes),
    "CrossEntropy, positions": (nn.CrossEntropyLoss, lambda: torch.randn(B, K, T), lambda: classes(T)),
    "CrossEntropy, images": (nn.CrossEntropyLoss, lambda: torch.randn(B, K, T, 2), lambda: classes(T, 2)),
    "CrossEntropy, probabilities": (nn.CrossEntropyLoss, scores, lambda: torch.randn(B, K).softmax(1)),
    "NLL": (nn.NLLLoss, log_probabilities, classes),
    "NLL, positions": (nn.NLLLoss, lambda: torch.randn(B, K, T).log_softmax(1), lambda: classes(T)),
}

TRAINABLE = ("LinearCrossEntropyLoss",)
"""Losses with parameters of their own; refused."""


def torch_losses() -> dict[type, int]:
    """Return torch's loss modules with a reduction, and how many arguments each must be given."""
    return {
        kind: sum(
            parameter.default is inspect.Parameter.empty
            for parameter in list(inspect.signature(kind.forward).parameters.values())[1:]
        )
        for name, kind in vars(nn).items()
        if isinstance(kind, type) and name.endswith("Loss") and "reduction" in inspect.signature(kind).parameters
    }


def test_every_torch_loss_of_an_output_and_a_target_is_covered() -> None:
    """A loss module that torch adds must be tried, and sorted into those that broadcast and those that do not."""
    found = {
        kind for kind, count in torch_losses().items() if count == 2 and kind.__name__ not in ("NLLLoss2d", *TRAINABLE)
    }
    by_class = {nn.MultiMarginLoss, nn.CrossEntropyLoss, nn.NLLLoss}
    assert found == {kind for kind, _, _ in CASES.values()} == {*ELEMENTWISE} | by_class


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", CASES)
def test_each_loss_is_the_criterion_of_its_example_alone(name: str, reduction: str) -> None:
    """Guarantee: the scalar it returns is the mean (or the sum) of B losses of which each belongs to one example."""
    kind, make_output, make_target = CASES[name]
    output, target = make_output(), make_target()
    criterion = kind(reduction=reduction)
    alone = torch.stack([criterion(output[i : i + 1], target[i : i + 1]) for i in range(B)])
    wrapped = wrap(criterion, reduction)
    torch.testing.assert_close(wrapped.losses(output, target), alone)
    torch.testing.assert_close(wrapped(output, target), alone.mean() if reduction == "mean" else alone.sum())


@pytest.mark.parametrize("name", CASES)
def test_the_loss_of_an_example_does_not_depend_on_the_others(name: str) -> None:
    kind, make_output, make_target = CASES[name]
    output, target = make_output(), make_target()
    other_output, other_target = make_output(), make_target()
    other_output[2], other_target[2] = output[2], target[2]
    wrapped = wrap(kind())
    assert torch.equal(wrapped.losses(output, target)[2], wrapped.losses(other_output, other_target)[2])


def test_an_unreduced_criterion_is_averaged_over_each_examples_elements() -> None:
    output, target = scores(), scores()
    expected = (output - target).square().mean(1)
    torch.testing.assert_close(wrap(nn.MSELoss(reduction="none")).losses(output, target), expected)


def test_elements_at_ignore_index_are_left_out_of_each_examples_own_average() -> None:
    output, target = torch.randn(B, K, T), classes(T)
    target[0, :2] = -100
    target[1] = -100
    target[2] = 3
    for criterion, ignored in ((nn.CrossEntropyLoss(), -100), (nn.CrossEntropyLoss(ignore_index=3), 3)):
        wanted = classes(T).clamp(max=2)
        own_target = torch.where(target == ignored, target, wanted)
        losses = wrap(criterion).losses(output, own_target)
        elements = F.cross_entropy(output, own_target, reduction="none", ignore_index=ignored)
        for i in range(B):
            kept = elements[i][own_target[i] != ignored]
            torch.testing.assert_close(losses[i], kept.mean() if kept.numel() else torch.tensor(0.0))
        assert torch.isfinite(losses).all()


def test_an_example_of_ignored_elements_only_has_loss_0_and_no_gradient() -> None:
    output = torch.randn(B, K, requires_grad=True)
    target = classes()
    target[1] = -100
    wrap(nn.CrossEntropyLoss())(output, target).backward()
    assert output.grad is not None
    assert torch.equal(output.grad[1], torch.zeros(K))
    assert torch.isfinite(output.grad).all()


def test_class_weights_are_not_renormalised_over_the_batch() -> None:
    weight = torch.tensor([0.1, 1.0, 5.0, 2.0])
    output, target = scores(), classes()
    losses = wrap(nn.CrossEntropyLoss(weight=weight)).losses(output, target)
    torch.testing.assert_close(losses, F.cross_entropy(output, target, reduction="none") * weight[target])
    changed = target.clone()
    changed[0] = (target[0] + 1) % K
    assert torch.equal(losses[1:], wrap(nn.CrossEntropyLoss(weight=weight)).losses(output, changed)[1:])
    plain = nn.CrossEntropyLoss(weight=weight)
    assert plain(output, target) != plain(output[1:], target[1:])  # torch divides by the weights of the batch


def test_label_smoothing_and_pos_weight_are_those_of_the_criterion() -> None:
    output, target = scores(), classes()
    smooth = nn.CrossEntropyLoss(label_smoothing=0.1)
    torch.testing.assert_close(wrap(smooth)(output, target), smooth(output, target))
    ratio = torch.tensor([1.0, 2.0, 3.0, 4.0])
    weighted = nn.BCEWithLogitsLoss(pos_weight=ratio)
    truth = bits()
    torch.testing.assert_close(wrap(weighted)(output, truth), weighted(output, truth))


def test_batchmean_of_kl_divergence_is_a_mean_over_examples_of_sums_over_classes() -> None:
    output, target = log_probabilities(), torch.randn(B, K).softmax(1)
    criterion = nn.KLDivLoss(reduction="batchmean")
    torch.testing.assert_close(wrap(criterion)(output, target), criterion(output, target))


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")
@pytest.mark.parametrize("name", [name for name in CASES if "positions" not in name and "images" not in name])
def test_without_weights_and_ignored_elements_the_result_is_the_ordinary_one(name: str) -> None:
    kind, make_output, make_target = CASES[name]
    output, target = make_output(), make_target()
    for reduction in ("mean", "sum"):
        criterion = kind(reduction=reduction)
        torch.testing.assert_close(wrap(criterion, reduction)(output, target), criterion(output, target))


# More arguments --------------------------------------------------------------------------------------------------


def signs() -> Tensor:
    return 2.0 * torch.randint(0, 2, (B,)) - 1


MORE: dict[str, tuple[Callable[[], nn.Module], Callable[[], list[Tensor]], int]] = {
    "TripletMargin": (nn.TripletMarginLoss, lambda: [scores(), scores(), scores()], 0),
    "TripletMarginWithDistance": (nn.TripletMarginWithDistanceLoss, lambda: [scores(), scores(), scores()], 0),
    "CosineEmbedding": (nn.CosineEmbeddingLoss, lambda: [scores(), scores(), signs()], 0),
    "MarginRanking": (nn.MarginRankingLoss, lambda: [torch.randn(B), torch.randn(B), signs()], 0),
    "GaussianNLL": (nn.GaussianNLLLoss, lambda: [scores(), scores(), 0.1 + torch.rand(B, K)], 0),
    "GaussianNLL, one variance": (nn.GaussianNLLLoss, lambda: [scores(), scores(), 0.1 + torch.rand(B, 1)], 0),
    "CTC": (
        nn.CTCLoss,
        lambda: [
            torch.randn(2 * T, B, K).log_softmax(2),
            torch.randint(1, K, (B, T)),
            torch.randint(5, 2 * T + 1, (B,)),
            torch.randint(1, T, (B,)),
        ],
        1,
    ),
}
"""Losses of more than an output and a target, what they take, and the axis of the batch in the first of these."""


def test_every_torch_loss_of_more_arguments_is_covered() -> None:
    found = {kind for kind, count in torch_losses().items() if count > 2}
    assert found == {kind for kind, _, _ in MORE.values()}
    assert found > {*ELEMENTWISE_OF_MORE}


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", MORE)
def test_each_loss_of_more_arguments_is_the_criterion_of_its_example_alone(name: str, reduction: str) -> None:
    kind, make, axis = MORE[name]
    criterion, given = kind(reduction=reduction), make()  # type: ignore[call-arg]
    alone = torch.stack(
        [
            criterion(given[0].narrow(axis, i, 1), *[part[i : i + 1] for part in given[1:]])  # as torch reduces it
            for i in range(B)
        ]
    )
    wrapped = wrap(criterion, reduction)
    torch.testing.assert_close(wrapped.losses(*given), alone)
    torch.testing.assert_close(wrapped(*given), criterion(*given))


def test_arguments_may_come_by_name_in_any_order() -> None:
    output, target, variance = scores(), scores(), 0.1 + torch.rand(B, 1)
    criterion = nn.GaussianNLLLoss()
    assert wrap(criterion)(var=variance, target=target, input=output) == wrap(criterion)(output, target, variance)
    assert wrap(nn.MSELoss())(output, target=target) == wrap(nn.MSELoss())(output, target)
    with pytest.raises(LossShapeError, match="broadcast"):
        wrap(nn.MSELoss())(target=target[:, :1], input=output)
    ignored = classes()
    ignored[0] = 3
    named = wrap(nn.CrossEntropyLoss(ignore_index=3)).losses(target=ignored, input=output)
    assert torch.equal(named, wrap(nn.CrossEntropyLoss(ignore_index=3)).losses(output, ignored))


def test_a_function_takes_any_arguments() -> None:
    output, other, weight = scores(), scores(), torch.rand(B)
    assert wrap(lambda out: out.square().mean(1))(output) == output.square().mean(1).mean()

    def weighed(out: Tensor, other: Tensor, *, weight: Tensor, power: int) -> Tensor:
        return weight * (out - other).abs().pow(power).sum(1)

    found = wrap(weighed)(output, other, weight=weight, power=3)
    torch.testing.assert_close(found, weighed(output, other, weight=weight, power=3).mean())


@pytest.mark.parametrize("kind", ELEMENTWISE_OF_MORE)
def test_shapes_that_losses_of_more_arguments_would_broadcast_are_refused(kind: type[nn.Module]) -> None:
    with pytest.raises(LossShapeError, match="same shape"):
        wrap(kind())(torch.rand(B, 1), torch.rand(B), torch.ones(B))


MIXING_MORE: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "the third centred over the batch": lambda a, b, c: (a - b).square().sum(1) + (c - c.mean(0)).square().sum(1),
    "weighed by another's second": lambda a, b, c: (a - c).square().sum(1) * b.roll(1, 0).sum(1),
    "the hardest negative of the batch": lambda a, b, c: (a - b).norm(dim=1) - torch.cdist(a, c).amin(1),
}


@pytest.mark.parametrize("name", MIXING_MORE)
def test_a_function_that_mixes_examples_by_any_argument_is_refused_by_its_graph(name: str) -> None:
    with pytest.raises(LossShapeError, match="mixes examples"):
        wrap(MIXING_MORE[name])(*[scores().requires_grad_() for _ in range(3)])


# Functions ---------------------------------------------------------------------------------------------------------


def test_a_function_of_shape_b_is_taken_as_it_is() -> None:
    output, target = scores(), scores()

    def distance(output: Tensor, target: Tensor) -> Tensor:
        return (output - target).norm(dim=1)

    torch.testing.assert_close(wrap(distance)(output, target), distance(output, target).mean())
    torch.testing.assert_close(wrap(distance, "sum")(output, target), distance(output, target).sum())


def test_a_module_without_reduction_is_a_function() -> None:
    class Own(nn.Module):
        def forward(self, output: dict[str, Tensor], target: Tensor) -> Tensor:
            return (output["scores"] - target).abs().sum(1)

    output, target = {"scores": scores()}, scores()
    torch.testing.assert_close(wrap(Own()).losses(output, target), (output["scores"] - target).abs().sum(1))


# Refused -----------------------------------------------------------------------------------------------------------


def test_outputs_with_time_folded_into_the_batch_are_refused() -> None:
    flat, target = torch.randn(B * T, K), torch.randint(0, K, (B * T,))
    with pytest.raises(PrivacyUnitError, match=rf"{B * T} rows for {B} examples.*\[B, classes, T\]"):
        wrap(nn.CrossEntropyLoss())(flat, target)


def test_without_gradients_any_number_of_rows_is_evaluated() -> None:
    with torch.no_grad():
        assert wrap(nn.CrossEntropyLoss())(torch.randn(B * T, K), torch.randint(0, K, (B * T,))).ndim == 0


@pytest.mark.parametrize(
    "criterion",
    [
        lambda output, target: (output - target).square().mean(),
        lambda output, target: (output - target).square().mean(0),
        lambda output, target: (output - target).square(),
        lambda output, target: (output - target).square().mean(1, keepdim=True),
        lambda output, target: (output - target).square().mean(1)[1:],
        lambda output, target: 0.0,
    ],
    ids=["a scalar", "one per class", "[B, K]", "[B, 1]", "[B-1]", "a float"],
)
def test_a_function_that_does_not_give_one_loss_per_example_is_refused(criterion: Any) -> None:
    with pytest.raises(LossShapeError):
        wrap(criterion)(scores(), scores())


@pytest.mark.parametrize("kind", ELEMENTWISE)
@pytest.mark.parametrize(
    ("output", "target"),
    [
        ((B, 1), (B,)),
        ((B,), (B, 1)),
        ((B, B), (B,)),
        ((B,), (B, B)),
        ((B, K), (B, 1)),
        ((B, K), (1, K)),
        ((B, K), (K,)),
        ((B, K), ()),
    ],
)
def test_shapes_that_torch_would_broadcast_are_refused(
    kind: type[nn.Module], output: tuple[int, ...], target: tuple[int, ...]
) -> None:
    """[B, B] against [B] is the worst: the loss has the right shape and holds all targets."""
    with pytest.raises(LossShapeError):
        wrap(kind())(torch.rand(output), torch.ones(target))


def test_a_criterion_with_trainable_parameters_is_refused() -> None:
    own = [vars(nn)[name](8, K) for name in TRAINABLE if name in vars(nn)]
    for criterion in (nn.Linear(2, 1), nn.AdaptiveLogSoftmaxWithLoss(8, 6, [2]), *own):
        with pytest.raises(InvalidArgumentError, match="part of the model"):
            wrap(criterion)


def test_a_criterion_that_sums_is_refused_where_a_mean_is_expected() -> None:
    with pytest.raises(InvalidArgumentError, match='loss_reduction="sum"'):
        wrap(nn.CrossEntropyLoss(reduction="sum"))
    wrap(nn.CrossEntropyLoss(reduction="sum"), "sum")


@pytest.mark.parametrize("criterion", ["mse", None, 3, nn.MSELoss])
def test_what_is_no_criterion_is_refused(criterion: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="criterion must be"):
        wrap(criterion)


def test_an_unknown_reduction_is_refused() -> None:
    criterion = nn.MSELoss()
    criterion.reduction = "median"
    with pytest.raises(InvalidArgumentError, match="median"):
        wrap(criterion)
    with pytest.raises(InvalidArgumentError, match="loss_reduction"):
        wrap(nn.MSELoss(), "none")


def test_a_scalar_output_is_refused() -> None:
    with pytest.raises(PrivacyUnitError, match="no dimensions"):
        wrap(nn.MSELoss())(torch.zeros(()), torch.zeros(()))


PAIRS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "similarities within the batch": lambda o, t: F.cross_entropy(o @ o.t(), torch.arange(B), reduction="none"),
    "distance from the batch's mean": lambda o, t: (o - o.mean(0)).square().sum(1),
    "weights from the batch": lambda o, t: (o - t).square().mean(1) * (o.abs().sum(1) / o.abs().sum()),
    "the batch's mean, repeated": lambda o, t: (o - t).square().mean().expand(B),
    "the next one's output": lambda o, t: (o - o.roll(1, 0)).square().sum(1),
    "a flat batch": lambda o, t: (o.t().reshape(B, K) - t).square().sum(1),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_function_whose_loss_of_one_example_depends_on_anothers_output_is_refused(name: str) -> None:
    """Guarantee: the scalar it returns is the mean (or the sum) of B losses of which each belongs to one example."""
    for output in (scores(), scores().double()):
        with pytest.raises(LossShapeError, match="mixes examples"):
            wrap(PAIRS[name])(output.requires_grad_(), scores().to(output.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_function_of_each_examples_own_output_is_taken_at_any_scale(dtype: torch.dtype) -> None:
    for scale in (1e-10, 1.0, 1e10):
        for function in (
            lambda o, t: (o - t).norm(dim=1),
            lambda o, t: F.cross_entropy(o, t.argmax(1), reduction="none"),
            lambda o, t: F.dropout((o * t).tanh(), 0.5).sum(1),
            lambda o, t: torch.where(o > t, o, torch.zeros_like(o)).sum(1),
        ):
            output = (scale * scores()).to(dtype).requires_grad_()
            wrap(function)(output, scores().to(dtype)).backward()
            assert output.grad is not None


def test_looking_for_mixed_examples_changes_no_gradient_and_calls_the_function_once() -> None:
    output, target = scores().requires_grad_(), scores()
    calls = []

    def function(o: Tensor, t: Tensor) -> Tensor:
        calls.append(1)
        return (o - t).square().mean(1)

    wrap(function)(output, target).backward()
    assert len(calls) == 1
    torch.testing.assert_close(output.grad, 2 * (output - target).detach() / (K * B))


# The user's own object ---------------------------------------------------------------------------------------------


def test_the_users_criterion_is_never_modified_and_its_buffers_stay_shared() -> None:
    criterion = nn.CrossEntropyLoss(weight=torch.ones(K), reduction="mean")
    before = copy.deepcopy(vars(criterion))
    wrapped = wrap(criterion)
    wrapped(scores(), classes())
    assert vars(criterion).keys() == before.keys()
    assert criterion.reduction == "mean"
    wrapped.to(torch.float64)
    assert torch.isfinite(wrapped(scores().double(), classes()))


def test_in_a_loop_the_criterion_knows_the_number_of_records_of_the_item() -> None:
    model = nn.Linear(3, 2)
    engine = PrivacyEngine()
    model, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=DataLoader(TensorDataset(torch.randn(12, 3), torch.randint(0, 2, (12,))), batch_size=4),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
    )
    criterion = engine.per_example(nn.CrossEntropyLoss())
    for x, y in loader:
        with pytest.raises(PrivacyUnitError, match="8 rows for 4 examples"):
            criterion(model(torch.cat([x, x])), torch.cat([y, y]))
        criterion(model(x), y).backward()
        optimizer.step()
    with torch.no_grad():
        assert torch.isfinite(criterion(model(torch.randn(7, 3)), torch.zeros(7, dtype=torch.long)))


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
def test_losses_that_are_no_real_numbers_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(LossShapeError, match=rf"must return real numbers with a gradient, got {dtype}"):
        wrap(lambda out: out[:, 0].to(dtype))(scores())
