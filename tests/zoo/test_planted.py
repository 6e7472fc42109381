"""A zoo of planted bugs: none gets past `verify_update`, and the mistake is named."""

from __future__ import annotations

import itertools

import planted_updates as zoo
import pytest
import torch

import hushgrad


@pytest.fixture(autouse=True)
def _fixed_randomness() -> None:
    torch.manual_seed(20_261_123)


def test_the_zoo_has_fifty_bugs_and_more() -> None:
    assert len(zoo.PLANTED) >= 50


@pytest.mark.statistical
@pytest.mark.parametrize("name", zoo.PLANTED)
def test_a_planted_bug_is_detected_and_its_cause_is_named(name: str) -> None:
    """Seeds are fixed; a bug would be missed with a probability below 1e-3. All are named, not only 90%."""
    planted = zoo.PLANTED[name]
    verdict = hushgrad.verify_update(planted.make(), **zoo.arguments(planted))
    assert not verdict.passed
    assert verdict.exit_status == 1
    assert verdict.causes[0].code in planted.causes, str(verdict)


@pytest.mark.statistical
def test_the_correct_loop_from_which_the_bugs_are_copied_passes() -> None:
    """False-alarm probability 1e-6."""
    verdict = hushgrad.verify_update(zoo.correct, **zoo.arguments(zoo.Planted(lambda: zoo.correct, ())))
    assert verdict.passed, str(verdict)
    assert verdict.false_alarm <= 1e-6


SIGMAS, CLIPS, SIZES = (0.5, 1.0, 4.0), (1e-3, 1.0, 30.0), (1, 8, 300)
FORMS = {"tensor": (40, 10), "list": [(20, 10), (7,)], "dict": {"a": (3, 5, 8), "b": (10,)}}
SETTINGS = list(itertools.product(SIGMAS, CLIPS, SIZES, FORMS, (torch.float32, torch.float64)))
# An orthogonal array: among these 18, every two values of σ, C, B and the form occur together.
FEW = [
    (SIGMAS[i], CLIPS[j], SIZES[(i + j) % 3], list(FORMS)[(i + 2 * j) % 3], dtype)
    for i, j, dtype in itertools.product(range(3), range(3), (torch.float32, torch.float64))
]


@pytest.mark.statistical
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(FEW, id="few"),
        *(
            pytest.param([s for s in SETTINGS if s[0] == sigma], id=f"sigma={sigma}", marks=pytest.mark.slow)
            for sigma in SIGMAS
        ),
    ],
)
def test_correct_updates_of_many_settings_raise_no_alarm(
    settings: list[tuple[float, float, int, str, torch.dtype]],
) -> None:
    """162 of the 200 correct runs (the others: verification/training/test_verify). False alarms: 162 · 1e-6 in all."""
    for sigma, clip, size, form, dtype in settings:
        verdict = hushgrad.verify_update(
            _correct(sigma, clip, size),
            noise_multiplier=sigma,
            max_grad_norm=clip,
            expected_batch_size=size,
            parameters=FORMS[form],
            dtype=dtype,
            resolution=0.05,
        )
        assert verdict.passed, str(verdict)


def _correct(sigma: float, clip: float, size: float) -> object:
    """A correct update for a tensor, a list or a dict, in PyTorch's usual words."""

    def update(gradients: object) -> object:
        if isinstance(gradients, torch.Tensor):
            return update([gradients])[0]  # type: ignore[index]
        if isinstance(gradients, dict):
            return dict(zip(gradients, update(list(gradients.values())), strict=True))  # type: ignore[call-overload]
        flat = torch.cat([value.flatten(1) for value in gradients], 1)  # type: ignore[attr-defined]
        norms = flat.norm(dim=1)
        factors = (clip / (norms + 1e-6 * clip)).clamp(max=1.0)
        flat = torch.where(norms[:, None].isfinite(), flat, 0.0)
        total = (flat * torch.where(norms.isfinite(), factors, 0.0)[:, None]).sum(0)
        noised = (total + sigma * clip * torch.randn_like(total)) / size
        parts = noised.split([value[0].numel() if len(value) else value.sum(0).numel() for value in gradients])  # type: ignore[attr-defined]
        return [part.view(value.shape[1:]) for part, value in zip(parts, gradients, strict=True)]  # type: ignore[call-overload]

    return update
