"""What a Trainer would do past private training is refused before anything moves; each cure works."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_transformers import NOISY, PrivateTrainer, is_as, trainer, weights
from tiny import Texts, bert, gpt2
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, RandomSampler
from transformers import Trainer

from hushgrad import Privacy
from hushgrad.errors import HushgradError, IncompatibleFrameworkError, InvalidArgumentError, ProtocolError
from hushgrad.integrations.transformers import private


class Weighted(Trainer):  # type: ignore[misc]
    """The everyday way to a loss of one's own."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = F.cross_entropy(outputs.logits, labels, weight=torch.tensor([1.0, 2.0, 3.0]))
        return (loss, outputs) if return_outputs else loss


class OwnStep(Trainer):  # type: ignore[misc]
    def training_step(self, *_: Any, **__: Any) -> Any:
        raise AssertionError


class AfterPrivate(PrivateTrainer):  # type: ignore[misc, valid-type]
    compute_loss = Weighted.compute_loss


@pytest.mark.parametrize(
    ("kind", "word"), [(Weighted, "compute_loss"), (OwnStep, "training_step"), (AfterPrivate, "compute_loss")]
)
def test_a_loss_or_step_that_would_not_be_called_is_refused(kind: Any, word: str, tmp_path: Path) -> None:
    with pytest.raises(IncompatibleFrameworkError, match=f"its {word} would not be called"):
        trainer(tmp_path, bert(), Texts(3), NOISY, kind=kind if kind is AfterPrivate else private(kind))


def test_a_loss_set_on_the_trainer_is_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path, bert(), Texts(3), NOISY)
    run.compute_loss = lambda *_, **__: None
    with pytest.raises(IncompatibleFrameworkError, match="its compute_loss would not be called"):
        run.train()


class WeightedByExample(Weighted):
    calls = 0

    def per_example_losses(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        self.calls += 1
        labels = inputs["labels"]
        logits = model(**{name: value for name, value in inputs.items() if name != "labels"}).logits
        return F.cross_entropy(logits, labels, weight=torch.tensor([1.0, 2.0, 3.0]), reduction="none")


def test_a_per_example_loss_beside_it_is_the_cure_and_is_trained(tmp_path: Path) -> None:
    run = trainer(
        tmp_path, bert(), Texts(3), NOISY, kind=private(WeightedByExample), max_steps=2,
        eval_strategy="steps", eval_steps=1, eval_dataset=Texts(3),
    )  # fmt: skip
    run.train()
    assert run.calls >= 2
    assert run.session.steps == 2


def sampled(sampler: Callable[[Any], Any]) -> type[Any]:
    class Sampled(Trainer):  # type: ignore[misc]
        def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
            return sampler(self.train_dataset)

    return Sampled


class OwnLoader(Trainer):  # type: ignore[misc]
    def get_train_dataloader(self) -> Any:
        return DataLoader(self.train_dataset, batch_size=3, shuffle=True, collate_fn=self.data_collator)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(Texts(3).rows)


LOADERS: dict[str, tuple[type[Any], Any, str]] = {
    "with replacement": (sampled(lambda data: RandomSampler(data, replacement=True, num_samples=80)), None, "samples"),
    "of a part": (sampled(lambda _: RandomSampler(range(20))), None, "samples"),
    "in order": (sampled(torch.utils.data.SequentialSampler), None, "samples"),
    "other batches": (OwnLoader, None, "batches of 3"),
    "a stream": (Trainer, Stream(), "without a length"),
}


@pytest.mark.parametrize("name", LOADERS)
def test_records_that_would_be_drawn_otherwise_than_the_loader_says_are_refused(name: str, tmp_path: Path) -> None:
    kind, data, word = LOADERS[name]
    run = trainer(tmp_path, bert(), data or Texts(3), NOISY, kind=private(kind), max_steps=2)
    before = weights(run.model)
    with pytest.raises(IncompatibleFrameworkError, match=word):
        run.train()
    assert is_as(run.model, before)
    assert run.session is None


class LoaderAfterPrivate(PrivateTrainer):  # type: ignore[misc, valid-type]
    get_train_dataloader = OwnLoader.get_train_dataloader


class OptimizerAfterPrivate(PrivateTrainer):  # type: ignore[misc, valid-type]
    def create_optimizer(self, *_: Any, **__: Any) -> Any:
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        return self.optimizer


@pytest.mark.parametrize(
    ("kind", "word"), [(LoaderAfterPrivate, "private loader"), (OptimizerAfterPrivate, "replaced")]
)
def test_a_loader_or_optimizer_that_takes_the_place_of_the_private_one_is_refused(
    kind: Any, word: str, tmp_path: Path
) -> None:
    run = trainer(tmp_path, bert(), Texts(3), NOISY, kind=kind)
    before = weights(run.model)
    with pytest.raises(ProtocolError, match=word):
        run.train()
    assert is_as(run.model, before)


class OwnOptimizer(Trainer):  # type: ignore[misc]
    create_optimizer = OptimizerAfterPrivate.create_optimizer


def test_an_optimizer_of_the_trainers_own_is_made_once_and_trained(tmp_path: Path) -> None:
    run = trainer(tmp_path, bert(), Texts(3), NOISY, kind=private(OwnOptimizer), max_steps=2)
    run.train()
    assert run.session.steps == 2


REFUSED: dict[str, dict[str, Any]] = {
    "reentrant checkpointing": {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": True},
    },
    "more than there is": {"per_device_train_batch_size": 64},
}


@pytest.mark.parametrize("name", REFUSED)
def test_arguments_that_cannot_be_followed_are_refused_with_the_weights_unmoved(name: str, tmp_path: Path) -> None:
    model = gpt2()
    before = weights(model)
    with pytest.raises(HushgradError) as caught:
        trainer(tmp_path, model, Texts(), NOISY, **REFUSED[name]).train()
    assert isinstance(caught.value, IncompatibleFrameworkError | InvalidArgumentError)
    assert is_as(model, before)


def test_model_init_is_refused_wherever_it_stands(tmp_path: Path) -> None:
    from transformers import TrainingArguments

    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    with pytest.raises(IncompatibleFrameworkError, match="several models"):
        PrivateTrainer(None, args, None, Texts(3), None, None, lambda: bert(), privacy=NOISY)


def test_privacy_is_checked_as_it_is_made() -> None:
    for wrong in ({"ledger": 3}, {"strict": "no"}):
        with pytest.raises(InvalidArgumentError):
            Privacy(max_grad_norm=1.0, target_delta=1e-3, target_epsilon=1.0, **wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="at most 40"):
        NOISY.mechanism(batch_size=41, population=40, steps=1)


def test_a_class_is_made_private_once() -> None:
    with pytest.raises(InvalidArgumentError, match="already"):
        private(PrivateTrainer)
