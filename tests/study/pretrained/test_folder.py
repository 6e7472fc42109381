"""A folder of a base model is read from the disk alone, whole, or refused in one line before anything is trained."""

import json
import shutil
import sys

import pytest
import torch
from transformers import AutoTokenizer

from hushgrad.errors import CheckpointError, InvalidArgumentError, MissingExtraError
from hushgrad.study.configuration import Privacy, suggested_run
from hushgrad.study.models import build_model
from hushgrad.study.pretrained.classifier import Base
from hushgrad.study.pretrained.folder import tokenizer_in
from hushgrad.study.tasks import TaskOptions, load_task
from hushgrad.study.tasks.encoder_file import encoding_as_json, encoding_from_json
from hushgrad.study.tasks.tokens import TokenEncoder


def build(folder, tuning="base-lora", length=8, words=20, **more):
    return build_model(
        tuning,
        input_shape=(length,),
        num_classes=3,
        seed=0,
        vocabulary_size=words,
        base=Base(2, folder),
        **more,
    )


@pytest.fixture
def base(bases, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(bases["bert"], tmp_path / "base")


def test_a_sentences_numbers_are_those_of_the_folders_tokenizer_and_depend_on_that_sentence_alone(bases):
    """Guarantee: a sentence's numbers depend on that sentence alone."""
    tokenizer = AutoTokenizer.from_pretrained(bases["bert"])
    encoder, said = TokenEncoder(tokenizer_in(bases["bert"]), 8), "the film is very very good"
    alone = encoder.encode([said])
    assert alone.tolist() == [[number + 1 for number in tokenizer(said)["input_ids"]]]
    among = encoder.encode(["", "bad", said, " ".join(["good"] * 40)])
    assert torch.equal(among[2:3], alone)
    assert among[0].tolist() == [3, 4, 0, 0, 0, 0, 0, 0]
    assert among[3, -1] == 4  # cut, and ended as the tokenizer ends sentences


def test_an_encoder_survives_the_way_to_json_and_back(bases):
    encoder = TokenEncoder(tokenizer_in(bases["gpt2"]), 8)
    kept = json.loads(json.dumps(encoding_as_json(encoder, ("no", "yes"))))
    assert encoding_from_json(kept) == (encoder, ("no", "yes"))
    for name, damaged in (("tokenizer", "{}"), ("tokenizer", 3), ("length", 0)):
        with pytest.raises(InvalidArgumentError, match=r"encoding\.json"):
            encoding_from_json({**kept, name: damaged})


def test_a_folder_that_is_no_whole_model_is_refused(base):
    for damage, said in (
        (lambda: (base / "adapter_config.json").write_text("{}"), "holds an adapter"),
        (lambda: (base / "model.safetensors").rename(base / "pytorch_model.bin"), "its weights cannot be read"),
        (lambda: (base / "config.json").write_text("{"), "cannot be read"),
        (lambda: (base / "config.json").unlink(), "must be a folder with"),
    ):
        damage()
        with pytest.raises(InvalidArgumentError, match=said):
            build(base)
        (base / "adapter_config.json").unlink(missing_ok=True)


def test_weights_of_another_model_are_refused(base, bases):
    shutil.copy(bases["llama"] / "model.safetensors", base)
    with pytest.raises(InvalidArgumentError, match="its weights are not those of a BertForSequenceClassification"):
        build(base)


def test_an_encoder_with_a_decoder_and_quantised_weights_are_refused(base):
    config = json.loads((base / "config.json").read_text())
    for more, said in (
        ({"is_encoder_decoder": True}, "an encoder and a decoder"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised"),
    ):
        (base / "config.json").write_text(json.dumps(config | more))
        with pytest.raises(InvalidArgumentError, match=said):
            build(base)


def test_code_of_a_folder_is_never_run(base):
    config = json.loads((base / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    (base / "config.json").write_text(json.dumps(config))
    (base / "mine.py").write_text("raise SystemExit('was run')\n")
    with pytest.raises(InvalidArgumentError, match="cannot be read"):
        build(base)


def test_a_tokenizer_of_another_model_and_rows_that_are_too_long_are_refused(bases):
    with pytest.raises(InvalidArgumentError, match="its tokenizer has 99 tokens and its model 19"):
        build(bases["bert"], words=100)
    with pytest.raises(InvalidArgumentError, match="no room for 33 tokens of a sentence"):
        build(bases["bert"], length=33)


def test_a_model_without_biases_is_not_trained_by_its_biases(bases):
    with pytest.raises(InvalidArgumentError, match="has no biases"):
        build(bases["llama"], "base-bitfit")


@pytest.mark.parametrize("module", ["transformers", "peft"])
def test_a_missing_package_is_named_with_its_extra(module, bases, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"needs {module}, .* pip install 'hushgrad\[text\]'"):
        build(bases["bert"])


def test_a_header_that_describes_no_model_is_refused():
    for architecture in (None, "{}", '{"model_type": "nobody\'s"}'):
        with pytest.raises(CheckpointError, match="does not describe a model"):
            build_model(
                "base-head",
                input_shape=(8,),
                num_classes=2,
                seed=0,
                vocabulary_size=9,
                base=Base(2, architecture=architecture),
            )


def test_a_base_goes_with_sentences_and_with_models_of_a_base_alone(bases):
    options, privacy = TaskOptions(base=bases["bert"]), Privacy(noise_multiplier=1.0, max_grad_norm=1.0)
    assert suggested_run("text", privacy=privacy, options=options).model == "base-lora"
    with pytest.raises(InvalidArgumentError, match="a base is for them alone"):
        suggested_run("text", privacy=privacy, options=options, model="transformer")
    with pytest.raises(InvalidArgumentError, match="a base is for them alone"):
        suggested_run("text", privacy=privacy, model="base-full")
    with pytest.raises(InvalidArgumentError, match="it takes no base"):
        load_task("digits", options)
    with pytest.raises(InvalidArgumentError, match="those of its own tokenizer"):
        TaskOptions(base=bases["bert"], vocabulary="hashed")
    with pytest.raises(InvalidArgumentError, match="no base is given"):
        TaskOptions(tokens=8)
