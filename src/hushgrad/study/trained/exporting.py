"""A trained model as files for other programs, with the encoding of its rows and its model card beside it."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from hushgrad.arguments import one_of
from hushgrad.errors import InvalidArgumentError
from hushgrad.extras import needs_extra, require
from hushgrad.result_file import replace_file
from hushgrad.study.directory import json_text, make_folder
from hushgrad.study.model_file import as_bytes, read_model
from hushgrad.study.tasks.encoder_file import encoding_as_json
from hushgrad.study.tasks.task import Encoder
from hushgrad.study.trained.card import CARD, model_card

FILES = {"safetensors": "model.safetensors", "torch-export": "model.pt2", "onnx": "model.onnx"}
_ROWS = 3  # of the example that a program is recorded with; any number goes through it afterwards


def export_to(
    out: Path,
    run: Path,
    model: nn.Module,
    input_shape: tuple[int, ...],
    encoder: Encoder,
    classes: tuple[str, ...],
    format: str,
) -> Path:
    """Write model, encoding.json and MODEL_CARD.md to the folder `out`; return the model's file."""
    file = out / FILES[one_of("format", format, tuple(FILES))]
    if out.resolve() == run.resolve():
        raise InvalidArgumentError(
            "the run's own folder keeps what the run wrote", where="the exported model", cure="Choose another folder"
        )
    if format == "onnx":
        require("onnx", "onnxscript", extra="export", what="format 'onnx'")
    card = model_card(run, file.name)  # rather now than after the export
    dtype = torch.float32 if encoder.vocabulary_size is None else torch.int64
    example = torch.ones(_ROWS, *input_shape, dtype=dtype)
    make_folder(out)
    if format == "safetensors":
        content = read_model(run / "model.safetensors")
        replace_file(file, as_bytes(model, dict(content.words) if content is not None else None))
    elif format == "torch-export":
        program = torch.export.export(model, (example,), dynamic_shapes=_any_rows())
        torch.export.save(program, file)
    else:
        _write_onnx(model, example, file)
    encoding = encoding_as_json(encoder, classes)
    replace_file(out / "encoding.json", (json_text(encoding, indent=None) + "\n").encode())
    replace_file(out / CARD, card.encode())
    return file


def _any_rows() -> tuple[dict[int, torch.export.Dim]]:
    return ({0: torch.export.Dim("rows", min=1)},)


def _write_onnx(model: nn.Module, example: Tensor, file: Path) -> None:
    """Write an ONNX file with one input, "inputs", and one output, "logits"."""
    chatter = logging.getLogger("torch.onnx")
    level = chatter.level
    chatter.setLevel(logging.ERROR)
    try:
        with needs_extra("export", "format 'onnx'"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model,
                (example,),
                dynamic_shapes=_any_rows(),
                input_names=["inputs"],
                output_names=["logits"],
                dynamo=True,
                verbose=False,
            )
        assert program is not None  # what the newer exporter returns
        program.save(str(file), external_data=False)
    finally:
        chatter.setLevel(level)
