"""A folder as `save_pretrained` of Hugging Face's transformers leaves it: config.json, weights, a tokenizer.

It is read from the disk alone: nothing is looked for on the network, no code of the folder is run, and no pickle is
read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hushgrad.errors import InvalidArgumentError, where_raised
from hushgrad.extras import needs_extra
from hushgrad.printable import printable

EXTRA = "text"
_WHAT = "a pretrained model"
_HERE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
POOLER = "pooler"
"""In names of parameters: a layer between the body and the head that many folders have no weights of."""


def tokenizer_in(folder: Path) -> str:
    """Return the tokenizer of a folder as the JSON of the package tokenizers. Raises InvalidArgumentError."""
    with needs_extra(EXTRA, _WHAT), _readable(folder, "its tokenizer"):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(folder), **_HERE)
        if not getattr(tokenizer, "is_fast", False):
            raise refused(folder, "its tokenizer is not one of the package tokenizers", "Save it with tokenizer.json")
        return str(tokenizer.backend_tokenizer.to_str())


def config_in(folder: Path, classes: int) -> Any:
    """Return the configuration of a classifier into so many classes. Raises InvalidArgumentError."""
    with needs_extra(EXTRA, _WHAT), _readable(folder, "its config.json"):
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(str(folder), **_HERE)
    if getattr(config, "quantization_config", None) is not None:
        raise refused(folder, "its weights are quantised", "Take weights in floating point")
    if getattr(config, "is_encoder_decoder", False):
        raise refused(folder, "its model is an encoder and a decoder, and sentences go into one", "Take one of either")
    config.num_labels = classes
    config.use_cache = False
    config.problem_type = "single_label_classification"
    if config.pad_token_id is None:  # classifiers by the last token look for it; a text never holds the end's
        ends = getattr(config, "eos_token_id", None)
        config.pad_token_id = ends[0] if isinstance(ends, list) else ends
    if config.pad_token_id is None:
        raise refused(folder, "its config.json names no token for padding", "Set pad_token_id in config.json")
    return config


def network_in(folder: Path, config: Any) -> Any:
    """Return the classifier with the folder's weights, in float32; its head, and a pooler, may be new ones.

    Raises InvalidArgumentError, also where other weights than those are missing or have another shape.
    """
    with needs_extra(EXTRA, _WHAT), _readable(folder, "its weights"):
        from transformers import AutoModelForSequenceClassification

        network, found = AutoModelForSequenceClassification.from_pretrained(
            str(folder),
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **_HERE,
        )
    if not isinstance(getattr(network, network.base_model_prefix, None), nn.Module):
        raise refused(folder, "its model does not tell its body from its head", "Choose another base model")
    mismatched = {name if isinstance(name, str) else name[0] for name in found["mismatched_keys"]}
    new = {name for name in {*found["missing_keys"], *mismatched} if not is_of_head(network, name)}
    if new:
        raise refused(
            folder,
            f"its weights are not those of a {type(network).__name__}: {len(new)} are missing or of another shape",
            "Check the folder",
        )
    return network


def network_of(config: dict[str, Any]) -> Any:
    """Return the classifier that a configuration describes, with weights that are still to be filled in."""
    with needs_extra(EXTRA, _WHAT):
        from transformers import AutoConfig, AutoModelForSequenceClassification
    with _quiet():
        kind, rest = str(config["model_type"]), {name: value for name, value in config.items() if name != "model_type"}
        network = AutoModelForSequenceClassification.from_config(  # type: ignore[no-untyped-call]
            AutoConfig.for_model(kind, **rest), trust_remote_code=False, dtype=torch.float32
        )
    return network.eval()


def is_of_head(network: Any, name: str) -> bool:
    """Is the parameter of the classifier's head, or of a pooler? Those are not what a body has learned."""
    return not name.startswith(f"{network.base_model_prefix}.") or POOLER in name.split(".")


def refused(folder: Path, what: str, cure: str) -> InvalidArgumentError:
    """Return the error of a folder that cannot be taken."""
    return InvalidArgumentError(what, where=f"base {printable(folder.name)!r}", cure=cure)


@contextmanager
def _readable(folder: Path, part: str) -> Iterator[None]:
    """Turn whatever transformers raises about a folder into one error; nothing of a training record is in sight."""
    if not (folder / "config.json").is_file():
        raise refused(
            folder,
            "it must be a folder with config.json, model.safetensors and a tokenizer",
            "Save a model there: model.save_pretrained(FOLDER), tokenizer.save_pretrained(FOLDER)",
        )
    if (folder / "adapter_config.json").exists():
        raise refused(
            folder, "it holds an adapter, which is no whole model", "Save model.merge_and_unload() and take that"
        )
    try:
        with _quiet():
            yield
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InvalidArgumentError):
            raise
        raise refused(
            folder,
            f"{part} cannot be read: transformers raised {where_raised(error)}",
            "Check that the folder is whole, with weights in model.safetensors",
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from drawing bars and tables: what it says of new heads is known here."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
