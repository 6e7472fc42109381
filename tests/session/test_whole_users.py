"""Whole users in training: the records of one are clipped as one, and what would part them is refused."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset

import hushgrad.sampling.loader as loader_module
from hushgrad import (
    DPSGD,
    ClipRule,
    FlatClipping,
    GaussianNoise,
    GroupwiseClipping,
    Mechanism,
    PoissonSampling,
    PrivacyEngine,
    QuantileClipping,
    Session,
    UserSampling,
    bounded_contributions,
    privatize,
)
from hushgrad.accounting import PoissonSampled, epsilon, read_ledger
from hushgrad.accounting.neighbours import epsilon_of_group
from hushgrad.errors import (
    BudgetExhaustedError,
    ContractChangedError,
    CrossSampleLeakError,
    DuplicateRecordError,
    HushgradError,
    InvalidArgumentError,
    PrivacyUnitError,
    ProtocolError,
    TakenOnTrustError,
    UnprovenMechanismError,
)
from hushgrad.gradients.contribution import Plan
from hushgrad.gradients.dense import Dense
from hushgrad.gradients.oracle import clipped_sum_of, one_at_a_time
from hushgrad.parallel.world import World
from hushgrad.randomness import KeyStream
from hushgrad.releases import Count
from hushgrad.sampling.records import PhysicalBatch
from hushgrad.session.set_up import _require_divisible
from hushgrad.session.whole_users import of_users

N, USERS, C = 40, 12, 0.05
IDS = [int(i) for i in torch.randint(0, USERS, (N,), generator=torch.Generator().manual_seed(3))]
MOST = max(IDS.count(i) for i in IDS)
X = torch.randn(N, 1, 4, generator=torch.Generator().manual_seed(4))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(9, 4), nn.Tanh(), nn.LayerNorm(4), nn.Linear(4, 2)
    )


def drawing(**more: Any) -> UserSampling:
    return UserSampling(**({"rate": 0.5, "users": IDS, "examples_per_user": MOST, "told_by": "patient"} | more))


def mechanism(sampling: UserSampling, **more: Any) -> DPSGD:
    given = {"noise_multiplier": 0.0, "clipping": FlatClipping(C), "sampling": sampling}
    return DPSGD(**(given | {"expected_batch_size": sampling.expected_batch_size(N)} | more))  # type: ignore[arg-type]


def of(output: Tensor) -> Tensor:
    """One loss for each row."""
    return output.square().sum(1)


def run(
    session: Session,
    model: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    items: Iterable[Any],
    loss: Callable[[Tensor], Tensor] = of,
) -> None:
    """Train on these items, and close."""
    try:
        run_once(session, model, optimizer, items, loss)
    finally:
        session.close()


def run_once(
    session: Session,
    model: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    items: Iterable[Any],
    loss: Callable[[Tensor], Tensor] = of,
) -> None:
    for (x,) in items:
        session.backward(loss(model(x)))
        optimizer.step()


def oracle(users: Sequence[int], averages: bool, rule: ClipRule | None = None) -> dict[str, Tensor]:
    """Σ over users of their clipped gradient, in float64, one user at a time."""
    alone = network().double()

    def run(user: int) -> Tensor:
        losses = of(alone(X[[i for i in range(N) if IDS[i] == user]].double()))
        return losses.mean() if averages else losses.sum()

    return clipped_sum_of(one_at_a_time(alone, [lambda u=u: run(u) for u in users]), rule or FlatClipping(C))


def oracle_gradient(user: int) -> dict[str, Tensor]:
    """The gradient of the mean over a user's records."""
    alone = network()
    of(alone(X[[i for i in range(N) if IDS[i] == user]])).mean().backward()
    return {name: p.grad for name, p in alone.named_parameters() if p.grad is not None}


