"""A record that is not finite contributes 0, also in the first batch: it stops no training and hides no leak."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import leaky_losses
import leaky_models
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import PrivacyEngine
from hushgrad.errors import CrossSampleLeakError, HushgradError, ProtocolError
from hushgrad.guards.probing.collate_probe import require_separate_rows
from hushgrad.guards.probing.collate_runs import CollateRuns
from hushgrad.guards.probing.finite import repairs, spoiled_rows
from hushgrad.guards.probing.loss_probe import require_separate_losses
from hushgrad.guards.probing.row_order import USERS, RowOrder
from hushgrad.guards.probing.rows import Batch
from hushgrad.session.session import Session

WIDTH, TARGETS = leaky_models.WIDTH, 3
NAN, INF = float("nan"), float("inf")

SPOILED: dict[str, tuple[str, float]] = {
    "NaN in the input": ("x", NAN),
    "Inf in the input": ("x", INF),
    "NaN in the target": ("y", NAN),
    "Inf in the target": ("y", -INF),
    "an input that overflows": ("x", 3e38),
    "a loss that overflows": ("y", 1e30),
}


def data(size: int, what: str, which: str) -> TensorDataset:
    """One batch in which some records are not finite, and an ordinary one."""
    generator = torch.Generator().manual_seed(0)
    parts = {
        "x": torch.randn(2 * size, WIDTH, generator=generator),
        "y": torch.randn(2 * size, TARGETS, generator=generator),
    }
    part, value = SPOILED[what]
    rows = {"first": [0], "last": [size - 1], "all": list(range(size))}[which]
    parts[part][rows] = value
    return TensorDataset(parts["x"], parts["y"])


def train(
    model: nn.Module, records: TensorDataset, size: int, path: str, criterion: Any = None, low: bool = False
) -> Session:
    engine = PrivacyEngine(test_key=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    _, _, loader = engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(records, batch_size=size),
        noise_multiplier=0.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
        loss_reduction="sum" if low else "mean",
    )
    reduction = "sum" if low else "mean"
    checked = engine.per_example(criterion or nn.MSELoss(reduction=reduction))
    for x, y in loader:
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            out = model(x)
        if path == "criterion":
            checked(out.float(), y).backward()
        elif path == "losses":
            engine.session.backward((out.float() - y).square().mean(1))
        else:
            F.mse_loss(out.float(), y, reduction=reduction).backward()
        optimizer.step()
    return engine.session


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, TARGETS))


@pytest.mark.parametrize("low", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("size", [1, 2, 3, 32])
@pytest.mark.parametrize("path", ["criterion", "losses", "scalar"])
@pytest.mark.parametrize("what", SPOILED)
def test_a_record_that_is_not_finite_stops_no_training(what: str, path: str, size: int, low: bool) -> None:
    """Whichever it is, and if all are: two steps are made, and the weights stay finite."""
    for which in ("first", "last", "all"):
        model = network()
        session = train(model, data(size, what, which), size, path, low=low)
        assert session.steps == 2
        assert session.probe_report.examined == (size > 1)
        assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("path", ["criterion", "losses", "scalar"])
@pytest.mark.parametrize("what", ["NaN in the input", "NaN in the target"])
def test_a_record_that_is_not_finite_contributes_nothing_to_the_first_update(what: str, path: str) -> None:
    size, updates = 8, []
    for spoiled in (True, False):
        records = data(size, what, "last")
        x, y = (part[:size].clone() for part in records.tensors)
        if not spoiled:  # the same batch with a last record whose loss is 0: it has no gradient
            x[-1] = 0.5
            with torch.no_grad():
                y[-1] = network()(x)[-1]
        model = network()
        train(model, TensorDataset(x, y), size, path)
        updates.append(model[0].weight.detach())
    torch.testing.assert_close(*updates)


# What is hidden by it ------------------------------------------------------------------------------------------------


SOME = {"statistics that nobody uses", "a maximum in a Python number", "gradients centred by a hook"}

LEAKY = [
    pytest.param(name, make, marks=[] if name in SOME else pytest.mark.slow, id=name)
    for name, make, _, _ in leaky_models.ON_FEATURES
]


@pytest.mark.parametrize("value", [NAN, INF, 1e38])
@pytest.mark.parametrize(("name", "make"), LEAKY)
def test_a_record_that_is_not_finite_hides_no_leaky_model(
    name: str, make: Callable[[], nn.Module], value: float
) -> None:
    """At whichever place, and with the loss that shows least: a scalar."""
    size = leaky_models.BATCH
    for place in range(size):
        leaky_models.STORE.clear()
        x, y = torch.randn(size, WIDTH), torch.randn(size, TARGETS)
        x[place] = value
        with pytest.raises(HushgradError):
            train(make(), TensorDataset(x, y), size, "scalar")


def test_all_leaky_models_of_the_short_run_are_known() -> None:
    assert {name for name, _, _, _ in leaky_models.ON_FEATURES} >= SOME


CRITERIA = [case for case in leaky_losses.CRITERIA if case[0] != "hard example mining"]
"""All whose leak shows in every batch; which losses are kept as hard ones changes with most of them."""


VALUES = [NAN, INF, 1e38]
TURNS = [
    pytest.param(name, make, value, (3 * number + turn) % leaky_models.BATCH, id=f"{name}-{value}")
    for number, (name, make) in enumerate(CRITERIA)
    for turn, value in enumerate(VALUES)
]


@pytest.mark.parametrize(("name", "make", "value", "place"), TURNS)
def test_a_record_that_is_not_finite_hides_no_leaky_criterion(
    name: str, make: Callable[[], Any], value: float, place: int
) -> None:
    """At one place, of which the criteria have all by turns."""
    require_refusal(make, value, place)


@pytest.mark.slow
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize(("name", "make"), CRITERIA, ids=[name for name, _ in CRITERIA])
def test_it_hides_none_at_whichever_place(name: str, make: Callable[[], Any], value: float) -> None:
    for place in range(leaky_models.BATCH):
        require_refusal(make, value, place)


def require_refusal(make: Callable[[], Any], value: float, place: int) -> None:
    size = leaky_models.BATCH
    x = torch.randn(size, WIDTH)
    x[place] = value
    with pytest.raises(HushgradError):
        train(nn.Linear(WIDTH, TARGETS), TensorDataset(x, torch.arange(size) % TARGETS), size, "criterion", make())


def test_every_place_has_its_turn() -> None:
    assert {param.values[3] for param in TURNS} == set(range(leaky_models.BATCH))


def test_where_no_two_losses_are_finite_the_next_batch_is_asked() -> None:
    out = torch.randn(3, TARGETS, requires_grad=True)
    scale = torch.tensor([NAN, NAN, 1.0])
    assert not require_separate_losses(out.square().mean(1) * scale, [out])
    assert not require_separate_losses(out.square().mean(1) * NAN, [out])
    session = train(network(), data(4, "NaN in the target", "all"), 4, "losses")
    assert session.probe_report.calls == 2
    assert session.probe_report.examined


# The batch that is asked ---------------------------------------------------------------------------------------------


def test_spoiled_examples_are_replaced_by_others_then_large_ones_then_all() -> None:
    x = torch.arange(8.0).reshape(4, 2)
    x[1] = NAN
    batch = Batch(x, {(): 0}, 4)
    by_others, by_finite, anew, everything = repairs(batch, [0])
    assert torch.equal(by_others.value[0], x[1].nan_to_num(7)) or by_others.value[0].isnan().all()
    assert torch.equal(by_others.value[2:], x[2:])
    assert by_finite.value.isfinite().all()
    assert torch.equal(by_finite.value[[0, 2, 3]], x[[0, 2, 3]])
    assert torch.equal(anew.value[[0, 2, 3]], x[[0, 2, 3]])
    assert ((everything.value > 0) & (everything.value < 1)).all()
    large = Batch(torch.tensor([[1.0], [1e30], [2.0], [3.0]]), {(): 0}, 4)
    assert next(repairs(large, [])).value.max() == 2
    assert spoiled_rows((x, torch.zeros(4)), 4) == [1]
    assert spoiled_rows(torch.full((4, 2), -INF), 4) is None  # masked logits
    assert spoiled_rows({"loss": torch.tensor(NAN)}, 4) == []
    assert spoiled_rows(torch.zeros(4), 4) is None


def test_logits_that_are_masked_by_infinity_are_probed_as_they_are() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(WIDTH, 4)

        def forward(self, x: Tensor) -> Tensor:
            mask = torch.tensor([False, False, False, True])
            return self.head(x).masked_fill(mask, -INF)

    records = TensorDataset(torch.randn(8, WIDTH), torch.arange(8) % 3)
    session = train(Masked(), records, 8, "criterion", nn.CrossEntropyLoss())
    assert session.probe_report.examined
    assert not session.probe_report.notes


def test_missing_values_that_a_model_fills_in_are_probed_as_they_are() -> None:
    class Filled(nn.Module):
        def __init__(self, mixes: bool) -> None:
            super().__init__()
            self.head, self.mixes = nn.Linear(WIDTH, TARGETS), mixes

        def forward(self, x: Tensor) -> Tensor:
            means = x.nanmean(0) if self.mixes else torch.zeros(WIDTH)
            return self.head(torch.where(x.isnan(), means, x))

    x = torch.randn(8, WIDTH)
    x[torch.arange(8), torch.arange(8) % WIDTH] = NAN
    records = TensorDataset(x, torch.randn(8, TARGETS))
    assert train(Filled(False), records, 8, "scalar").probe_report.examined
    with pytest.raises(HushgradError):
        train(Filled(True), records, 8, "scalar")


# Collate functions and the order of rows -----------------------------------------------------------------------------


def centred(records: list[Tensor]) -> Tensor:
    x = torch.stack(records)
    return x - x.mean(0)


def padded(records: list[Tensor]) -> Tensor:
    return nn.utils.rnn.pad_sequence(records, batch_first=True, padding_value=NAN)


@pytest.mark.parametrize("place", range(6))
def test_a_record_that_is_not_finite_hides_no_mixing_collate_function(place: int) -> None:
    records = [torch.randn(3) for _ in range(6)]
    records[place][1] = NAN
    assert require_separate_rows(CollateRuns(torch.stack), records)
    with pytest.raises(CrossSampleLeakError):
        require_separate_rows(CollateRuns(centred), records)


def test_padding_by_nan_mixes_nothing() -> None:
    assert require_separate_rows(CollateRuns(padded), [torch.randn(2 + place) for place in range(6)])


def test_a_single_finite_record_says_nothing_of_a_collate_function() -> None:
    assert not require_separate_rows(CollateRuns(torch.stack), [torch.randn(3), torch.full((3,), NAN)])
    assert require_separate_rows(CollateRuns(torch.stack), [torch.full((3,), NAN)] * 3)


def test_rows_with_nan_are_recognised_in_their_order() -> None:
    x = torch.randn(6, 3)
    x[2] = NAN
    order = RowOrder()
    order.expect(x, 6, USERS)
    order.entering(((x.clone(),), {}))
    assert order.on_trust == ()
    with pytest.raises(ProtocolError):
        order.entering(((x.flip(0),), {}))
