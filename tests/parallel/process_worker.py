"""What one of several processes runs: `process_worker.py SCENARIO ARGUMENTS`; its last line is JSON.

A scenario is a function of this file; with one process, `torch.distributed` is not begun.
"""

from __future__ import annotations

import datetime
import importlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
import torch.distributed as dist
from parallel_models import MODELS, data_of, model_of
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from hushgrad import PrivacyEngine
from hushgrad.errors import HushgradError
from hushgrad.parallel import agreement
from hushgrad.parallel import replicas as replicas_module
from hushgrad.parallel.replicas import digest

RANK, WORLD = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
B, C = 12, 0.5
FOLDER = ""
"""Where this run may leave files."""
TIMEOUT_S = 60
"""How long processes wait for each other on a machine that does other work, too."""
SHORT_S = 10
"""How long they do where one of them never comes."""


class Run:
    """Private training of a model of the zoo, in this process and the others."""

    def __init__(
        self,
        name: str = "MLP",
        *,
        form: str = "plain",
        sigma: float = 0.0,
        key: int | None = 7,
        rows: int | None = 3,
        adam: bool = False,
        **options: Any,
    ) -> None:
        self.inputs, self.labels = data_of(name)
        self.model = model_of(name)
        self.run = DistributedDataParallel(self.model) if form == "ddp" and WORLD > 1 else self.model
        parameters = self.model.parameters()
        self.optimizer = torch.optim.Adam(parameters, 1e-3) if adam else torch.optim.SGD(parameters, 0.5)
        options.pop("before", lambda *_: None)(self.run, self.optimizer)
        self.engine = PrivacyEngine(test_key=key, ledger=options.pop("ledger", None))
        dataset = TensorDataset(self.inputs, self.labels)
        loader = options.pop("data_loader", None) or DataLoader(dataset, batch_size=B, shuffle=True)
        _, _, self.loader = self.engine.make_private(
            module=self.run, optimizer=self.optimizer, data_loader=loader, noise_multiplier=sigma, max_grad_norm=C,
            max_physical_batch_size=rows, **options,
        )  # fmt: skip
        self.criterion = self.engine.per_example(nn.CrossEntropyLoss())
        self.drawn: list[list[int]] = []
        self.items = 0

    def train(self, steps: int, after: Callable[[], None] = lambda: None) -> None:
        own: list[int] = []
        while steps:
            for x, y in self.loader:
                batch = self.engine.session.current_batch
                assert batch is not None
                own += batch.indices
                self.optimizer.zero_grad()
                self.criterion(self.run(x), y).backward()
                self.optimizer.step()
                self.items += 1
                if self.engine.last_step_updated:
                    after()
                    self.drawn.append(own)
                    own, steps = [], steps - 1
                    if not steps:
                        return

    def weights(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])


def updates(folder: str, steps: int) -> dict[str, Any]:
    """The updates of the first steps without noise, beside those that one process left in the folder."""
    found = {}
    for name in MODELS:
        for form in ("plain", "ddp"):
            seen: list[Tensor] = []
            run = Run(name, form=form)
            run.optimizer.register_step_pre_hook(keeping_to(run.engine, run.model, seen))
            run.train(steps)
            run.engine.session.close()
            path = Path(folder, f"{name}.pt")
            if WORLD == 1:
                torch.save(seen, path)
                continue
            wanted = torch.load(path)
            # The first update alone is made of equal weights.
            error = ((seen[0] - wanted[0]).norm() / wanted[0].norm()).item()
            found[f"{name}, {form}"] = {"error": error, "items": run.items, "drawn": run.drawn}
    return found


def keeping_to(engine: PrivacyEngine, model: nn.Module, seen: list[Tensor]) -> Callable[..., None]:
    """Return a hook that keeps the updates of logical batches."""

    def keep(*_: Any) -> None:
        if engine.last_step_updated:
            grads = [p.grad.detach().flatten() for p in model.parameters() if p.grad is not None]
            seen.append(torch.cat(grads))

    return keep