class Released:
    """The sum of the first released update, and the users that took part in it."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, divisor: float) -> None:
        self.sums: dict[str, Tensor] = {}
        self.drawn: list[int] = []
        optimizer.register_step_pre_hook(
            lambda *_: self.sums.update(
                {n: p.grad.double() * divisor for n, p in model.named_parameters() if p.grad is not None}
            )
        )

    @property
    def users(self) -> list[int]:
        return sorted({IDS[i] for i in self.drawn})

    def gap(self, expected: dict[str, Tensor]) -> float:
        size = math.hypot(*(float(total.norm()) for total in expected.values()))
        assert size > C
        return math.hypot(*(float((self.sums[n] - expected[n]).norm()) for n in expected)) / size


@pytest.mark.parametrize(
    ("rows", "constant", "gradient"),
    [(None, False, "mean"), (MOST, False, "sum"), (MOST, False, "mean"), (MOST + 3, True, "mean")],
)
@pytest.mark.parametrize("way", ["session", "scalar", "per_example"])
def test_the_sum_is_that_of_one_user_at_a_time(way: str, rows: int | None, constant: bool, gradient: str) -> None:
    """Guarantee: what a user's records contribute is clipped once, as a whole. To 1e-6 of the sum, in float32."""
    engine, model = PrivacyEngine(test_key=3), network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    sampling = UserSampling.with_expected_users(
        6, users=IDS, examples_per_user=MOST, gradient=gradient, population=USERS
    )
    model, optimizer, loader = engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(TensorDataset(X, torch.arange(N)), batch_size=6),
        noise_multiplier=0.0,
        max_grad_norm=C,
        sampling=sampling,
        max_physical_batch_size=rows,
        constant_shapes=constant,
    )
    assert len(loader) == 2  # an epoch is so many steps as users make
    released = Released(model, optimizer, 6)
    criterion = engine.per_example(lambda output, _: of(output))
    items = 0
    for x, places in loader:
        item = engine.session.current_batch
        assert item is not None
        released.drawn += list(item.indices)
        optimizer.zero_grad()
        if way == "session":
            engine.session.backward(of(model(x)))
        else:
            (of(model(x)).mean() if way == "scalar" else criterion(model(x), places)).backward()
        optimizer.step()
        items += 1
        if engine.last_step_updated:
            break
    assert items == 1 if rows is None else items > 1
    assert sorted(released.drawn) == [i for i in range(N) if IDS[i] in released.users]
    assert released.gap(oracle(released.users, gradient == "mean")) <= 1e-6
    assert engine.session.charged == [(PoissonSampled(0.5, 0.0), 1)]


@pytest.mark.parametrize("gradient", ["mean", "sum"])
@pytest.mark.parametrize("rule", [FlatClipping(C), GroupwiseClipping(C)], ids=["run twice", "group by group"])
def test_a_backward_that_lets_operands_go_joins_users_as_well(rule: ClipRule, gradient: str) -> None:
    """Above the budget for operands norms and sums are taken inside the backward: to 1e-6, padding included."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    plan = mechanism(drawing(gradient=gradient, population=USERS), clipping=rule)
    session = privatize(model, optimizer, plan, key=KeyStream.fixed_for_tests(3), plan=Plan(operand_bytes=0))
    released = Released(model, optimizer, plan.expected_batch_size)
    loader = session.batches(TensorDataset(X), max_physical_batch_size=MOST + 3, constant_shapes=True)
    for (x,) in loader:
        assert session.current_batch is not None
        released.drawn += session.current_batch.indices
        session.backward(of(model(x)))
        assert session._loop._batch._passing.is_done  # type: ignore[attr-defined]
        optimizer.step()
        if session.last_step_updated:
            break
    session.close()
    assert len(released.users) < len(released.drawn)
    assert released.gap(oracle(released.users, gradient == "mean", rule=rule)) <= 1e-6


def step(records: Sequence[int], gradient: str, x: Tensor = X) -> dict[str, Tensor]:
    """The sum of one step that all of these records' users take part in, without noise."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    sampling = drawing(rate=1.0, users=[IDS[i] for i in records], gradient=gradient, population=USERS)
    session = privatize(model, optimizer, mechanism(sampling), key=KeyStream.fixed_for_tests(1))
    released = Released(model, optimizer, USERS)
    data = TensorDataset(x[list(records)])
    run(session, model, optimizer, session.batches(data, steps_per_pass=1, max_physical_batch_size=MOST + 2))
    return released.sums


@pytest.mark.parametrize("gradient", ["mean", "sum"])
@pytest.mark.parametrize("scale", [1e4, math.nan])
def test_what_moves_when_one_user_leaves_is_at_most_the_clip_norm(scale: float, gradient: str) -> None:
    """Every record of theirs goes, or has other values: at most C, and 2C where they stay."""
    whole = step(range(N), gradient)
    for user in sorted(set(IDS))[:2]:
        rest = step([i for i in range(N) if IDS[i] != user], gradient)
        assert math.hypot(*(float((whole[n] - rest[n]).norm()) for n in whole)) <= C * (1 + 1e-4)
        x = X.clone()
        x[[i for i in range(N) if IDS[i] == user]] *= scale
        other = step(range(N), gradient, x)
        assert math.hypot(*(float((other[n] - rest[n]).norm()) for n in whole)) <= C * (1 + 1e-4)


