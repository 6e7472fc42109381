"""Any configuration of `transformers`, made small: its sizes by what they are called, for all families alike."""

from __future__ import annotations

import contextlib
import re
from typing import Any

import transformers as hf

WIDTH, HEADS, FEW, LENGTH = 32, 2, 2, 64
VOCABULARY = 99

SIZES: tuple[tuple[str, int], ...] = (
    (r"(kv|key_value)_(attention_)?heads$|^(num_kv_heads|multi_query_group_num|num_query_groups|n_kv_heads)$", HEADS),
    (r"(linear_num_(key|value)_heads|mamba_n_heads|n_mamba_heads)$", HEADS),
    (r"heads?$|^n_heads?$|^num_heads$|attention_heads$", HEADS),
    (
        r"(^|_)head_dim$|^(d_kv|attention_head_size|qk_nope_head_dim|v_head_dim|qk_head_dim|kv_channels)$",
        WIDTH // HEADS,
    ),
    (r"^qk_rope_head_dim$|rotary_dim$", WIDTH // HEADS // 2),
    (r"lora_rank$", WIDTH // 2),
    (r"(experts_per_tok|moe_topk|num_selected_experts|experts_top_k|num_experts_per_token|moe_k|router_top_k)$", 2),
    (r"^(n_group|num_expert_group|topk_group)$", 1),
    (r"(n_shared_experts|num_shared_experts)$", 1),
    (r"experts$|^expert_num$", 4),
    (r"^(n_layers?|num_layers|depth|n_layer|num_blocks|num_hidden_groups|attn_layers)$", FEW),
    (r"(^|_)(num_hidden_layers|encoder_layers|decoder_layers|num_encoder_layers|num_decoder_layers|text_layers)$", FEW),
    (r"(_|^)(l_layers|x_layers|r_layers|num_hidden_layers|layers)$", FEW),
    (
        r"(intermediate|ffn|mlp|feed_?forward|inner|hidden_ffn|filter)_(hidden_)?(dim|size|channels)$|^(d_ff|n_inner|d_inner|dff|dim_ff|d_ffn|ffn_dim|dim_feedforward|ffn_hidden_size|hidden_dim)$|_ffn_dim$|_dim_feedforward$",
        WIDTH + 16,
    ),
    (r"(^|_)(vocab_size)$", VOCABULARY),
    (
        r"max_(source|target|sequence|text|speech|2d)?_?positions?(_embeddings)?$|^(n_positions|n_ctx|max_seq_len|max_sequence_length|max_2d_position_embeddings|context_length_max)$",
        LENGTH,
    ),
    (r"^(image_size|img_size|input_size)$", 32),
    (r"^(patch_size)$", 8),
    (r"(sliding_window|attention_window|window_size|chunk_size|attention_chunk_size|local_attention)$", 8),
    (
        r"(hidden_size|d_model|embed_dim|embedding_size|n_embd|hidden_channels|projection_dim|proj_dim|emb_dim|model_dim|embedding_dim|projection_size|encoder_width|_dim|^dim|_hidden_dim|_width|^width|d_embed|_channels|_features)$",
        WIDTH,
    ),
    (r"^(state_size|ssm_state_size|mamba_d_state|time_step_rank)$", 8),
    (r"^num_queries$|^num_query_tokens$|num_latents$|num_detection_tokens", 5),
)
KEPT = re.compile(
    r"num_channels|in_chans|max_value|pad|kernel|stride|dilation|token_id|num_labels|n_fft|num_mel_bins|feature_size|"
    r"input_channels|image_channels|max_position_bias|out_features|hidden_act|bits|type_vocab|num_codebooks|"
    r"audio_channels|sampling|rate|_every_|per_|_period"
)
CHANCES = re.compile(r"drop|layerdrop|jitter|noise|mask_.*prob|_dropout_|spec_augment|mask_ratio")


def small(config: Any, overrides: dict[str, Any] | None = None) -> Any:
    """Return a configuration with all its parts made small, and nothing in it left to chance."""
    for part in list(vars(config).values()):
        if isinstance(part, hf.PretrainedConfig):
            small(part)
    changed: dict[str, Any] = {}
    old_layers = getattr(config, "num_hidden_layers", None)
    if getattr(config, "prediction_length", 0) is None:
        _put(config, "prediction_length", 4)
    kinds = _kinds(config, old_layers)
    deepest = max([0, *(getattr(config, "out_indices", None) or [])]) if old_layers else 0
    layers = max([FEW, min(deepest, 12), *[len(set(map(str, value))) for value in kinds.values()]])
    for key, value in list(vars(config).items()):
        new = _shrunk(key, value)
        if key in kinds:
            new = _representatives(value, layers)
        if new is not None:
            changed[key] = new
    if isinstance(old_layers, int):
        changed["num_hidden_layers"] = layers
    for key, value in changed.items():
        _put(config, key, value)
    _tokens(config)
    _rotations(config)
    for key, value in (overrides or {}).items():
        target, _, last = key.rpartition(".")
        part = config
        for name in target.split(".") if target else ():
            part = getattr(part, name)
        _put(part, last, value)
    return config


def _rotations(config: Any) -> None:
    """Make the sections of a rotary embedding those of a small head; give a size to heads that have none."""
    for rotary in vars(config).get("rope_parameters"), vars(config).get("rope_scaling"):
        if isinstance(rotary, dict) and "mrope_section" in rotary:
            rotary["mrope_section"] = [2, 3, 3]
    if getattr(config, "head_dim", 0) is None and isinstance(getattr(config, "num_attention_heads", None), int):
        _put(config, "head_dim", WIDTH // HEADS)
    if getattr(config, "num_key_value_heads", 0) is None:
        _put(config, "num_key_value_heads", HEADS)


def _put(config: Any, key: str, value: Any) -> None:
    with contextlib.suppress(Exception):  # a property, or a value that the configuration's own checks forbid
        setattr(config, key, value)


def _kinds(config: Any, layers: Any) -> dict[str, Any]:
    """Return the lists that say something for each layer."""
    if not isinstance(layers, int) or layers < 2:
        return {}
    return {
        key: value
        for key, value in vars(config).items()
        if isinstance(value, (list, tuple)) and len(value) == layers and not isinstance(value[0], (list, tuple, dict))
    }


def _representatives(values: Any, count: int) -> list[Any]:
    """Return so many values with every kind among them."""
    firsts = list({str(value): value for value in values}.values())
    firsts = [_shrunk("hidden_layers_heads", v) or v if isinstance(v, int) and v > 2 else v for v in firsts]
    return (firsts * count)[:count]


def _shrunk(key: str, value: Any) -> Any:
    """Return a smaller value for what is called so; None to keep it."""
    if isinstance(value, float) and CHANCES.search(key):
        return 0.0
    if isinstance(value, bool) or (KEPT.search(key) and "experts_per" not in key):
        return None
    if (
        isinstance(value, (list, tuple))
        and value
        and all(isinstance(v, int) and not isinstance(v, bool) for v in value)
    ):
        return _shrunk_list(key, value)
    if not isinstance(value, int) or value <= 1:
        return None
    for pattern, size in SIZES:
        if re.search(pattern, key):
            return min(size, value)
    return None


def _shrunk_list(key: str, value: Any) -> Any:
    """Return lists of depths, heads and widths made small."""
    kind = type(value)
    if re.search(r"depths|layer_depths|num_blocks|block_sizes", key):
        return kind(1 for _ in value)
    if re.search(r"heads", key):
        return kind(min(v, HEADS) for v in value)
    if re.search(r"hidden_sizes|embed_dims?|channels|_dims$|dims_|widths|dim$", key) and max(value) > WIDTH:
        return kind(min(WIDTH, 16) if index == 0 else WIDTH for index, _ in enumerate(value))
    if re.search(r"image_size|input_size", key):
        return kind(min(32, v) for v in value)
    if re.search(r"layer_ids|layer_idx|_layers$|_indexes|_indices", key) and "out_" not in key:
        return kind(min(v, 1) for v in value)
    return None


def _tokens(config: Any) -> None:
    """Give special tokens numbers of the small vocabulary, each its own."""
    size = getattr(config, "vocab_size", None)
    number = VOCABULARY
    if getattr(config, "pad_token_id", 0) is None:
        _put(config, "pad_token_id", 0)
    for key, value in list(vars(config).items()):
        if not re.search(r"(token_id|token_index|_token|_id)$", key) or isinstance(value, bool):
            continue
        if isinstance(value, int) and value >= (size if isinstance(size, int) else VOCABULARY):
            number -= 1
            _put(config, key, number)
        elif isinstance(value, (list, tuple)) and value and all(isinstance(v, int) for v in value):
            _put(config, key, [min(v, 3) for v in value])
