"""A loop of Fabric trains as the plain loop does: the update, the noise, the account, the schedule, coming back."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision, Precision
from lightning.fabric.strategies import DDPStrategy
from tiny import B, C, N, Steps, Texts, bert, collate, gpt2, llama_with_lora
from torch import nn
from torch.utils.data import DataLoader

from hushgrad import Privacy
from hushgrad.errors import (
    CheckpointError,
    HushgradError,
    IncompatibleFrameworkError,
    InvalidArgumentError,
    LedgerError,
)
from hushgrad.integrations.fabric import load, prepare, save
from hushgrad.integrations.model_losses import of_examples
from hushgrad.sampling.choice import NAMES

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

EPOCHS = 2
STEPS = EPOCHS * N // B
SILENT = Privacy(max_grad_norm=C, target_delta=1e-3, noise_multiplier=0.0, test_key=1)


class Run:
    """A loop as the docs have it, watched."""

    def __init__(
        self,
        privacy: Privacy,
        fabric: Fabric | None = None,
        model: nn.Module | None = None,
        classes: int | None = 3,
        kind: Callable[..., Any] = torch.optim.SGD,
        workers: int = 0,
        **settings: Any,
    ) -> None:
        self.fabric = fabric or Fabric(accelerator="cpu", devices=1)
        self.model = bert() if model is None else model
        self.optimizer = kind([p for p in self.model.parameters() if p.requires_grad], lr=0.1, **settings)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1 / (1 + step))
        self.data = Texts(classes)
        loader = DataLoader(self.data, batch_size=B, collate_fn=collate, num_workers=workers)
        self.steps = Steps(self.model)
        self.prepared, self.stepped, self.batches, self.session = prepare(
            self.fabric, self.model, self.optimizer, loader, privacy=privacy, epochs=EPOCHS, max_physical_batch_size=4
        )
        self.steps.watch(self.session, self.optimizer)
        self.items = 0

    def train(self, steps: int) -> None:
        while True:
            for batch in self.batches:
                for item in batch:
                    self.items += 1
                    self.steps.saw()
                    with self.fabric.autocast():
                        losses = of_examples(self.prepared, self.model, dict(item), None)
                    self.backward(losses)
                    self.session.end_item()
                self.stepped.step()
                self.scheduler.step()
                steps -= 1
                if not steps:
                    return

    def backward(self, losses: torch.Tensor) -> None:
        self.session.backward(losses)

    @property
    def state(self) -> dict[str, Any]:
        return {"model": self.prepared, "optimizer": self.stepped, "scheduler": self.scheduler}


RUNS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "BERT, workers": (bert, {"workers": 1}),
    "GPT-2, fused AdamW": (gpt2, {"classes": None, "kind": torch.optim.AdamW, "fused": True}),
    "Llama with LoRA": (llama_with_lora, {"classes": None}),
}


@pytest.mark.parametrize("name", RUNS)
def test_the_update_is_the_sum_of_clipped_gradients_of_one_example_at_a_time(name: str) -> None:
    make, settings = RUNS[name]
    run = Run(SILENT, model=make(), **settings)
    run.train(3)
    assert run.items > len(run.steps.steps) == 3
    assert max(run.steps.errors(run.data)) < 1e-5
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 / 4)


def test_with_activation_checkpointing_the_update_is_the_same_sum() -> None:
    model = gpt2()
    model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    run = Run(SILENT, model=model, classes=None)
    run.train(2)
    assert max(run.steps.errors(run.data)) < 1e-5


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_in_bf16_the_update_is_that_sum_within_the_precision(precision: Any) -> None:
    run = Run(SILENT, Fabric(accelerator="cpu", devices=1, precision=precision))
    run.train(2)
    assert max(run.steps.errors(run.data)) < 1e-2


@pytest.mark.statistical
def test_the_noise_has_the_standard_deviation_that_is_charged() -> None:
    """More than 45,000 values: 1% is 3 standard deviations; false-alarm probability 0.3%. The key is fixed."""
    privacy = Privacy(max_grad_norm=C, target_delta=1e-3, noise_multiplier=1.5, test_key=1)
    run = Run(privacy, model=gpt2(), classes=None)
    run.train(STEPS)
    noise = run.steps.noise(run.data)
    assert len(noise) >= 45_000
    assert noise.std().item() == pytest.approx(1.5 * C, rel=0.01)


@pytest.mark.parametrize("sampling", NAMES)
def test_the_noise_and_epsilon_are_those_of_the_plain_plan(sampling: str) -> None:
    privacy = Privacy(max_grad_norm=C, target_delta=1e-3, target_epsilon=3.0, test_key=1, sampling=sampling)
    run = Run(privacy)
    plan = privacy.mechanism(batch_size=B, population=N, steps=STEPS, steps_per_pass=N // B)
    assert run.session.mechanism == plan
    run.train(STEPS)
    assert run.session.epsilon(1e-3) == plan.epsilon(1e-3)
    assert run.session.steps_left == 0


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def is_as(model: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_backward_of_fabrics_own_is_the_same_one() -> None:
    """`fabric.backward(session.loss(losses))` beside `session.backward(losses)`."""

    class Theirs(Run):
        def backward(self, losses: torch.Tensor) -> None:
            self.fabric.backward(self.session.loss(losses))

    privacy = Privacy(max_grad_norm=C, target_delta=1e-3, noise_multiplier=1.0, test_key=1)
    one, two = Run(privacy), Theirs(privacy)
    one.train(2)
    two.train(2)
    assert is_as(one.model, weights(two.model))


def test_a_saved_state_is_continued_with_its_account_and_says_what_was_lost(tmp_path: Path) -> None:
    privacy = Privacy(
        max_grad_norm=C, target_delta=1e-3, noise_multiplier=1.0, ledger=tmp_path / "ledger", spare_steps=2
    )
    first = Run(privacy)
    first.train(3)  # by another Fabric than that which loads
    save(first.fabric, tmp_path / "state", {**first.state, "epoch": 1}, first.session)
    saved = weights(first.model)
    first.train(2)
    first.session.close()
    again = Run(privacy)
    state = {**again.state, "epoch": 0}
    assert load(again.fabric, tmp_path / "state", state, again.session) == 2
    assert state["epoch"] == 1
    assert is_as(again.model, saved)
    assert again.scheduler.last_epoch == 3
    again.train(STEPS - 3)
    assert again.session.steps == STEPS + 2


def test_a_state_of_another_ledger_or_of_none_is_refused_before_a_weight_is_loaded(tmp_path: Path) -> None:
    """Guarantee: a file whose steps the ledger does not hold is refused before anything is loaded."""
    first = Run(Privacy(max_grad_norm=C, target_delta=1e-3, noise_multiplier=1.0, ledger=tmp_path / "a"))
    first.train(1)
    save(first.fabric, tmp_path / "state", first.state, first.session)
    first.fabric.save(tmp_path / "ordinary", first.state)
    first.session.close()
    again = Run(Privacy(max_grad_norm=C, target_delta=1e-3, noise_multiplier=1.0, ledger=tmp_path / "b"))
    before = weights(again.model)
    kinds: list[tuple[str, type[HushgradError]]] = [("state", LedgerError), ("ordinary", CheckpointError)]
    for name, kind in kinds:
        with pytest.raises(kind) as caught:
            load(again.fabric, tmp_path / name, again.state, again.session)
        assert caught.value.cure
        assert is_as(again.model, before)
    with pytest.raises(InvalidArgumentError, match="receipt"):
        save(again.fabric, tmp_path / "x", {"hushgrad": 1}, again.session)


@pytest.mark.parametrize("spoil", ["a key", "a shape", "a model", "an optimizer", "a scheduler"])
def test_a_state_that_does_not_fit_is_refused_and_nothing_is_changed(spoil: str, tmp_path: Path) -> None:
    """Guarantee: a file that lacks a part of `state`, or holds another's, is refused before anything is loaded."""
    privacy = Privacy(max_grad_norm=C, target_delta=1e-3, noise_multiplier=1.0, ledger=tmp_path / "ledger")
    first = Run(privacy)
    first.train(1)
    state = dict(first.state)
    if spoil == "a key":
        state["net"] = state.pop("model")
    elif spoil == "an optimizer":
        state["optimizer"] = {"state": {}, "param_groups": [{"params": [0]}]}
    elif spoil == "a scheduler":
        state["scheduler"] = 3
    else:
        stored = weights(first.model)
        last = list(stored)[-1]  # all the others fit
        value = stored.pop(last)
        stored[last if spoil == "a shape" else "other"] = torch.cat([value, value])
        state["model"] = stored
    save(first.fabric, tmp_path / "state", state, first.session)
    first.session.close()
    again = Run(privacy)
    before, rate = weights(again.model), again.optimizer.param_groups[0]["lr"]
    with pytest.raises(CheckpointError) as caught:
        load(again.fabric, tmp_path / "state", again.state, again.session)
    assert caught.value.cure
    assert is_as(again.model, before)
    assert again.scheduler.last_epoch == 0
    assert again.optimizer.param_groups[0]["lr"] == rate
    save(again.fabric, tmp_path / "state", again.state, again.session)
    assert load(again.fabric, tmp_path / "state", again.state, again.session) == 0


