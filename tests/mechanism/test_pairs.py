"""Every clip rule with every sampling and noise: a step is exact and charged as what it is, or it is refused."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import (
    DPSGD,
    AutomaticClipping,
    BallsInBinsSampling,
    ClipRule,
    CyclicPoissonSampling,
    DisjointBatches,
    FixedOrderBatches,
    FixedSizeSampling,
    FlatClipping,
    GaussianNoise,
    GridNoise,
    GroupwiseClipping,
    Mechanism,
    NoiseMechanism,
    PerSampleAdaptiveClipping,
    PoissonSampling,
    PrivacyEngine,
    QuantileClipping,
    SamplingScheme,
    SparseRows,
    TruncatedPoissonSampling,
    UserSampling,
    optimal_banded,
    privatize,
)
from hushgrad.accounting import (
    CyclicPoisson,
    DisjointPass,
    Event,
    FixedOrder,
    FixedOrderBuffered,
    FixedSizeSampled,
    PoissonSampled,
    RandomAllocation,
    TruncatedPoisson,
)
from hushgrad.clipping import known as known_rules
from hushgrad.errors import HushgradError, InvalidArgumentError, UnprovenMechanismError
from hushgrad.gradients.oracle import clipped_sum_of, one_at_a_time
from hushgrad.mechanism import CorrelatedNoise
from hushgrad.mechanism import known as known_noises
from hushgrad.randomness import KeyStream
from hushgrad.sampling import known as known_samplings
from hushgrad.strategies.buffered import BufferedStrategy

N, PASS, SIGMA = 20, 4, 1.5
CHOSEN = SparseRows(tables=("0.weight",), threshold=3.0)
USERS = [i**3 % 17 for i in range(N)]
"""Whose each record is: some users have two."""
BANDED = optimal_banded(8, 2)
BUFFERED = BufferedStrategy((0.9, 0.3), (0.3, 0.4))

RULES: dict[str, ClipRule] = {
    "flat": FlatClipping(0.5),
    "automatic": AutomaticClipping(0.5),
    "per-sample adaptive": PerSampleAdaptiveClipping(0.5),
    "group-wise": GroupwiseClipping(0.5),
    "group-wise, equal budget of equal norms": GroupwiseClipping(0.5, noise="equal-budget"),
    "group-wise, equal budget": GroupwiseClipping(by=("0", "2"), norms=(0.4, 0.3), noise="equal-budget"),
    "group-wise, least noise": GroupwiseClipping(0.5, noise="least"),
    "quantile": QuantileClipping(0.5, count_noise_multiplier=5.0),
}
OWN_NOISE = {"group-wise, equal budget", "group-wise, least noise", "quantile"}
"""What takes noise that differs between groups or steps."""

SAMPLINGS: dict[str, tuple[SamplingScheme, Callable[[float], Event]]] = {
    "Poisson": (PoissonSampling(0.25), lambda sigma: PoissonSampled(0.25, sigma)),
    "truncated": (TruncatedPoissonSampling(0.25, N, 9), lambda sigma: TruncatedPoisson(0.25, sigma, N, 9)),
    "balls in bins": (BallsInBinsSampling(PASS), lambda sigma: RandomAllocation(PASS, sigma, 0)),
    "fixed size": (FixedSizeSampling(5, N), lambda sigma: FixedSizeSampled(5, N, sigma)),
    "disjoint": (DisjointBatches(), lambda sigma: DisjointPass(sigma, 0)),
    "cyclic": (CyclicPoissonSampling(0.25, 2), lambda sigma: CyclicPoisson(0.5, sigma, 2, 0)),
    "fixed order": (FixedOrderBatches(PASS), lambda sigma: FixedOrder(sigma, PASS, 0)),
    "whole users": (
        UserSampling(rate=0.25, users=USERS, examples_per_user=4, population=N),
        lambda sigma: PoissonSampled(0.25, sigma),
    ),
}
NOISES: dict[str, Callable[[float], NoiseMechanism]] = {
    "Gaussian": GaussianNoise,
    "grid": GridNoise,
    "banded": lambda sigma: CorrelatedNoise(sigma, BANDED),
    "buffered": lambda sigma: CorrelatedNoise(sigma, BUFFERED),
}
PROVEN = {
    "Gaussian": set(SAMPLINGS),
    "grid": set(SAMPLINGS),
    "banded": {"cyclic", "fixed order"},
    "buffered": {"fixed order"},
}
TRIPLES = [(rule, sampling, noise) for rule in RULES for sampling in SAMPLINGS for noise in NOISES]


def is_proven(rule: str, sampling: str, noise: str) -> bool:
    return sampling in PROVEN[noise] and (noise == "Gaussian" or rule not in OWN_NOISE)


def made(rule: str, sampling: str, noise: str, sigma: float) -> Mechanism:
    return Mechanism(
        noise=NOISES[noise](sigma), clipping=RULES[rule], sampling=SAMPLINGS[sampling][0], expected_batch_size=5
    )


def charged_as(sampling: str, noise: str, sigma: float) -> Event:
    if noise == "buffered":
        return FixedOrderBuffered.of(sigma, PASS, BUFFERED, 0)
    return SAMPLINGS[sampling][1](sigma)


def test_every_kind_is_in_the_table() -> None:
    assert {type(rule) for rule in RULES.values()} == set(known_rules.OWN)
    assert {type(scheme) for scheme, _ in SAMPLINGS.values()} == set(known_samplings.OWN)
    assert {type(noise(1.0)) for noise in NOISES.values()} == set(known_noises.OWN)


@pytest.mark.parametrize(("rule", "sampling", "noise"), [triple for triple in TRIPLES if is_proven(*triple)])
def test_a_step_of_kinds_that_go_together_is_the_oracles_sum_and_charged_as_what_it_is(
    rule: str, sampling: str, noise: str
) -> None:
    """Without noise, to 1e-5 of the sum's norm (and the grid); the event of both noise multipliers in closed form."""
    assert made(rule, sampling, noise, SIGMA).event() == charged_as(sampling, noise, SIGMA)
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    alone = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    planned = made(rule, sampling, noise, 0.0)
    session = privatize(model, optimizer, planned, key=KeyStream.fixed_for_tests(9))
    batches = [range(place, place + 5) for place in range(0, N, 5)] if planned.sampling.takes_batches else None
    x = torch.randn(N, 3)
    loader = session.batches(
        TensorDataset(x, torch.arange(N)), batches=batches, steps_per_pass=PASS if batches is None else None
    )
    drawn, places = next(iter(loader))
    session.backward(model(drawn).square().sum(1))
    released: dict[str, torch.Tensor] = {}
    optimizer.register_step_pre_hook(
        lambda *_: released.update({n: p.grad.double() * 5 for n, p in model.named_parameters()})  # type: ignore[union-attr]
    )
    optimizer.step()
    users = {} if planned.sampling.ownership is None else {USERS[i]: i for i in places.tolist()}
    own = [[i for i in range(N) if USERS[i] == user] for user in users] or [[i] for i in places.tolist()]
    assert not users or sorted(map(len, own)) == [1, 2]
    runs = [lambda rows=rows: alone(x[rows]).square().sum(1).mean() for rows in own]
    expected = clipped_sum_of({n: g.double() for n, g in one_at_a_time(alone, runs).items()}, planned.clipping)
    gap = math.hypot(*(float((released[n] - expected[n]).norm()) for n in expected))
    size = math.hypot(*(float(total.norm()) for total in expected.values()))
    assert size > 0.1
    assert gap <= 1e-5 * size
    assert session.charged == [(charged_as(sampling, noise, 0.0), 1)]
    session.close()


