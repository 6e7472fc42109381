"""Uses hushgrad with no extra installed, as far as Python can tell, and prints what came of it as JSON.

Run in a process of its own: `python tests/without_extras.py FOLDER`.
"""

from __future__ import annotations

import importlib.abc
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

REFUSED = {
    "dp_accounting", "matplotlib", "numba", "opacus", "optuna", "peft", "rich", "safetensors", "sklearn", "tensorboard",
    "transformers",
}  # fmt: skip
"""Not jinja2 and markupsafe, which torch brings."""


class Blocker(importlib.abc.MetaPathFinder):
    """Stands in another finder's place and finds nothing of what it refuses, as if it were not installed."""

    def __init__(self, finder: Any) -> None:
        self._finder = finder

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> Any:
        return None if name.partition(".")[0] in REFUSED else self._finder.find_spec(name, path, target)


COMMANDS = {
    "--help": [],
    "train --help": [],
    "epsilon --noise-multiplier 1.1 --sampling-rate 0.01 --steps 100 --delta 1e-5": [],
    "epsilon --ledger ledger.jsonl --delta 1e-5": [],
    "calibrate --epsilon 3 --delta 1e-5 --sampling-rate 0.01 --steps 100": [],
    "compare --noise-multiplier 1.1 --batch-size 20 --dataset-size 2000 --epochs 1 --delta 1e-5": [],
    "curve --noise-multiplier 4 --sampling none --passes 3": [],
    "ledger show ledger.jsonl --delta 1e-5": [],
    "ledger verify ledger.jsonl": [],
    "machine": [],
    "doctor model.py:model": [],
    "audit --noise-multiplier 4 --steps 2 --canaries 50 --delta 1e-2": [],
    "epsilon --noise-multiplier 1.1 --sampling-rate 0.01 --steps 9 --delta 1e-5 --accountant pld": ["cross-check"],
    "epsilon --noise-multiplier 1.1 --sampling-rate 0.01 --steps 9 --delta 1e-5 --accountant rdp": ["cross-check"],
    "epsilon --noise-multiplier 1.1 --sampling-rate 0.01 --steps 9 --delta 1e-5 --cross-check": ["cross-check"],
    "curve --noise-multiplier 4 --sampling none --passes 3 --png curve.png": ["report"],
    "report .": ["report"],
    "predict . --data rows.csv": ["study"],
    "export . --out exported": ["study"],
    "demo --out demo": ["study"],
    "train --noise-multiplier 1 --out out": ["study"],
    "train --noise-multiplier 1 --out out --tensorboard": ["study", "tensorboard"],
    "verify": ["study"],
    "sweep --out out --noise-multipliers 1": ["study"],
    "sweep --out out --epsilons 1 --search 2": ["sweep"],
}
"""Command lines, and the extras one of which the error may name; none where the command must work."""


MODEL = "import torch\n\nmodel = torch.nn.Linear(3, 2)\n"


def use_the_library() -> dict[str, object]:
    """Train, account, verify and examine; the ledger is left in the current folder."""
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    import hushgrad

    data = TensorDataset(torch.randn(40, 3), torch.randint(2, (40,)))
    model = nn.Linear(3, 2)
    engine = hushgrad.PrivacyEngine(ledger="ledger.jsonl")
    model, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=DataLoader(data, batch_size=8),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
    )
    criterion = engine.per_example(nn.CrossEntropyLoss())
    for x, y in loader:
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()
    verdict = hushgrad.verify(model, loader, nn.CrossEntropyLoss(), engine, resolution=0.1)
    diagnosis = hushgrad.doctor(nn.Linear(3, 2), data[:4], criterion=nn.CrossEntropyLoss())
    return {
        "epsilon": engine.get_epsilon(1e-5),
        "guarantee": str(engine.guarantee(1e-5)),
        "verdict": verdict.text(100),
        "diagnosis": str(diagnosis),
    }


def use_the_commands() -> dict[str, tuple[int, str]]:
    """Return exit code and output of each command line."""
    from click.testing import CliRunner

    from hushgrad.cli.main import main

    Path("model.py").write_text(MODEL)
    found = {}
    for line in COMMANDS:
        result = CliRunner().invoke(main, line.split())
        found[line] = (result.exit_code, result.output + repr(result.exception or ""))
    return found


if __name__ == "__main__":
    import os

    folder = Path(sys.argv[1])
    os.chdir(folder)
    sys.meta_path[:] = [Blocker(finder) for finder in sys.meta_path]
    library, commands = use_the_library(), use_the_commands()
    print(json.dumps({"library": library, "commands": commands, "loaded": sorted(REFUSED & set(sys.modules))}))
