"""Do optimizers made for noisy gradients beat DP-Adam at the same ε?

    python -m benchmarks.noisy_optimizers --data DIR --out docs/results/noisy-optimizers.json

Three ways to spend one mechanism, on a task's shipped model, batch size, epochs and clip norm:

- adam: Adam on the noised update, with its ε (which bounds 1/√v) as one of the settings.
- adam-bc: DP-AdamBC (Tang et al. 2023, arXiv:2312.14334): the noise's own variance (σC/B)² is taken off the second
  moment, with a floor; post-processing.
- scale-then-privatize (Ganesh et al. 2025, arXiv:2507.01129): every example's gradient is divided by √v + s, v the
  second moment of what was released before, then clipped, noised, and multiplied again; Adam follows.

Settings are chosen by the accuracy on a fifth of the training records that is held out, with one seed; then each is run
with three other seeds on all training records, and scored once on the test records. Gradients of examples are formed
by torch.func, which all three need here; ε is that of the accountant for these steps.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from benchmarks.accuracy import config_of
from benchmarks.written_out import noise_multiplier_of
from hushgrad.study.tasks import load_task
from hushgrad.study.training import model_for

RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
SETTINGS: dict[str, dict[str, tuple[float, ...]]] = {
    "adam": {"rate": RATES, "floor": (0.0, 1.0)},
    "adam-bc": {"rate": RATES, "floor": (0.1, 0.5)},
    "scale-then-privatize": {"rate": RATES, "floor": (0.3, 1.0), "norm": (0.3, 1.0, 3.0)},
}
"""What is tried: `floor` in units of σC/B, the noise in one value of the update, `norm` in those of the clip norm."""

BETAS = (0.9, 0.999)


def trained(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    *,
    kind: str,
    settings: dict[str, float],
    batch_size: int,
    steps: int,
    clip_norm: float,
    noise_multiplier: float,
    seed: int,
) -> nn.Module:
    """Train in place and return the model."""
    generator = torch.Generator().manual_seed(seed)
    inputs, labels = data
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    shapes = {name: value.shape for name, value in parameters.items()}
    flat = torch.cat([value.reshape(-1) for value in parameters.values()])
    norm = clip_norm * settings.get("norm", 1.0)
    noise = noise_multiplier * norm / batch_size
    first, second, scale = torch.zeros_like(flat), torch.zeros_like(flat), torch.ones_like(flat)

    def unflattened(vector: Tensor) -> dict[str, Tensor]:
        parts = vector.split([shape.numel() for shape in shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}

    def loss(vector: Tensor, x: Tensor, y: Tensor) -> Tensor:
        out = functional_call(model, unflattened(vector), (x.unsqueeze(0),))
        return nn.functional.cross_entropy(out, y.unsqueeze(0))

    per_example = vmap(grad(loss), (None, 0, 0))
    for step in range(1, steps + 1):
        drawn = torch.rand(len(labels), generator=generator) < batch_size / len(labels)
        gradients = per_example(flat, inputs[drawn], labels[drawn]) / scale
        factors = (norm / gradients.norm(dim=1).clamp(min=1e-30)).clamp(max=1.0)
        summed = factors @ gradients + noise_multiplier * norm * torch.randn(flat.shape, generator=generator)
        update = summed / batch_size * scale
        first.mul_(BETAS[0]).add_(update, alpha=1 - BETAS[0])
        second.mul_(BETAS[1]).addcmul_(update, update, value=1 - BETAS[1])
        mean, square = first / (1 - BETAS[0] ** step), second / (1 - BETAS[1] ** step)
        if kind == "adam-bc":
            below = (square - noise**2).clamp(min=(settings["floor"] * noise) ** 2).sqrt()
        else:
            below = square.sqrt() + (settings["floor"] * noise if kind == "adam" else 0.0) + 1e-12
        flat = flat - settings["rate"] * mean / below
        if kind == "scale-then-privatize":
            scale = square.sqrt() + settings["floor"] * noise
            scale = scale / scale.mean()
    with torch.no_grad():
        for name, value in unflattened(flat).items():
            model.get_parameter(name).copy_(value)
    return model


def accuracy(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """Return the share of records that the model is right on."""
    with torch.no_grad():
        return float((model(data[0]).argmax(1) == data[1]).double().mean())


def compared(label: str, data: Path, epsilon: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Return for each optimizer its chosen settings and the test accuracies of three seeds."""
    config = config_of(label, data, epsilon, 0)
    task = load_task(config.task, config.options)
    assert config.privacy is not None
    inputs, labels = task.train.tensors
    held_out = torch.rand(len(labels), generator=torch.Generator().manual_seed(0)) < 0.2
    found: dict[str, Any] = {}

    def run(kind: str, settings: dict[str, float], data: tuple[Tensor, Tensor], seed: int) -> nn.Module:
        assert config.privacy is not None
        sigma, steps = noise_multiplier_of(config, len(data[1]))
        return trained(
            model_for(replace(config, seed=seed), task),
            data,
            kind=kind,
            settings=settings,
            batch_size=config.batch_size,
            steps=steps,
            clip_norm=config.privacy.max_grad_norm,
            noise_multiplier=sigma,
            seed=seed,
        )

    for kind, grid in SETTINGS.items():
        tried = []
        for values in itertools.product(*grid.values()):
            settings = dict(zip(grid, values, strict=True))
            model = run(kind, settings, (inputs[~held_out], labels[~held_out]), 100)
            tried.append((accuracy(model, (inputs[held_out], labels[held_out])), settings))
        best = max(tried, key=lambda pair: pair[0])[1]
        test = task.test.tensors
        scores = [accuracy(run(kind, best, (inputs, labels), seed), (test[0], test[1])) for seed in range(3)]
        found[kind] = {"settings": best, "test_accuracy": scores}
        say(f"{label}, ε = {epsilon:g}, {kind}: {100 * statistics.fmean(scores):.1f} ± "
            f"{100 * statistics.stdev(scores):.1f} with {best}")  # fmt: skip
    return found


def main() -> None:
    """Compare what is asked for, and keep each comparison when it ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=["digits", "Adult", "MNIST"])
    parser.add_argument("--epsilons", nargs="*", type=float, default=[1.0, 3.0])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for label, epsilon in itertools.product(arguments.only, arguments.epsilons):
        key = f"{label}, ε = {epsilon:g}"
        if key not in results:
            results[key] = compared(label, arguments.data, epsilon, lambda text: print(text, flush=True))
            arguments.out.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
