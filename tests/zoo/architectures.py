"""Published architectures as `transformers` and `peft` write them, unmodified, in tiny configurations."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import peft
import pytest
import torch
import transformers as hf
from clean_models import Clean, ids, masks, normal
from torch import nn

VOCABULARY = 23
LENGTH = 6

TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 8,
    "patch_size": 4,
}
GROUPED = {**TEXT, "num_key_value_heads": 1, "head_dim": 8}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def _tokens(vocabulary: int = VOCABULARY, length: int = LENGTH) -> Callable[[int], dict[str, Any]]:
    return lambda size: {"input_ids": ids(size, length, vocabulary), "attention_mask": masks(size, length)}


def _pixels(*shape: int) -> Callable[[int], dict[str, Any]]:
    return lambda size: {"pixel_values": normal(size, *shape)}


def _waves(length: int) -> Callable[[int], dict[str, Any]]:
    return lambda size: {"input_values": normal(size, length)}


def _both(size: int) -> dict[str, Any]:
    return {"input_ids": ids(size, LENGTH, VOCABULARY), "decoder_input_ids": ids(size, LENGTH - 2, VOCABULARY)}


def _causal(name: str, **options: Any) -> Clean:
    """A language model by the name of its family."""
    config, model = getattr(hf, f"{name}Config"), getattr(hf, f"{name}ForCausalLM")
    return Clean(lambda: model(config(**{**GROUPED, **options})), _tokens(), lambda out: out.logits)


def _classifier(name: str, **options: Any) -> Clean:
    """An encoder with a classification head on a sentence."""
    config, model = getattr(hf, f"{name}Config"), getattr(hf, f"{name}ForSequenceClassification")
    return Clean(lambda: model(config(**{**TEXT, **options})), _tokens(), lambda out: out.logits)


def _vision(name: str, shape: tuple[int, ...] = (3, 8, 8), **options: Any) -> Clean:
    """A classifier of images."""
    config, model = getattr(hf, f"{name}Config"), getattr(hf, f"{name}ForImageClassification")
    return Clean(lambda: model(config(**{**VISION, **options})), _pixels(*shape), lambda out: out.logits)


def _sequence_to_sequence(name: str, **options: Any) -> Clean:
    config, model = getattr(hf, f"{name}Config"), getattr(hf, f"{name}ForConditionalGeneration")
    return Clean(lambda: model(config(**options)), _both, lambda out: out.logits)


BART: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
}
T5: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 2,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 2,
}
SPEECH: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": (8, 8),
    "conv_stride": (4, 2),
    "conv_kernel": (8, 4),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "num_feat_extract_layers": 2,
    "vocab_size": VOCABULARY,
    "layerdrop": 0.0,
    "mask_time_prob": 0.0,
}


def _clip() -> nn.Module:
    return hf.CLIPModel(
        hf.CLIPConfig(
            text_config={**TEXT, "projection_dim": 8}, vision_config={**VISION, "projection_dim": 8}, projection_dim=8
        )
    ).vision_model


def _lora(merged: bool = False, **options: Any) -> Callable[[], nn.Module]:
    """A Llama of which only low-rank factors are trained; B is not left at zero, so that A has a gradient."""

    def make() -> nn.Module:
        base = hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED))
        config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj", "down_proj"], **options)
        model = peft.get_peft_model(base, config)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
        if merged:
            return model.merge_and_unload().requires_grad_(True)
        return model

    return make


def _adapted(config: Callable[[], Any]) -> Callable[[], nn.Module]:
    return lambda: peft.get_peft_model(hf.BertForSequenceClassification(hf.BertConfig(**TEXT)), config())


def _prefixed_bert() -> nn.Module:
    """BERT with a prefix. peft is asked first, without hushgrad: what it refuses itself is skipped.

    It finds out from names of arguments whether a model takes a prefix, and transformers 5.24 has renamed BERT's.
    """
    make = _adapted(lambda: peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            make()(**_tokens()(1))
        except ValueError as refusal:
            versions = f"peft {peft.__version__} with transformers {hf.__version__}"
            pytest.skip(f"{versions} refuses this model itself, without hushgrad: {refusal}")
    return make()


def _prefixed_llama() -> nn.Module:
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    return peft.get_peft_model(hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED)), config)


ARCHITECTURES: dict[str, Clean] = {
    # encoders of text
    "BERT": _classifier("Bert"),
    "RoBERTa": _classifier("Roberta", max_position_embeddings=20),
    "DistilBERT": Clean(
        lambda: hf.DistilBertForSequenceClassification(
            hf.DistilBertConfig(vocab_size=VOCABULARY, dim=16, n_layers=2, n_heads=2, hidden_dim=24)
        ),
        _tokens(),
        lambda out: out.logits,
    ),
    "ALBERT": _classifier("Albert", embedding_size=8),
    "ELECTRA": _classifier("Electra", embedding_size=8),
    "DeBERTa": _classifier("Deberta", relative_attention=True, pos_att_type=["c2p", "p2c"]),
    "DeBERTa v2": _classifier("DebertaV2", relative_attention=True, pos_att_type=["c2p", "p2c"]),
    "MPNet": _classifier("MPNet", max_position_embeddings=20),
    "ModernBERT": _classifier("ModernBert", cls_token_id=1, sep_token_id=2),
    "FNet": Clean(
        lambda: hf.FNetForSequenceClassification(hf.FNetConfig(**TEXT)),
        lambda size: {"input_ids": ids(size, LENGTH, VOCABULARY)},
        lambda out: out.logits,
    ),
    "XLNet": Clean(
        lambda: hf.XLNetForSequenceClassification(
            hf.XLNetConfig(vocab_size=VOCABULARY, d_model=16, n_layer=1, n_head=2, d_inner=24)
        ),
        _tokens(),
        lambda out: out.logits,
    ),
    "BERT, masked tokens": Clean(lambda: hf.BertForMaskedLM(hf.BertConfig(**TEXT)), _tokens(), lambda out: out.logits),
    # language models
    "GPT-2": Clean(
        lambda: hf.GPT2LMHeadModel(
            hf.GPT2Config(vocab_size=VOCABULARY, n_positions=16, n_embd=16, n_layer=2, n_head=2)
        ),
        _tokens(),
        lambda out: out.logits,
    ),
    "GPT-Neo": Clean(
        lambda: hf.GPTNeoForCausalLM(
            hf.GPTNeoConfig(
                vocab_size=VOCABULARY,
                hidden_size=16,
                num_layers=2,
                num_heads=2,
                max_position_embeddings=16,
                attention_types=[[["global", "local"], 1]],
                window_size=4,
            )
        ),
        _tokens(),
        lambda out: out.logits,
    ),
    "GPT-NeoX": _causal("GPTNeoX"),
    "OPT": Clean(
        lambda: hf.OPTForCausalLM(hf.OPTConfig(**{**TEXT, "ffn_dim": 24, "word_embed_proj_dim": 16})),
        _tokens(),
        lambda out: out.logits,
    ),
    "BLOOM": Clean(
        lambda: hf.BloomForCausalLM(hf.BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=1, n_head=2)),
        _tokens(),
        lambda out: out.logits,
    ),
    "Llama": _causal("Llama"),
    "Llama, tied head": _causal("Llama", tie_word_embeddings=True),
    "Mistral": _causal("Mistral", sliding_window=4),
    "Qwen2": _causal("Qwen2"),
    "Qwen3": _causal("Qwen3"),
    "Mixtral": _causal("Mixtral", num_local_experts=3, num_experts_per_tok=2),
    "Gemma": _causal("Gemma"),
    "Gemma 2": _causal("Gemma2"),
    "Phi": _causal("Phi"),
    "Phi-3": _causal("Phi3"),
    "Falcon": Clean(lambda: hf.FalconForCausalLM(hf.FalconConfig(**TEXT)), _tokens(), lambda out: out.logits),
    "StableLM": _causal("StableLm"),
    "OLMo 2": _causal("Olmo2"),
    "Cohere": _causal("Cohere"),
    "Mamba": Clean(
        lambda: hf.MambaForCausalLM(
            hf.MambaConfig(vocab_size=VOCABULARY, hidden_size=16, state_size=4, num_hidden_layers=1, use_mambapy=False)
        ),
        lambda size: {"input_ids": ids(size, LENGTH, VOCABULARY)},
        lambda out: out.logits,
    ),
    # sequence to sequence
    "T5": _sequence_to_sequence("T5", **T5),
    "T5, gated": _sequence_to_sequence("T5", **{**T5, "feed_forward_proj": "gated-gelu"}),
    "BART": _sequence_to_sequence("Bart", **BART),
    "Pegasus": _sequence_to_sequence("Pegasus", **BART),
    # vision
    "ViT": _vision("ViT"),
    "DeiT": _vision("Deit" if hasattr(hf, "DeitConfig") else "DeiT"),
    "BEiT": _vision("Beit"),
    "DINOv2": _vision("Dinov2"),
    "ConvNeXt": _vision("ConvNext", (3, 16, 16), hidden_sizes=[8, 16], depths=[1, 1], num_stages=2),
    "ConvNeXt v2": _vision("ConvNextV2", (3, 16, 16), hidden_sizes=[8, 16], depths=[1, 1], num_stages=2),
    "Swin": Clean(
        lambda: hf.SwinForImageClassification(
            hf.SwinConfig(image_size=16, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4)
        ),
        _pixels(3, 16, 16),
        lambda out: out.logits,
    ),
    "PoolFormer": _vision(
        "PoolFormer",
        (3, 32, 32),
        hidden_sizes=[8, 16],
        depths=[1, 1],
        num_encoder_blocks=2,
        patch_sizes=[7, 3],
        strides=[4, 2],
        padding=[2, 1],
    ),
    "ViT-MAE encoder": Clean(
        lambda: hf.ViTModel(hf.ViTConfig(**VISION), add_pooling_layer=False),
        _pixels(3, 8, 8),
        lambda out: out.last_hidden_state,
    ),
    "CLIP vision": Clean(_clip, _pixels(3, 8, 8), lambda out: out.pooler_output),
    "SigLIP vision": Clean(
        lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**VISION)), _pixels(3, 8, 8), lambda out: out.pooler_output
    ),
    "SegFormer": Clean(
        lambda: hf.SegformerForImageClassification(
            hf.SegformerConfig(
                num_encoder_blocks=2,
                depths=[1, 1],
                sr_ratios=[2, 1],
                hidden_sizes=[8, 16],
                patch_sizes=[7, 3],
                strides=[4, 2],
                num_attention_heads=[1, 2],
                mlp_ratios=[2, 2],
            )
        ),
        _pixels(3, 16, 16),
        lambda out: out.logits,
    ),
    # sound
    "Wav2Vec2": Clean(
        lambda: hf.Wav2Vec2ForSequenceClassification(hf.Wav2Vec2Config(**SPEECH)),
        _waves(200),
        lambda out: out.logits,
    ),
    "Wav2Vec2, layer norms": Clean(
        lambda: hf.Wav2Vec2ForCTC(hf.Wav2Vec2Config(**SPEECH, feat_extract_norm="layer", do_stable_layer_norm=True)),
        _waves(200),
        lambda out: out.logits,
    ),
    "HuBERT": Clean(
        lambda: hf.HubertForSequenceClassification(hf.HubertConfig(**SPEECH)), _waves(200), lambda out: out.logits
    ),
    "Whisper encoder": Clean(
        lambda: hf.WhisperForAudioClassification(
            hf.WhisperConfig(
                **{**BART, "max_source_positions": 8, "max_target_positions": 8, "num_mel_bins": 4},
            )
        ),
        lambda size: {"input_features": normal(size, 4, 16)},
        lambda out: out.logits,
    ),
    "Audio spectrogram transformer": Clean(
        lambda: hf.ASTForAudioClassification(
            hf.ASTConfig(**{**VISION, "max_length": 16, "num_mel_bins": 8, "frequency_stride": 4, "time_stride": 4})
        ),
        lambda size: {"input_values": normal(size, 16, 8)},
        lambda out: out.logits,
    ),
    # adapters
    "Llama with LoRA": Clean(_lora(), _tokens(), lambda out: out.logits),
    "Llama with DoRA": Clean(_lora(use_dora=True), _tokens(), lambda out: out.logits),
    "Llama with LoRA merged": Clean(_lora(merged=True), _tokens(), lambda out: out.logits),
    "Llama with prefix tuning": Clean(_prefixed_llama, _tokens(), lambda out: out.logits),
    "BERT with prefix tuning": Clean(_prefixed_bert, _tokens(), lambda out: out.logits),
    "BERT with prompt tuning": Clean(
        _adapted(lambda: peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)),
        _tokens(),
        lambda out: out.logits,
    ),
    "BERT with IA3": Clean(
        _adapted(
            lambda: peft.IA3Config(
                task_type="SEQ_CLS",
                target_modules=["key", "value", "output.dense"],
                feedforward_modules=["output.dense"],
            )
        ),
        _tokens(),
        lambda out: out.logits,
    ),
}
