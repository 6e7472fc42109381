"""What make_private_ready changes, what it keeps, and what it refuses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hushgrad
from hushgrad.checks.doctor.readiness import Edit
from hushgrad.errors import InvalidArgumentError, ProtocolError, UnsupportedModelError
from hushgrad.guards.compatibility import require_trainable_privately

Uninitialized = (nn.UninitializedParameter, nn.UninitializedBuffer)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    )


def snapshot(model: nn.Module) -> tuple[Any, ...]:
    """What a model is: its modules with their settings, and its values."""
    described = [(name, repr(part), id(part), part.training) for name, part in model.named_modules()]
    values = [
        (name, id(value), torch.empty(0) if isinstance(value, Uninitialized) else value.detach().clone())
        for name, value in model.state_dict(keep_vars=True).items()
    ]
    return described, values


def same(one: tuple[Any, ...], two: tuple[Any, ...]) -> bool:
    return (
        one[0] == two[0]
        and len(one[1]) == len(two[1])
        and all(a[:2] == b[:2] and torch.equal(a[2], b[2]) for a, b in zip(one[1], two[1], strict=True))
    )


REFUSED_BEFORE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "BatchNorm2d": (network, "GroupNorm"),
    "BatchNorm3d": (lambda: nn.Sequential(nn.Conv3d(1, 8, 1), nn.BatchNorm3d(8)), "GroupNorm"),
    "BatchNorm1d": (lambda: nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6)), "GroupNorm(1, 6)"),
    "SyncBatchNorm": (lambda: nn.Sequential(nn.Conv2d(1, 8, 1), nn.SyncBatchNorm(8)), "GroupNorm"),
    "BatchNorm without scale": (
        lambda: nn.Sequential(nn.Conv2d(1, 8, 1), nn.BatchNorm2d(8, affine=False)),
        "GroupNorm",
    ),
    "BatchNorm without statistics, in eval": (
        lambda: nn.Sequential(nn.Conv2d(1, 8, 1), nn.BatchNorm2d(8, track_running_stats=False).eval()),
        "GroupNorm",
    ),
    "InstanceNorm": (
        lambda: nn.Sequential(nn.Conv2d(1, 8, 1), nn.InstanceNorm2d(8, track_running_stats=True)),
        "track_running_stats=False",
    ),
    "sparse": (lambda: nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Linear(3, 2)), "sparse=False"),
    "sparse bag": (lambda: nn.Sequential(nn.EmbeddingBag(5, 3, sparse=True), nn.Linear(3, 2)), "sparse=False"),
}


@pytest.mark.parametrize("name", REFUSED_BEFORE)
def test_what_is_refused_before_is_accepted_afterwards(name: str) -> None:
    make, after = REFUSED_BEFORE[name]
    model = make()
    with pytest.raises(hushgrad.errors.HushgradError):
        require_trainable_privately(model, sgd(model))
    (edit,) = hushgrad.make_private_ready(model)
    assert after in edit.after
    require_trainable_privately(model, sgd(model))
    assert hushgrad.make_private_ready(model) == []


@pytest.mark.parametrize("flag", ["max_norm", "scale_grad_by_freq"])
def test_flags_by_which_records_change_each_others_rows_are_taken_off(flag: str) -> None:
    model = nn.Sequential(nn.Embedding(5, 3, **{flag: 1.0 if flag == "max_norm" else True}))
    (edit,) = hushgrad.make_private_ready(model)
    assert not getattr(model[0], flag)
    assert edit.places == ("0",)
    assert flag in edit.before


def test_an_optimizer_made_before_trains_the_changed_model() -> None:
    """Guarantee: an optimizer that was made before stays valid, since parameters are the same objects as before."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    before = list(model.parameters())
    hushgrad.make_private_ready(model)
    assert all(a is b for a, b in zip(before, model.parameters(), strict=True))
    assert list(dict(model.named_parameters())) == ["0.weight", "0.bias", "1.weight", "1.bias", "5.weight", "5.bias"]
    values = [parameter.detach().clone() for parameter in before]
    mechanism = hushgrad.DPSGD(
        noise_multiplier=1.0,
        clipping=hushgrad.FlatClipping(1.0),
        sampling=hushgrad.PoissonSampling(rate=0.5),
        expected_batch_size=4,
    )
    session = hushgrad.privatize(model, optimizer, mechanism)
    session.backward(F.cross_entropy(model(torch.randn(4, 3, 6, 6)), torch.tensor([0, 1, 1, 0]), reduction="none"))
    optimizer.step()
    session.close()
    assert all(not torch.equal(a, b) for a, b in zip(values, model.parameters(), strict=True))


