"""What is told without running a model, and a model put right for a run and given back as it was."""

from __future__ import annotations

import torch
from torch import nn

from hushgrad.checks.doctor.static_checks import can_run, problems_of, put_right
from hushgrad.guards.compatibility import setup_problems


def troubled() -> nn.Module:
    return nn.Sequential(
        nn.Embedding(5, 4, sparse=True),
        nn.BatchNorm1d(4),
        nn.Sequential(nn.Unflatten(1, (2, 2)), nn.InstanceNorm1d(2, track_running_stats=True)),
    )


def test_a_model_in_eval_is_looked_at_as_it_will_be_trained() -> None:
    found = {(finding.code, finding.where) for finding in problems_of(troubled().eval(), None)}
    assert found == {("DP306", ""), ("DP307", "0"), ("DP301", "1"), ("DP302", "2.1")}


def test_no_problem_is_told_twice_and_modes_stay() -> None:
    model = troubled()
    model[1].eval()
    findings = problems_of(model, None)
    assert len(set(findings)) == len(findings)
    assert [part.training for part in (model, model[0], model[1])] == [True, True, False]


def test_a_model_put_right_has_no_problem_and_is_given_back_as_it_was() -> None:
    model = troubled()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with put_right(model):
        assert not list(setup_problems(model))
        model[2](model[1](model[0](torch.tensor([0, 1, 2]))))
    assert len(list(setup_problems(model))) == 3
    assert model[0].sparse
    assert model[1].training
    assert model[2][1].track_running_stats
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_what_has_no_values_cannot_be_run() -> None:
    assert can_run(troubled())
    assert not can_run(nn.Linear(2, 2, device="meta"))
    assert not can_run(nn.LazyLinear(2))
    assert not can_run(nn.Linear(2, 2).requires_grad_(False))
    assert not can_run(nn.DataParallel(nn.Linear(2, 2)))
