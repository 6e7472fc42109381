"""What is refused of tables whose rows are chosen privately, each with its cure, before anything is charged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from hushgrad import JoinedOptimizer, SparseRows, doctor
from hushgrad.errors import HushgradError, ParameterMismatchError, UnsupportedModelError, UnsupportedOptimizerError
from hushgrad.guards.compatibility import require_trainable_privately
from hushgrad.guards.sparse_tables import sparse_table_problems, updates_tables_alone

RULE = SparseRows(tables=("0.weight",), threshold=3.0)
Optimizers = Callable[[nn.Module], torch.optim.Optimizer]


def model() -> nn.Module:
    return nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 2))


def by(kind: type[torch.optim.Optimizer], **options: Any) -> Optimizers:
    return lambda m: kind(m.parameters(), lr=0.1, **options)  # type: ignore[call-arg]


def apart(tables: type[torch.optim.Optimizer], rest: type[torch.optim.Optimizer], **options: Any) -> Optimizers:
    return lambda m: JoinedOptimizer(
        [tables(m[0].parameters(), lr=0.1), rest(m[1].parameters(), lr=0.1, **options)]  # type: ignore[call-arg, index]
    )


class Mine(torch.optim.SGD):
    """Whatever it does."""


ACCEPTED: dict[str, Optimizers] = {
    "SGD": by(torch.optim.SGD),
    "Adagrad": by(torch.optim.Adagrad),
    "SparseAdam beside Adam with decay": apart(torch.optim.SparseAdam, torch.optim.Adam, weight_decay=0.1),
    "SGD beside SGD with momentum": apart(torch.optim.SGD, torch.optim.SGD, momentum=0.9),
    "a group with momentum that holds no table": lambda m: torch.optim.SGD(
        [{"params": m[0].parameters()}, {"params": m[1].parameters(), "momentum": 0.9}],  # type: ignore[index]
        lr=0.1,
    ),
}

REFUSED: dict[str, tuple[Optimizers, str]] = {
    "Adam": (by(torch.optim.Adam), "Adam is not known to touch the chosen rows"),
    "AdamW": (by(torch.optim.AdamW), "AdamW is not known"),
    "momentum": (by(torch.optim.SGD, momentum=0.9), "momentum of SGD moves rows that were not chosen"),
    "weight decay": (by(torch.optim.SGD, weight_decay=0.1), "weight_decay of SGD moves rows"),
    "decay of Adagrad": (by(torch.optim.Adagrad, weight_decay=0.1), "weight_decay of Adagrad"),
    "a fused one": (by(torch.optim.SGD, fused=True), "fused of SGD takes no sparse gradients"),
    "a subclass": (by(Mine), "Mine is not known"),
    "SparseAdam for all": (by(torch.optim.SparseAdam), "SparseAdam needs sparse gradients"),
    "dense optimizer of the table": (apart(torch.optim.Adam, torch.optim.SGD), "Adam is not known"),
}


@pytest.mark.parametrize("kind", ACCEPTED)
def test_optimizers_that_touch_chosen_rows_alone_are_taken(kind: str) -> None:
    trained = model()
    optimizer = ACCEPTED[kind](trained)
    assert list(require_trainable_privately(trained, optimizer, RULE)) == ["0.weight", "1.weight", "1.bias"]


@pytest.mark.parametrize("kind", REFUSED)
def test_all_others_are_refused_with_those_to_use(kind: str) -> None:
    make, what = REFUSED[kind]
    trained = model()
    with pytest.raises(UnsupportedOptimizerError, match=what) as refusal:
        require_trainable_privately(trained, make(trained), RULE)
    assert "SparseAdam" in refusal.value.cure


def tied() -> nn.Module:
    trained = nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 7, bias=False), nn.Linear(7, 1))
    trained[1].weight = trained[0].weight
    return trained


def turned() -> nn.Module:
    trained = model()
    trained[0].weight = nn.Parameter(torch.zeros(3, 7).t())
    return trained


MODELS: dict[str, tuple[Callable[[], nn.Module], SparseRows, type[HushgradError], str]] = {
    "no such name": (model, SparseRows(tables=("5.weight",), threshold=1.0), ParameterMismatchError, "no trainable"),
    "frozen": (lambda: nn.Sequential(nn.Embedding(7, 3).requires_grad_(False), nn.Linear(3, 2)), RULE,
               ParameterMismatchError, "no trainable parameter"),
    "a vector": (model, SparseRows(tables=("1.bias",), threshold=1.0), UnsupportedModelError, "contiguous table"),
    "no rows": (lambda: nn.Sequential(nn.Embedding(0, 3), nn.Linear(3, 2)), RULE, UnsupportedModelError, "with values"),
    "strides of its own": (turned, RULE, UnsupportedModelError, "contiguous table"),
    "tied": (tied, RULE, UnsupportedModelError, "tied to 1.weight"),
    "nothing else is trained": (lambda: nn.Sequential(nn.Embedding(7, 3)), RULE, UnsupportedModelError, "all that is"),
}  # fmt: skip


@pytest.mark.parametrize("kind", MODELS)
def test_tables_that_are_none_or_are_used_by_others_are_refused(kind: str) -> None:
    make, rule, error, what = MODELS[kind]
    trained = make()
    optimizer = torch.optim.SGD([p for p in trained.parameters() if p.requires_grad], lr=0.1)
    with pytest.raises(error, match=what):
        require_trainable_privately(trained, optimizer, rule)


def test_all_problems_are_told_at_once_and_a_model_alone_is_looked_at_as_well() -> None:
    trained = tied()
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    found = [str(problem) for problem in sparse_table_problems(trained, RULE, optimizer)]
    assert len(found) == 3
    assert len(list(sparse_table_problems(trained, RULE, None))) == 1


def test_an_optimizer_of_tables_alone_is_told_from_one_of_more() -> None:
    trained = model()
    assert updates_tables_alone(torch.optim.SparseAdam(trained[0].parameters()), RULE, trained)  # type: ignore[index]
    assert not updates_tables_alone(torch.optim.SparseAdam(trained.parameters()), RULE, trained)
    assert not updates_tables_alone(torch.optim.SparseAdam(trained[0].parameters()), None, trained)  # type: ignore[index]


def test_the_doctor_tells_of_tables_and_their_optimizer() -> None:
    trained = model()
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1, momentum=0.9)
    found = doctor(trained, torch.tensor([[1, 2], [3, 4]]), optimizer=optimizer, sparse_rows=RULE)
    assert any("momentum of SGD" in problem.what for problem in found.problems)
    assert not any("momentum" in problem.what for problem in doctor(trained, optimizer=optimizer).problems)
