"""Items of one constant shape: padding rows run through the model and count for nothing, and truncation is charged."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import DPSGD, FlatClipping, PoissonSampling, PrivacyEngine, TruncatedPoissonSampling, privatize
from hushgrad.accounting import PoissonSampled, TruncatedPoisson, epsilon
from hushgrad.accounting.ledger.view import read_ledger
from hushgrad.errors import BudgetExhaustedError, ContractChangedError, InvalidArgumentError
from hushgrad.randomness import KeyStream

COUNT, BATCH = 40, 8


class Words(nn.Module):
    """A table that is looked up and, tied, multiplied with."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.norm = nn.LayerNorm(6)

    def forward(self, x_BD: Tensor) -> Tensor:
        ids_BD = x_BD.nan_to_num(0.0, 0.0, 0.0).abs().mul(3).clamp(max=10).long()
        scores: Tensor = self.norm(self.table(ids_BD)).mean(1) @ self.table.weight[:3].T
        return scores + 0 * x_BD.sum(1, keepdim=True)


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {
        "mlp": nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3)),
        "cnn": nn.Sequential(
            nn.Unflatten(1, (1, 8)), nn.Conv1d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)
        ),
        "words": Words(),
    }


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(
        torch.randn(COUNT, 8, generator=generator).double(), torch.randint(0, 3, (COUNT,), generator=generator)
    )


def sampling(most: int | None) -> PoissonSampling | TruncatedPoissonSampling:
    rate = BATCH / COUNT
    return PoissonSampling(rate) if most is None else TruncatedPoissonSampling(rate, COUNT, most)


def mechanism(most: int | None = None, **changes: Any) -> DPSGD:
    plain = DPSGD(noise_multiplier=0.5, clipping=FlatClipping(0.3), sampling=sampling(most), expected_batch_size=BATCH)
    return replace(plain, **changes)


def train(
    name: str,
    how: DPSGD,
    loss: str,
    *,
    rows: int | None,
    constant_shapes: bool,
    poison: float | None = None,
    steps: int = 6,
) -> tuple[list[Tensor], set[tuple[int, ...]], list[int]]:
    """Return the trained values, the shapes that the model saw, and the number of items of each logical batch."""
    model = networks()[name].double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    session = privatize(model, optimizer, how, key=KeyStream.fixed_for_tests(7))
    loader = session.batches(
        data(), steps_per_pass=steps, max_physical_batch_size=rows, constant_shapes=constant_shapes
    )
    shapes: set[tuple[int, ...]] = set()
    items: dict[int, int] = {}
    for x, y in loader:
        batch = session.current_batch
        assert batch is not None
        items[batch.step] = items.get(batch.step, 0) + 1
        if batch.step > 0:
            session._parts.probe.stop_looks()  # which take what is written by place for a leak
        if poison is not None and batch.step > 1:
            x = x.clone()
            x[len(batch.indices) :] = poison
        shapes.add(tuple(x.shape))
        losses = nn.functional.cross_entropy(model(x), y, reduction="none")
        if loss == "losses":
            session.backward(losses)
        else:
            (losses.mean() if how.loss_reduction == "mean" else losses.sum()).backward()
        optimizer.step()
    assert session.charged == [(how.event(), steps)]
    session.close()
    return [parameter.detach() for parameter in model.parameters()], shapes, list(items.values())