class OwnStrategy(DDPStrategy):
    """A subclass may reduce gradients in a way of its own."""


@pytest.mark.parametrize(
    ("settings", "cure"),
    [
        ({"strategy": OwnStrategy(), "devices": 2}, "strategy='ddp'"),
        ({"devices": 1, "plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))]}, "bf16-mixed"),
    ],
)
def test_what_does_not_go_with_private_training_is_refused_with_its_cure(settings: dict[str, Any], cure: str) -> None:
    model = bert()
    with pytest.raises(IncompatibleFrameworkError) as caught:
        Run(SILENT, Fabric(accelerator="cpu", **settings), model)
    assert cure in caught.value.cure
    assert is_as(model, weights(bert()))
    cured = Run(SILENT, Fabric(accelerator="cpu", devices=1, strategy="auto", precision="bf16-mixed"), model)
    cured.train(1)
    assert cured.session.steps == 1


def test_what_is_called_of_fabric_is_still_there() -> None:
    """A canary: what is relied on, by its name and arguments."""
    assert list(inspect.signature(Fabric.setup).parameters)[:3] == ["self", "module", "optimizers"]
    assert list(inspect.signature(Fabric.autocast).parameters) == ["self"]
    assert list(inspect.signature(Precision.convert_input).parameters) == ["self", "data"]
    assert list(inspect.signature(Fabric.save).parameters)[:3] == ["self", "path", "state"]
    assert {"path", "state", "strict", "weights_only"} <= set(inspect.signature(Fabric.load).parameters)
    assert Precision.precision == "32-true"
