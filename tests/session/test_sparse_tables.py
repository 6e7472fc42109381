"""Tables of which some rows are chosen privately, while a session trains: exact, within memory, and refused if not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, TensorDataset

import hushgrad
from hushgrad import (
    DPSGD,
    AutomaticClipping,
    FlatClipping,
    GroupwiseClipping,
    JoinedOptimizer,
    PoissonSampling,
    PrivacyEngine,
    QuantileClipping,
    Session,
    SparseRows,
    privatize,
)
from hushgrad.accounting import PoissonSampled, read_ledger
from hushgrad.errors import (
    ContractChangedError,
    InvalidArgumentError,
    PrivateBufferError,
    UnsupportedModelError,
    UnsupportedOptimizerError,
)
from hushgrad.gradients.contribution import Plan
from hushgrad.gradients.oracle import clipped_sum_of, one_at_a_time
from hushgrad.parallel.world import World
from hushgrad.randomness import KeyStream
from hushgrad.session.set_up import _require_divisible
from hushgrad.sparse_rows.rule import ALL_ROWS

USERS, ITEMS, DIM, B = 40, 30, 3, 6
TABLES = ("users.weight", "items.weight")


class Clicks(nn.Module):
    """Users and their last items, one of which is padding: a click or not."""

    def __init__(self, users: int = USERS, dim: int = DIM) -> None:
        super().__init__()
        self.users = nn.Embedding(users, dim)
        self.items = nn.Embedding(ITEMS, dim, padding_idx=0)
        self.head = nn.Linear(2 * dim, 1)

    def forward(self, ids: Tensor) -> Tensor:
        user, items = self.users(ids[:, 0]), self.items(ids[:, 1:]).sum(1)
        return self.head(torch.tanh(torch.cat([user, items], 1))).squeeze(1)


def records(count: int, users: int = USERS, seed: int = 0) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    user = torch.randint(0, users, (count, 1), generator=source)
    items = torch.randint(0, ITEMS, (count, 4), generator=source)
    return torch.cat([user, items], 1), torch.randint(0, 2, (count,), generator=source).float()


def losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.binary_cross_entropy_with_logits(model(batch[0]), batch[1], reduction="none")


def rule(**changes: Any) -> SparseRows:
    return SparseRows(**{"tables": TABLES, "threshold": 1.5, "rows_per_record": 2, "count_share": 0.2, **changes})


def private(
    model: nn.Module, sigma: float = 0.0, key: int | None = None, lr: float = 0.0, **changes: Any
) -> tuple[Session, torch.optim.Optimizer]:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    given: dict[str, Any] = {
        "noise_multiplier": sigma,
        "clipping": FlatClipping(0.3),
        "sampling": PoissonSampling(0.1),
        "expected_batch_size": B,
        "sparse_rows": rule(),
    }
    stream = None if key is None else KeyStream.fixed_for_tests(key)
    settings = {name: changes.pop(name) for name in ("plan", "ledger") if name in changes}
    return privatize(model, optimizer, DPSGD(**(given | changes)), key=stream, **settings), optimizer


def written(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def seen_by(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[dict[str, Tensor]]:
    found: list[dict[str, Tensor]] = []
    optimizer.register_step_pre_hook(lambda *_: found.append(written(model)))
    return found


RULES = {
    "flat": FlatClipping(0.3),
    "automatic": AutomaticClipping(0.3),
    "group-wise": GroupwiseClipping(0.3, "parameter", noise="least"),
    "quantile": QuantileClipping(0.3),
}


@pytest.mark.parametrize(("clip", "parts"), [*((name, [B]) for name in RULES), ("flat", [2, 1, 3])])
def test_chosen_rows_have_the_clipped_sum_of_one_example_at_a_time_and_no_other_row_has_any(
    clip: str, parts: list[int]
) -> None:
    """Clipped by the norm over all that is trained, rows that are not chosen included.

    Guarantee: a row gets an update, with noise, exactly where its noised count is above the threshold.
    """
    model, batch = Clicks(), records(B)
    per_example = one_at_a_time(
        model, [lambda i=i: losses(model, (batch[0][i : i + 1], batch[1][i : i + 1])).sum() for i in range(B)]
    )
    expected = clipped_sum_of(per_example, RULES[clip])
    session, optimizer = private(model, clipping=RULES[clip])
    updates = seen_by(optimizer, model)
    for some in zip(*(part.split(parts) for part in batch), strict=True):
        session.backward(losses(model, some))
    optimizer.step()
    session.close()
    touched = [torch.cat([(g != 0).any(1) for n, g in zip(TABLES, part, strict=True)])
               for part in zip(*(per_example[name] for name in TABLES), strict=True)]  # fmt: skip
    counts = sum(row.double() * min(1.0, math.sqrt(2 / int(row.sum()))) for row in touched)
    chosen = dict(zip(TABLES, (counts > 1.5).split([USERS, ITEMS]), strict=True))  # type: ignore[operator]
    [found] = updates
    for name in TABLES:
        assert found[name].is_sparse
        assert found[name].is_coalesced()
        assert found[name].indices().squeeze(0).tolist() == chosen[name].nonzero().flatten().tolist()
        torch.testing.assert_close(found[name].to_dense(), expected[name] * chosen[name].unsqueeze(1) / B)
    assert int(chosen["items.weight"].sum()) > 0
    torch.testing.assert_close(found["head.weight"], expected["head.weight"] / B)


class Bags(nn.Module):
    """Bags of different lengths by offsets: shorter ones are padded inside, with the rows of other examples."""

    def __init__(self) -> None:
        super().__init__()
        self.items, self.head = nn.EmbeddingBag(ITEMS, DIM, mode="sum"), nn.Linear(DIM, 1)

    def forward(self, ids: Tensor, offsets: Tensor) -> Tensor:
        return self.head(self.items(ids, offsets)).squeeze(1)


def end_to_end(bags: list[list[int]]) -> tuple[Tensor, Tensor]:
    sizes = torch.tensor([0, *(len(bag) for bag in bags[:-1])])
    return torch.tensor([word for bag in bags for word in bag]), sizes.cumsum(0)


def test_what_pads_a_batch_touches_no_row() -> None:
    model, bags = Bags(), [[7], [1, 2, 3], [9, 9], [5, 4, 3], [2], [8, 6]]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    engine = PrivacyEngine()
    _, _, loader = engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(bags, batch_size=3, collate_fn=end_to_end),  # type: ignore[arg-type]
        noise_multiplier=0.0,
        max_grad_norm=0.3,
        poisson_sampling=False,
        sparse_rows=SparseRows(tables=("items.weight",), threshold=0.9, rows_per_record=9),
    )
    updates = seen_by(optimizer, model)
    for ids, offsets in loader:
        engine.session.backward(model(ids, offsets).square())
        optimizer.step()
    assert [update["items.weight"].indices().squeeze(0).tolist() for update in updates] == [
        [1, 2, 3, 7, 9],
        [2, 3, 4, 5, 6, 8],
    ]


def test_noise_is_on_chosen_rows_alone_with_the_deviation_that_is_said() -> None:
    """The squares of 2,000 values and more are χ²: a false alarm has a probability below 1e-9 (fixed key)."""
    model = Clicks(users=50_000, dim=8)
    chosen = rule(tables=("users.weight",), threshold=1.2, count_share=0.4)
    session, optimizer = private(model, sigma=0.5, key=4, sparse_rows=chosen)
    updates = seen_by(optimizer, model)
    session.backward(torch.zeros(0))
    optimizer.step()
    std = session.written.noise_std["users.weight"]
    assert math.isclose(std, 0.5 * 0.3 / math.sqrt(0.6), rel_tol=1e-9)
    assert session.written.noise_std["head.weight"] == std
    rows = updates[0]["users.weight"]
    expected = 50_000 * chosen.untouched_probability(0.5)
    assert abs(rows.indices().shape[1] - expected) < 6.2 * math.sqrt(expected)
    squares = float((rows.values().double() * B / std).square().sum())
    count = rows.values().numel()
    assert count > 2000
    assert abs(squares - count) < 6.2 * math.sqrt(2 * count)
    session.close()


def test_the_optimizer_moves_chosen_rows_and_no_other() -> None:
    model = Clicks(users=2000)
    session, optimizer = private(model, sigma=1.0, key=2, lr=0.1)
    updates, before = seen_by(optimizer, model), model.users.weight.detach().clone()
    session.backward(losses(model, records(B, users=2000)))
    optimizer.step()
    moved = (model.users.weight.detach() != before).any(1).nonzero().flatten().tolist()
    assert moved == updates[0]["users.weight"].indices().squeeze(0).tolist()
    assert 0 < len(moved) < 2000
    session.close()


@pytest.mark.parametrize("kind", ["SparseAdam", "Adagrad"])
def test_other_optimizers_that_take_sparse_gradients_train_tables_beside_one_for_the_rest(kind: str) -> None:
    model = Clicks()
    tables = [model.users.weight, model.items.weight]
    optimizer = JoinedOptimizer(
        [getattr(torch.optim, kind)(tables, lr=0.1), torch.optim.Adam(model.head.parameters(), weight_decay=0.1)]
    )
    mechanism = DPSGD(
        noise_multiplier=1.0, clipping=FlatClipping(0.3), sampling=PoissonSampling(0.1), expected_batch_size=B,
        sparse_rows=rule(threshold=4.0),
    )  # fmt: skip
    session = privatize(model, optimizer, mechanism, key=KeyStream.fixed_for_tests(3))
    for step in range(3):
        before = model.users.weight.detach().clone()
        updates = seen_by(optimizer, model)
        session.backward(losses(model, records(B, seed=step)))
        optimizer.step()
        moved = (model.users.weight.detach() != before).any(1).nonzero().flatten().tolist()
        assert moved == updates[0]["users.weight"].indices().squeeze(0).tolist()
    session.close()


def largest_allocations(rows: int, steps: int) -> list[int]:
    """Return the most bytes that one operator of each step allocated and kept, and let go again, at once."""
    model = Clicks(users=rows, dim=16)
    session, optimizer = private(
        model, sigma=1.0, key=5, lr=0.1, sparse_rows=rule(tables=("users.weight",), threshold=30.0)
    )  # fmt: skip
    found = []
    for step in range(steps):
        batch = records(B, users=rows, seed=step)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            session.backward(losses(model, batch))
            optimizer.step()
            optimizer.zero_grad()
        found.append(max(event.self_cpu_memory_usage for event in seen.events()))
    session.close()
    return found


def test_no_step_allocates_anything_of_the_size_of_the_table() -> None:
    """The first step is examined by the probe, which reads the table part by part, and copies none of it.

    Guarantee: measuring and adding up take neither memory nor time by the number of rows of the table.
    """
    rows = 2_000_000
    largest = largest_allocations(rows, 6)
    assert largest[0] < rows * 16 * 4 / 10
    assert max(largest[1:]) <= 1 << 20  # where the probe looks again
    assert min(largest[1:]) <= 1.5 * min(largest_allocations(20_000, 6)[1:])  # and none follows the rows there are


class Weighted(nn.Module):
    """A row of a table times a number of the record, which is as small as it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.items, self.bias = nn.Embedding(3, 1), nn.Parameter(torch.zeros(1))

    def forward(self, ids: Tensor, times: Tensor) -> Tensor:
        return self.items(ids).squeeze(1) * times + self.bias


