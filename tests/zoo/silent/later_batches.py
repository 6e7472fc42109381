"""Leaks that begin after the first batch: in a run of 40 steps they are found with a probability of 0.9 or more."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from silent_programs import Kind, Measured, Program
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from hushgrad import PrivacyEngine
from hushgrad.errors import HushgradError

STEPS, BATCH, ENOUGH = 40, 8, 0.9
KEYS, CLEAN_KEYS = 10, 4


class Switch(nn.Module):
    """Mixes from the forward on that `begins` says."""

    def __init__(self, begins: Callable[[Switch, Tensor], bool], change: Any) -> None:
        super().__init__()
        self.a, self.b, self.begins, self.change, self.epoch, self.calls = (
            nn.Linear(4, 4),
            nn.Linear(4, 3),
            begins,
            change,
            0,
            0,
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(self.change(h) if self.begins(self, x) else h)


def by_largest(h: Tensor) -> Tensor:
    """By a Python number, which no axis rule sees."""
    return h / max(1.0, float(h.detach().abs().max()))


def by_own_largest(h: Tensor) -> Tensor:
    return h / h.detach().abs().amax(1, keepdim=True).clamp(min=1)


def centre(out: Tensor) -> Tensor:
    return out - out.mean(0).detach()


def own_centre(out: Tensor) -> Tensor:
    return out - out.mean(1, keepdim=True).detach()


@dataclass(frozen=True)
class Run:
    """A run of 40 steps; `before` is called with the model and the number of the step before each of them."""

    make: Callable[[], nn.Module]
    before: Callable[[Any, int], None] = lambda model, step: None
    call: Callable[[Any, Any, int], Any] = lambda model, x, step: model(x)
    loss: Callable[[Any], Tensor] = lambda out: out.square().sum(1)
    records: Any = None
    collate: Any = torch.stack

    def found(self, key: int, way: str) -> HushgradError | None:
        """Return the refusal of one run, None if it came to its end."""
        torch.manual_seed(key)
        model, engine = self.make(), PrivacyEngine(test_key=key)
        data = list(torch.randn(STEPS * BATCH, 4)) if self.records is None else self.records()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        _, _, loader = engine.make_private(
            module=model,
            optimizer=optimizer,
            data_loader=DataLoader(data, batch_size=BATCH, collate_fn=self.collate),
            noise_multiplier=1.0,
            max_grad_norm=1.0,
            poisson_sampling=False,
        )
        criterion = engine.per_example(lambda out, _: self.loss(out))
        try:
            for step, x in enumerate(loader):
                self.before(model, step)
                out = self.call(model, x, step)
                if way == "per_example":
                    criterion(out, torch.zeros(BATCH)).backward()
                elif way == "session":
                    engine.session.backward(self.loss(out))
                else:
                    self.loss(out).mean().backward()
                optimizer.step()
        except HushgradError as error:
            return error
        finally:
            engine.session.close()
        return None

    def measure_leaky(self, way: str) -> Measured:
        """Raise the refusal if enough of the runs are refused."""
        errors = [error for key in range(KEYS) if (error := self.found(key, way)) is not None]
        note = f"found in {len(errors)} of {KEYS} runs"
        if len(errors) >= ENOUGH * KEYS:
            errors[0].add_note(note)
            raise errors[0]
        return Measured(math.inf, note=note)

    def measure_clean(self, way: str) -> Measured:
        """Raise a refusal of any of the runs."""
        for key in range(CLEAN_KEYS):
            error = self.found(key, way)
            if error is not None:
                raise error
        return Measured(0.0)


def leaky(name: str, run: Run, ways: tuple[str, ...] = ("session",)) -> Program:
    return Program(name, run.measure_leaky, ways=ways)


def clean(name: str, run: Run, ways: tuple[str, ...] = ("session",)) -> Program:
    return Program(name, run.measure_clean, is_clean=True, ways=ways)


def set_epoch(model: Any, step: int) -> None:
    model.epoch = step // 20


def set_calls(model: Any, step: int) -> None:
    model.calls = step


def switched(begins: Any, change: Any, before: Any = set_epoch) -> Run:
    return Run(lambda: Switch(begins, change), before)


def late_loss(change: Any) -> Run:
    """The loop's own code mixes from step 20 on, by value."""
    return Run(
        lambda: Switch(lambda m, x: False, by_largest), call=lambda m, x, step: change(m(x)) if step >= 20 else m(x)
    )


