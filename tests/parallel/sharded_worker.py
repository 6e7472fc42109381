"""What one of several processes runs on sharded models: `sharded_worker.py SCENARIO ARGUMENTS`; its last line is JSON.

Many forms of a model are run in one launch: to begin processes takes longer than to train.
"""

from __future__ import annotations

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
from row_models import ROWS
from sharded_models import FORMS, Transformer, data_of
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import PrivacyEngine
from hushgrad.errors import HushgradError
from hushgrad.gradients.machine import FILE_VARIABLE
from hushgrad.parallel import shards
from hushgrad.parallel.replicas import digest
from hushgrad.parallel.shards import Shards
from hushgrad.session import draws

B, C = 12, 0.5
if FILE_VARIABLE in os.environ:  # sums are scattered: many of them, each by itself
    draws.SMALL_VALUES = 128
FORMS.update(ROWS)
TIMEOUT_S = 60


def full(tensor: Tensor) -> Tensor:
    whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole.detach().float()


class Run:
    """Private training of a sharded model in this process and the others; of the same model whole in one process."""

    def __init__(
        self,
        form: str,
        *,
        sigma: float = 0.0,
        key: int | None = 7,
        rows: int | None = 3,
        adam: bool = False,
        **more: Any,
    ) -> None:
        make, shard = FORMS[form]
        torch.manual_seed(3)
        self.model = make()
        if WORLD > 1:
            self.model = shard(self.model)
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(parameters, 1e-3) if adam else torch.optim.SGD(parameters, 0.5)
        self.before()
        self.engine = PrivacyEngine(test_key=key, ledger=more.pop("ledger", None))
        dataset = TensorDataset(*data_of(self.model))
        size = more.pop("batch_size", B)
        _, _, self.loader = self.engine.make_private(
            module=self.model, optimizer=self.optimizer, data_loader=DataLoader(dataset, batch_size=size),
            noise_multiplier=sigma, max_grad_norm=C, max_physical_batch_size=rows, **more,
        )  # fmt: skip
        self.let_go = 0
        self.shares: list[int] = []
        self.criterion = self.engine.per_example(nn.CrossEntropyLoss())
        self.seen: list[Tensor] = []
        self.optimizer.register_step_pre_hook(self._keep)

    def before(self) -> None:
        """Called before the model is made private."""

    def _keep(self, *_: Any) -> None:
        if self.engine.session.last_step_updated:
            self.seen.append(torch.cat([full(p.grad).flatten() for p in self.model.parameters() if p.grad is not None]))

    def train(self, steps: int, after: Callable[[], None] = lambda: None) -> None:
        while steps:
            for x, y in self.loader:
                self.optimizer.zero_grad()
                self.criterion(self.model(x).float(), y).backward()
                self.shares.append(len(self.engine.session.current_batch.indices))
                self.let_go += self.engine.session._loop._batch._passing.is_done
                self.optimizer.step()
                if self.engine.last_step_updated:
                    after()
                    steps -= 1
                    if not steps:
                        return


def updates(folder: str, forms: list[str]) -> dict[str, Any]:
    """The first update of each form without noise, beside what one process left in the folder for its model."""
    found: dict[str, Any] = {}
    for form in forms:
        make = FORMS[form][0]
        path = Path(folder, f"{next(name for name, (other, _) in FORMS.items() if other is make)}.pt")
        if WORLD == 1 and path.exists():
            continue
        run = Run(form)
        run.train(1 if WORLD == 1 else 2)
        report, is_scattered = run.engine.session.probe_report, run.engine.session._parts.update.is_scattered
        let_go = run.let_go
        run.engine.session.close()
        if WORLD == 1:
            torch.save(run.seen, path)
            continue
        wanted = torch.load(path)
        found[form] = {
            "error": ((run.seen[0] - wanted[0]).norm() / wanted[0].norm()).item(),
            "left": [name for name, parameter in run.model.named_parameters() if parameter.grad is not None],
            "report": [report.examined, *report.notes],
            "scattered": is_scattered,
            "let go": let_go,
        }  # fmt: skip
    return found


def one_budget(machine: str, clipping: str) -> dict[str, Any]:
    """A few updates of about two records where one process alone has budgets for operands and for sums."""
    if RANK == 0:
        os.environ[FILE_VARIABLE] = machine
    run = Run("checkpointed", batch_size=2, clipping=clipping)
    run.train(6)
    scattered = run.engine.session._parts.update.is_scattered
    return {"let go": run.let_go, "updates": digest(run.seen), "shares": run.shares, "scattered": scattered}