def test_a_quantile_rule_counts_users_and_not_records() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    sampling = drawing(rate=1.0)
    rule = QuantileClipping(0.9, count_noise_multiplier=1e-6)
    plan = Mechanism(noise=GaussianNoise(1e-7), clipping=rule, sampling=sampling, expected_batch_size=len(set(IDS)))
    session = privatize(model, optimizer, plan, key=KeyStream.fixed_for_tests(1))
    run(session, model, optimizer, session.batches(TensorDataset(X), steps_per_pass=1, max_physical_batch_size=MOST))
    assert session.written.count is not None
    below = (
        session.written.count + len(set(IDS)) / 2
    )  # of Σ (b_u − ½) over users; of records it would be another number
    norms = [math.hypot(*(float(g.norm()) for g in oracle_gradient(user).values())) for user in set(IDS)]
    assert below == pytest.approx(sum(norm <= 0.9 for norm in norms), abs=1e-3)
    assert 0 < round(below) < len(set(IDS))


# What would part users ---------------------------------------------------------------------------------------------


def trained(change: Callable[[int, Tensor], Tensor], *, steps: int = 6) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = privatize(model, optimizer, mechanism(drawing(), noise_multiplier=1.0), key=KeyStream.fixed_for_tests(2))
    try:
        for number, (x,) in enumerate(session.batches(TensorDataset(X), steps_per_pass=steps)):
            session.backward(of(model(change(number, x))))
            optimizer.step()
        assert session.steps == steps
    finally:
        session.close()


@pytest.mark.parametrize("at", [0, 5])
@pytest.mark.parametrize("reorder", [lambda x: x.flip(0), lambda x: x.roll(1, 0), lambda x: x[x[:, 0, 0].argsort()]])
def test_planted_a_loop_that_shuffles_rows_in_any_item_is_refused(reorder: Callable[[Tensor], Tensor], at: int) -> None:
    """Rows of one user would be clipped with those of another: each item is looked at, not the first ones alone."""
    trained(lambda number, x: x)
    with pytest.raises(ProtocolError, match=r"whose a row is is known by its position\. Keep the order of the rows"):
        trained(lambda number, x: reorder(x) if number >= at else x)


@pytest.mark.parametrize("at", [0, 5])
def test_planted_a_loop_that_swaps_rows_in_place_in_any_item_is_refused(at: int) -> None:
    def swap(number: int, x: Tensor) -> Tensor:
        if number == at:
            first = x[0].clone()
            x[0], x[-1] = x[-1].clone(), first
        return x

    with pytest.raises((ProtocolError, PrivacyUnitError), match=r"in another order than the loader's"):
        trained(swap)


@pytest.mark.parametrize("reorder", [lambda x: x.flip(0), lambda x: x[torch.arange(len(x)).roll(1)]])
def test_planted_rows_that_are_computed_anew_and_shuffled_are_refused(reorder: Callable[[Tensor], Tensor]) -> None:
    """No value of the item's reaches the model: the loop's calls are run again with other values of some rows."""
    with pytest.raises(PrivacyUnitError, match=r"in another order than the loader's, and where whole users are drawn"):
        trained(lambda _, x: 2 * reorder(x) + 1)


def test_rows_that_are_computed_anew_are_on_trust_and_said() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = privatize(model, optimizer, mechanism(drawing(), noise_multiplier=1.0), key=KeyStream.fixed_for_tests(2))
    run(session, lambda x: model(2 * x + 1), optimizer, session.batches(TensorDataset(X), steps_per_pass=4))
    assert "rows of users" in [condition.name for condition in session.guarantee(1e-5).conditions]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = privatize(model, optimizer, mechanism(drawing(), noise_multiplier=1.0), key=KeyStream.fixed_for_tests(2))
    for number, (x,) in enumerate(session.batches(TensorDataset(X), steps_per_pass=4)):
        session.backward(of(model(2 * x + 1 if number == 3 else x)))  # in the last item alone
        optimizer.step()
    assert "rows of users" in [condition.name for condition in session.guarantee(1e-5).conditions]
    session.close()
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = privatize(model, optimizer, mechanism(drawing(), noise_multiplier=1.0), strict=True)
    loader = session.batches(TensorDataset(X), steps_per_pass=20)
    with pytest.raises(TakenOnTrustError, match="DP308 rows of users: strict=True"):
        run(session, lambda x: model(2 * x + 1), optimizer, loader)