def count_of(rows: int, kind: str, threshold: float) -> int:
    """Return how many rows pass where each record has the gradient 6 * 2**-149, of which 2**-149 is the next to 0."""
    model, engine = Weighted(), PrivacyEngine()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    data = TensorDataset(torch.zeros(rows).long(), torch.full((rows,), 6 * 2.0**-149))
    _, _, loader = engine.make_private(
        module=model, optimizer=optimizer, noise_multiplier=0.0, max_grad_norm=1.0, poisson_sampling=False,
        data_loader=DataLoader(data, batch_size=rows),
        sparse_rows=SparseRows(tables=("items.weight",), threshold=threshold),
    )  # fmt: skip
    updates = seen_by(optimizer, model)
    ids, times = next(iter(loader))
    if kind == "session.backward":
        engine.session.backward(model(ids, times))
    elif kind == "engine.per_example":
        engine.per_example(lambda out, target: out - target)(model(ids, times), torch.zeros(rows)).backward()
    else:
        loss = model(ids, times).mean() if kind == "mean" else F.l1_loss(model(ids, times), torch.full((rows,), -9.0))
        loss.backward() if kind != "torch.autograd" else torch.autograd.backward([loss])
    optimizer.step()
    engine.session.close()
    return updates[-1]["items.weight"].indices().shape[1]