def replicas(ledger: str) -> dict[str, Any]:
    """Twenty steps of Adam with secret keys, from other seeds in each process."""
    torch.manual_seed(RANK)
    found: dict[str, Any] = {}
    for form in ("plain", "ddp"):
        run = Run(form=form, sigma=1.0, key=None, adam=True, ledger=f"{ledger}.{form}")
        run.train(20)
        session = run.engine.session
        found[form] = {
            "weights": digest(run.model.parameters()),
            "epsilon": run.engine.get_epsilon(1e-5),
            "guarantee": str(run.engine.guarantee(1e-5)),
            "receipt": session.state_dict(),
        }
        session.close()
    return found


def clip_rules(steps: int) -> dict[str, Any]:
    """What adaptive and group-wise clip rules give: their norms, counts, first updates and noise."""
    found: dict[str, Any] = {}
    for clipping in ("quantile:learning_rate=0.01,count_noise_multiplier=600", "per-layer:noise=least"):
        for sigma in (0.0, 1000.0):
            seen: list[Tensor] = []
            run = Run(sigma=sigma, clipping=clipping)
            run.optimizer.register_step_pre_hook(keeping_to(run.engine, run.model, seen))
            session, norms = run.engine.session, []
            run.train(steps, lambda: norms.append((session.clip_norm, session.written.count)))  # noqa: B023
            stds = [session.written.noise_std[name] for name, _ in run.model.named_parameters()]
            session.close()
            sizes = [p.numel() for p in run.model.parameters()]
            # In units of the noise that is told, of the last step: the sums are nothing beside it.
            parts = [part * B / std for part, std in zip(seen[-1].split(sizes), stds, strict=True)] if sigma else []
            found[f"{clipping}, {sigma}"] = {
                "norms": norms,
                "stds": stds,
                "measured": [part.square().mean().sqrt().item() for part in parts if part.numel() > 1000],
                "first": [part.norm().item() for part in seen[0].split(sizes)],
                "weights": digest(run.model.parameters()),
            }
    return found