def test_planted_a_collate_function_that_reorders_is_refused() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = privatize(model, optimizer, mechanism(drawing(), noise_multiplier=1.0), key=KeyStream.fixed_for_tests(2))
    data = DataLoader(
        TensorDataset(X), batch_size=6, collate_fn=lambda records: torch.stack([r[0] for r in records[::-1]])
    )
    plan = session.mechanism
    assert plan.expected_batch_size == len(set(IDS)) / 2
    loader = session.batches(
        data.dataset, steps_per_pass=3, options=loader_module.LoadingOptions(collate_fn=data.collate_fn)
    )
    with pytest.raises(HushgradError, match=r"another order"):
        run(session, model, optimizer, ((x,) for x in loader))


@pytest.mark.parametrize("mistake", ["two items", "apart in one item"])
def test_planted_a_user_in_two_parts_is_refused_before_a_release(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part would be clipped by itself: twice the clip norm."""
    real = loader_module.cut

    def split(*args: Any, **kwargs: Any) -> list[PhysicalBatch]:
        [item] = real(*args, **kwargs)
        if mistake == "apart in one item":
            order = [*range(1, len(item.indices)), 0]
            return [
                replace(
                    item,
                    indices=tuple(item.indices[i] for i in order),
                    owners=tuple(item.owners[i] for i in order),
                )
            ]
        first = replace(item, indices=item.indices[:1], owners=item.owners[:1], size=1, last=False)
        return [first, replace(item, indices=item.indices[1:], owners=item.owners[1:], size=item.size - 1, first=False)]

    monkeypatch.setattr(loader_module, "cut", split)
    with pytest.raises(DuplicateRecordError, match="came in two parts of a logical batch"):
        trained(lambda number, x: x)


def test_uses_by_another_number_of_rows_than_records_are_refused() -> None:
    with pytest.raises(PrivacyUnitError, match="weight: saw 3 examples where 4 records"):
        of_users({"weight": [Dense(torch.ones(3, 2))]}, [0, 0, 1, 1], averages=False)
    found, count = of_users({"weight": [Dense(torch.ones(4, 2))]}, [5, 5, 1, 2], averages=False)
    assert count == 3
    assert found["weight"][0].per_example()[:, 0].tolist() == [2, 1, 1]


def test_without_a_loader_nobody_sees_whole_users() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = privatize(model, optimizer, mechanism(drawing()), key=KeyStream.fixed_for_tests(2))
    with pytest.raises(ProtocolError, match="without a loader cannot be charged"):
        session.backward(of(model(X[:4])))
    session.close()


def test_planted_a_batch_size_that_counts_records_is_refused() -> None:
    """The sum would be divided by a number of records, and the noise with it."""
    engine, model = PrivacyEngine(), network()
    with pytest.raises(
        InvalidArgumentError, match=r"is 20, and the mechanism's sampling takes 6 of 12 users \(Poisson"
    ):
        engine.make_private(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            data_loader=DataLoader(TensorDataset(X), batch_size=20),
            noise_multiplier=1.0,
            max_grad_norm=C,
            sampling=drawing(population=USERS),
        )


def test_a_statistic_that_bounds_records_is_refused_in_an_account_of_users() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = privatize(model, optimizer, mechanism(drawing(), noise_multiplier=1.0), key=KeyStream.fixed_for_tests(2))
    session.batches(TensorDataset(X))
    with pytest.raises(ContractChangedError, match="a release bounds what one record adds"):
        session.release(Count(lambda record: True), noise_multiplier=1.0)
    session.close()


def test_several_processes_are_refused_at_set_up() -> None:
    with pytest.raises(UnprovenMechanismError, match="whole users are drawn in one process"):
        _require_divisible(mechanism(drawing(), noise_multiplier=1.0), World(size=2))
    _require_divisible(mechanism(UserSampling(rate=0.5, users=None), noise_multiplier=1.0), World(size=2))


@pytest.mark.parametrize("noise", ["banded", "buffered", "best"])
def test_noise_that_is_correlated_is_refused_at_construction(noise: str) -> None:
    engine, model = PrivacyEngine(), network()
    with pytest.raises((UnprovenMechanismError, InvalidArgumentError)) as caught:
        engine.make_private_with_epsilon(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            data_loader=DataLoader(TensorDataset(X), batch_size=6),
            target_epsilon=2.0,
            target_delta=1e-5,
            epochs=1,
            max_grad_norm=1.0,
            sampling=drawing(population=USERS),
            noise=noise,
        )
    assert caught.value.cure


# A loss or a model that mixes --------------------------------------------------------------------------------------


def mixes_all(output: Tensor) -> Tensor:
    return (output - output.mean(0)).square().sum(1)


def mixes_neighbours(output: Tensor) -> Tensor:
    return (output - output.roll(1, 0)).square().sum(1)


def mixes_one_user(output: Tensor) -> Tensor:
    """With items of one user this mixes the records of that user alone, which row by row cannot be told."""
    return output.square().sum(1) * (1 + output.detach().norm())


@pytest.mark.parametrize("loss", [mixes_all, mixes_neighbours, mixes_one_user])
def test_a_loss_that_mixes_rows_is_refused_also_where_they_are_of_one_user(loss: Callable[[Tensor], Tensor]) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = privatize(model, optimizer, mechanism(drawing(), noise_multiplier=1.0), key=KeyStream.fixed_for_tests(2))
    loader = session.batches(TensorDataset(X), max_physical_batch_size=MOST)
    with pytest.raises(CrossSampleLeakError):
        run(session, model, optimizer, loader, loss)
    assert session.steps == 0


class OfOneUser(nn.Module):
    """Attention over the records of each user: `[b, k, d]` to `[b, 2]`."""

    def __init__(self, across: int) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)
        self.across = across

    def forward(self, x: Tensor) -> Tensor:
        mixed = torch.softmax(self.mix(x) @ x.mT, -1) @ x
        return self.head(torch.tanh(mixed - mixed.mean(self.across, keepdim=True))).sum(1)


def train_whole(model: nn.Module) -> tuple[dict[str, Tensor], list[int], Any]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    sampling = UserSampling(rate=0.5, users=None, told_by="hospital")
    plan = DPSGD(noise_multiplier=0.0, clipping=FlatClipping(C), sampling=sampling, expected_batch_size=5)
    session = privatize(model, optimizer, plan, key=KeyStream.fixed_for_tests(2))
    sums: dict[str, Tensor] = {}
    optimizer.register_step_pre_hook(
        lambda *_: sums.update({n: p.grad.double() * 5 for n, p in model.named_parameters()})  # type: ignore[union-attr]
    )
    x = X.reshape(10, 4, 4)
    rows, places = next(iter(session.batches(TensorDataset(x, torch.arange(10)))))
    output = model(rows)
    session.backward((output[:, 0] - output[:, 1]).square())  # a loss of all records of one user
    optimizer.step()
    guarantee = session.guarantee(1e-5)
    session.close()
    return sums, places.tolist(), guarantee


def test_where_a_record_is_a_whole_user_what_mixes_their_records_is_exact_and_what_mixes_users_refused() -> None:
    torch.manual_seed(1)
    model = OfOneUser(across=1)
    alone = copy.deepcopy(model).double()
    sums, drawn, guarantee = train_whole(model)
    x = X.reshape(10, 4, 4).double()

    def run(user: int) -> Tensor:
        output = alone(x[user : user + 1])
        return (output[:, 0] - output[:, 1]).square().sum()

    expected = clipped_sum_of(one_at_a_time(alone, [lambda u=u: run(u) for u in drawn]), FlatClipping(C))
    for name, total in expected.items():
        assert float((sums[name] - total).norm()) <= 1e-6 * len(drawn) * C
    assert guarantee.unit == "one user (each record of the data set is all that one hospital has)"
    assert "every user independently" in guarantee.sampling
    with pytest.raises(HushgradError):
        train_whole(OfOneUser(across=0))


# What is said, and kept --------------------------------------------------------------------------------------------


def run_with(path: Path, sampling: Any, *, phase: str | None = None, size: float | None = None) -> str:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plan = DPSGD(
        noise_multiplier=1.0,
        clipping=FlatClipping(C),
        sampling=sampling,
        expected_batch_size=sampling.expected_batch_size(N) if size is None else size,
    )
    session = privatize(model, optimizer, plan, ledger=path, phase=phase)
    try:
        for (x,) in session.batches(TensorDataset(X), steps_per_pass=2):
            session.backward(of(model(x)))
            optimizer.step()
        return str(session.guarantee(1e-5))
    finally:
        session.close()


def test_ledger_and_guarantee_say_one_user_and_how_users_are_told(tmp_path: Path) -> None:
    said = run_with(tmp_path / "ledger", drawing(population=20))
    told = f"one user (all records with the same patient, at most {MOST} of them)"
    assert f"for {told} under add/remove-one neighbours, after 2 steps" in said
    assert "Sampling: Poisson, every user independently with rate 0.5 in every step." in said
    assert "N = 20 users is declared public" in said
    assert "The expected batch size 10 users is declared public" in said
    assert "stand in the order of the records, is on trust" in said
    assert "one record is one row" not in said.lower()
    contract = read_ledger(tmp_path / "ledger").contract
    assert (contract.unit, contract.population, contract.expected_batch_size) == (told, 20, 10)
    assert read_ledger(tmp_path / "ledger").events == [(PoissonSampled(0.5, 1.0), 2)]


@pytest.mark.parametrize(
    "other",
    [PoissonSampling(0.25), drawing(population=20, examples_per_user=MOST + 1), drawing(population=20, told_by="visit"),
     UserSampling(rate=0.25, users=None)],
    ids=["records", "another bound", "other users", "records that are users"],
)  # fmt: skip
def test_an_account_of_users_is_not_continued_as_another_one_not_even_in_a_phase(tmp_path: Path, other: Any) -> None:
    run_with(tmp_path / "ledger", drawing(population=20))
    with pytest.raises(ContractChangedError, match="unit"):
        run_with(tmp_path / "ledger", other, size=10)
    run_with(tmp_path / "phases", drawing(population=20), phase="one")
    with pytest.raises(ContractChangedError, match="unit"):
        run_with(tmp_path / "phases", other, phase="two", size=10)
    assert "after 4 steps" in run_with(tmp_path / "ledger", drawing(population=20))


def test_records_drawn_by_themselves_are_protected_for_people_by_the_epsilon_of_a_group(tmp_path: Path) -> None:
    """Bounded first, and then declared; the noise that is chosen holds for k records at once."""
    kept = bounded_contributions(IDS, at_most=2)
    engine, model = PrivacyEngine(ledger=tmp_path / "ledger"), network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = Subset(TensorDataset(X), kept)
    model, optimizer, loader = engine.make_private_with_epsilon(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(data, batch_size=4),
        target_epsilon=4.0,
        target_delta=1e-5,
        epochs=1,
        max_grad_norm=C,
        group_size=2,
    )
    for (x,) in loader:
        engine.session.backward(of(model(x)))
        optimizer.step()
    assert 4.0 * 0.99 < engine.get_epsilon(1e-5, group_size=2) <= 4.0
    one = engine.get_epsilon(1e-5)
    assert one == epsilon(engine.session.charged, 1e-5)
    assert one < 2.0  # twice the epsilon of one is less than that of two
    said = engine.guarantee(1e-5, group_size=2)
    assert said.unit == "any 2 records together"
    assert "2 times that of one may not reach" in str(said)
    assert engine.session.epsilon(1e-5, group_size=2) == said.epsilon


def test_a_budget_of_a_group_ends_training_where_the_group_has_spent_it() -> None:
    engine, model = PrivacyEngine(), network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    given: dict[str, Any] = {"module": model, "optimizer": optimizer, "noise_multiplier": 2.0, "max_grad_norm": C}
    given["data_loader"] = DataLoader(TensorDataset(X), batch_size=4)
    for wrong in ({}, {"max_epsilon": 3.0, "max_delta": 1e-5, "fully_adaptive": True}):
        with pytest.raises(InvalidArgumentError, match="no budget for a group"):
            engine.make_private(**given, **wrong, group_size=2)
    model, optimizer, loader = engine.make_private(**given, max_epsilon=3.0, max_delta=1e-5, group_size=2)
    with pytest.raises(BudgetExhaustedError, match="fit into epsilon = 3 of 2 records"):
        run_once(engine.session, model, optimizer, chain.from_iterable(repeat(loader, 20)))
    spent = engine.get_epsilon(1e-5, group_size=2)
    assert 2.0 < spent <= 3.0
    assert epsilon_of_group([*engine.session.charged, (PoissonSampled(0.1, 2.0), 1)], 1e-5, 2).upper > 3.0