@pytest.mark.parametrize("kind", ["session.backward", "engine.per_example", "mean", "l1_loss"])
def test_how_many_records_a_batch_has_decides_of_no_gradient_whether_it_is_0(kind: str) -> None:
    """Divided by 13 before rows are counted, 6 * 2**-149 would be 0, and by 12 it would not: all counts at once."""
    assert [count_of(rows, kind, rows - 0.5) for rows in (12, 13)] == [1, 1]
    assert [count_of(rows, kind, rows + 0.5) for rows in (12, 13)] == [0, 0]


def test_a_mean_that_divides_gradients_before_rows_are_counted_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="before rows of SparseRows are counted"):
        count_of(12, "torch.autograd", 1.0)


def test_a_forward_that_writes_to_a_row_that_nobody_looks_up_through_memory_of_numpys_is_refused() -> None:
    class Writing(Clicks):
        def forward(self, ids: Tensor) -> Tensor:
            values[-1, 0] += float(ids[0, 0]) * 1e-3
            return super().forward(ids)

    model = Writing()
    values = model.users.weight.detach().numpy()
    session, _ = private(model)
    with pytest.raises(PrivateBufferError, match=r"users\.weight: a forward writes"):
        session.backward(losses(model, records(B, users=USERS - 1)))
    session.close()


