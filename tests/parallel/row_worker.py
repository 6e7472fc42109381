"""What one of several processes runs on tensor parallel models: `row_worker.py SCENARIO ARGUMENTS`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
import torch.distributed as dist
import torch.nn.functional as F
from process_worker import RANK, WORLD
from row_models import ROWS, Columns, Language, Sequence, columns_and_rows, in_rows, mesh_of, styles
from sharded_models import FORMS
from sharded_worker import Run, _refused, dies, distributed_checkpoint, life, main, noise, resumed, updates
from torch import Tensor, nn

from hushgrad.parallel.replicas import digest

SHARED = (updates, noise, life, resumed, distributed_checkpoint, dies)
"""Those of `sharded_worker` that run tensor parallel models as well."""


def replicas(form: str, steps: int) -> dict[str, Any]:
    """Digests of what each process has, after some steps of Adam with noise: of what all of a row have whole, too."""
    torch.manual_seed(RANK)  # every process has a seed of its own
    run = Run(form, sigma=1.0, key=None, adam=True)
    run.train(steps)
    local = {name: getattr(p, "_local_tensor", p.data) for name, p in run.model.named_parameters()}
    placed = {name: str(getattr(p, "placements", "whole")) for name, p in run.model.named_parameters()}
    return {
        "whole": {name: digest([p]) for name, p in local.items() if "Shard" not in placed[name]},
        "parts": {name: digest([p]) for name, p in local.items() if "Shard" in placed[name]},
        "epsilon": run.engine.get_epsilon(1e-5),
        "steps": run.engine.session.steps,
    }


def narrow(folder: str, form: str) -> dict[str, Any]:
    """An update of a model in 16 bits whose operands are all held so, beside what one process left in the folder."""
    import hushgrad.gradients.narrow as module

    cuts: list[str] = []
    module.LARGE_OPERANDS = 0
    in_row = module.Narrow.in_row
    module.Narrow.in_row = lambda held, put: (cuts.append(""), in_row(held, put))[1]  # type: ignore[method-assign]
    make, split = FORMS[form]
    FORMS["narrow"] = (lambda: make().bfloat16(), split)
    run = Run("narrow")
    run.train(1)
    path = Path(folder, "narrow.pt")
    if WORLD == 1:
        torch.save(run.seen, path)
        return {}
    wanted = torch.load(path)[0]
    return {"error": ((run.seen[0] - wanted).norm() / wanted.norm()).item(), "held": len(cuts)}


def clip_rules(folder: str, form: str, sigma: float) -> dict[str, Any]:
    """Norms, counts and updates of rules with an adaptive norm, or with noise of their own for each group."""
    found: dict[str, Any] = {}
    for clipping in ("quantile:learning_rate=0.5,count_noise_multiplier=600", "per-layer:noise=least"):
        run, norms = Run(form, sigma=sigma, clipping=clipping), []
        session = run.engine.session
        run.train(3, lambda: norms.append((session.clip_norm, session.written.count)))  # noqa: B023
        path = Path(folder, f"{clipping.partition(':')[0]}.pt")
        if WORLD == 1:
            torch.save(run.seen, path)
        wanted = torch.load(path)
        errors = [float((one - two).norm() / two.norm()) for one, two in zip(run.seen, wanted, strict=True)]
        found[clipping] = {"norms": norms, "error": max(errors), "update": digest([run.seen[-1]])}
        session.close()
    return found


def drawn(form: str) -> list[list[int]]:
    """The records that this process took in each step."""
    run = Run(form, sigma=1.0, key=None)
    found: list[list[int]] = [[]]
    for x, y in run.loader:
        found[-1] += run.engine.session.current_batch.indices  # type: ignore[union-attr]
        run.criterion(run.model(x), y).backward()
        run.optimizer.step()
        if run.engine.last_step_updated:
            found.append([])
    return found[:-1]


class Mixing(Columns):
    """The mean over the batch goes into each record's output."""

    def forward(self, ids: Tensor) -> Tensor:
        output = super().forward(ids)
        return output + 0.1 * output.mean(0, keepdim=True)


class MixingInside(Columns):
    """The mean over the batch of a part that a single process has, between the layers."""

    def forward(self, ids: Tensor) -> Tensor:
        h = torch.relu(self.up(self.token(ids).mean(1)))
        return self.down(h + 0.1 * h.mean(0, keepdim=True))


class MixingGradients(Columns):
    """Only gradients are mixed: a straight-through mean, which no value shows."""

    def forward(self, ids: Tensor) -> Tensor:
        h = torch.relu(self.up(self.token(ids).mean(1)))
        mean = h.mean(0, keepdim=True).expand_as(h)
        return self.down(h + mean - mean.detach())


class Hooked(Columns):
    """A hook divides the gradients of one process's part by the norm of the whole batch's."""

    def forward(self, ids: Tensor) -> Tensor:
        h = torch.relu(self.up(self.token(ids).mean(1)))
        if RANK == 1:
            h.register_hook(lambda gradient: gradient / gradient.norm())
        return self.down(h)


def leaks() -> dict[str, str]:
    """What is found of programs that mix records, in every process or in one of a row alone."""
    found = {}
    for kind in (Mixing, MixingInside, MixingGradients, Hooked):
        FORMS[kind.__name__] = (kind, ROWS["columns and rows"][1])
        run = Run(kind.__name__, sigma=1.0)
        found[kind.__name__] = _refused(lambda run=run: run.train(1))
        dist.barrier()
    return found


