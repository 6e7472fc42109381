"""Ways are chosen by a machine's constants under a budget, and gradients that are kept are formed at once."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from cases import CASES, losses
from measure import captured, clipped, distance, norm_of, reference
from torch import nn

from hushgrad.capture.scope import Scope
from hushgrad.capture.uses import UsePool
from hushgrad.clipping.flat import FlatClipping
from hushgrad.errors import InvalidArgumentError
from hushgrad.gradients.clipped_sum import Weighed, clipped_sums
from hushgrad.gradients.contribution import Contribution, Plan
from hushgrad.gradients.dense import Dense
from hushgrad.gradients.machine import CPU, FILE_VARIABLE, Machine, machine_of, write_machine
from hushgrad.gradients.oracle import clipped_sum_of
from hushgrad.gradients.outer import OuterProducts
from hushgrad.gradients.rows import Rows

CPU_DEVICE = torch.device("cpu")


@pytest.fixture
def machine_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(FILE_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "hushgrad" / "machine.json"


def outer(positions: int = 8) -> OuterProducts:
    return OuterProducts(torch.randn(3, positions, 16), torch.randn(3, positions, 16))


def test_the_fastest_way_follows_from_the_constants() -> None:
    plan = Plan()
    assert outer().way(replace(plan, machine=replace(CPU, gram_multiply_add=0.0))) == "gram"
    assert outer().way(replace(plan, machine=replace(CPU, formed=0.0))) == "instantiate"
    assert outer(positions=1).way(plan) == "product"
    assert outer().way(replace(plan, way="gram", machine=replace(CPU, formed=0.0))) == "gram"


def kinds(model: nn.Module, batch: torch.Tensor, plan: Plan) -> list[type[Contribution]]:
    pool = UsePool(plan)
    pool.batch_size = len(batch)
    scope = Scope(model, pool)
    try:
        losses(model(batch)).sum().backward()  # type: ignore[no-untyped-call]
    finally:
        scope.detach()
    return [type(part) for parts in pool.take().values() for part in parts]


@pytest.mark.parametrize(("positions", "kind"), [(8, Dense), (7, OuterProducts)])
def test_gradients_are_formed_in_the_backward_where_they_take_no_more_than_what_they_replace(
    positions: int, kind: type[Contribution]
) -> None:
    """2 · 8 · 16 values give 16 · 16; so do 2 · 7 · 16, which are fewer."""
    batch = torch.randn(3, positions, 16)
    for keep_bytes in (0, 1 << 20):
        assert kinds(nn.Linear(16, 16, bias=False), batch, Plan("instantiate", keep_bytes)) == [kind]
    assert kinds(nn.Linear(16, 16, bias=False), batch, Plan("gram")) == [OuterProducts]


def test_gradients_that_take_more_than_their_operands_are_kept_while_the_budget_lasts() -> None:
    grows_by = 3 * 4 * (256 - 224)
    for keep_bytes, wanted in {0: 0, grows_by: 1, 2 * grows_by: 2}.items():
        uses = {name: [outer(positions=7)] for name in "ab"}
        shown: list[Contribution] = []

        def watch(weighed: Weighed, seen: list[Contribution] = shown) -> None:
            seen.extend(weighed.members[0].values())

        clipped_sums(uses, clip=FlatClipping(1.0), plan=Plan("instantiate", keep_bytes), watch=watch)
        assert sum(isinstance(part, Dense) for part in shown) == wanted


def test_what_contributions_hold_is_let_go_as_sums_are_formed() -> None:
    uses = {"a": [outer()], "b": [outer(positions=1)]}
    clipped_sums(uses, clip=FlatClipping(1.0))
    assert uses == {}


@pytest.mark.parametrize("keep_bytes", [0, 2000, 1 << 28])
@pytest.mark.parametrize("way", [None, "gram", "instantiate"])
@pytest.mark.parametrize("name", sorted(CASES))
def test_a_pool_that_forms_gradients_at_once_gives_the_same_sums(name: str, way: str | None, keep_bytes: int) -> None:
    case = CASES[name]
    model, batch = case.model().double(), case.batch(5, torch.float64)
    per_example = reference(model, batch, losses)
    max_grad_norm = float(norm_of(per_example).median())
    plan = Plan(way, keep_bytes)  # type: ignore[arg-type]
    found = clipped(captured(model, batch, losses, plan), max_grad_norm, plan)
    assert distance(found, clipped_sum_of(per_example, FlatClipping(max_grad_norm))) <= 1e-10


def test_rows_that_are_looked_up_are_added_to_gradients_that_are_kept() -> None:
    rows = Rows(torch.tensor([[0, 2, 2], [1, 1, 0]]), torch.randn(2, 3, 4), 3)
    tables = torch.randn(2, 3, 4)
    wanted = tables + rows.per_example()
    assert rows.add_to(tables) is tables
    torch.testing.assert_close(tables, wanted)


def test_what_was_measured_is_read_back(machine_file: Path) -> None:
    assert machine_of(CPU_DEVICE) == CPU
    measured = replace(CPU, formed=0.125, keep_bytes=12345)
    assert write_machine("cpu", measured) == machine_file
    write_machine("cuda", replace(CPU, moved=0.5))
    assert machine_of(CPU_DEVICE) == measured
    assert Plan.of_device(CPU_DEVICE).keep_bytes == 12345
    assert Plan.of_device(CPU_DEVICE, keep_bytes=7).keep_bytes == 7


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"cpu": {"formed": 1}}', json.dumps({"cpu": {**asdict(CPU), "formed": -1}})]
)
def test_a_file_that_holds_no_constants_is_refused(machine_file: Path, text: str) -> None:
    machine_file.parent.mkdir()
    machine_file.write_text(text)
    with pytest.raises(InvalidArgumentError, match="machine"):
        machine_of(CPU_DEVICE)


def test_a_file_that_is_named_must_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FILE_VARIABLE, str(tmp_path / "absent.json"))
    with pytest.raises(InvalidArgumentError, match=FILE_VARIABLE):
        machine_of(CPU_DEVICE)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0, True, "1"])
def test_constants_are_finite_and_not_negative(bad: object) -> None:
    with pytest.raises(InvalidArgumentError, match="moved"):
        Machine(**{**asdict(CPU), "moved": bad})
