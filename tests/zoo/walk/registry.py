"""Which models there are: the package's own registry, one class for each architecture."""

from __future__ import annotations

from typing import Any

import transformers as hf
from transformers.models.auto import configuration_auto, modeling_auto

HEADS = (
    "IMAGE_TEXT_TO_TEXT", "SPEECH_SEQ_2_SEQ", "SEQ_TO_SEQ_CAUSAL_LM", "OBJECT_DETECTION", "UNIVERSAL_SEGMENTATION",
    "SEMANTIC_SEGMENTATION", "DEPTH_ESTIMATION", "MASKED_LM", "CAUSAL_LM", "SEQUENCE_CLASSIFICATION",
    "IMAGE_CLASSIFICATION", "AUDIO_CLASSIFICATION", "CTC", "VIDEO_CLASSIFICATION", "TOKEN_CLASSIFICATION",
    "TIME_SERIES_PREDICTION", "PRETRAINING",
)  # fmt: skip
"""The heads that are preferred, in this order; else the model without one."""


def architectures() -> dict[str, str]:
    """Return the class that stands for each model type."""
    found: dict[str, str] = {}
    for head in HEADS:
        for kind, names in getattr(modeling_auto, f"MODEL_FOR_{head}_MAPPING_NAMES", {}).items():
            found.setdefault(kind, names if isinstance(names, str) else names[0])
    for kind, names in modeling_auto.MODEL_MAPPING_NAMES.items():
        found.setdefault(kind, names if isinstance(names, str) else names[0])
    classes: dict[str, str] = {}
    for kind, name in sorted(found.items()):
        if kind in configuration_auto.CONFIG_MAPPING_NAMES and name not in classes.values():
            classes[kind] = name
    return classes


def model_class(name: str) -> Any:
    return getattr(hf, name)
