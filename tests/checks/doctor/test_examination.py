"""The doctor tells all that would be refused and how every parameter is used, and leaves no trace."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from leaky_models import AT_SETUP, BATCH, CLASSES, ON_FEATURES, WIDTH
from patients import Patient, features, ids
from torch import Tensor, nn

from hushgrad import DPSGD, FlatClipping, PoissonSampling, doctor, privatize
from hushgrad.errors import InvalidArgumentError, ProtocolError


def test_the_model_is_left_exactly_as_it_was() -> None:
    """Guarantee: the model is left exactly as it was: parameters, gradients, buffers, modes, hooks and random numbers.

    The caller's batch, too.
    """
    model, batch = Patient(), ids()
    model.twice.weight.grad = torch.ones(WIDTH, WIDTH)
    model.dropout.eval()
    gradient = model.twice.weight.grad
    values = {name: value.clone() for name, value in model.state_dict().items()}
    identities = {name: id(p) for name, p in model.named_parameters()}
    modes = [part.training for part in model.modules()]
    hooks = [
        (len(part._forward_hooks), len(part._forward_pre_hooks), len(part._backward_hooks)) for part in model.modules()
    ]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    kept = batch.clone()
    assert doctor(model, (batch, torch.arange(4)), criterion=nn.CrossEntropyLoss()).uses
    assert all(torch.equal(values[name], value) for name, value in model.state_dict().items())
    assert identities == {name: id(p) for name, p in model.named_parameters()}
    assert modes == [part.training for part in model.modules()]
    assert hooks == [
        (len(part._forward_hooks), len(part._forward_pre_hooks), len(part._backward_hooks)) for part in model.modules()
    ]
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert np.array_equal(states[2], np.random.get_state()[1])
    assert model.twice.weight.grad is gradient
    assert torch.equal(gradient, torch.ones(WIDTH, WIDTH))
    assert all(p.grad is None for name, p in model.named_parameters() if name != "twice.weight")
    assert torch.equal(kept, batch)


def test_all_offenders_are_listed_and_not_the_first_only() -> None:
    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH)
            self.lookup, self.again = nn.Embedding(3, WIDTH, sparse=True), nn.BatchNorm1d(WIDTH)
            self.hooked = nn.Linear(WIDTH, CLASSES)
            self.hooked.weight.register_hook(lambda g: g)

        def forward(self, x: Tensor) -> Tensor:
            h = self.again(self.norm(self.first(x))) + self.lookup(torch.zeros(len(x), dtype=torch.long))
            return self.hooked(h.softmax(0))

    diagnosis = doctor(Many(), features(), optimizer=torch.optim.SGD(nn.Linear(1, 1).parameters(), 0.1))
    found = {(problem.code, problem.where) for problem in diagnosis.problems}
    assert {("DP301", "norm"), ("DP301", "again"), ("DP307", "lookup"), ("DP306", "hooked.weight")} <= found
    assert {("DP402", "first.weight"), ("DP402", "")} <= found
    assert any(code in ("DP301", "DP304", "DP305") and where == "" for code, where in found)  # the softmax
    assert all(problem.cure for problem in diagnosis.problems)


@pytest.mark.parametrize(("name", "make", "kind"), AT_SETUP, ids=[case[0] for case in AT_SETUP])
def test_what_set_up_refuses_is_a_problem(name: str, make: Any, kind: Any) -> None:
    diagnosis = doctor(make())
    assert not diagnosis.is_ready
    assert diagnosis.problems[0].code == kind.code


@pytest.mark.parametrize(
    ("name", "make", "place", "kinds"), ON_FEATURES[::4], ids=[case[0] for case in ON_FEATURES[::4]]
)
def test_what_training_refuses_is_a_problem(name: str, make: Any, place: str, kinds: Any) -> None:
    problems = doctor(make(), (features(), torch.arange(BATCH) % CLASSES), criterion=nn.CrossEntropyLoss()).problems
    assert {problem.code for problem in problems} & {kind.code for kind in kinds}


def test_a_criterion_that_mixes_examples_is_a_problem() -> None:
    def coupled(out: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(out, y, reduction="none") / len(y)

    diagnosis = doctor(nn.Linear(WIDTH, CLASSES), (features(), torch.arange(BATCH) % CLASSES), criterion=coupled)
    assert any(problem.where == "criterion coupled" for problem in diagnosis.problems)


def test_a_model_that_fails_is_told_without_its_message() -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(WIDTH, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            raise ValueError(f"first value {x[0, 0].item()}")

    diagnosis = doctor(Fails(), torch.full((4, WIDTH), 123.25))
    assert "ValueError in forward" in diagnosis.problems[0].what
    assert "123" not in str(diagnosis)


@pytest.mark.parametrize("batch", ["tensor", "tuple", "dict", "item"])
def test_a_batch_is_what_the_model_takes(batch: str) -> None:
    x = features()
    given = {"tensor": x, "tuple": (x,), "dict": {"input": x}, "item": (x, torch.arange(BATCH))}[batch]
    assert doctor(nn.Linear(WIDTH, CLASSES), given).batch_size == BATCH


def test_without_a_batch_nothing_is_run_and_that_is_said() -> None:
    diagnosis = doctor(Patient())
    assert diagnosis.batch_size is None
    assert diagnosis.uses == ()
    assert "Give a batch" in str(diagnosis)


def test_as_json_is_plain_values() -> None:
    values = json.loads(json.dumps(doctor(Patient(), ids()).as_json(), allow_nan=False))
    assert values["ready"]
    assert values["uses"][0]["parameters"] == ["tokens.weight"]
    assert values["uses"][0]["cost"] >= 1
    assert values["norm_groups"] == {"per-layer": 4, "per-block": 4, "per-parameter": 6}
    assert {note["where"] for note in values["notes"]} >= {"frozen.weight", "unused.bias"}


def test_the_report_says_what_clip_rules_take_of_the_model() -> None:
    said = " ".join(str(doctor(Patient(), ids())).split())
    assert "one for each group: per-layer 4, per-block 4, per-parameter 6." in said
    assert "no rule makes this backward cheaper" in said


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="must be a torch"):
        doctor("model")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="needs a batch"):
        doctor(Patient(), criterion=nn.MSELoss())
    with pytest.raises(InvalidArgumentError, match="at least one tensor"):
        doctor(Patient(), {"input": "text"})
    with pytest.raises(InvalidArgumentError, match=r"\(inputs, target\)"):
        doctor(Patient(), ids(), criterion=nn.MSELoss())


def test_a_model_of_an_open_session_is_refused() -> None:
    model = nn.Linear(WIDTH, CLASSES)
    mechanism = DPSGD(
        noise_multiplier=1.0, clipping=FlatClipping(1.0), sampling=PoissonSampling(0.1), expected_batch_size=4
    )
    session = privatize(model, torch.optim.SGD(model.parameters(), 0.1), mechanism)
    with pytest.raises(ProtocolError, match="close"):
        doctor(model, features())
    session.close()
    assert doctor(model, features()).is_ready