def test_scale_and_shift_keep_their_values_and_whether_they_are_trained() -> None:
    model = network()
    with torch.no_grad():
        model[1].weight.copy_(torch.arange(8.0))
    model[1].bias.requires_grad_(False)
    model[1].eps = 0.01
    model.eval()
    hushgrad.make_private_ready(model)
    norm = model[1]
    assert isinstance(norm, nn.GroupNorm)
    assert torch.equal(norm.weight, torch.arange(8.0))
    assert (norm.weight.requires_grad, norm.bias.requires_grad, norm.eps, norm.training) == (True, False, 0.01, False)


@pytest.mark.parametrize(
    ("channels", "groups"),
    [(512, 32), (256, 32), (64, 16), (48, 12), (16, 4), (8, 2), (7, 1), (4, 1), (1, 1), (37, 1), (96, 24), (2048, 32)],
)
def test_groups_divide_the_channels_and_have_at_least_four_of_them(channels: int, groups: int) -> None:
    model = nn.Sequential(nn.BatchNorm2d(channels))
    hushgrad.make_private_ready(model)
    assert model[0].num_groups == groups
    assert channels % groups == 0
    assert channels // groups >= min(channels, 4)


def test_batch_norm_on_rows_becomes_layer_norm() -> None:
    model = nn.Sequential(nn.BatchNorm1d(6))
    (edit,) = hushgrad.make_private_ready(model)
    x = torch.randn(4, 6)
    torch.testing.assert_close(model(x), F.layer_norm(x, (6,)))
    assert "LayerNorm" in edit.why


def test_a_layer_shared_by_two_places_stays_shared() -> None:
    norm = nn.BatchNorm2d(8)
    model = nn.Sequential(norm, nn.Sequential(nn.ReLU(), norm))
    (edit,) = hushgrad.make_private_ready(model)
    assert edit.places == ("0", "1.1")
    assert model[0] is model[1][1]
    assert isinstance(model[0], nn.GroupNorm)


def test_a_layer_kept_in_eval_on_purpose_is_left() -> None:
    model = network()
    model[1].eval()
    before = snapshot(model)
    assert hushgrad.make_private_ready(model) == []
    assert same(before, snapshot(model))


def test_a_layer_of_a_model_in_eval_is_changed_since_train_would_wake_it() -> None:
    model = network().eval()
    assert len(hushgrad.make_private_ready(model)) == 1
    assert not any(part.training for part in model.modules())


def test_a_dry_run_returns_the_edits_and_changes_nothing() -> None:
    model = nn.Sequential(network(), nn.Embedding(3, 2, sparse=True), nn.InstanceNorm2d(4, track_running_stats=True))
    before = snapshot(model)
    planned = hushgrad.make_private_ready(model, dry_run=True)
    assert same(before, snapshot(model))
    assert hushgrad.make_private_ready(model) == planned
    assert len(planned) == 3


def test_an_edit_reads_as_a_sentence() -> None:
    edit = hushgrad.make_private_ready(network())[0]
    assert edit == Edit(("1",), "BatchNorm2d(8)", "GroupNorm(2, 8)", "BatchNorm mixes the examples of a batch")
    assert str(edit) == "1: BatchNorm2d(8) → GroupNorm(2, 8) (BatchNorm mixes the examples of a batch)"