def test_a_table_that_got_more_rows_is_refused_before_its_rows_are_counted_for_those_of_another() -> None:
    model = Clicks()
    session, _ = private(model)
    model.users.weight.data = torch.zeros(2 * USERS, DIM)
    with pytest.raises(ContractChangedError, match="has 80 rows, and had 40"):
        session.backward(losses(model, records(B)))
    assert session.steps == 0
    session.close()


def test_counts_of_a_batch_that_is_dropped_are_dropped() -> None:
    model = Clicks()
    session, optimizer = private(model, sparse_rows=rule(threshold=0.5, rows_per_record=9))
    updates = seen_by(optimizer, model)
    session.backward(losses(model, records(B)))
    session.discard()
    session.backward(torch.zeros(0))
    optimizer.step()
    assert updates[0]["users.weight"].indices().shape[1] == 0
    session.close()


@pytest.mark.parametrize("option", ["momentum", "weight_decay"])
def test_an_option_that_is_set_later_is_refused_before_anything_is_released(option: str) -> None:
    model = Clicks()
    session, optimizer = private(model, sigma=1.0)
    session.backward(losses(model, records(B)))
    optimizer.step()
    optimizer.zero_grad()
    session.backward(losses(model, records(B)))
    optimizer.param_groups[0][option] = 0.1
    with pytest.raises(UnsupportedOptimizerError, match=f"{option} of SGD"):
        optimizer.step()
    assert session.steps == 1
    session.close()


def test_a_table_that_is_frozen_for_a_step_gets_nothing() -> None:
    model = Clicks()
    session, optimizer = private(model, sigma=1.0, sparse_rows=rule(threshold=ALL_ROWS))
    updates = seen_by(optimizer, model)
    model.items.weight.requires_grad_(False)
    session.backward(losses(model, records(B)))
    optimizer.step()
    assert "items.weight" not in updates[0]
    assert "users.weight" in updates[0]
    model.items.weight.requires_grad_(True)
    session.close()


class Scores(nn.Module):
    """Scores of all items: a product with the table, which touches each of its rows."""

    def __init__(self) -> None:
        super().__init__()
        self.items, self.mix = nn.Embedding(ITEMS, DIM), nn.Linear(DIM, DIM)

    def forward(self, ids: Tensor) -> Tensor:
        return F.linear(self.mix(self.items(ids[:, 1])), self.items.weight)


