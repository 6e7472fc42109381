"""What a step released in units of its noise: one release with one sensitivity, whatever noise its parts have."""

from __future__ import annotations

import pytest
import torch
from tests.checks.verification.training.test_clip_rules import GROUPS, QUANTILE, loader, mechanism, network
from torch import nn

from hushgrad import ClipRule
from hushgrad.checks.verification.training.copies import TrainingReplica
from hushgrad.checks.verification.training.noise_units import COUNT, expected_of
from hushgrad.checks.verification.training.verify import small_steps


@pytest.mark.statistical
@pytest.mark.parametrize("rule", [GROUPS, QUANTILE])
def test_an_update_is_read_in_units_of_its_noise_with_its_count(rule: ClipRule) -> None:
    """What one example adds has at most the norm C then, and noise has one level everywhere: 500 values to 20%."""
    replica = TrainingReplica.of(
        network(), loader(), nn.CrossEntropyLoss(), mechanism(rule), small_steps, None
    )  # fmt: skip
    empty, one = (replica.session(seed=4) for _ in range(2))
    noise, both = empty.update(None), one.update(replica.item([0]))
    added = {name: both[name].double() - noise[name].double() for name in both}
    expected = expected_of(replica.gradients_of(0), replica.mechanism, one.session.written)
    assert (COUNT in added) == (rule is QUANTILE)
    for name, value in expected.items():
        torch.testing.assert_close(added[name].reshape(value.shape), value.double(), rtol=1e-3, atol=1e-6)
    total = float(torch.cat([value.flatten() for value in added.values()]).norm()) * 20
    assert total == pytest.approx(rule.sensitivity, rel=1e-4)
    draws = [empty.update(None) for _ in range(4)]
    for names in (("0.weight", "0.bias"), ("2.weight", "2.bias")):
        values = torch.cat([draw[name].flatten() for draw in draws for name in names]) * 20
        assert float(values.square().mean().sqrt()) == pytest.approx(1.1 * rule.sensitivity, rel=0.4)
    for running in (empty, one):
        running.session.close()