def bfloat16() -> dict[str, Any]:
    """The update of a model in 16 bits, beside the sums that a whole copy gives for the same rows at a time."""
    from hushgrad import FlatClipping
    from hushgrad.capture.scope import Scope
    from hushgrad.capture.uses import UsePool
    from hushgrad.gradients.clipped_sum import clipped_sums

    run = Run("bfloat16")
    torch.manual_seed(3)
    copy = FORMS["bfloat16"][0]().bfloat16()
    pool = UsePool()
    capturing = Scope(copy, pool)
    sums = {name: torch.zeros(p.shape) for name, p in copy.named_parameters()}
    for x, y in run.loader:
        batch = run.engine.session.current_batch
        if batch.indices:
            pool.batch_size = len(batch.indices)
            F.cross_entropy(copy(x).float(), y, reduction="none").sum().backward()
            for name, part in clipped_sums(pool.take(), clip=FlatClipping(C)).items():
                sums[name] += part
        run.optimizer.zero_grad()
        run.criterion(run.model(x).float(), y).backward()
        run.optimizer.step()
        if run.engine.last_step_updated:
            break
    capturing.detach()
    wanted = torch.cat([part.flatten() for part in sums.values()])
    torch.distributed.all_reduce(wanted)
    wanted /= B
    return {"error": ((run.seen[0] - wanted).norm() / wanted.norm()).item()}


