"""Does a clip norm have to be tuned? Flat clipping at several norms against automatic clipping with one γ.

    python -m benchmarks.clip_rules --data DIR --out docs/results/clip-rules.json --write-docs

Every run is one of `hushgrad train`, with the settings that the task ships for that ε, but for views of images, which
cost time and change no rule. Of SGD the product of learning rate and clip norm is that of the settings: with another
norm the noise in the weights is then the same, and only what is clipped differs. Adam does not see the norm. Runs that
`--out` holds already are not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.accuracy import DELTA, SUBJECTS, config_of
from hushgrad.study.configuration import Privacy, RunConfig
from hushgrad.study.outcome import Callbacks
from hushgrad.study.tasks import load_task
from hushgrad.study.training import train

PAGE = Path(__file__).resolve().parent.parent / "docs" / "clipping.md"
BEGIN, END = "<!-- clip-rules:begin -->\n", "<!-- clip-rules:end -->"
EPSILONS = (1.0, 3.0)
RULES = {
    "flat, C = 0.1": ("flat", 0.1, 1.0),
    "flat, C = 1": ("flat", 1.0, 1.0),
    "flat, C = 10": ("flat", 10.0, 1.0),
    "automatic, γ = 0.01": ("automatic:gamma=0.01", 1.0, 1.0),
    "automatic, twice the rate": ("automatic:gamma=0.01", 1.0, 2.0),
    "per-sample adaptive, r = 0.1": ("per-sample-adaptive:r=0.1", 1.0, 1.0),
    "per layer": ("per-layer", 1.0, 1.0),
    "quantile": ("quantile", 1.0, 1.0),
}
"""By name: the rule, C, and what the learning rate is multiplied with beside."""

TUNED = [name for name, (rule, _, _) in RULES.items() if rule == "flat"]
AUTOMATIC = "automatic, γ = 0.01"
RATES = [AUTOMATIC, "automatic, twice the rate"]

Runs = dict[str, list[float]]


def with_rule(config: RunConfig, rule: str, max_grad_norm: float, times: float) -> RunConfig:
    """Return the settings with another rule and norm, SGD's learning rate times C kept, but for a factor."""
    found = config.privacy
    assert found is not None
    privacy: Privacy = replace(found, clipping=rule, max_grad_norm=max_grad_norm)
    rate = config.learning_rate * times
    if config.optimizer == "sgd":
        rate *= found.max_grad_norm / max_grad_norm
    return replace(config, privacy=privacy, learning_rate=rate)


def key_of(label: str, epsilon: float, rule: str) -> str:
    """Return what the runs of a cell are kept under."""
    return f"{label}, ε = {epsilon:g}: {rule}"


def table(results: Runs) -> str:
    """Return the table in Markdown: accuracies in percent, and automatic against the best of the tuned norms."""
    names = [name for name in RULES if any(key.endswith(f": {name}") for key in results)]
    lines = [
        "| task | ε | " + " | ".join(names) + " | automatic − best C | runs, at least |",
        "|---|---|" + "---|" * (len(names) + 2),
    ]
    for label in SUBJECTS:
        for epsilon in EPSILONS:
            found = {name: results.get(key_of(label, epsilon, name), []) for name in names}
            if not all(found[name] for name in (*TUNED, AUTOMATIC) if name in found) or AUTOMATIC not in found:
                continue
            best = max(statistics.fmean(found[name]) for name in TUNED)
            automatic = max(statistics.fmean(found[name]) for name in RATES if found.get(name))
            gap = 100 * (automatic - best)
            cells = [_cell(found[name]) for name in names]
            count = min(len(found[name]) for name in (*TUNED, AUTOMATIC))
            lines.append(f"| {label} | {epsilon:g} | " + " | ".join(cells) + f" | {gap:+.1f} | {count} |")
    return "\n".join(lines)


def _cell(runs: list[float]) -> str:
    if not runs:
        return ""
    mean = 100 * statistics.fmean(runs)
    return f"{mean:.1f} ± {100 * statistics.stdev(runs):.1f}" if len(runs) > 1 else f"{mean:.1f}"


def main() -> None:
    """Run what is missing, keep each run when it ends, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(SUBJECTS), choices=list(SUBJECTS))
    parser.add_argument("--epsilons", nargs="*", type=float, default=list(EPSILONS))
    parser.add_argument("--rules", nargs="*", default=list(RULES), choices=list(RULES))
    parser.add_argument("--write-docs", action="store_true", help="Put the table into docs/clipping.md.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: Runs = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for label in arguments.only:
        task: Any = None
        for seed in range(arguments.seeds):
            for epsilon in arguments.epsilons:
                for name in arguments.rules:
                    runs = results.setdefault(key_of(label, epsilon, name), [])
                    if len(runs) > seed:
                        continue
                    config = with_rule(config_of(label, arguments.data, epsilon, seed), *RULES[name])
                    task = task or load_task(config.task, config.options)
                    runs.append(train(config, task, Callbacks())[1].test_accuracy)
                    print(f"{key_of(label, epsilon, name)}: {runs[-1]:.1%} (δ = {DELTA:g})", flush=True)
                    text = json.dumps(results, indent=1, ensure_ascii=False, sort_keys=True)
                    arguments.out.write_text(text + "\n", encoding="utf-8")
    print(table(results))
    if arguments.write_docs:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        _, end, after = rest.partition(END)
        assert end, f"{PAGE} lacks its markers"
        PAGE.write_text(f"{before}{BEGIN}{table(results)}\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
