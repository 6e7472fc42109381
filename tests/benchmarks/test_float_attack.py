"""The attack on the low bits proves what it proved of ordinary noise, and nothing on a grid."""

from __future__ import annotations

import pytest
import torch
from benchmarks.float_attack import AT_ONCE, CASES, Case, attack_all, attacked

from hushgrad.mechanism import GridNoise
from hushgrad.mechanism import grid as mechanism
from hushgrad.noise.gaussian import Noised
from hushgrad.noise.grid import grid_updates
from hushgrad.randomness import KeyStream

EXPECTED = (0.43, 0.43, 0.19, 0.40, 0.45, 0.19, 0.0054, 0.065, 0.014, 0.37, 0.43)
"""What one release of ordinary noise proves; of 5,000 it is met to 0.03, which is four standard errors."""


def test_it_proves_sums_of_ordinary_noise_and_none_on_a_grid() -> None:
    for (ordinary, on_grid), share in zip(attack_all(5000, KeyStream.fixed_for_tests(1)), EXPECTED, strict=True):
        assert ordinary.proofs / 5000 == pytest.approx(share, abs=0.03)
        assert ordinary.proofs > 5
        assert ordinary.mistakes <= 5
        assert on_grid.proofs == on_grid.mistakes == 0


@pytest.mark.slow
def test_a_million_releases_on_a_grid_prove_nothing_in_any_case() -> None:
    stream = KeyStream.fixed_for_tests(2)
    for place, case in enumerate(CASES):
        found = attacked(case, GridNoise(case.noise_multiplier), 1_000_000, stream.fork(str(place)))
        assert (found.draws, found.proofs, found.mistakes) == (1_000_000, 0, 0), case.name


def test_it_proves_a_sum_that_was_not_rounded_to_the_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack on the grid can tell: of a sum between two cells, small releases show it also in float32."""

    def unrounded(parts, *, noise_std, spacing, divisor, stream):
        zeros = [Noised(torch.zeros_like(part.total), part.address) for part in parts]
        noise = grid_updates(zeros, noise_std=noise_std, spacing=spacing, divisor=1.0, stream=stream)
        return [(part.total + own) / divisor for part, own in zip(parts, noise, strict=True)]

    monkeypatch.setattr(mechanism, "grid_updates", unrounded)
    case = Case("between two cells", 1.0, 256.0, (0.37 + 2.0**-33, 0.38))
    assert attacked(case, GridNoise(1.0), AT_ONCE, KeyStream.fixed_for_tests(3)).proofs > 5
