"""The catalogue of wrong sums: the right way comes first, and no mistake computes the same as it."""

from __future__ import annotations

import torch

from hushgrad.checks.verification.mistakes.clipping import SIGNALS, Belief, clipped_to, norms, other_clip_norm

BELIEF = Belief(noise_multiplier=1.3, max_grad_norm=0.7, expected_batch_size=5.0, divisor=5.0)


def gradients() -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(1)
    scale = torch.tensor([0.01, 0.3, 1.0, 30.0], dtype=torch.float64)
    return {
        str(place): torch.randn(4, 3, 2, generator=source, dtype=torch.float64) * scale[:, None, None]
        for place in range(6)
    }


def test_the_first_is_the_sum_of_examples_clipped_to_c_over_the_divisor() -> None:
    given = gradients()
    factors = (BELIEF.max_grad_norm / norms(given)).clamp(max=1)
    found = SIGNALS[0].make(given, BELIEF)
    assert SIGNALS[0].cause is None
    for name, value in given.items():
        expected = torch.einsum("n,n...->...", factors, value) / BELIEF.divisor
        assert torch.allclose(found[name], expected)
        assert torch.allclose(clipped_to(1.0)(given, BELIEF)[name], expected)


def test_every_mistake_computes_something_else() -> None:
    given = gradients()
    right = SIGNALS[0].make(given, BELIEF)
    for signal in SIGNALS[1:]:
        wrong = signal.make(given, BELIEF)
        assert signal.cause is not None
        assert max(float((wrong[name] - right[name]).abs().max()) for name in right) > 1e-3, signal.cause


def test_another_clip_norm_is_named_with_its_factor() -> None:
    assert "2.5 times" in other_clip_norm(2.5).mistake