def noise(steps: int, key: int) -> dict[str, Any]:
    """Only noise: every record's gradient is 0. The values of some steps, by slices."""
    torch.manual_seed(0)  # the same seed in all processes changes nothing
    run = Run(sigma=1.5, key=key)
    for parameter in run.model.parameters():
        parameter.data.zero_()  # all outputs are equal, and every record has the same gradient
    seen: list[Tensor] = []
    losses = run.criterion
    run.criterion = lambda output, label: losses(output * 0, label)  # type: ignore[assignment]
    run.optimizer.register_step_pre_hook(keeping_to(run.engine, run.model, seen))
    run.train(steps)
    values = torch.stack(seen).double() * B / (1.5 * C)
    halves = [part.flatten() for value in values for part in value[: value.numel() // 2 * 2].view(2, -1)]
    table = torch.corrcoef(torch.stack(halves)) - torch.eye(len(halves))
    return {"count": values.numel(), "std": values.std().item(), "correlation": table.abs().max().item()}


def wire(form: str) -> dict[str, Any]:
    """The bytes that this process hands to collective operations, by what is in work, in a logical batch of four items.

    Counted are the values that the process itself gives: what `all_reduce` is called on, what `all_gather` is to hand
    round, what rank 0 broadcasts. How often a backend sends each of them is its own.
    """
    handed = {"sums": 0, "messages": 0}
    calls = {"sums": 0, "messages": 0}

    def counted(name: str, at: int) -> None:
        run = getattr(dist, name)

        def counting(*given: Any, **named: Any) -> Any:
            what = "messages" if given[at].dtype in (torch.int64, torch.uint8) else "sums"
            handed[what] += given[at].numel() * given[at].element_size()
            calls[what] += 1
            return run(*given, **named)

        setattr(dist, name, counting)

    run = Run(form=form, sigma=1.0, key=None, rows=2, constant_shapes=True, max_batch_size=16)
    run.train(1)
    counted("all_reduce", 0)
    counted("all_gather", 1)
    counted("broadcast", 0)
    before = run.items
    run.train(1)
    trained = sum(p.numel() for p in run.model.parameters())
    return {"handed": handed, "calls": calls, "trained": trained, "items": run.items - before}


def disagreements() -> dict[str, Any]:
    """One process differs from the others in one thing after another; what each is told."""
    import hushgrad.session.set_up as set_up
    from hushgrad import FlatClipping

    other = RANK == WORLD - 1
    dataset = TensorDataset(*data_of("MLP"))
    fewer = DataLoader(TensorDataset(*(part[:90] for part in dataset.tensors)), batch_size=B)
    where = {"ledger": str(Path(FOLDER, f"another.{RANK}"))}
    ways: dict[str, dict[str, Any]] = {
        "mechanism": {"sigma": 2.0},
        "clip rule": {"max_grad_norm": None, "clipping": FlatClipping(2 * C)},
        "test key": {"key": 8},
        "max_physical_batch_size": {"rows": 4},
        "constant_shapes": {"constant_shapes": True},
        "number of records": {"data_loader": fewer, "q": True},
        "phase": {**where, "phase": "second"},
        "ledger": where,
        "budget": {"max_epsilon": 50.0, "max_delta": 1e-3},
        "lease": {"lease": 4},
        "strict": {"strict": True},
        "optimizer": {"adam": True},
        "options of the optimizer": {"lr": 0.25},
        "groups of the optimizer": {"groups": True},
        "state of the optimizer": {"momentum": True},
        "parameters": {"name": "CNN"},
        "values of the weights": {"moved": "weights"},
        "values of the buffers": {"moved": "buffers"},
        "version of hushgrad": {},
        "version of torch": {},
    }
    found = {}
    for what, options in ways.items():
        version, torch_version = set_up.__version__, torch.__version__
        if other and what == "version of hushgrad":
            set_up.__version__ = "0.0"
        if other and what == "version of torch":
            torch.__version__ = "1.0"  # type: ignore[assignment]
        found[what] = _refused(lambda options=options: _differing(options if other else {}))
        set_up.__version__, torch.__version__ = version, torch_version  # type: ignore[assignment]
    return found


def _differing(options: dict[str, Any]) -> None:
    """Make a model private in this process's own way."""
    from hushgrad import PrivacyEngine

    given = dict(options)
    model = model_of(given.pop("name", "MLP"))
    model.register_buffer("unused", torch.zeros(3))
    moved = given.pop("moved", "")
    with torch.no_grad():
        if moved == "weights":
            next(model.parameters()).add_(1e-6)
        if moved == "buffers":
            next(model.buffers()).add_(1e-6)
    parameters: Any = list(model.parameters())
    if given.pop("groups", False):
        parameters = [{"params": parameters[::-1]}]
    lr, adam, momentum = given.pop("lr", 0.5), given.pop("adam", False), given.pop("momentum", False)
    optimizer = torch.optim.Adam(parameters, lr) if adam else torch.optim.SGD(parameters, lr)
    if momentum:
        optimizer.state[next(model.parameters())]["momentum_buffer"] = torch.ones(3)
    given.pop("q", False)
    engine = PrivacyEngine(
        test_key=given.pop("key", 7), ledger=given.pop("ledger", None), strict=given.pop("strict", False),
        lease=given.pop("lease", 1),
    )  # fmt: skip
    loader = given.pop("data_loader", None) or DataLoader(TensorDataset(*data_of("MLP")), batch_size=B)
    engine.make_private(
        module=model, optimizer=optimizer, data_loader=loader, noise_multiplier=given.pop("sigma", 1.0),
        max_grad_norm=given.pop("max_grad_norm", C), max_physical_batch_size=given.pop("rows", 3), **given,
    )  # fmt: skip
    engine.session.close()


def disagreement(what: str) -> dict[str, Any]:
    """One process differs from the others in what it does after the first step."""
    other = RANK == WORLD - 1
    run = Run(sigma=1.0)
    session = run.engine.session
    if what == "regularizers":
        weight = next(run.model.parameters())
        session.regularizer(lambda: weight.square().sum(), weight=0.2 if other else 0.1)
    try:
        if what != "regularizers":
            run.train(1)
        if what == "trained parameters" and other:
            next(run.model.parameters()).requires_grad_(False)
        if what == "options of the optimizer" and other:
            run.optimizer.param_groups[0]["lr"] = 0.25
        if what == "item" and other:
            x, y = next(iter(run.loader))
            run.criterion(run.run(x), y).backward()
            session.end_item()
        run.train(1)
    except HushgradError as error:
        return {"error": type(error).__name__, "text": str(error), "steps": session.steps}
    return {"error": None}


POINTS = (
    "before the set-up", "after the set-up", "as an item is handed out", "in a forward", "in a backward",
    "before the step", "before its vote", "after its vote", "before the charge", "after the charge",
    "before the draw of noise", "after the draw of noise", "before the sums are added up",
    "after the sums were added up", "after the step", "before a checkpoint", "after a checkpoint",
)  # fmt: skip
"""Where a process dies, in its third step."""


def failure(
    point: str, rank: int, how: str, ledger: str, released: str, most: int = 5, after_s: float | None = None
) -> dict[str, Any]:
    """One process dies, raises or hangs at a point of the third step, or after some time; what the others see."""
    if after_s is not None and rank == RANK:
        threading.Timer(after_s, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()

    def fail() -> None:
        if rank != RANK:
            return
        if how == "dies":
            os._exit(9)
        if how == "hangs":
            time.sleep(2 * SHORT_S)
            os._exit(9)
        raise ArithmeticError("planted")

    steps = 0
    added_up: list[bool] = []

    def now(name: str) -> None:
        if point == name and (steps == 2 or name in POINTS[:2]):
            fail()

    def watched(
        module: Any, name: str, before: str = "", after: str = "", when: Callable[..., bool] = lambda *_: True
    ) -> None:
        run = getattr(module, name)

        def watching(*given: Any, **named: Any) -> Any:
            due = when(*given)
            if before and due:
                now(before)
            result = run(*given, **named)
            if after and due:
                now(after)
            return result

        setattr(module, name, watching)

    def votes_on(what: str) -> Callable[..., bool]:
        return lambda world, at, *_: at == what

    def charges(world: Any, call: str, *_: Any) -> bool:
        return call == "charge"

    import hushgrad.session.spending as spending
    import hushgrad.session.update as update

    watched(agreement, "exchanged", "before its vote", "after its vote", votes_on("step"))
    watched(agreement, "exchanged", "", "after the draw of noise", votes_on("draw of noise"))
    watched(spending, "told_by_first", "before the charge", "after the charge", charges)
    watched(update.Update, "_noised_slice", "before the draw of noise")
    watched(update, "add_up", "before the sums are added up", "after the sums were added up")
    add_up = update.add_up

    def looking(sums: list[Any], *how: Any) -> None:
        add_up(sums, *how)
        added_up.append(not any(total.values.isnan().any() for total in sums))

    update.add_up = looking
    now("before the set-up")
    try:
        run = Run(sigma=1.0, key=None, ledger=ledger, rows=None)
        now("after the set-up")
        run.model.register_forward_pre_hook(lambda *_: now("in a forward"))
        run.criterion = _with_hook(run.criterion, lambda: now("in a backward"))
        while steps < most:
            for x, y in run.loader:
                now("as an item is handed out")
                run.optimizer.zero_grad()
                run.criterion(run.run(x), y).backward()
                now("before the step")
                run.optimizer.step()
                with open(f"{released}.{RANK}", "ab") as file:
                    file.write(b".")
                now("after the step")
                if steps % 3 == 2:
                    now("before a checkpoint")
                    run.engine.save_checkpoint(f"{released}.checkpoint")
                    now("after a checkpoint")
                steps += 1
                if steps == most:
                    break
    except HushgradError as error:
        grads = [name for name, p in run.model.named_parameters() if p.grad is not None] if steps else []
        return {
            "error": type(error).__name__,
            "text": str(error),
            "steps": steps,
            "grads": len(grads),
            "added up": added_up,
        }
    except ArithmeticError:
        return {"error": "own", "steps": steps}
    return {"error": None, "steps": steps}


def _with_hook(criterion: Any, act: Callable[[], None]) -> Any:
    def evaluate(output: Tensor, label: Tensor) -> Tensor:
        if output.requires_grad:
            output.register_hook(lambda _: act())
        return criterion(output, label)

    return evaluate


def resumed(ledger: str, checkpoint: str, steps: int, key: int | None) -> dict[str, Any]:
    """Go on from a checkpoint if there is one, and leave one."""
    run = Run(sigma=1.0, key=key, adam=True, ledger=ledger, form="ddp")
    lost = -1
    if Path(checkpoint).exists():
        lost = run.engine.load_checkpoint(checkpoint).lost_steps
    run.train(steps)
    run.engine.save_checkpoint(checkpoint)
    session = run.engine.session
    told = {
        "lost": lost, "steps": session.steps, "epsilon": run.engine.get_epsilon(1e-5),
        "weights": digest(run.model.parameters()), "receipt": session.state_dict(),
    }  # fmt: skip
    session.close()
    return told


def distributed_checkpoint(ledger: str, where: str, steps: int) -> dict[str, Any]:
    """Go on from a checkpoint of torch.distributed.checkpoint that holds the receipt, if there is one; leave one."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint import state_dict as states

    def state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        return dict(zip(("model", "optimizer"), states.get_state_dict(model, optimizer), strict=True))

    def loaded(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if Path(where).exists():
            stored = state(model, optimizer)
            dcp.load(stored, checkpoint_id=where)
            states.set_state_dict(
                model, optimizer, model_state_dict=stored["model"], optim_state_dict=stored["optimizer"]
            )

    run = Run(sigma=1.0, key=None, adam=True, ledger=ledger, form="ddp", before=loaded)
    session = run.engine.session
    before = ""
    if Path(where).exists():
        dcp.load({"privacy": session}, checkpoint_id=where)
        before = digest(run.model.parameters())
    run.train(steps)
    dcp.save({**state(run.run, run.optimizer), "privacy": session}, checkpoint_id=where)
    after = digest(run.model.parameters())
    adam_steps = int(next(iter(run.optimizer.state.values()))["step"])
    run.train(1)  # that no checkpoint holds
    other = Run(sigma=1.0, key=None, adam=True, ledger=f"{ledger}.second", form="ddp").engine.session
    refused = _refused(lambda: dcp.load({"privacy": other}, checkpoint_id=where))
    other.close()
    told = {
        "refused": refused, "steps": session.steps, "epsilon": run.engine.get_epsilon(1e-5), "before": before,
        "after": after, "adam": adam_steps, "receipt": session.state_dict(),
        "guarantee": str(run.engine.guarantee(1e-5)),
    }  # fmt: skip
    session.close()
    return told


class Unlike(torch.optim.SGD):
    """Stands in for a processor that rounds otherwise: in one process each step ends with slightly other weights."""

    by = 0.0

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        result = super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.mul_(1 + self.by * RANK)
        return result


def unlike(by: float, steps: int) -> dict[str, Any]:
    """Replicas that move apart by a little in every step."""
    replicas_module.EVERY = 10
    Unlike.by = by
    torch.optim.SGD = Unlike  # type: ignore[misc]
    run = Run(sigma=1.0, rows=None)
    try:
        run.train(steps)
    except HushgradError as error:
        return {"error": type(error).__name__, "text": str(error), "steps": run.engine.session.steps}
    apart = digest(run.model.parameters())
    Unlike.by = 0.0
    run.train(1)  # the replicas are compared as wholes before it
    return {"error": None, "apart": apart, "together": digest(run.model.parameters()), "steps": steps}


def same_calls(ledger: str) -> dict[str, Any]:
    """Receipts after each call, a condition that one process takes on trust, and what the ledger says at the end."""
    from hushgrad.accounting.conditions import third_party

    run = Run(sigma=1.0, key=None, ledger=ledger)
    session = run.engine.session
    receipts = [session.state_dict()]
    run.train(1)
    receipts.append(session.state_dict())
    for x, y in run.loader:
        run.criterion(run.run(x), y).backward()
        break
    session.discard()
    receipts.append(session.state_dict())
    if RANK == 1:
        session.trust(third_party("operator", "planted"))
    session.close()
    receipts.append(session.state_dict())
    return {"receipts": receipts, "guarantee": str(session.guarantee(1e-3)), "anchor": str(session.anchor)}


def told_at_once(where: str) -> dict[str, Any]:
    """One process raises where the others come to another call, catches it, and stays."""

    def fail(*_: Any) -> None:
        if RANK == 1:
            raise ArithmeticError("planted")

    import hushgrad.parallel.reduction as reduction

    own_slice = reduction.own_slice
    begun = time.monotonic()
    try:
        if where == "make_private":
            Run(**({"target_epsilon": 1.0} if RANK == 1 else {}))
        run = Run(sigma=1.0, rows=None)
        run.train(1)
        session = run.engine.session
        if where == "before the draw" and RANK == 1:
            session._loop._order.before_draw = fail  # type: ignore[method-assign]
        if where == "checkpoint" and RANK == 1:
            session._loop._order._open_step = 1  # type: ignore[attr-defined]  # as if a logical batch were open
        if where == "checkpoint":
            run.engine.save_checkpoint(Path(FOLDER, "checkpoint"))
        if where == "sums":
            reduction.own_slice = lambda *given: fail() or own_slice(*given)
        if where == "end of the step":
            session._parts.frozen.require_moved_weights = fail  # type: ignore[method-assign]
        for x, y in run.loader:

            def closure(x: Tensor = x, y: Tensor = y) -> None:
                loss = run.criterion(run.run(x), y)
                if where == "closure":
                    fail()
                loss.backward()

            run.optimizer.step(closure)
        error: BaseException | None = None
    except (HushgradError, ArithmeticError) as raised:
        error = raised
    took = time.monotonic() - begun
    return {"error": type(error).__name__, "text": str(error), "is quick": took < TIMEOUT_S / 2}


def _stopped(run: Run, error: Exception | None) -> dict[str, Any]:
    return {
        "error": type(error).__name__, "text": str(error), "epsilon": str(run.engine.get_epsilon(1e-5)),
        "steps": run.engine.session.steps,
    }  # fmt: skip


def finding(ledger: str) -> dict[str, Any]:
    """A model that begins to mix the records of one process in its second pass, which a look finds."""
    run = Run(sigma=1.0, key=7, rows=None, ledger=ledger)
    error = None
    try:
        for step in range(200):
            if step == 3 and RANK == 1:
                run.model.register_forward_hook(lambda _, __, output: output + output.mean(0, keepdim=True))
            run.train(1)
    except HushgradError as raised:
        error = raised
    return _stopped(run, error)


class Unreadable(TensorDataset):
    """Records that one process cannot read, from its third step on."""

    taken = 0

    def __getitem__(self, index: Any) -> Any:
        if RANK == 1 and self.taken == 2:
            raise OSError("0.123456")
        return super().__getitem__(index)


def lost(ledger: str) -> dict[str, Any]:
    """A record that one process cannot read ends its batch in all, and the account says that it was dropped."""
    dataset = Unreadable(*data_of("MLP"))
    run = Run(sigma=1.0, rows=None, ledger=ledger, data_loader=DataLoader(dataset, batch_size=B))
    try:
        for _ in range(5):
            run.train(1)
            dataset.taken += 1
    except OSError:
        return {"error": "OSError", "text": ""}
    except HushgradError as raised:
        return {"error": type(raised).__name__, "text": str(raised)}
    return {"error": None, "text": ""}


def found_in_the_loss(ledger: str) -> dict[str, Any]:
    """In one process the losses of records begin to depend on each other, which their graph shows at once."""
    run = Run(sigma=1.0, rows=None, ledger=ledger)
    run.train(3)
    error = None
    try:
        for x, y in run.loader:
            run.optimizer.zero_grad()
            losses = nn.functional.cross_entropy(run.run(x), y, reduction="none")
            run.engine.session.backward(losses + losses.flip(0) if RANK == 1 else losses)
            run.optimizer.step()
    except HushgradError as raised:
        error = raised
    return _stopped(run, error)


def other_calls(checkpoint: str) -> dict[str, Any]:
    """The first process alone writes a checkpoint."""
    run = Run(sigma=1.0)
    run.train(1)
    try:
        if RANK == 0:
            run.engine.save_checkpoint(checkpoint)
        run.train(1)
    except HushgradError as raised:
        return {"error": type(raised).__name__, "text": str(raised)}
    return {"error": None, "text": ""}


def disjoint() -> dict[str, Any]:
    """The loader's own batches: those of the first process, whatever the others' samplers draw."""
    torch.manual_seed(RANK)
    x, y = data_of("MLP")
    torch.manual_seed(RANK)
    loader = DataLoader(TensorDataset(x, y), batch_size=B, shuffle=True)
    run = Run(sigma=1.0, poisson_sampling=False, data_loader=loader)
    run.train(N_STEPS)
    return {"drawn": run.drawn, "epsilon": run.engine.get_epsilon(1e-5)}


N_STEPS = 8


def allocated() -> dict[str, Any]:
    """Random batches (balls in bins): one allocation of each pass, whichever process."""
    run = Run(sigma=1.0, sampling="balls-in-bins")
    run.train(N_STEPS)
    return {"drawn": run.drawn, "epsilon": run.engine.get_epsilon(1e-5), "steps": len(run.loader)}


def sampler() -> dict[str, Any]:
    """A `DistributedSampler` is read for the number of processes; its draw is replaced."""
    x, y = data_of("MLP")
    dataset = TensorDataset(x, y)
    loader = DataLoader(dataset, batch_size=B // WORLD, sampler=DistributedSampler(dataset))
    run = Run(sigma=1.0, data_loader=loader)
    run.train(2)
    wrong = DataLoader(dataset, batch_size=3, sampler=DistributedSampler(dataset, num_replicas=4, rank=RANK))
    try:
        Run(data_loader=wrong)
        refused = ""
    except HushgradError as error:
        refused = str(error)
    disjoint = DataLoader(dataset, batch_size=6, sampler=DistributedSampler(dataset))
    try:
        Run(data_loader=disjoint, poisson_sampling=False)
        also = ""
    except HushgradError as error:
        also = str(error)
    return {
        "batch size": run.loader.batch_size, "length": len(run.loader), "mechanism": repr(run.engine.mechanism),
        "drawn": run.drawn, "refused": refused, "also": also,
    }  # fmt: skip


def refusals() -> dict[str, Any]:
    """Forms of models and loops that are refused: the texts."""
    from torch.utils.data import IterableDataset

    from hushgrad import DPSGD, FlatClipping, PoissonSampling, privatize

    class Stream(IterableDataset[Any]):
        def __len__(self) -> int:
            return 96

        def __iter__(self) -> Iterator[Any]:
            yield from zip(*data_of("MLP"), strict=True)

    def made(wrap: Callable[[nn.Module], nn.Module]) -> Any:
        model = wrap(model_of("MLP"))
        optimizer = torch.optim.SGD(model.parameters(), 0.5)
        mechanism = DPSGD(
            noise_multiplier=1.0, clipping=FlatClipping(C), sampling=PoissonSampling(0.125), expected_batch_size=B
        )
        return privatize(model, optimizer, mechanism), model

    def hooked(model: nn.Module) -> nn.Module:
        wrapped = DistributedDataParallel(model)
        wrapped.register_comm_hook(None, _hook)
        return wrapped

    forms: dict[str, Callable[[nn.Module], nn.Module]] = {
        "static graph": lambda model: DistributedDataParallel(model, static_graph=True),
        "hook": hooked,
        "data parallel": nn.DataParallel,
        "inside": lambda model: nn.Sequential(DistributedDataParallel(model)),
    }
    found = {}
    for name, wrap in forms.items():
        found[name] = _refused(lambda wrap=wrap: made(wrap))
    session, model = made(lambda model: model)
    found["declared"] = _refused(lambda: session.backward(model(data_of("MLP")[0][:4]).sum(1)))
    session.close()
    found["stream"] = _refused(
        lambda: Run(data_loader=DataLoader(Stream(), batch_size=B), poisson_sampling=False, rows=None)
    )
    return found


def _hook(state, bucket):  # type: ignore[no-untyped-def]  # torch looks at annotations
    raise AssertionError("there are no ordinary gradients")


def _refused(run: Callable[[], Any]) -> str:
    try:
        run()
    except HushgradError as error:
        return str(error)
    return ""


@contextmanager
def joined(store: str, timeout_s: int) -> Iterator[None]:
    if WORLD == 1:
        yield
        return
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=RANK, world_size=WORLD,
        timeout=datetime.timedelta(seconds=timeout_s),
    )  # fmt: skip
    yield
    dist.destroy_process_group()


SCENARIOS_OF = {"zoo_worker": ("zoo",), "frameworks_worker": ("accelerate", "trainer", "sft", "fabric", "lightning")}
"""Those that import other packages are in files of their own."""


def main(scenario: str, arguments: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    for name, module in SCENARIOS_OF.items():
        if scenario in module:
            globals()[scenario] = getattr(importlib.import_module(name), scenario)
    global FOLDER
    store, folder = arguments.pop("store"), arguments.pop("folder")
    FOLDER = folder
    if scenario in ("updates", "zoo"):
        arguments["folder"] = folder
    never_comes = arguments.get("how") in ("hangs", "is killed") or arguments.get("point") == POINTS[0]
    with joined(store, SHORT_S if never_comes else TIMEOUT_S):
        print(json.dumps(globals()[scenario](**arguments)), flush=True)
    if scenario in ("failure", "finding"):
        os._exit(0)  # groups whose peers are gone are not taken down in order


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