class Penalised(nn.Module):
    """Reads all of the table in its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.items, self.head = nn.Embedding(ITEMS, DIM), nn.Linear(DIM, 1)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.items(ids[:, 1]) * self.items.weight.mean(0)).squeeze(1)


@pytest.mark.parametrize("kind", [Scores, Penalised])
def test_a_table_that_is_used_by_more_than_lookups_is_refused_and_nothing_is_charged(
    kind: Callable[[], nn.Module],
) -> None:
    model = kind()
    session, _ = private(model, sparse_rows=SparseRows(tables=("items.weight",), threshold=1.0))
    out = model(records(B)[0])
    losses_B = out.sum(1) if out.ndim == 2 else out
    with pytest.raises(UnsupportedModelError, match=r"items\.weight.*more than lookups"):
        session.backward(losses_B)
    assert session.steps == 0
    session.discard()
    session.close()


def test_a_term_of_parameters_that_reads_a_table_is_refused() -> None:
    model = Clicks()
    session, _ = private(model)
    with pytest.raises(InvalidArgumentError, match=r"reads users\.weight"):
        session.regularizer(lambda: model.users.weight.square().sum(), weight=0.1)
    session.regularizer(lambda: model.head.weight.square().sum(), weight=0.1)
    session.close()


def test_a_plan_that_lets_operands_go_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="operand_bytes"):
        private(Clicks(), plan=Plan(operand_bytes=1000))


def test_the_ledger_and_the_guarantee_say_that_rows_were_chosen_and_the_charge_is_one_step(tmp_path: Any) -> None:
    path, batch = tmp_path / "ledger.jsonl", records(B)
    session, optimizer = private(model := Clicks(), sigma=2.0, ledger=path)
    session.backward(losses(model, batch))
    optimizer.step()
    said = str(session.guarantee(1e-5))
    assert rule().describe() in said
    assert "counts and gradients are in one charge" in said
    assert session.charged == [(PoissonSampled(0.1, 2.0), 1)]
    session.close()
    assert read_ledger(path).contract.sparse_rows == rule().describe()
    other = Clicks()
    session, _ = private(other, sigma=2.0, ledger=path, sparse_rows=rule(threshold=9.0))
    with pytest.raises(ContractChangedError, match="sparse_rows"):
        session.backward(losses(other, batch))
    session.close()


def test_several_processes_are_refused_at_set_up() -> None:
    mechanism = DPSGD(
        noise_multiplier=1.0, clipping=FlatClipping(0.3), sampling=PoissonSampling(0.1), expected_batch_size=B,
        sparse_rows=rule(),
    )  # fmt: skip
    with pytest.raises(InvalidArgumentError, match="SparseRows is for one process"):
        _require_divisible(mechanism, World(size=2))
    _require_divisible(replace(mechanism, sparse_rows=None), World(size=2))


def test_an_engine_trains_tables_in_an_ordinary_loop() -> None:
    model, data = Clicks(), TensorDataset(*records(60))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = PrivacyEngine(test_key=3)
    model, optimizer, loader = engine.make_private_with_epsilon(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(data, batch_size=12),
        target_epsilon=3.0,
        target_delta=1e-3,
        epochs=2,
        max_grad_norm=0.3,
        sparse_rows=rule(threshold=4.0),
        max_physical_batch_size=5,
    )
    criterion = engine.per_example(nn.BCEWithLogitsLoss())
    for _ in range(2):
        for ids, clicked in loader:
            optimizer.zero_grad()
            criterion(model(ids), clicked).backward()
            optimizer.step()
    assert engine.get_epsilon(1e-3) <= 3.0
    assert "SparseRows" in str(engine.guarantee(1e-3))


def test_whole_users_touch_rows_as_one() -> None:
    """Two records of one user: what both touch together is clipped, and counted once."""
    model = Clicks()
    ids = torch.tensor([[1, 2, 2, 2, 2], [1, 3, 2, 2, 2], [5, 4, 4, 4, 4]])
    sampling = hushgrad.UserSampling(rate=0.7, users=[0, 0, 1], examples_per_user=2)
    mechanism = DPSGD(
        noise_multiplier=0.0, clipping=FlatClipping(0.3), sampling=sampling, expected_batch_size=1.4,
        sparse_rows=rule(threshold=0.99, rows_per_record=3),
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    session = privatize(model, optimizer, mechanism, key=KeyStream.fixed_for_tests(0))
    updates, seen = seen_by(optimizer, model), []
    for drawn, _ in session.batches(TensorDataset(ids, torch.zeros(3)), steps_per_pass=4):
        seen.append(sorted({int(user) for user in drawn[:, 0]}) if session.current_batch.weight else [])
        session.backward(losses(model, (drawn, torch.zeros(len(drawn)))))
        optimizer.step()
    assert [1, 5] in seen
    for users, update in zip(seen, updates, strict=True):
        assert update["users.weight"].indices().squeeze(0).tolist() == users
        wanted = ([2, 3] if 1 in users else []) + ([4] if 5 in users else [])
        assert update["items.weight"].indices().squeeze(0).tolist() == wanted
    session.close()
