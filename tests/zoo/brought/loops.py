"""Loops: several backwards, batches and sessions for one model, generators, trainers, streams."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset

import hushgrad
from brought.running import (
    LABELLED,
    B,
    Brought,
    D,
    Kept,
    Of,
    Run,
    X,
    exact,
    network,
    ordinary_loop,
    refused,
)

# Several backwards -------------------------------------------------------------------------------------------------


def moved(model: Any, x: Tensor, y: Tensor) -> Tensor:
    """The records as an adversary moves them."""
    x = x.clone().requires_grad_()
    F.cross_entropy(model(x), y).backward()
    return x.detach() + 0.1 * x.grad.sign()


def adversarial(run: Run) -> None:
    for x, y in run.loader:
        attacked = moved(run.model, x, y)
        run.optimizer.zero_grad()
        F.cross_entropy(run.model(attacked), y).backward()
        run.optimizer.step()


def adversarial_in_a_pause(run: Run) -> None:
    for x, y in run.loader:
        with run.session.paused():
            attacked = moved(run.model, x, y)
        run.optimizer.zero_grad()
        F.cross_entropy(run.model(attacked), y).backward()
        run.optimizer.step()


def alone_adversarial(model: Any, record: Any) -> Tensor:
    x, y = record[0][None], record[1][None]
    return F.cross_entropy(model(moved(model, x, y)), y)


def accumulating(run: Run) -> None:
    for i, (x, y) in enumerate(run.loader):
        F.cross_entropy(run.model(x), y).backward()
        if (i + 1) % 2 == 0:
            run.optimizer.step()
            run.optimizer.zero_grad()


def with_norms_logged(run: Run) -> None:
    for x, y in run.loader:
        run.optimizer.zero_grad()
        F.cross_entropy(run.model(x), y).backward()
        nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
        run.optimizer.step()


# Generators --------------------------------------------------------------------------------------------------------


def critic() -> nn.Module:
    return nn.Sequential(nn.Linear(D, 6), nn.Tanh(), nn.Linear(6, 1))


def generator() -> tuple[nn.Module, Any]:
    torch.manual_seed(7)
    made = nn.Linear(2, D)
    return made, torch.optim.SGD(made.parameters(), 0.1)


def real_and_fake(model: Any, x: Tensor, fake: Tensor) -> Tensor:
    return F.softplus(-model(x))[:, 0] + F.softplus(model(fake))[:, 0]


def step_beside_fakes(run: Run, x: Tensor, made: Any) -> list[tuple[Tensor, Tensor]]:
    """Train on records and as many fakes, and return the pairs."""
    fake = made(torch.randn(len(x), 2)).detach()
    run.optimizer.zero_grad()
    run.session.backward(real_and_fake(run.model, x, fake))
    run.optimizer.step()
    return list(zip(x, fake, strict=True))


def alternating(pauses: bool) -> Any:
    def loop(run: Run) -> Any:
        made, own = generator()
        items = []
        for x, _ in run.loader:
            items += step_beside_fakes(run, x, made)
            own.zero_grad()
            with run.session.paused() if pauses else nullcontext():
                F.softplus(-run.model(made(torch.randn(len(x), 2)))).mean().backward()
            own.step()
        return items

    return loop


def generator_first(pauses: bool) -> Any:
    """The generator learns through the critic, whose gradients of that are thrown away; then the critic does."""

    def loop(run: Run) -> Any:
        made, own = generator()
        items = []
        for x, _ in run.loader:
            fake = made(torch.randn(len(x), 2))
            own.zero_grad()
            with run.session.paused() if pauses else nullcontext():
                F.softplus(-run.model(fake)).mean().backward()
            own.step()
            run.optimizer.zero_grad()
            run.session.backward(real_and_fake(run.model, x, fake.detach()))
            run.optimizer.step()
            items += list(zip(x, fake.detach(), strict=True))
        return items

    return loop


def more_fakes(run: Run) -> None:
    made, _ = generator()
    for x, _ in run.loader:
        fake = made(torch.randn(64, 2)).detach()
        run.optimizer.zero_grad()
        loss = F.softplus(-run.model(x)).mean() + F.softplus(run.model(fake)).mean()
        loss.backward()
        run.optimizer.step()


def as_many_fakes(run: Run) -> Any:
    made, _ = generator()
    items = []
    for x, _ in run.loader:
        items += step_beside_fakes(run, x, made)
    return items


def alone_of_both(model: Any, item: Any) -> Tensor:
    return real_and_fake(model, item[0][None], item[1][None]).sum()


generated: dict[str, Any] = {"make": critic, "alone": alone_of_both, "records": list(zip(X, X.flip(0), strict=True))}

# Sessions ----------------------------------------------------------------------------------------------------------


def second_part(run: Run, **changed: Any) -> None:
    """Half of the records first, then all of them, in one ledger."""
    ordinary_loop(run)
    run.session.close()
    run.make_private(engine={"ledger": run.ledger}, max_grad_norm=run.session.mechanism.clipping.sensitivity, **changed)
    ordinary_loop(run)


def begin_with_a_part(**named: Any) -> Any:
    def begin(run: Run, **given: Any) -> None:
        run.make_private(engine={"ledger": run.ledger}, data_loader=DataLoader(LABELLED[:3], 3), **given, **named)

    return begin


def cell_twice(closes: bool) -> Any:
    def begin(run: Run, **given: Any) -> None:
        run.make_private(**given)
        if closes:
            hushgrad.session_of(run.model).close()
        run.make_private(**given)

    return begin


class Stream(IterableDataset[Any]):
    def __init__(self, records: Any) -> None:
        self.records = records

    def __iter__(self) -> Any:
        return iter(self.records)


def accelerated(run: Run, **given: Any) -> None:
    import accelerate

    accelerator = accelerate.Accelerator(cpu=True)
    prepared = accelerator.prepare(DataLoader(LABELLED, batch_size=B))
    run.make_private(**given, data_loader=prepared)


def private_first(run: Run, **given: Any) -> None:
    import accelerate

    accelerator = accelerate.Accelerator(cpu=True)
    run.make_private(**given)
    run.loader = accelerator.prepare(run.loader)


def keeps_its_criterion(run: Run) -> None:
    run.model.criterion = run.engine.per_example(nn.CrossEntropyLoss())
    run.model.trains_in = run.session
    for x, y in run.loader:
        run.optimizer.zero_grad()
        run.model.criterion(run.model(x), y).backward()
        run.optimizer.step()


class KeptJoined(hushgrad.JoinedOptimizer):
    """Two optimizers as one, whose gradients are remembered."""

    @property
    def seen(self) -> dict[int, Any]:
        """Those of both."""
        return {place: found for part in self.parts for place, found in part.seen.items()}


def two_joined(model: Any) -> Any:
    return KeptJoined([Kept(model[0].parameters(), lr=0.0), Kept(model[2].parameters(), lr=0.0)])


BACKWARDS: dict[str, Brought] = {
    "adversarial examples: a backward, `zero_grad()`, a second one": refused(
        "DP203", {"loop": adversarial, "alone": alone_adversarial, "clip": 0.5},
        "the first one in `session.paused()`", {"loop": adversarial_in_a_pause},
    ),
    "gradient accumulation, `if (i + 1) % k == 0: optimizer.step()`": refused(
        "DP203", {"loop": accumulating, "settings": {"batch_size": B // 2}},
        "`make_private(..., accumulation=k)`, and a step after each item",
        {"loop": ordinary_loop, "settings": {"batch_size": B // 2, "accumulation": 2}},
    ),
    "`clip_grad_norm_` before the step": exact(
        loop=with_norms_logged,
        why="it finds nothing: `p.grad` is None until the step, and `max_grad_norm` clips",
    ),
    "a GAN, the generator's step through the critic": refused(
        "DP304", {**generated, "loop": alternating(False), "clip": 0.5},
        "the generator's step in `session.paused()`", {"loop": alternating(True)},
    ),
    "a GAN, the generator's step first, then `zero_grad()` of the critic": refused(
        "DP203", {**generated, "loop": generator_first(False), "clip": 0.5},
        "the generator's step in `session.paused()`", {"loop": generator_first(True)},
    ),
    "a GAN with 64 fakes for each batch": refused(
        "DP304", {**generated, "loop": more_fakes, "clip": 0.5},
        "a fake for each record, `randn(len(x), ...)`, and `session.backward(losses)`", {"loop": as_many_fakes},
    ),
    "the criterion or the session as an attribute of the model": exact(
        make=lambda: Of(lambda m, x: m.net(x), net=network()), loop=keeps_its_criterion
    ),
    "two optimizers, one for each part of a model": refused(
        "DP402", {"optimizer": lambda model: Kept(model[0].parameters(), lr=0.0)},
        "`hushgrad.JoinedOptimizer([first, second])`, or one optimizer with a group for each",
        {"optimizer": two_joined},
    ),
}  # fmt: skip

SESSIONS: dict[str, Brought] = {
    "a second part of the training on other data, in the same ledger": refused(
        "DP404", {"begin": begin_with_a_part(), "loop": second_part}, 'a name for each part: `phase="fine-tune"`',
        {"begin": begin_with_a_part(phase="first"), "loop": lambda run: second_part(run, phase="second")},
    ),
    "a notebook's cell with `make_private` that runs twice": refused(
        "DP203", {"begin": cell_twice(False)}, "`hushgrad.session_of(model).close()` first", {"begin": cell_twice(True)}
    ),
    "a stream (`IterableDataset`)": exact(dataset=Stream),
    "records that are in the data several times": exact(
        dataset=lambda records: ConcatDataset([records[:B], records[B:]]),
        records=[*LABELLED, *LABELLED[:2]],
        why="what is protected is one entry of the data: a person with n entries is a group of n ([users](users.md))",
    ),
    "Accelerate: `prepare`, then `make_private`": refused(
        "DP101", {"begin": accelerated}, "`make_private` first", {"begin": private_first}
    ),
}  # fmt: skip
