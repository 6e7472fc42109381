"""A base model is trained, used, resumed, reported and exported at the command line, without its folder afterwards."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

import hushgrad
from hushgrad.cli.main import main
from hushgrad.study.configuration import Privacy, suggested_run
from hushgrad.study.resuming import resume
from hushgrad.study.run import Reporter, run
from hushgrad.study.tasks import TaskOptions


def command(*arguments):
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return done.exit_code, done.output


@pytest.fixture(scope="module")
def finished(bases, sentences, tmp_path_factory):
    """A run whose base folder is gone, and what it printed."""
    folder = tmp_path_factory.mktemp("run")
    base = shutil.copytree(bases["bert"], folder / "tiny-bert")
    code, said = command(
        *("train", "--task", "text", "--data", sentences, "--classes", "0,1", "--base", base, "--tokens", 12),
        *("--lora-rank", 2, "--epsilon", 8, "--batch-size", 40, "--epochs", 2, "--out", folder / "run"),
    )
    assert code == 0, said
    shutil.rmtree(base)
    return folder / "run", said


def test_a_run_of_adapters_says_what_it_trained_and_what_no_epsilon_covers(finished):
    folder, said = finished
    assert "chosen for model 'base-lora' after Li et al. 2022" in " ".join(said.split())
    assert "first 12 tokens of base model 'tiny-bert'" in " ".join(said.split())
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["model"] == "base-lora"
    assert summary["lora_rank"] == 2
    assert 0 < summary["trained_parameters"] < summary["parameters"]
    assert summary["vocabulary"] == "tokenizer of the base model"
    assert any("base model and its tokenizer count as public" in said for said in summary["outside_the_guarantee"])
    header = (folder / "model.safetensors").read_bytes()[:8000]
    assert b"architecture" in header
    assert b"tiny-bert" not in header
    assert not any("losses" in condition for condition in summary["taken_on_trust"])


def test_the_model_of_a_run_is_used_without_its_base_folder(finished, tmp_path):
    folder, _ = finished
    loaded, rows = hushgrad.load(folder), ["a good film", "", "bad " * 30]
    together = loaded.predict_proba(rows)
    for row, likelihoods in zip(rows, together, strict=True):
        torch.testing.assert_close(loaded.predict_proba([row])[0], likelihoods)
    (tmp_path / "new.tsv").write_text("sentence\na good film\nbad\n")
    code, said = command("predict", folder, "--data", tmp_path / "new.tsv")
    assert code == 0
    assert len(said.splitlines()) == 3
    program = torch.export.load(loaded.export(tmp_path / "exported", format="torch-export")).module()
    inputs = loaded.encode([*rows, *rows, "the plot"])
    torch.testing.assert_close(program(inputs), loaded.model(inputs), rtol=1e-5, atol=1e-5)


def test_the_report_of_a_run_agrees_with_its_files(finished):
    for check in ((), ("--check",)):
        code, said = command("report", finished[0], *check)
        assert code == 0, said


def test_what_cannot_be_trained_leaves_no_folder(bases, sentences, tmp_path):
    base = bases["llama"]
    code, said = command(
        *("train", "--task", "text", "--data", sentences, "--base", base, "--model", "base-bitfit"),
        *("--epsilon", 3, "--out", tmp_path / "run"),
    )
    assert code == 1
    assert "has no biases" in said
    assert not (tmp_path / "run").exists()


def test_a_run_that_was_stopped_goes_on(bases, sentences, tmp_path):

    config = replace(
        suggested_run(
            "text",
            privacy=Privacy(noise_multiplier=1.0, max_grad_norm=0.1, delta=1e-3),
            options=TaskOptions(data=sentences, classes=("0", "1"), base=bases["bert"], tokens=8),
            model="base-bitfit",
        ),
        batch_size=40,
        epochs=2,
    )

    def stop(step):
        if step == 3:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        run(config, tmp_path / "run", Reporter(on_step=stop))
    done = resume(tmp_path / "run")
    assert done.outcome.status == "completed"
    assert hushgrad.load(tmp_path / "run").predict(["a good film"])[0] in ("0", "1")
