"""Every method of `peft` by its own registry, on a BERT and on a Llama, and options that choose another method."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import peft
import torch
import transformers as hf
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import nn

SIZES: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
BASES: dict[str, tuple[Callable[[], nn.Module], str, dict[str, list[str]]]] = {
    "BERT": (
        lambda: hf.BertForSequenceClassification(hf.BertConfig(**SIZES)),
        "SEQ_CLS",
        {"square": ["query", "value"], "fed": ["output.dense"], "norms": ["LayerNorm"], "table": ["word_embeddings"]},
    ),
    "Llama": (
        lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES, num_key_value_heads=2)),
        "CAUSAL_LM",
        {"square": ["q_proj", "v_proj"], "fed": ["down_proj"], "norms": ["input_layernorm"], "table": ["embed_tokens"]},
    ),
}
NEEDED: dict[str, Callable[[dict[str, list[str]]], dict[str, Any]]] = {
    "IA3": lambda parts: {"target_modules": [*parts["square"], *parts["fed"]], "feedforward_modules": parts["fed"]},
    "LN_TUNING": lambda parts: {"target_modules": parts["norms"]},
    "TRAINABLE_TOKENS": lambda parts: {"target_modules": parts["table"], "token_indices": [5, 6, 7]},
    "ADALORA": lambda parts: {"init_r": 3, "target_r": 2, "total_step": 10},
    "MULTITASK_PROMPT_TUNING": lambda parts: {"num_tasks": 2, "num_ranks": 2},
    "ADAPTION_PROMPT": lambda parts: {"adapter_len": 3, "adapter_layers": 2, "target_modules": None},
    "BOFT": lambda parts: {"boft_block_size": 4, "boft_n_butterfly_factor": 1},
    "OFT": lambda parts: {"oft_block_size": 4, "r": 0},
    "ROAD": lambda parts: {"group_size": 8},
    "VBLORA": lambda parts: {"num_vectors": 8, "vector_length": 4},
    "C3A": lambda parts: {"block_size": 8},
    "CPT": lambda parts: {"cpt_token_ids": [1, 2, 3], "cpt_mask": [1, 1, 1], "cpt_tokens_type_mask": [1, 2, 4]},
    "FOURIERFT": lambda parts: {"n_frequency": 10},
    "WAVEFT": lambda parts: {"n_frequency": 10},
    "POLY": lambda parts: {"n_tasks": 2},
}
"""What a method needs beside the settings that all of them share."""
SHARED: dict[str, Any] = {"r": 2, "num_virtual_tokens": 3, "encoder_hidden_size": 8, "rank": 2}
VARIANTS: dict[str, dict[str, Any]] = {
    "LoRA, all linear": {"target_modules": "all-linear"},
    "LoRA, biases": {"bias": "lora_only"},
    "DoRA": {"use_dora": True},
    "rsLoRA": {"use_rslora": True},
    "PiSSA": {"init_lora_weights": "pissa"},
    "OLoRA": {"init_lora_weights": "olora"},
    "aLoRA": {"alora_invocation_tokens": [5]},
    "OFT, Cayley by Neumann": {"use_cayley_neumann": True, "oft_block_size": 4, "r": 0},
}
"""Options of a method that compute something else; the first word before a comma, or LORA, says whose."""


def adapted(base: str, kind: Any, options: dict[str, Any]) -> nn.Module:
    """Return a small model with an adapter whose values are all drawn."""
    make, task, parts = BASES[base]
    torch.manual_seed(7)
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    names = {field.name for field in dataclasses.fields(kind)}
    given = {key: value for key, value in SHARED.items() if key in names}
    if "target_modules" in names:
        given["target_modules"] = parts["square"]
    wanted = {**given, **options, "task_type": task}
    model = peft.get_peft_model(model, kind(**{key: value for key, value in wanted.items() if key in names}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    return model


def adapters() -> dict[str, Callable[[], nn.Module]]:
    """Return every method on each base."""
    found: dict[str, Callable[[], nn.Module]] = {}
    for base, (_, _, parts) in BASES.items():
        for method, kind in sorted(PEFT_TYPE_TO_CONFIG_MAPPING.items()):
            name = str(getattr(method, "value", method))
            found[f"peft {name}, {base}"] = partial(adapted, base, kind, NEEDED.get(name, lambda _: {})(parts))
        for title, options in VARIANTS.items():
            kind = peft.OFTConfig if title.startswith("OFT") else peft.LoraConfig
            found[f"peft {title}, {base}"] = partial(adapted, base, kind, options)
    return found