def late_lengths() -> Any:
    """Twenty batches of equal lengths, then batches with one long record each."""
    even = [torch.ones(3, 4)] * (20 * BATCH)
    uneven = ([torch.ones(3, 4)] * (BATCH - 1) + [torch.ones(30, 4)]) * 20
    return even + uneven


class Pooled(nn.Module):
    def __init__(self, own: bool) -> None:
        super().__init__()
        self.a, self.own = nn.Linear(4, 3), own

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        is_real = (x != 0).any(2, keepdim=True)
        return (h * is_real).sum(1) / is_real.sum(1) if self.own else h.mean(1)


def pooled(own: bool) -> Run:
    return Run(
        lambda: Pooled(own), records=late_lengths, collate=lambda records: pad_sequence(list(records), batch_first=True)
    )


class Language(nn.Module):
    """Returns its own loss: a mean over all tokens, or of each record's mean."""

    def __init__(self, own: bool) -> None:
        super().__init__()
        self.e, self.own = nn.Embedding(11, 11), own

    def forward(self, ids: Tensor) -> Tensor:
        y = ids[:, 1:].masked_fill(ids[:, 1:] == 0, -100)
        found = F.cross_entropy(self.e(ids[:, :-1]).transpose(1, 2), y, reduction="none")
        counts = (y != -100).sum(1)
        return (found.sum(1) / counts).mean() if self.own else found.sum() / counts.sum()


def late_tokens() -> Any:
    even = [torch.randint(1, 11, (9,)) for _ in range(20 * BATCH)]
    short = F.pad(torch.tensor([3, 4, 5]), (0, 6))
    return even + ([short] * (BATCH - 1) + [torch.arange(9) % 10 + 1]) * 20


def language(own: bool) -> Run:
    return Run(lambda: Language(own), records=late_tokens, loss=lambda loss: loss)


def frozen_at_first(change: Any) -> Run:
    """The same modules and modes throughout; the branch follows a name that the loop sets."""
    return replace(
        switched(lambda m, x: m.epoch == "second", change),
        before=lambda m, s: setattr(m, "epoch", "first" if s < 20 else "second"),
    )


def programs(kind: Any, change: Any, is_clean: bool) -> tuple[Program, ...]:
    tail = ", each record's own" if is_clean else ""
    return (
        kind(
            f"from the second epoch on{tail}",
            switched(lambda m, x: m.epoch > 0, change),
            ("per_example", "session", "scalar"),
        ),
        kind(f"from step 20 on, by a counter{tail}", switched(lambda m, x: m.calls >= 20, change, set_calls)),
        kind(f"by a word that the loop sets{tail}", frozen_at_first(change)),
        kind(
            f"in every second step from 20 on{tail}",
            switched(lambda m, x: m.calls >= 20 and m.calls % 2 == 0, change, set_calls),
        ),
        kind(f"the loop's own code from step 20 on{tail}", late_loss(own_centre if is_clean else centre)),
        kind(f"equal lengths for 20 steps, mean over positions{tail}", pooled(is_clean)),
        kind(f"equal lengths for 20 steps, the model's own token mean{tail}", language(is_clean), ("scalar",)),
    )


KIND = Kind(
    "later than the first batch",
    "two to four rows with borrowed companions",
    f"secret random steps; a leak in the second half of {STEPS} steps is found in {ENOUGH:.0%} of runs or more",
    "leaks of a few steps",
    (*programs(leaky, by_largest, False), *programs(clean, by_own_largest, True)),
)