@pytest.mark.parametrize(("rule", "sampling", "noise"), [triple for triple in TRIPLES if not is_proven(*triple)])
def test_a_pair_of_noise_and_clip_rule_without_a_proof_cannot_be_made_a_mechanism(
    rule: str, sampling: str, noise: str
) -> None:
    """And so of noise and sampling: with an error of its own and a cure, before there is a session."""
    with pytest.raises(UnprovenMechanismError, match="it is not known what") as caught:
        made(rule, sampling, noise, SIGMA)
    assert caught.value.cure.startswith("Take ")


def test_noise_on_a_grid_is_not_correlated_between_steps() -> None:
    with pytest.raises(UnprovenMechanismError, match="noise on a grid costs that is correlated"):
        DPSGD(
            noise_multiplier=1.0,
            noise_kind="grid",
            strategy=BANDED,
            clipping=FlatClipping(1.0),
            sampling=CyclicPoissonSampling(0.25, 2),
            expected_batch_size=5,
        )


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"noise": "grid", "clipping": "quantile"}, UnprovenMechanismError),
        ({"noise": "grid", "clipping": "per-layer:noise=least"}, UnprovenMechanismError),
        ({"noise": BANDED, "clipping": "quantile"}, UnprovenMechanismError),
        ({"noise": "banded", "clipping": "per-layer:noise=least"}, UnprovenMechanismError),
        ({"noise": "banded", "sampling": "balls-in-bins"}, InvalidArgumentError),
        ({"noise": "best", "sampling": "fixed-size"}, InvalidArgumentError),
        ({"noise": BANDED, "sampling": "balls-in-bins"}, InvalidArgumentError),
    ],
    ids=str,
)
def test_a_facade_refuses_the_same_by_name(more: dict[str, Any], error: type[HushgradError]) -> None:
    engine, model = PrivacyEngine(), nn.Linear(3, 2)
    with pytest.raises(error) as caught:
        engine.make_private_with_epsilon(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            data_loader=DataLoader(TensorDataset(torch.randn(64, 3)), batch_size=4),
            target_epsilon=2.0,
            target_delta=1e-5,
            epochs=1,
            max_grad_norm=1.0,
            **more,
        )
    assert caught.value.cure


@pytest.mark.parametrize(("rule", "sampling", "noise"), [triple for triple in TRIPLES if is_proven(*triple)])
def test_chosen_rows_go_with_gaussian_noise_and_every_rule_and_sampling_at_the_same_charge(
    rule: str, sampling: str, noise: str
) -> None:
    plain = made(rule, sampling, noise, SIGMA)
    if noise == "Gaussian":
        assert replace(plain, sparse_rows=CHOSEN).event() == charged_as(sampling, noise, SIGMA)
    else:
        with pytest.raises(UnprovenMechanismError, match="SparseRows"):
            replace(plain, sparse_rows=CHOSEN)
