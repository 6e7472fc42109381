"""What a step released, in units of its noise: with equal noise everywhere, and the count of the clip rule beside it.

All of it together is then one release with the sensitivity of the clip rule, whatever noise its groups get.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hushgrad.checks.verification.update.paired_update import Output
from hushgrad.gradients.oracle import clipped_sum_of
from hushgrad.mechanism import Mechanism
from hushgrad.session.update import Written

COUNT = "(the count of the clip rule)"
"""What is released beside the parameters' updates, where a clip rule counts."""


def in_units_of_noise(update: Output, mechanism: Mechanism, written: Written) -> Output:
    """Return an update whose parts all have the noise of the mechanism's standard deviation.

    Args:
        update: by parameter name, as it was written to `.grad`.
        mechanism: that of the session's first step.
        written: how much noise the parts of the update have.
    """
    std = mechanism.noise_std
    found = {name: value * (std / written.noise_std[name]) for name, value in update.items()}
    if written.count is not None and written.count_std is not None:
        found[COUNT] = torch.tensor([written.count * std / written.count_std / mechanism.divisor])
    return found


def expected_of(per_example: Mapping[str, Tensor], mechanism: Mechanism, written: Written) -> Output:
    """Return what these examples add to such an update, by the reference of the clip rule.

    Args:
        per_example: their gradients by ordinary autograd, `[B, *shape]` for each parameter.
        mechanism: that of the session's first step.
        written: how much noise the parts of the update had.
    """
    rule, adaptation = mechanism.clipping, mechanism.clipping.adaptation
    added = {name: value / mechanism.divisor for name, value in clipped_sum_of(per_example, rule).items()}
    count, std = None, written.count_std
    if adaptation is not None and std is not None:
        count = adaptation.reference_count({name: value.double() for name, value in per_example.items()})
    return in_units_of_noise(added, mechanism, Written(written.noise_std, count, std))
