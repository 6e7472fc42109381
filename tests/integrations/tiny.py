"""Tiny models and data for the frameworks, and the oracle: one example at a time, clipped, summed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

N, B, C = 40, 10, 0.5
VOCABULARY = 50


class Texts(Dataset[dict[str, Any]]):
    """Sequences of different lengths, to be padded; `labels` are the tokens, or a class of each."""

    def __init__(self, classes: int | None = None) -> None:
        chance = torch.Generator().manual_seed(0)
        self.rows = []
        for _ in range(N):
            length = int(torch.randint(3, 12, (1,), generator=chance))
            ids = torch.randint(3, VOCABULARY, (length,), generator=chance).tolist()
            label = ids if classes is None else int(torch.randint(0, classes, (1,), generator=chance))
            self.rows.append({"input_ids": ids, "attention_mask": [1] * length, "labels": label})

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return self.rows[place]


def collate(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    longest = max(len(row["input_ids"]) for row in rows)

    def padded(name: str, filling: int) -> Tensor:
        return torch.tensor([row[name] + [filling] * (longest - len(row[name])) for row in rows])

    labels = (
        padded("labels", -100) if isinstance(rows[0]["labels"], list) else torch.tensor([row["labels"] for row in rows])
    )
    return {"input_ids": padded("input_ids", 0), "attention_mask": padded("attention_mask", 0), "labels": labels}


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=32, n_embd=16, n_layer=2, n_head=2,
        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def bert(classes: int = 3) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32, hidden_dropout_prob=0, attention_probs_dropout_prob=0, num_labels=classes,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=32, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def llama_with_lora() -> nn.Module:
    from peft import LoraConfig, get_peft_model

    adapters = LoraConfig(
        r=4, lora_alpha=8, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False
    )
    return get_peft_model(llama(), adapters)


def own_loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    loss: Tensor = model(**batch).loss
    return loss


class Steps:
    """The records, the parameters before and the released update of every logical step."""

    def __init__(self, model: nn.Module) -> None:
        self.plain = copy.deepcopy(model)
        for module in self.plain.modules():  # TRL puts a forward on the model, whose copy would run the original
            module.__dict__.pop("forward", None)
        self.model = model
        self.collate = collate
        self.records: list[int] = []
        self.steps: list[tuple[list[int], dict[str, Tensor], dict[str, Tensor]]] = []

    def watch(self, session: Any, optimizer: torch.optim.Optimizer) -> None:
        """Watch the steps of an optimizer whose training was made private."""
        self.session = session
        optimizer.register_step_pre_hook(self._step)

    def saw(self) -> None:
        """The item in work is a part of the coming step."""
        self.records += self.session.current_batch.indices

    def _step(self, *_: Any) -> None:
        update = {n: p.grad.detach().clone() for n, p in self.model.named_parameters() if p.grad is not None}
        before = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self.steps.append((self.records, before, update))
        self.records = []

    def errors(self, data: Any, loss_of: Callable[[Any, Any], Tensor] = own_loss) -> list[float]:
        """Return each step's largest error against the sum of clipped gradients, relative to its largest part."""
        return [
            max((update[name].double() * B - total).norm().item() for name, total in wanted.items())
            / max(max(total.norm().item() for total in wanted.values()), 1e-9)
            for wanted, update in self._each(data, loss_of)
        ]

    def noise(self, data: Any, loss_of: Callable[[Any, Any], Tensor] = own_loss) -> Tensor:
        """Return update · B − clipped sum, all values of all steps."""
        rest = [
            (update[name].double() * B - total).flatten()
            for wanted, update in self._each(data, loss_of)
            for name, total in wanted.items()
        ]
        return torch.cat(rest)

    def _each(self, data: Any, loss_of: Any) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
        found = []
        for records, before, update in self.steps:
            self.plain.load_state_dict(before)
            found.append((self._clipped_sum([self.collate([data[i]]) for i in records], loss_of), update))
        return found

    def _clipped_sum(self, examples: list[Any], loss_of: Any) -> dict[str, Tensor]:
        self.plain.train()
        named = [(name, p) for name, p in self.plain.named_parameters() if p.requires_grad]
        total = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in named}
        for example in examples:
            grads = torch.autograd.grad(loss_of(self.plain, example), [p for _, p in named], allow_unused=True)
            norm = sum((g.double().square().sum() for g in grads if g is not None), torch.tensor(0.0)).sqrt().item()
            for (name, _), grad in zip(named, grads, strict=True):
                if grad is not None:
                    total[name] += grad.double() * min(1.0, C / max(norm, 1e-30))
        return total
