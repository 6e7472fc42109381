"""Exported models compute what the model computes, and lie beside a card that states the guarantee."""

import json
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from click.testing import CliRunner

import hushgrad
from hushgrad.cli.main import main
from hushgrad.errors import InvalidArgumentError, MissingExtraError
from hushgrad.study.configuration import Privacy, suggested_run
from hushgrad.study.report.render import escaped
from hushgrad.study.run import run
from hushgrad.study.tasks import TaskOptions

TOLERANCE = 1e-5
FORMATS = ("safetensors", "torch-export", "onnx")


@pytest.fixture(
    scope="module",
    params=[
        "mlp",
        "scatter-linear",
        "transformer",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("cnn", "resnet", "wrn")),
    ],
)
def trained(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    privacy = Privacy(noise_multiplier=1.0, max_grad_norm=1.0, delta=1e-3)
    task, options = "digits", TaskOptions(classes=("0", "1"))
    if request.param == "transformer":
        task, options = "text", TaskOptions(data=folder)
        for name, count in (("train", 60), ("dev", 20)):
            lines = [f"{row % 2}\ta film {row} that is {'good' if row % 2 else 'bad'}" for row in range(count)]
            (folder / f"{name}.tsv").write_text("\n".join(["label\tsentence", *lines]) + "\n")
    suggested = suggested_run(task, privacy=privacy, options=options)
    finished = run(replace(suggested, model=request.param, depth=10, width=1, batch_size=60, epochs=1), folder / "run")
    return hushgrad.load(folder / "run"), finished.task.test.tensors[0]


def logits_of(file, form, inputs, model):
    if form == "onnx":
        onnx = pytest.importorskip("onnx")
        from onnx.reference import ReferenceEvaluator

        program = onnx.load(file)
        return torch.from_numpy(ReferenceEvaluator(program).run(["logits"], {"inputs": inputs.numpy()})[0])
    if form == "torch-export":
        return torch.export.load(file).module()(inputs)
    return torch.func.functional_call(model, safetensors.torch.load_file(file), (inputs,))


@pytest.mark.parametrize("form", FORMATS)
def test_an_exported_model_computes_what_the_model_computes_for_any_number_of_rows(trained, form, tmp_path):
    loaded, inputs = trained
    if form == "onnx":
        pytest.importorskip("onnxscript")
    file = loaded.export(tmp_path, format=form)
    for count in (1, 2, 7):
        with torch.no_grad():
            expected = loaded.model(inputs[:count])
            found = logits_of(file, form, inputs[:count], loaded.model)
        assert found.shape == expected.shape
        assert (found - expected).abs().max() < TOLERANCE


def test_the_card_states_the_guarantee_as_the_run_does_and_what_it_was_measured_on(trained, tmp_path):
    loaded, _ = trained
    loaded.export(tmp_path, format="safetensors")
    card = (tmp_path / "MODEL_CARD.md").read_text()
    summary = json.loads((loaded.folder / "summary.json").read_text())
    assert escaped(summary["guarantee"]) in card
    assert f"on {summary['test_examples']} test records" in card
    assert f"{summary['training_examples']} training records" in card
    assert "tuning: settings chosen after other runs" in card
    assert json.loads((tmp_path / "encoding.json").read_text()) == json.loads(
        (loaded.folder / "encoding.json").read_text()
    )


def test_the_command_names_the_files(trained, tmp_path):
    loaded, _ = trained
    result = CliRunner().invoke(main, ["export", str(loaded.folder), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert [tmp_path / "out" / name for name in ("model.safetensors", "encoding.json", "MODEL_CARD.md")] == [
        tmp_path.__class__(line) for line in result.output.splitlines()
    ]


def test_what_cannot_be_exported_leaves_no_file(trained, tmp_path, monkeypatch):
    loaded, _ = trained
    with pytest.raises(InvalidArgumentError, match="format"):
        loaded.export(tmp_path / "out", format="pickle")
    with pytest.raises(InvalidArgumentError, match="the run's own folder"):
        loaded.export(loaded.folder, format="onnx")
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"hushgrad\[export\]"):
        loaded.export(tmp_path / "out", format="onnx")
    assert not (tmp_path / "out").exists()
