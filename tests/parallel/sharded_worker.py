"""What one of several processes runs on sharded models: `sharded_worker.py SCENARIO ARGUMENTS`; its last line is JSON.

Many forms of a model are run in one launch: to begin processes takes longer than to train.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
import torch.nn.functional as F
from process_worker import RANK, WORLD, joined
from sharded_models import FORMS, Transformer, data_of
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import PrivacyEngine

B, C = 12, 0.5
TIMEOUT_S = 60


def full(tensor: Tensor) -> Tensor:
    whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole.detach().float()


class Run:
    """Private training of a sharded model in this process and the others; of the same model whole in one process."""

    def __init__(
        self, form: str, *, sigma: float = 0.0, key: int | None = 7, rows: int | None = 3, adam: bool = False, **more: Any
    ) -> None:
        make, shard = FORMS[form]
        torch.manual_seed(3)
        self.model = make()
        if WORLD > 1:
            self.model = shard(self.model)
        elif "bfloat16" in form:
            self.model = self.model.bfloat16()
        parameters = self.model.parameters()
        self.optimizer = torch.optim.Adam(parameters, 1e-3) if adam else torch.optim.SGD(parameters, 0.5)
        self.engine = PrivacyEngine(test_key=key, ledger=more.pop("ledger", None))
        dataset = TensorDataset(*data_of(self.model))
        _, _, self.loader = self.engine.make_private(
            module=self.model, optimizer=self.optimizer, data_loader=DataLoader(dataset, batch_size=B),
            noise_multiplier=sigma, max_grad_norm=C, max_physical_batch_size=rows, **more,
        )  # fmt: skip
        self.criterion = self.engine.per_example(nn.CrossEntropyLoss())
        self.seen: list[Tensor] = []
        self.items = 0
        self.optimizer.register_step_pre_hook(self._keep)

    def _keep(self, *_: Any) -> None:
        if self.engine.session.last_step_updated:
            self.seen.append(torch.cat([full(p.grad).flatten() for p in self.model.parameters() if p.grad is not None]))

    def train(self, steps: int, after: Callable[[], None] = lambda: None) -> None:
        while steps:
            for x, y in self.loader:
                self.optimizer.zero_grad()
                self.criterion(self.model(x).float(), y).backward()
                self.optimizer.step()
                self.items += 1
                if self.engine.last_step_updated:
                    after()
                    steps -= 1
                    if not steps:
                        return


def updates(folder: str, forms: list[str]) -> dict[str, Any]:
    """The first update of each form without noise, beside what one process left in the folder."""
    found = {}
    for form in forms:
        run = Run(form, rows=24 if "bfloat16" in form else 3)
        run.train(2)
        run.engine.session.close()
        path = Path(folder, f"{form}.pt")
        if WORLD == 1:
            torch.save(run.seen, path)
            continue
        wanted = torch.load(path)
        found[form] = {
            "error": ((run.seen[0] - wanted[0]).norm() / wanted[0].norm()).item(), "items": run.items,
            "left": [n for n, p in run.model.named_parameters() if p.grad is not None],
            "dtypes": sorted({str(p.dtype) for p in run.model.parameters()}),
            "report": [run.engine.session.probe_report.examined, *run.engine.session.probe_report.notes],
        }  # fmt: skip
    return found


def main(scenario: str, arguments: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "FSDP2-wrapped module")
    store, folder = arguments.pop("store"), arguments.pop("folder")
    if scenario == "updates":
        arguments["folder"] = folder
    with joined(store, TIMEOUT_S):
        print(json.dumps(globals()[scenario](**arguments)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