def permuted() -> dict[str, str]:
    """Each process of a row puts the records into an order of its own, or changes them in a way of its own."""
    found = {}
    changes: dict[str, Callable[[Tensor], Tensor]] = {
        "order": lambda ids: ids[torch.arange(len(ids)).roll(RANK)],
        "values": lambda ids: (ids + RANK) % 40,
        "same values": lambda ids: (ids + 1) % 40,
    }
    for name, change in changes.items():
        run = Run("columns and rows", sigma=1.0, rows=4)

        def train(run: Run = run, change: Callable[[Tensor], Tensor] = change) -> None:
            for x, y in run.loader:
                run.criterion(run.model(change(x)), y).backward()
                run.optimizer.step()

        found[name] = _refused(train)
        dist.barrier()
    return found


def late_leaks() -> dict[str, str]:
    """A leak that begins after two steps, in the second process of a row alone."""
    found = {}
    mixtures: dict[str, Callable[[Tensor], Tensor]] = {
        "by losses": lambda output: output + output.mean(0, keepdim=True),
        "by values": lambda output: output + output.detach().mean(0, keepdim=True),
    }
    for name, mixed in mixtures.items():
        later = Run("columns and rows", sigma=1.0, rows=None)
        later.train(2)
        if RANK == 1:
            later.model.register_forward_hook(lambda _, __, output, mixed=mixed: mixed(output))
        found[name] = _refused(lambda later=later: later.train(200))
        found[f"epsilon {name}"] = str(later.engine.get_epsilon(1e-5))
    return found


def _styled(**plan: Any) -> Callable[[nn.Module], nn.Module]:
    return in_rows(lambda: {**columns_and_rows(), **plan})


def refusals() -> dict[str, str]:
    """Forms of tensor parallel models, and of losses on them, that are not supported."""
    from torch.distributed.tensor import Replicate, Shard
    from torch.nn.parallel import DistributedDataParallel

    of = styles()
    whole, rows_of = Replicate(), of.RowwiseParallel
    forms: dict[str, Any] = {
        "batch": (Columns, _styled(up=of.ColwiseParallel(input_layouts=Shard(0)))),
        "batch of outputs": (Columns, _styled(down=rows_of(output_layouts=Shard(0)))),
        "distributed outputs": (Columns, _styled(down=rows_of(output_layouts=whole, use_local_output=False))),
        "parts of outputs": (Columns, _styled(down=of.ColwiseParallel(input_layouts=Shard(-1)))),
        "wrapped": (Columns, lambda model: DistributedDataParallel(in_rows(columns_and_rows)(model), init_sync=False)),
        "pipeline": (_Stage, lambda model: model),
    }
    found = _refused_forms(forms)
    found["loss parallel"] = _loss_parallel(of.ColwiseParallel(input_layouts=Shard(-1), use_local_output=False))
    found["context parallel"] = _context_parallel(4)
    found["context parallel, one record at a time"] = _context_parallel(1)
    later = Run("columns whole")
    in_rows(columns_and_rows)(later.model)
    found["later"] = _refused(lambda: later.train(1))
    return found


def _refused_forms(forms: dict[str, Any]) -> dict[str, str]:
    found = {}
    for name, form in forms.items():
        FORMS[name] = form
        found[name] = _refused(lambda name=name: Run(name).train(1))
        dist.barrier()
    return found


class _Stage(nn.Module):
    """Each process has layers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(40, 16) if RANK == 0 else nn.Linear(16, 5)


def _loss_parallel(style: Any) -> str:
    from torch.distributed.tensor.parallel import loss_parallel

    FORMS["logits"] = (Columns, _styled(down=style))
    run = Run("logits")

    def train() -> None:
        x, y = next(iter(run.loader))
        with loss_parallel():
            F.cross_entropy(run.model(x), y).backward()
        run.optimizer.step()

    return _refused(train)


def _context_parallel(rows: int) -> str:
    """Attention of a plain model, of which each process has positions of all processes' records."""
    from torch.distributed.tensor.experimental import context_parallel
    from torch.nn.attention import SDPBackend, sdpa_kernel

    FORMS["plain"] = (Language, lambda model: model)
    run = Run("plain", rows=rows, constant_shapes=True)

    def train() -> None:
        x, y = next(iter(run.loader))
        x = x.clone()
        with (
            context_parallel(mesh_of((WORLD,)), buffers=[x], buffer_seq_dims=[1]),
            sdpa_kernel([SDPBackend.FLASH_ATTENTION]),
        ):
            run.criterion(run.model(x), y).backward()
        run.optimizer.step()

    return _refused(train)


def meshes() -> dict[str, str]:
    """Meshes by which it cannot be told who has the same records, and copies that are none."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor
    from torch.distributed.tensor.parallel import parallelize_module

    of = styles()
    other = init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))

    def by_two(model: nn.Module) -> nn.Module:
        model = parallelize_module(model, other["b"], {"up": of.ColwiseParallel()})
        return parallelize_module(model, other["a"], {"down": of.RowwiseParallel()})

    def by_two_dimensions(model: nn.Module) -> nn.Module:
        weight = distribute_tensor(model.last.weight.data, other, [Replicate(), Shard(0)])
        model.last.weight = nn.Parameter(weight)
        return model

    def sharded_by_rows(model: nn.Module) -> nn.Module:
        model = parallelize_module(model, other["b"], dict(columns_and_rows()))
        fully_shard(model.token, mesh=other["b"])
        return model

    def other_copies(model: nn.Module) -> nn.Module:
        model = in_rows(columns_and_rows, (2, 2))(model)
        with torch.no_grad():
            model.up.weight.to_local().add_(RANK // 2)
        return model

    return _refused_forms(
        {
            "two meshes": (Columns, by_two),
            "two dimensions": (Sequence, by_two_dimensions),
            "sharded by rows": (Columns, sharded_by_rows),
            "other copies": (Columns, other_copies),
        }
    )


FORMS["columns whole"] = (Columns, lambda model: model)

if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]), globals())
