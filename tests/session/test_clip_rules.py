"""Each clip rule in training: against one example at a time, in 16 bits, and with noise of its own for each group."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import (
    DPSGD,
    AutomaticClipping,
    ClipRule,
    FlatClipping,
    GroupwiseClipping,
    PerSampleAdaptiveClipping,
    PoissonSampling,
    PrivacyEngine,
    QuantileClipping,
    Session,
    privatize,
)
from hushgrad.accounting import PoissonSampled
from hushgrad.clipping.bound import BoundRule
from hushgrad.errors import InvalidArgumentError, SensitivityMismatchError
from hushgrad.gradients.oracle import clipped_sum_of, one_at_a_time
from hushgrad.randomness import KeyStream

B = 20
RULES: dict[str, ClipRule] = {
    "automatic": AutomaticClipping(0.5),
    "automatic, large γ": AutomaticClipping(0.5, 10.0),
    "per-sample adaptive": PerSampleAdaptiveClipping(0.5),
    "per layer": GroupwiseClipping(0.5),
    "per parameter, least noise": GroupwiseClipping(0.5, "parameter", noise="least"),
    "by prefix, equal budget": GroupwiseClipping(
        by=("emb", "body", "unused"), norms=(0.1, 0.4, 0.2), noise="equal-budget"
    ),
    "quantile": QuantileClipping(0.5, count_noise_multiplier=2.0),
}


class Network(nn.Module):
    """An embedding whose table is tied to the head, a convolution, and a layer that is not used."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.emb = nn.Embedding(11, 6)
        self.body = nn.ModuleDict({"conv": nn.Conv1d(6, 6, 3, padding=1), "norm": nn.LayerNorm(6)})
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.emb.weight
        self.unused = nn.Linear(2, 2)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.body["conv"](self.emb(ids).transpose(1, 2)).transpose(1, 2)
        logits = self.head(self.body["norm"](hidden).tanh())
        found: Tensor = (3 * logits).logsumexp(2).mean(1)
        return found


def session_of(rule: ClipRule, sigma: float = 0.0, **settings: Any) -> tuple[Session, nn.Module, torch.optim.Optimizer]:
    model = Network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    planned = DPSGD(
        noise_multiplier=sigma, clipping=rule, sampling=PoissonSampling(0.1), expected_batch_size=B, **settings
    )
    return privatize(model, optimizer, planned, key=KeyStream.fixed_for_tests(9)), model, optimizer


def ids(count: int) -> Tensor:
    return torch.randint(0, 11, (count, 5), generator=torch.Generator().manual_seed(3))