def test_learned_statistics_are_pointed_out() -> None:
    model = network()
    model(torch.randn(2, 3, 5, 5))
    assert "learned" in hushgrad.make_private_ready(model)[0].why


# Refusals ------------------------------------------------------------------------------------------------------------


class OwnForward(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class Reads(nn.Module):
    """Uses a layer's statistics by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.shifted(self.norm(x))

    def shifted(self, x: Tensor) -> Tensor:
        return x - self.norm.running_mean


class ReadsInBase(Reads):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class Listed(nn.Module):
    """Holds a layer in a plain list as well."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.layers = [("norm", self.norm)]

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[0][1](x)


def hooked() -> nn.Module:
    model = network()
    model[1].register_forward_hook(lambda *_: None)
    return model


def parametrized() -> nn.Module:
    model = network()
    nn.utils.parametrize.register_parametrization(model[1], "weight", nn.Identity())
    return model


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "one feature": (lambda: nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1)), "1: normalised within one example"),
    "two features": (lambda: nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), "only which of the two is larger"),
    "the whole model": (lambda: nn.BatchNorm2d(4), "the model itself: .*nn.Sequential"),
    "lazy": (lambda: nn.Sequential(nn.LazyBatchNorm2d()), "0: its channels are not known yet"),
    "own forward": (lambda: nn.Sequential(OwnForward(4)), "0: OwnForward has a forward of its own"),
    "reads statistics": (Reads, "the model itself: its forward reads running_mean"),
    "reads statistics in a base": (ReadsInBase, "the model itself: its forward reads running_mean"),
    "plain list": (Listed, "'layers' holds a layer.*ModuleList"),
    "hooks": (hooked, "1: it has hooks"),
    "parametrized": (parametrized, "1: its parameters are parametrized"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_change_its_meaning_or_break_is_refused_by_name(name: str) -> None:
    """Guarantee: a model that is refused is not changed."""
    make, message = REFUSED[name]
    model = make()
    before = snapshot(model)
    for dry_run in (True, False):
        with pytest.raises(UnsupportedModelError, match=message):
            hushgrad.make_private_ready(model, dry_run=dry_run)
    assert same(before, snapshot(model))


def test_all_reasons_are_listed_at_once() -> None:
    model = nn.Sequential(nn.BatchNorm1d(1), OwnForward(4), Reads())
    with pytest.raises(UnsupportedModelError, match=r"0: .*; 1: .*; 2: "):
        hushgrad.make_private_ready(model)


def test_a_model_without_anything_to_exchange_may_read_what_it_likes() -> None:
    model = Reads()
    model.norm.eval()
    assert hushgrad.make_private_ready(model) == []


def test_no_module_and_a_model_in_use_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="list"):
        hushgrad.make_private_ready([network()])  # type: ignore[arg-type]
    model = nn.Sequential(nn.Linear(3, 2))
    optimizer = sgd(model)
    mechanism = hushgrad.DPSGD(
        noise_multiplier=1.0,
        clipping=hushgrad.FlatClipping(1.0),
        sampling=hushgrad.PoissonSampling(rate=0.5),
        expected_batch_size=4,
    )
    session = hushgrad.privatize(model, optimizer, mechanism)
    with pytest.raises(ProtocolError, match="close"):
        hushgrad.make_private_ready(model)
    session.close()
    assert hushgrad.make_private_ready(model) == []


def test_a_changed_model_copies_and_saves_like_any_other() -> None:
    model = network()
    hushgrad.make_private_ready(model)
    twin = network()
    hushgrad.make_private_ready(twin)
    twin.load_state_dict(copy.deepcopy(model).state_dict())
    x = torch.randn(2, 3, 5, 5)
    assert torch.equal(twin(x), model(x))
    assert not any("running" in name for name in model.state_dict())
