"""`hushgrad.load`: the model of a run and how its rows are encoded, from the run's folder alone. No pickle is read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn

from hushgrad.errors import CheckpointError, InvalidArgumentError
from hushgrad.extras import needs_extra
from hushgrad.study.directory import RunDirectory, from_json
from hushgrad.study.model_file import read_model
from hushgrad.study.models import build_model
from hushgrad.study.pretrained.classifier import WORD, Base
from hushgrad.study.resuming import read_config
from hushgrad.study.summary_file import damaged_summary, read_summary
from hushgrad.study.tasks.encoder_file import encoding_digest, encoding_from_json
from hushgrad.study.trained.model import TrainedModel


def load(run: str | os.PathLike[str]) -> TrainedModel:
    """Return what a run of `hushgrad train` has trained, ready for use on new rows.

    ::

        trained = hushgrad.load("runs/adult")
        trained.predict([{"age": 39, "workclass": "State-gov", ...}])

    Args:
        run: the folder of the run. Its data need not be there.

    Raises:
        InvalidArgumentError: the folder holds no run, or none that has saved a model, or a file of it is damaged.
        CheckpointError: the model is not the one that the run's summary describes, or does not fit its settings.
        MissingExtraError: safetensors is not installed.
    """
    with needs_extra("study", "a trained model"):
        import safetensors.torch
    folder = Path(run)
    config, directory = read_config(folder), RunDirectory(folder)
    summary, content = read_summary(folder), read_model(directory.model)
    if summary is None or content is None:
        raise InvalidArgumentError(
            "the run has saved no model: it was stopped before its first epoch ended, or the files were removed",
            where="the run's folder",
            cure="Go on with it by hushgrad train --resume RUN",
        )
    if content.words.get("steps") == str(summary.get("steps")) and content.digest != summary.get("model_digest"):
        raise CheckpointError(
            "its values are not those that summary.json describes: one of the files was changed or exchanged",
            where="model.safetensors",
            cure="Restore both from a copy of the run's folder",
        )
    kept = _kept_encoding(directory)
    encoder, class_names = encoding_from_json(kept)
    try:
        shape, classes = tuple(map(int, summary["input_shape"])), tuple(map(str, summary["classes"]))
    except (KeyError, TypeError, ValueError) as error:
        raise damaged_summary("it does not say what the model's inputs and classes are") from error
    if class_names is not None and class_names != classes:
        raise _other_encoding("its classes, or their order, are not those of encoding.json", "summary.json")
    if encoder.vocabulary_size is None and tuple(encoder.encode([]).shape[1:]) != shape:
        raise _other_encoding("its inputs are not of the size that summary.json says", "encoding.json")
    if summary.get("encoding_digest", encoding_digest(kept)) != encoding_digest(kept):  # a run of before kept none
        raise _other_encoding(
            "it was changed since the run: rows would become other inputs than it learned", "encoding.json"
        )
    model = build_model(
        config.model,
        input_shape=shape,
        num_classes=len(classes),
        seed=config.seed,
        hidden_sizes=config.hidden_sizes,
        activation=config.activation,
        vocabulary_size=encoder.vocabulary_size,
        base=None if config.base is None else Base(config.lora_rank, architecture=content.words.get(WORD)),
        depth=config.depth,
        width=config.width,
    )
    _fill(model, safetensors.torch.load_file(directory.model))
    return TrainedModel(model.eval(), encoder, classes, shape, content.words.get("guarantee", ""), folder)


def _fill(model: nn.Module, values: dict[str, Any]) -> None:
    try:
        model.load_state_dict(values)
    except RuntimeError:
        raise CheckpointError(
            "its tensors are not those of the model that config.json describes",
            where="model.safetensors",
            cure="Restore both from a copy of the run's folder",
        ) from None


def _other_encoding(what: str, where: str) -> CheckpointError:
    return CheckpointError(what, where=where, cure="Restore both from a copy of the run's folder")


def _kept_encoding(directory: RunDirectory) -> dict[str, Any]:
    try:
        found = from_json(directory.encoding.read_bytes())
    except OSError:
        raise InvalidArgumentError(
            "it is missing, so nobody knows how rows become inputs of the model",
            where="encoding.json",
            cure="Restore it from a copy of the run's folder",
        ) from None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InvalidArgumentError(
            "the file is damaged", where="encoding.json", cure="Restore it from a copy of the run's folder"
        )
    return found