def update_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return what one step subtracts, times B."""
    seen: dict[str, Tensor] = {}
    hook = optimizer.register_step_pre_hook(
        lambda *_: seen.update({n: p.grad.double() * B for n, p in model.named_parameters()})  # type: ignore[union-attr]
    )
    optimizer.step()
    hook.remove()
    return seen


@pytest.mark.parametrize("name", RULES)
def test_the_sum_is_that_of_one_example_at_a_time(name: str) -> None:
    """To 1e-5 of its norm, in float32, over several physical batches."""
    rule, x = RULES[name], ids(9)
    session, model, optimizer = session_of(rule)
    alone = copy.deepcopy(model)
    runs = [lambda i=i: alone(x[i : i + 1]).sum() for i in range(len(x))]
    wanted = clipped_sum_of({n: g.double() for n, g in one_at_a_time(alone, runs).items()}, rule)
    for part in x.split(4):
        session.backward(model(part))
    found = update_of(model, optimizer)
    gap = math.hypot(*(float((found[n] - wanted[n]).norm()) for n in wanted))
    assert gap <= 1e-5 * math.hypot(*(float(total.norm()) for total in wanted.values()))
    session.close()


@pytest.mark.parametrize("name", RULES)
def test_in_16_bits_no_example_adds_more_than_the_limit_of_each_group(name: str) -> None:
    """Contributions from gradients in bfloat16 are at most C (1 + 1e-5), each example by itself."""
    rule = RULES[name]
    session, model, optimizer = session_of(rule)
    clip = BoundRule(rule, [n for n, _ in model.named_parameters()])
    reached = [0.0] * len(clip.groups)
    for row in range(6):
        with torch.autocast("cpu", torch.bfloat16):
            losses = 30 * model(ids(6)[row : row + 1])
        moved = session.clip_norm / rule.sensitivity  # of an adaptive rule
        session.backward(losses)
        found = update_of(model, optimizer)
        norms = [math.hypot(*(float(found[n].norm()) / moved for n in group)) for group in clip.groups]
        assert all(norm <= limit * (1 + 1e-5) for norm, limit in zip(norms, clip.limits, strict=True))
        reached = [max(pair) for pair in zip(reached, norms, strict=True)]
    assert max(norm / limit for norm, limit in zip(reached, clip.limits, strict=True)) > 0.7
    session.close()


@pytest.mark.statistical
@pytest.mark.parametrize(
    "noise", ["same", pytest.param("equal-budget", marks=pytest.mark.slow), "least"],
)  # fmt: skip
def test_each_group_gets_the_noise_that_its_part_of_the_charge_says(noise: str) -> None:
    """600 values and more for each group: five standard errors, false alarms below 1e-5."""
    norms, sigma = (0.5, 0.02, 0.1), 2.0
    rule = GroupwiseClipping(by=("emb", "body", "unused"), norms=norms, noise=noise)
    session, model, optimizer = session_of(rule, sigma)
    draws: list[dict[str, Tensor]] = []
    for _ in range(100):
        session.backward(torch.zeros(0))
        draws.append(update_of(model, optimizer))
    told = session.written.noise_std
    measured = []
    for group, norm in zip(rule.groups([n for n, _ in model.named_parameters()]), norms, strict=True):
        values = torch.cat([draw[n].flatten() for draw in draws for n in group])
        std = float(values.square().mean().sqrt())
        assert len({told[n] for n in group}) == 1
        assert std == pytest.approx(told[group[0]], rel=5 / math.sqrt(2 * len(values)))
        measured.append(norm / std)
    assert math.hypot(*measured) == pytest.approx(1 / sigma, rel=0.1)
    assert session.noise_monitor.verdict == "as charged"
    assert session.charged == [(PoissonSampled(0.1, sigma), 100)]
    session.close()


def test_a_tied_parameter_is_in_one_group_by_its_first_name() -> None:
    rule = GroupwiseClipping(0.5)
    session, model, _ = session_of(rule)
    groups = BoundRule(rule, [n for n, _ in model.named_parameters()]).groups
    assert sum("emb.weight" in group for group in groups) == 1
    assert not any("head.weight" in group for group in groups)
    session.close()
    with pytest.raises(InvalidArgumentError, match="empty: group 1"):
        session_of(GroupwiseClipping(0.5, ("emb", "head", "body", "unused")))


# Planted bugs that training itself finds ------------------------------------------------------------------------------


def test_a_factor_that_is_rounded_to_16_bits_ends_training(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = AutomaticClipping.factors
    monkeypatch.setattr(
        AutomaticClipping, "factors", lambda self, norms_GB: (whole(self, norms_GB) * 1.002).bfloat16().float()
    )
    session, model, optimizer = session_of(AutomaticClipping(0.5, 1e-4))

    def train() -> None:
        for row in ids(6).split(1):
            session.backward(30 * model(row))
            optimizer.step()

    with pytest.raises(SensitivityMismatchError, match="an example would add more than the clip norm"):
        train()
    session.close()


def test_noise_of_the_wrong_level_in_a_group_ends_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups whose noise is drawn by their own C_l alone, σ·C_l, and is charged as σ, are a factor √m too quiet."""
    monkeypatch.setattr(
        GroupwiseClipping,
        "relative_noise",
        lambda self, sizes: tuple(limit / self.sensitivity for limit in self.limits(len(sizes))),
    )
    with pytest.raises(SensitivityMismatchError, match="each over its group's relative noise"):
        session_of(GroupwiseClipping(0.5, noise="least"), 1.0)


# Where rules are named ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["automatic", "per-sample-adaptive:r=0.2", "per-layer:noise=least", "quantile"])
def test_make_private_takes_a_rule_by_its_name(text: str) -> None:
    model = nn.Linear(4, 1)
    engine = PrivacyEngine()
    _, optimizer, loader = engine.make_private_with_epsilon(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=DataLoader(TensorDataset(torch.randn(40, 4)), batch_size=8),
        target_epsilon=3.0,
        target_delta=1e-3,
        epochs=1,
        clipping=text,
        max_grad_norm=0.7,
    )
    for (x,) in loader:
        engine.session.backward(model(x).square().sum(1))
        optimizer.step()
    assert engine.mechanism.sensitivity == 0.7
    assert engine.mechanism.clipping.describe() != FlatClipping(0.7).describe()
    assert 2.5 < engine.get_epsilon(1e-3) <= 3.0
    assert "third-party" not in str(engine.guarantee(1e-3))
    engine.session.close()