def noise(form: str, steps: int, key: int) -> dict[str, Any]:
    """Only noise: every record's gradient is 0. The values of some steps, by halves."""
    torch.manual_seed(0)  # the same seed in all processes changes nothing
    run = Run(form, sigma=1.5, key=key, rows=None)
    losses = run.criterion
    run.criterion = lambda output, label: losses(output * 0, label)  # type: ignore[assignment]
    run.train(steps)
    values = torch.stack(run.seen).double() * B / (1.5 * C)
    halves = [part.flatten() for value in values for part in value[: value.numel() // 2 * 2].view(2, -1)]
    table = torch.corrcoef(torch.stack(halves)) - torch.eye(len(halves))
    whole = torch.cat([full(p).flatten() for p in run.model.parameters()])
    return {
        "count": values.numel(), "std": values.std().item(), "correlation": table.abs().max().item(),
        "weights": whole.double().sum().item(),
    }  # fmt: skip


def life(ledger: str, form: str = "blocks") -> dict[str, Any]:
    """Evaluations between a backward and a step, draws of few records, a forward that fails, and what is refused."""
    told: dict[str, Any] = {}
    plain, watched = Run(form), Run(form)

    def evaluate() -> None:
        with torch.no_grad():
            watched.model(data_of(watched.model)[0][:4])

    plain.train(3)
    watched.optimizer.register_step_pre_hook(lambda *_: evaluate())
    evaluate()
    watched.train(3, evaluate)
    told["evaluations"] = [torch.equal(a, b) for a, b in zip(plain.seen, watched.seen, strict=True)]
    plain.engine.session.close()
    watched.engine.session.close()

    few = Run(form, sigma=1.0, key=None, rows=None, ledger=f"{ledger}.few", batch_size=2)
    few.train(12)
    told["few"] = [few.engine.session.steps, str(few.engine.get_epsilon(1e-5))]
    few.engine.session.close()

    cleared = Run(form)
    for x, y in cleared.loader:
        cleared.criterion(cleared.model(x), y).backward()
        cleared.optimizer.zero_grad()
        told["cleared"] = _refused(cleared.optimizer.step)
        cleared.engine.session.discard()
        break
    cleared.train(1)
    told["after a discard"] = len(cleared.seen)
    cleared.engine.session.close()

    broken = Run(form)
    head = broken.model.head.forward
    for x, _y in broken.loader:
        broken.model.head.forward = _raising  # type: ignore[method-assign]
        try:
            broken.model(x)
        except ArithmeticError:
            broken.model.head.forward = head  # type: ignore[method-assign]
            broken.engine.session.discard()
        break
    broken.train(1)
    told["after a failure"] = len(broken.seen)
    penalized = Run(form)
    for x, _y in penalized.loader:
        told["penalty"] = _refused(lambda x=x: _penalty(penalized, x))
        break
    told["regularizer"] = _refused(
        lambda: broken.engine.session.regularizer(lambda: broken.model.head.weight.square().sum(), weight=0.1)
    )
    broken.engine.session.close()
    return told


def resumed(ledger: str, checkpoint: str, form: str, steps: int) -> dict[str, Any]:
    """Go on from a checkpoint if there is one, and leave one."""
    run = Run(form, sigma=1.0, key=None, adam=True, ledger=ledger)
    lost, loaded = -1, ""
    if Path(checkpoint).exists():
        lost = run.engine.load_checkpoint(checkpoint).lost_steps
        loaded = _digest(run)
    run.train(steps)
    run.engine.save_checkpoint(checkpoint)
    told = {
        "lost": lost, "steps": run.engine.session.steps, "epsilon": run.engine.get_epsilon(1e-5), "loaded": loaded,
        "left": _digest(run),
    }  # fmt: skip
    run.engine.session.close()
    return told


def _digest(run: Run) -> str:
    """Of the weights and of what Adam keeps, as wholes."""
    kept = [run.optimizer.state[p][name] for p in run.model.parameters() for name in ("step", "exp_avg", "exp_avg_sq")]
    return digest([full(value) for value in (*run.model.parameters(), *kept)])


def distributed_checkpoint(folder: str, ledger: str, steps: int, form: str = "blocks") -> dict[str, Any]:
    """torch's own distributed checkpoint with the receipt beside: written between steps, loaded before make_private."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    class Loaded(Run):
        def before(self) -> None:
            if Path(folder, ".metadata").exists():
                model, optimizer = get_state_dict(self.model, self.optimizer)
                state = {"model": model, "optimizer": optimizer}
                dcp.load(state, checkpoint_id=folder)
                set_state_dict(
                    self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
                )

    run = Loaded(form, sigma=1.0, key=None, adam=True, ledger=ledger)
    loaded = _digest(run) if run.optimizer.state else ""
    run.train(steps)
    model, optimizer = get_state_dict(run.model, run.optimizer)
    dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=folder)
    told = {"steps": run.engine.session.steps, "loaded": loaded, "left": _digest(run)}
    run.train(1)  # nothing of it is in the way
    run.engine.session.close()
    return told


def copies() -> dict[str, Any]:
    """Two copies of a model whose weights differ, of which each lies on two processes."""
    differ = "different weights"
    FORMS[differ] = (lambda: _moved(Transformer(), RANK // 2), FORMS["copies"][1])
    return {"different": _refused(lambda: Run(differ)), "same": _refused(lambda: Run("copies").train(1))}


def _moved(model: nn.Module, by: float) -> nn.Module:
    with torch.no_grad():
        model.head.weight[0, 0] += by
    return model


class Mixing(Transformer):
    """The mean over the batch goes into each record's output."""

    def forward(self, ids: Tensor) -> Tensor:
        output = super().forward(ids)
        return output + 0.1 * output.mean(0, keepdim=True)


class MixingGradients(Transformer):
    """Only gradients are mixed: a straight-through mean, which no value shows."""

    def forward(self, ids: Tensor) -> Tensor:
        output = super().forward(ids)
        mean = output.mean(0, keepdim=True).expand_as(output)
        return output + mean - mean.detach()


def leaks() -> dict[str, str]:
    """What the examination of a sharded model finds, also where it is due in one process alone."""
    found = {}
    for kind in (Mixing, MixingGradients):
        FORMS[kind.__name__] = (kind, FORMS["blocks"][1])
        run = Run(kind.__name__, sigma=1.0)
        found[kind.__name__] = _refused(lambda run=run: run.train(1))
    mixtures: dict[str, Callable[[Tensor], Tensor]] = {
        "by losses": lambda output: output + output.mean(0, keepdim=True),
        "by values": lambda output: output + output.detach().mean(0, keepdim=True),
    }
    for name, mixed in mixtures.items():
        later = Run("blocks", sigma=1.0, rows=None)
        later.train(2)
        if RANK == 1:
            later.model.register_forward_hook(lambda _, __, output, mixed=mixed: mixed(output))
        found[name] = _refused(lambda later=later: later.train(200))
        found[f"epsilon {name}"] = str(later.engine.get_epsilon(1e-5))
    return found


def dies(ledger: str, released: str, point: str, form: str = "blocks") -> dict[str, Any]:
    """The last process dies at a point of its third step, as others wait for its parameters or its sums."""
    import hushgrad.session.update as update

    run = Run(form, sigma=1.0, key=None, rows=None, ledger=ledger)

    def fail(*_: Any) -> None:
        if RANK == WORLD - 1 and len(run.seen) == 2:
            os._exit(9)

    if point == "in a forward":
        run.model.blocks[1].register_forward_pre_hook(fail)
    elif point == "in a backward":
        run.model.blocks[1].register_forward_hook(lambda _, __, output: output.register_hook(fail) and None)
    elif point == "as the sums of an item are scattered":
        rows_of, alive = Shards.rows_of, 4  # the others have three of them

        def dying(split: Shards, totals: Any) -> Tensor:
            nonlocal alive
            alive -= len(run.seen) == 2 and not totals[0].is_meta
            if not alive:
                fail()
            return rows_of(split, totals)

        Shards.rows_of = dying  # type: ignore[method-assign]
    else:
        add_up = update.add_up
        update.add_up = lambda *given: (fail(), add_up(*given))
    try:
        run.train(5, lambda: Path(f"{released}.{RANK}").write_text(str(len(run.seen))))
    except (RuntimeError, HushgradError) as error:
        grads = [name for name, parameter in run.model.named_parameters() if parameter.grad is not None]
        told = {"error": type(error).__name__, "grads": grads}
        print(json.dumps(told), flush=True)
    os._exit(0)


def scattered() -> dict[str, Any]:
    """What a process holds of the sums and hands over, item by item; and one that cannot form its sums."""
    sent: list[int] = []
    scatter = shards._reduce_scatter

    def counted(own: Tensor, rows: Tensor, **more: Any) -> Any:
        sent.append(rows.nbytes)
        return scatter(own, rows, **more)

    shards._reduce_scatter = counted
    run = Run("uneven")
    update, held, handed = run.engine.session._parts.update, [], []
    end_item = run.engine.session._loop.end_step

    def ended() -> Any:
        sent.clear()
        found = end_item()
        parts = [] if update._scattered is None else [own for own in update._scattered._own if own is not None]
        held.append(sum(own.nbytes for own in [*parts, *update._sums.values()]))
        handed.append(sum(sent))
        return found

    run.engine.session._loop.end_step = ended  # type: ignore[method-assign]
    run.train(2)
    told = {"held": held[:], "handed": handed[:], "values": sum(p.numel() for p in run.model.parameters())}
    rows_of = Shards.rows_of
    if RANK == 1:
        Shards.rows_of = lambda split, totals: rows_of(split, totals) if totals[0].is_meta else _raising()
    try:
        run.train(1)
    except (ArithmeticError, HushgradError) as error:
        told["error"] = type(error).__name__
    told["released"] = len(run.seen)
    return told


def refusals() -> dict[str, str]:
    """Forms in which a model lies on the processes that are not supported."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
    from torch.nn.parallel import DistributedDataParallel

    halves = init_device_mesh("cpu", (2, WORLD // 2), mesh_dim_names=("dp", "tp"))

    def hooked(model: nn.Module) -> nn.Module:
        model = fully_shard(model)
        model.set_all_reduce_hook(lambda gradient: None)
        return model

    forms = {
        "first kind": lambda model: FullyShardedDataParallel(model, device_id=torch.device("cpu")),
        "hook": hooked,
        "number": lambda model: fully_shard(model, reshard_after_forward=2) if WORLD > 2 else fully_shard(model),
        "halves": lambda model: fully_shard(model, mesh=halves["dp"]),
        "replicated": lambda model: DistributedDataParallel(fully_shard(model), init_sync=False),
    }
    found = {}
    for name, shard in forms.items():
        FORMS[name] = (Transformer, shard)
        found[name] = _refused(lambda name=name: Run(name))
        dist.barrier()
    later = Run("whole")
    fully_shard(later.model)
    found["later"] = _refused(lambda: later.train(1))
    return found


def _penalty(run: Run, ids: Tensor) -> None:
    held: list[Tensor] = []
    run.model.blocks[0].register_forward_pre_hook(lambda _, given: held.append(given[0]))
    losses = run.model(ids).square().sum(1)
    [gradient] = torch.autograd.grad(losses.sum(), held, create_graph=True)
    run.engine.session.backward(losses + gradient.square().sum((1, 2)))


def _raising(*_: Any) -> Any:
    raise ArithmeticError("planted")


def _refused(run: Callable[[], Any]) -> str:
    try:
        run()
    except HushgradError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def main(scenario: str, arguments: dict[str, Any], scenarios: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "FSDP2-wrapped module")
    store, folder = arguments.pop("store"), arguments.pop("folder")
    if scenario in ("updates", "narrow", "clip_rules"):
        arguments["folder"] = folder
    elif scenario == "distributed_checkpoint":
        arguments["folder"] = str(Path(folder, "distributed"))
    with joined(store, TIMEOUT_S):
        print(json.dumps(scenarios[scenario](**arguments)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]), globals())
