"""LoRA over a base whose weights are frozen integers trains exactly, in every framework's own loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lit import fit
from peft import LoraConfig, get_peft_model
from test_transformers import SILENT, trainer
from test_trl import of_rows, sft
from tiny import Texts, llama
from tiny_trl import completions
from torch import Tensor, nn
from torch.nn import functional as F

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


class Int8Linear(nn.Linear):
    """Weights of eight bits with a scale for each row, as bitsandbytes and torchao keep them; frozen."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain.in_features, plain.out_features, bias=False)
        scale = plain.weight.detach().abs().amax(1, keepdim=True) / 127
        del self._parameters["weight"]
        self.weight = nn.Parameter((plain.weight.detach() / scale).round().to(torch.int8), requires_grad=False)
        self.register_buffer("scale", scale)

    def forward(self, inputs: Tensor) -> Tensor:
        return F.linear(inputs, self.weight.to(inputs.dtype) * self.scale)


class Packed(torch.autograd.Function):
    """A kernel that multiplies with packed weights, and knows its own backward, as that of bitsandbytes for 4 bits."""

    @staticmethod
    def forward(context: Any, inputs: Tensor, packed: Tensor, scale: Tensor) -> Tensor:
        context.save_for_backward(packed, scale)
        return inputs @ (packed.to(inputs.dtype) * scale).T

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:
        packed, scale = context.saved_tensors
        return gradient @ (packed.to(gradient.dtype) * scale), None, None


class PackedLinear(Int8Linear):
    """The same behind a kernel that torch does not see into."""

    def forward(self, inputs: Tensor) -> Tensor:
        return Packed.apply(inputs, self.weight, self.scale)  # type: ignore[no-any-return, no-untyped-call]


KINDS = {"eight bits": Int8Linear, "a kernel of its own": PackedLinear}


def quantised(kind: type[Int8Linear]) -> Any:
    def replace(module: nn.Module) -> None:
        for name, child in module.named_children():
            if isinstance(child, nn.Linear) and name != "lm_head":
                setattr(module, name, kind(child))
            else:
                replace(child)

    model = llama()
    replace(model)
    adapters = LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "up_proj"], task_type="CAUSAL_LM",
        init_lora_weights=False,
    )  # fmt: skip
    found = get_peft_model(model, adapters)
    assert sum(parameter.dtype == torch.int8 for parameter in found.parameters()) == 14
    return found


@pytest.mark.parametrize("name", KINDS)
def test_the_update_is_the_sum_of_clipped_gradients_of_one_example_at_a_time(name: str, tmp_path: Path) -> None:
    kind, data = KINDS[name], Texts()
    run = trainer(tmp_path / "trainer", quantised(kind), data, SILENT, max_steps=2)
    run.train()
    assert max(run.steps.errors(data)) < 1e-5
    tuned = sft(tmp_path / "sft", quantised(kind), completions(), bf16=False, max_steps=2)
    tuned.train()
    assert max(tuned.steps.errors(of_rows(tuned))) < 1e-5
    module, *_ = fit(tmp_path / "lightning", quantised(kind), None, SILENT, max_steps=2)
    assert max(module.steps.errors(data)) < 1e-5