# Padding counts for nothing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("poison", [None, float("inf"), float("nan"), 1e30])
@pytest.mark.parametrize("name", ["mlp", "cnn", "words"])
@pytest.mark.parametrize("most", [None, 9])
def test_padding_rows_contribute_exactly_0_whatever_they_hold(
    name: str, most: int | None, poison: float | None
) -> None:
    """Guarantee: padding rows contribute exactly 0, whatever they hold.

    The same key draws the same records and the same noise with and without padding.
    """
    plain, _, _ = train(name, mechanism(most), "scalar", rows=None, constant_shapes=False)
    padded, shapes, items = train(name, mechanism(most), "scalar", rows=5, constant_shapes=True, poison=poison)
    for one, other in zip(plain, padded, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    assert shapes == {(5, 8)}
    assert most is None or items == [2] * 6


@pytest.mark.parametrize("loss", ["scalar", "losses"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(("most", "rows"), [(None, 16), (None, 3), (12, None), (12, 4), (12, 7), (5, 5)])
def test_every_way_to_give_a_loss_leaves_the_same_update(
    loss: str, reduction: str, most: int | None, rows: int | None
) -> None:
    """A mean over the rows of an item, padding included, is undone by the number of its rows."""
    how = mechanism(most, loss_reduction=reduction)
    plain, _, _ = train("mlp", how, "losses", rows=None, constant_shapes=False)
    padded, shapes, items = train("mlp", how, loss, rows=rows, constant_shapes=True, poison=float("nan"))
    for one, other in zip(plain, padded, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    assert shapes == {(rows or most, 8)}
    if most is not None:
        assert set(items) == {-(-most // (rows or most))}


def test_draws_without_records_are_steps_of_noise_alone_in_the_same_shape() -> None:
    for how, rows in ((PoissonSampling(1e-9), 4), (TruncatedPoissonSampling(1e-9, COUNT, 6), 3)):
        quiet = DPSGD(
            noise_multiplier=0, clipping=FlatClipping(1.0), sampling=how, expected_batch_size=how.rate * COUNT
        )
        untrained = [parameter.detach().clone() for parameter in networks()["mlp"].double().parameters()]
        values, shapes, items = train("mlp", quiet, "scalar", rows=rows, constant_shapes=True)
        assert shapes == {(rows, 8)}
        assert items == [1 if isinstance(how, PoissonSampling) else 2] * 6
        assert all(torch.equal(one, other) for one, other in zip(untrained, values, strict=True))


# A compiler sees one shape ----------------------------------------------------------------------------------------


def test_what_a_loop_compiles_is_compiled_once() -> None:
    """A frozen part in front of a private one, by a backend that only counts; draws of every size compile it anew."""

    def shapes_compiled(constant_shapes: bool) -> list[list[tuple[int, ...]]]:
        torch._dynamo.reset()
        seen: list[list[tuple[int, ...]]] = []

        def backend(graph: Any, inputs: Any) -> Any:
            seen.append([tuple(part.shape) for part in inputs])
            return graph.forward

        features = torch.compile(lambda x: (x * 2).tanh() + 1, backend=backend, dynamic=False)
        model = networks()["mlp"].double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        session = privatize(model, optimizer, mechanism(14), key=KeyStream.fixed_for_tests(3))
        for x, y in session.batches(data(), steps_per_pass=24, constant_shapes=constant_shapes):
            session.backward(nn.functional.cross_entropy(model(features(x)), y, reduction="none"))
            optimizer.step()
        session.close()
        torch._dynamo.reset()
        return seen

    compiled = shapes_compiled(constant_shapes=True)
    assert compiled
    assert all(shapes == [(14, 8)] for shapes in compiled)  # again for items whose calls are written down
    assert len({str(shapes) for shapes in shapes_compiled(constant_shapes=False)}) > 1


# Truncation through the façade -------------------------------------------------------------------------------------


def attach(engine: PrivacyEngine, **arguments: Any) -> tuple[nn.Module, Any, Any]:
    model = networks()["mlp"].double()
    return engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=DataLoader(data(), batch_size=BATCH),
        **{"noise_multiplier": 1.0, "max_grad_norm": 1.0, **arguments},
    )


def one_pass(engine: PrivacyEngine, model: nn.Module, optimizer: Any, loader: Any) -> list[tuple[int, ...]]:
    criterion = engine.per_example(nn.CrossEntropyLoss())
    shapes = []
    for x, y in loader:
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()
        shapes.append(tuple(x.shape))
    return shapes


@pytest.mark.parametrize(
    ("arguments", "items", "event"),
    [
        ({"max_batch_size": "auto"}, {(21, 8)}, TruncatedPoisson(0.2, 1.0, COUNT, 21)),
        ({"max_batch_size": "auto", "max_physical_batch_size": 4}, {(4, 8)}, TruncatedPoisson(0.2, 1.0, COUNT, 24)),
        ({"max_batch_size": 10, "max_physical_batch_size": 5}, {(5, 8)}, TruncatedPoisson(0.2, 1.0, COUNT, 10)),
        ({"max_physical_batch_size": 6}, {(6, 8)}, PoissonSampled(0.2, 1.0)),
    ],
)
def test_training_in_constant_shapes_charges_what_was_drawn_and_says_so(
    arguments: dict[str, Any], items: set[tuple[int, ...]], event: Any, tmp_path: Path
) -> None:
    engine = PrivacyEngine(ledger=tmp_path / "ledger.jsonl")
    model, optimizer, loader = attach(engine, constant_shapes=True, **arguments)
    shapes = one_pass(engine, model, optimizer, loader) + one_pass(engine, model, optimizer, loader)
    assert set(shapes) == items
    if isinstance(event, TruncatedPoisson):
        assert len(shapes) == 10 * -(-event.max_batch_size // shapes[0][0])
    assert engine.session.charged == [(event, 10)]
    assert engine.get_epsilon(1e-5) == epsilon([(event, 10)], 1e-5)
    assert engine.get_epsilon(1e-5) >= epsilon([(PoissonSampled(0.2, 1.0), 10)], 1e-5)
    said = str(engine.guarantee(1e-5))
    assert ("cut at random to at most" in said) == isinstance(event, TruncatedPoisson)
    engine.session.close()
    assert read_ledger(tmp_path / "ledger.jsonl").events == [(event, 10)]


def test_calibrated_truncated_training_ends_within_its_target_also_after_a_resume(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"

    def start(**changes: Any) -> tuple[PrivacyEngine, Any]:
        engine = PrivacyEngine(ledger=path)
        model = networks()["mlp"].double()
        made = engine.make_private_with_epsilon(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            data_loader=DataLoader(data(), batch_size=BATCH),
            **{
                "target_epsilon": 3.0,
                "target_delta": 1e-5,
                "epochs": 2,
                "max_grad_norm": 1.0,
                "constant_shapes": True,
                "max_batch_size": 16,
                "max_physical_batch_size": 8,
                **changes,
            },
        )
        return engine, made

    engine, (model, optimizer, loader) = start()
    criterion = engine.per_example(nn.CrossEntropyLoss())
    for x, y in itertools.islice(loader, 7):  # three logical batches, and half of the fourth, which a crash loses
        criterion(model(x), y).backward()
        optimizer.step()
    assert engine.session.steps == 3
    engine.session.close()
    with pytest.raises(ContractChangedError):
        start(max_batch_size=17)
    engine, (model, optimizer, loader) = start()
    assert engine.session.steps == 3
    one_pass(engine, model, optimizer, loader)
    with pytest.raises(BudgetExhaustedError):
        one_pass(engine, model, optimizer, loader)
    assert engine.session.steps == 10
    assert 2.9 < engine.get_epsilon(1e-5) <= 3.0
    engine.session.close()


def test_the_callers_own_batches_are_padded_to_one_shape_and_train_alike() -> None:
    def run(constant_shapes: bool) -> tuple[list[Tensor], set[tuple[int, ...]]]:
        engine = PrivacyEngine(test_key=4)
        model = networks()["mlp"].double()
        _, optimizer, loader = engine.make_private(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            data_loader=DataLoader(data(), batch_size=7),
            noise_multiplier=1.0,
            max_grad_norm=0.5,
            poisson_sampling=False,
            max_physical_batch_size=7,
            constant_shapes=constant_shapes,
        )
        shapes = set(one_pass(engine, model, optimizer, loader))
        assert engine.session.steps == 6
        engine.session.close()
        return [parameter.detach() for parameter in model.parameters()], shapes

    plain, sizes = run(constant_shapes=False)
    padded, one_size = run(constant_shapes=True)
    assert sizes == {(7, 8), (5, 8)}
    assert one_size == {(7, 8)}
    for one, other in zip(plain, padded, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_schedules_are_charged_as_truncated_steps() -> None:
    how = mechanism(12, noise_schedule=(2.0, 2.0, 4.0))
    assert how.composition() == [
        (TruncatedPoisson(0.2, 1.0, COUNT, 12), 2),
        (TruncatedPoisson(0.2, 2.0, COUNT, 12), 1),
    ]
    assert how.at(2).event() == TruncatedPoisson(0.2, 2.0, COUNT, 12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"constant_shapes": True}, "needs to know the rows.*Pass max_physical_batch_size"),
        ({"constant_shapes": 1, "max_physical_batch_size": 4}, "constant_shapes: must be True or False"),
        ({"max_batch_size": 0}, "max_batch_size: must be >= 1"),
        ({"max_batch_size": "most"}, "max_batch_size: must be a whole number"),
        ({"max_batch_size": 12, "poisson_sampling": False}, "Leave one of them out"),
    ],
)
def test_shapes_that_cannot_be_are_refused_before_data_is_read(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        attach(PrivacyEngine(), **arguments)


def test_a_truncation_for_another_number_of_records_is_refused() -> None:
    model = networks()["mlp"].double()
    how = mechanism(12, sampling=TruncatedPoissonSampling(0.2, 50, 12))
    session = privatize(model, torch.optim.SGD(model.parameters(), lr=0.1), how)
    with pytest.raises(InvalidArgumentError):
        session.batches_of(DataLoader(data(), batch_size=BATCH))
    session.close()
