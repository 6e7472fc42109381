"""Small inputs for any model, by the names of its forward's arguments; a few forms, tried one after the other."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

B, T = 3, 8
FIRST, LAST = 5, 70
"""Ids of ordinary words: special tokens of small configurations stand below and above."""


def setting(config: Any, *names: str, default: Any = None) -> Any:
    """Return the first of some settings that a configuration, or a part of it, has."""
    parts = [config]
    for part in parts:
        for name in names:
            value = getattr(part, name, None)
            if value is not None and not (isinstance(value, (list, tuple)) and not value):
                return value
        parts += [value for value in vars(part).values() if type(value).__name__.endswith("Config")]
    return default


def words(config: Any, length: int = T) -> Tensor:
    """Return ids `[B, length]` of ordinary words, the last one the end of the sentence."""
    size = setting(config, "vocab_size", default=LAST)
    ids = torch.randint(min(FIRST, size - 1), min(LAST, size), (B, length))
    ids[:, 1] = min(FIRST, size - 1)  # a word that every sentence has, for what is trained for some words only
    end = setting(config, "eos_token_id")
    if isinstance(end, int) and 0 <= end < size:
        ids[:, -1] = end
    return ids


def mask(length: int = T) -> Tensor:
    """Return which of the places are words: sentences of several lengths."""
    return (torch.arange(length) < (length - torch.arange(B) % 3).unsqueeze(1)).long()


def _side(config: Any) -> tuple[int, int]:
    size = setting(config, "image_size", "img_size", "input_size", "train_size", default=32)
    if isinstance(size, dict):
        size = size.get("height", 32), size.get("width", 32)
    pair = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
    return (int(pair[0]), int(pair[-1])) if max(pair) <= 128 else (32, 32)


def pictures(config: Any) -> Iterator[Tensor]:
    """Yield pictures in some of the shapes that models take."""
    channels = setting(config, "num_channels", "in_channels", "in_chans", default=3)
    channels = channels if isinstance(channels, int) and channels <= 4 else 3
    height, width = _side(config)
    frames = setting(config, "num_frames", "frames_per_clip")
    if isinstance(frames, int):
        yield torch.randn(B, min(frames, 16), channels, height, width)
    yield torch.randn(B, channels, height, width)
    yield torch.randn(B, channels, 2 * height, 2 * width)
    yield torch.randn(B, 1, channels, height, width)
    yield torch.randn(B, 2, channels, height, width)
    yield torch.randn(B, channels, 128, 128)


def sounds(config: Any, name: str) -> Iterator[Tensor]:
    """Yield sound as waves or spectra."""
    bins = setting(config, "num_mel_bins", "feature_size", "input_feat_per_channel", "n_mels", "input_dim", default=80)
    bins = bins if isinstance(bins, int) else 80
    length = setting(config, "max_source_positions", default=32)
    waves = [torch.randn(B, 1600), torch.randn(B, 1, 1600), torch.randn(B, 1, 4800)]
    spectra = [
        torch.randn(B, bins, 2 * length),
        torch.randn(B, 64, bins),
        torch.randn(B, setting(config, "max_length", default=64), bins),
        torch.randn(B, bins, 64),
        torch.randn(B, 1, 64, bins),
    ]
    yield from ([*spectra, *waves] if name == "input_features" else [*waves, *spectra])


def forms(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Yield inputs that a model may take."""
    config = model.config
    names = set(inspect.signature(model.forward).parameters)
    main = getattr(model, "main_input_name", "input_ids")
    for first in (main, "input_ids", "pixel_values", "input_values", "input_features", "hidden_states", "inputs"):
        if first not in names:
            continue
        if first == "input_ids":
            yield from _texts(config, names)
        elif first == "pixel_values":
            yield from ({first: value} for value in pictures(config))
        elif first in ("input_values", "input_features"):
            for value in sounds(config, first):
                yield {first: value, **_decoder(config, names)}
        else:
            width = setting(config, "hidden_size", "d_model", default=32)
            yield {first: torch.randn(B, T, width)}
    yield from _series(config, names)


def _decoder(config: Any, names: set[str]) -> dict[str, Tensor]:
    return {"decoder_input_ids": words(config, T - 2)} if "decoder_input_ids" in names else {}


def _texts(config: Any, names: set[str]) -> Iterator[dict[str, Tensor]]:
    """Yield sentences: beside pictures or sound where a model takes both, with a mask or without."""
    text = {"input_ids": words(config), **_decoder(config, names)}
    if "bbox" in names:
        corner = torch.randint(0, 20, (B, T, 2))
        text["bbox"] = torch.cat([corner, corner + 5], -1)
    if "pixel_values" in names:
        token = setting(config, "image_token_id", "image_token_index")
        for picture in pictures(config):
            if not isinstance(token, int):
                yield {**text, "pixel_values": picture, "attention_mask": mask()}
                continue
            for count in (4, 16, 1, 5, 17, 2, 64):
                ids = torch.cat([torch.full((B, count), token), text["input_ids"]], 1)
                yield {**text, "input_ids": ids, "pixel_values": picture}
    if "input_features" in names:
        token = setting(config, "audio_token_id", "audio_token_index")
        for sound in sounds(config, "input_features"):
            for count in (16, 8, 32):
                ids = text["input_ids"]
                if isinstance(token, int):
                    ids = torch.cat([torch.full((B, count), token), ids], 1)
                yield {**text, "input_ids": ids, "input_features": sound}
    if "attention_mask" in names:
        yield {**text, "attention_mask": mask()}
        yield {**text, "attention_mask": torch.ones(B, T, dtype=torch.long)}
    yield text
    if "task_ids" in names:
        yield {**text, "attention_mask": mask(), "task_ids": torch.arange(B) % 2}
    for length in (16, 64):
        yield {**text, "input_ids": words(config, length)}


def _series(config: Any, names: set[str]) -> Iterator[dict[str, Tensor]]:
    """Yield time series."""
    if not any(re.search("past_values|states", name) for name in names):
        return
    length = setting(config, "context_length", default=16)
    channels = setting(config, "num_input_channels", "input_size", default=1)
    lags = max(setting(config, "lags_sequence", default=[0]))
    past = length + lags
    values: dict[str, Tensor] = {
        "past_values": torch.randn(B, past) if channels == 1 else torch.randn(B, past, channels),
        "past_time_features": torch.randn(B, past, setting(config, "num_time_features", default=0)),
        "past_observed_mask": torch.ones(B, past) if channels == 1 else torch.ones(B, past, channels),
    }
    yield {name: value for name, value in values.items() if name in names}
    yield {"past_values": torch.randn(B, length, channels)}
    yield {"past_values": torch.randn(B, 512, channels)}
