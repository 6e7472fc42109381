"""What a model and its optimizer belong to, and what was spent on them before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from private_loops import NO_NOISE, attach
from torch import nn

from hushgrad import DPSGD, FlatClipping, PoissonSampling, privatize
from hushgrad.errors import ProtocolError
from hushgrad.guards.in_use import is_in_use
from hushgrad.session.members import Members


@pytest.mark.parametrize("shared", [True, False])
def test_a_model_made_private_again_says_which_of_its_steps_epsilon_does_not_count(
    shared: bool, tmp_path: Path
) -> None:
    model = nn.Linear(3, 2)
    sentences = []
    for number in range(3):
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        mechanism = DPSGD(
            noise_multiplier=1.0, clipping=FlatClipping(1.0), sampling=PoissonSampling(0.1), expected_batch_size=4
        )
        session = privatize(model, optimizer, mechanism, ledger=tmp_path / ("one" if shared else f"{number}"))
        session.backward(model(torch.randn(4, 3)).square().sum(1))
        optimizer.step()
        sentences.append(str(session.guarantee(1e-5)))
        session.close()
    assert all("not counted" not in sentence for sentence in (sentences if shared else sentences[:1]))
    if not shared:
        assert "1 earlier step of this model" in sentences[1]
        assert "2 earlier steps of this model" in sentences[2]


def test_a_model_or_optimizer_has_one_open_session() -> None:
    model, optimizer, session = attach()
    for part in (model, nn.Sequential(model), model[0]):
        with pytest.raises(ProtocolError, match="already"):
            privatize(part, torch.optim.SGD(part.parameters(), lr=0.1), NO_NOISE)
    with pytest.raises(ProtocolError, match="already"):
        privatize(model, optimizer, NO_NOISE)
    session.close()
    privatize(model, optimizer, NO_NOISE)


def test_all_modules_and_the_optimizer_are_claimed_together_and_given_back_together() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    members = Members(model, optimizer, None)
    members.join(members)
    assert all(is_in_use([part]) for part in (optimizer, model, *model))
    members.leave()
    assert not is_in_use([optimizer, model, *model])


@pytest.mark.parametrize(
    ("remembered", "path", "elsewhere"),
    [
        (("ledger", 5, 0), "ledger", 0),  # the same ledger holds them
        (("ledger", 5, 0), "another", 5),
        (("ledger", 5, 0), None, 5),
        ((None, 5, 0), None, 5),  # without a path no two ledgers are the same
        (("ledger", 5, 3), "ledger", 3),
        (("ledger", 5, 3), "another", 8),
    ],
)
def test_steps_count_elsewhere_unless_the_ledger_holds_them(
    remembered: tuple[str | None, int, int], path: str | None, elsewhere: int
) -> None:
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    ledger, steps, uncounted = remembered

    def of(model: nn.Module, ledger: str | None) -> Members:
        return Members(model, torch.optim.SGD(model.parameters(), 0.1), ledger)

    members = of(model, ledger)
    assert members.steps_elsewhere() == 0
    members.remember(steps, uncounted)
    assert of(model, path).steps_elsewhere() == elsewhere
    assert of(nn.Sequential(model), path).steps_elsewhere() == elsewhere
    assert of(other, path).steps_elsewhere() == 0
