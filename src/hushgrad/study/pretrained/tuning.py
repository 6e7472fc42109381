"""Which parameters of a pretrained classifier are trained. Those of its head, and of a pooler, always are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from hushgrad.errors import InvalidArgumentError
from hushgrad.extras import needs_extra
from hushgrad.study.pretrained.folder import EXTRA, is_of_head

LORA, BITFIT, HEAD, FULL = "base-lora", "base-bitfit", "base-head", "base-full"
SCALE = 2
"""What an adapter's product is multiplied by: alpha / rank in the words of peft."""


def prepare(network: Any, tuning: str, rank: int) -> None:
    """Leave to be trained what `tuning` says; in place. `rank` is that of base-lora's adapters.

    Raises InvalidArgumentError where the model has nothing of that kind, MissingExtraError without peft.
    """
    network.requires_grad_(False)
    TUNINGS[tuning](network, rank)
    for name, parameter in network.named_parameters():
        if is_of_head(network, name):
            parameter.requires_grad_(True)


def _lora(network: Any, rank: int) -> None:
    """Add to each linear layer of the body the product of two matrices of this rank (Hu et al. 2022), zero at first."""
    with needs_extra(EXTRA, f"model {LORA!r}"):
        from peft import LoraConfig, inject_adapter_in_model
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer

    linear = {
        name: layer
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear | Conv1D) and not is_of_head(network, name)
    }
    if not linear:
        raise _has_none("linear layers in its body")
    adapters = LoraConfig(
        r=rank,
        lora_alpha=SCALE * rank,
        lora_dropout=0.0,
        target_modules=sorted(linear),
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in linear.values()),
    )
    inject_adapter_in_model(adapters, network)


def _bitfit(network: Any, rank: int) -> None:
    """Train the biases (Ben Zaken et al. 2022; with differential privacy Bu et al. 2024)."""
    biases = [
        parameter
        for name, parameter in network.named_parameters()
        if name.endswith(".bias") and not is_of_head(network, name)
    ]
    if not biases:
        raise _has_none("biases")
    for bias in biases:
        bias.requires_grad_(True)


def _head(network: Any, rank: int) -> None:
    """Train the head alone."""


def _full(network: Any, rank: int) -> None:
    """Train everything."""
    network.requires_grad_(True)


def _has_none(what: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"the base model has no {what}", where="model", cure=f"Choose {LORA!r} or {HEAD!r}")


TUNINGS: Mapping[str, Callable[[Any, int], None]] = {
    LORA: _lora,
    BITFIT: _bitfit,
    HEAD: _head,
    FULL: _full,
}
