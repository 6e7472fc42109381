"""Each kind of model is trained on its own loss of each example, and what else a model may add is found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from test_transformers import NOISY, PrivateTrainer, trainer
from tiny import VOCABULARY, N, Texts, bert, collate, gpt2
from torch import Tensor, nn
from torch.utils.data import Dataset

from hushgrad.errors import UnsupportedModelError
from hushgrad.integrations.model_losses import of_examples, require_own_loss


def of_bert(kind: str, **settings: Any) -> nn.Module:
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32, hidden_dropout_prob=0, attention_probs_dropout_prob=0, **settings,
    )  # fmt: skip
    model: nn.Module = getattr(transformers, kind)(config)
    return model


def t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.0,
            decoder_start_token_id=0, pad_token_id=0, eos_token_id=2,
        )
    )  # fmt: skip


def vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    return ViTForImageClassification(
        ViTConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=8,
            patch_size=4, num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )
    )  # fmt: skip


def bitfit() -> nn.Module:
    """Biases alone are trained, and the head."""
    model = bert()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("bias") or name.startswith("classifier"))
    return model


class Labelled(Dataset[dict[str, Any]]):
    """The texts with other labels: a number or several of each, or one for each token, of which some count."""

    def __init__(self, labels: Callable[[int, list[int]], Any]) -> None:
        self.rows = [row | {"labels": labels(i, row["input_ids"])} for i, row in enumerate(Texts().rows)]

    def __len__(self) -> int:
        return N

    def __getitem__(self, place: int) -> dict[str, Any]:
        return self.rows[place]


class Images(Dataset[dict[str, Any]]):
    def __init__(self) -> None:
        self.pixels = torch.randn(N, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return N

    def __getitem__(self, place: int) -> dict[str, Any]:
        return {"pixel_values": self.pixels[place], "labels": place % 3}


def collate_numbers(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    batch = collate([row | {"labels": 0} for row in rows])
    return batch | {"labels": torch.tensor([row["labels"] for row in rows])}


def collate_images(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    return {
        "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }


def some(place: int, ids: list[int]) -> list[int]:
    return [token % 3 if number % 2 == place % 2 else -100 for number, token in enumerate(ids)]


KINDS: dict[str, tuple[Callable[[], nn.Module], Any, Any]] = {
    "masked tokens": (lambda: of_bert("BertForMaskedLM"), Labelled(some), collate),
    "classes of tokens": (lambda: of_bert("BertForTokenClassification", num_labels=3), Labelled(some), collate),
    "a sequence for a sequence": (t5, Texts(), collate),
    "one number": (
        lambda: of_bert("BertForSequenceClassification", num_labels=1),
        Labelled(lambda place, _: place / 10),
        collate_numbers,
    ),
    "several numbers": (
        lambda: of_bert("BertForSequenceClassification", num_labels=2, problem_type="regression"),
        Labelled(lambda place, _: [place / 10, 1.0]),
        collate_numbers,
    ),
    "several labels": (
        lambda: of_bert("BertForSequenceClassification", num_labels=3),
        Labelled(lambda place, _: [float(place % 2), 1.0, 0.0]),
        collate_numbers,
    ),
    "images": (vit, Images(), collate_images),
    "biases alone": (bitfit, Texts(3), collate),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_update_is_the_sum_of_clipped_gradients_of_the_models_own_loss_of_one_example_at_a_time(
    kind: str, tmp_path: Path
) -> None:
    make, data, collated = KINDS[kind]
    run = trainer(tmp_path, make(), data, data_collator=collated, max_steps=2, learning_rate=1e-2)
    run.train()
    run.steps.collate = collated
    assert len(run.steps.steps) == 2
    assert max(run.steps.errors(data)) < 1e-5


class OwnLoss(nn.Module):
    """A causal model whose own loss may be another one than that of its name."""

    def __init__(self, extra: float = 0.0) -> None:
        super().__init__()
        self.inner, self.extra = gpt2(), extra
        self.config, self.loss_type = self.inner.config, "ForCausalLM"

    def forward(self, input_ids: Any, attention_mask: Any = None, labels: Any = None) -> Any:
        outputs = self.inner(input_ids=input_ids, attention_mask=attention_mask, labels=labels)
        if labels is not None:
            outputs.loss = outputs.loss + self.extra
        return outputs


def none_before(first: int) -> Labelled:
    """Texts of which the first ones have no label: prompts that fill the whole length."""
    return Labelled(lambda place, ids: [-100] * len(ids) if place < first else ids)


def test_a_record_without_labels_does_not_stop_a_run_wherever_it_is_drawn(tmp_path: Path) -> None:
    data = none_before(N // 2)
    run = trainer(tmp_path, OwnLoss(), data, max_steps=3, per_device_train_batch_size=2, gradient_accumulation_steps=5)
    run.train()
    assert max(run.steps.errors(data)) < 1e-5


def rows_of(places: Sequence[int], first: int) -> dict[str, Tensor]:
    data = none_before(first)
    return collate([data[place] for place in places])


def compared(model: nn.Module, inputs: dict[str, Tensor]) -> bool:
    return require_own_loss(model, inputs, lambda one: of_examples(model, model, dict(one), None), is_narrow=False)


def test_losses_are_compared_on_the_first_example_that_has_one() -> None:
    """Guarantee: a loss is unknown for as long as no example has one, and what is trained meanwhile is exactly 0."""
    model = OwnLoss().train()
    assert compared(model, rows_of([0, 1, 2], first=2))
    assert not compared(model, rows_of([0, 1], first=2))
    assert all(module.training for module in model.modules())
    with pytest.raises(UnsupportedModelError, match="its own loss of one example"):
        compared(OwnLoss(extra=1.0), rows_of([0, 1, 2], first=2))
    with pytest.raises(UnsupportedModelError, match="its own loss of one example"):  # something would be trained
        compared(OwnLoss(extra=float("nan")), rows_of([0, 1], first=0))


def test_a_loss_that_differs_at_a_later_item_is_refused_before_it_is_trained(tmp_path: Path) -> None:
    """Steps that draw records without labels alone release noise, and the loss stays unknown."""
    run = trainer(tmp_path, OwnLoss(extra=1.0), none_before(N), NOISY, kind=PrivateTrainer, max_steps=2)
    run.train()
    assert run.session.steps == 2
    with pytest.raises(UnsupportedModelError, match="its own loss of one example"):
        run.training_step(run.model, [rows_of(range(4), first=2)])
    assert run.session is None
