"""A setting is spelled once, at its field; files, `--set` and flags name it, and a later source wins."""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path

import pytest

from hushgrad.errors import InvalidArgumentError
from hushgrad.study.config_json import config_to_json
from hushgrad.study.configuration import Privacy, RunConfig, suggested_run
from hushgrad.study.named_settings import SETTINGS, configured, merged, nearest, values_from_file, values_from_text
from hushgrad.study.settings import settings_of
from hushgrad.study.summary import asked_for
from hushgrad.study.tasks import TaskOptions

NOISY = {"noise_multiplier": 1.0}
TOML = """
task = "csv"
epochs = 3
hidden_sizes = [8, 4]
target = "kind"
data = "people.csv"

[privacy]
target_epsilon = 2

[options]
bounds = [["age", 0, 120]]
"""


def test_every_field_of_a_run_is_a_setting_with_a_help_and_a_flag_of_its_own() -> None:
    parts = {"privacy", "options"}
    assert set(SETTINGS) == {field.name for kind in (RunConfig, Privacy, TaskOptions) for field in fields(kind)} - parts
    flags = [flag for found in SETTINGS.values() for flag in found.all_flags]
    assert len(set(flags)) == len(flags)
    assert all(found.help and found.help[-1] in ".)" for found in SETTINGS.values())


def test_a_required_field_that_is_none_is_refused() -> None:
    required = [field.name for field in fields(RunConfig) if field.default is MISSING and field.name in SETTINGS]
    assert {"task", "model", "batch_size", "epochs", "learning_rate"} <= set(required)
    for name in required:
        with pytest.raises(InvalidArgumentError, match=name):
            replace(suggested_run("digits", privacy=None), **{name: None})


def test_a_file_names_settings_flat_or_in_tables(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(TOML)
    config = configured(values_from_file(tmp_path / "run.toml"))
    assert (config.task, config.epochs, config.hidden_sizes) == ("csv", 3, (8, 4))
    assert config.privacy is not None
    assert config.privacy.target_epsilon == 2
    assert config.options.data == Path("people.csv")
    assert config.options.bounds == (("age", 0, 120),)


def test_the_config_that_a_run_leaves_gives_the_same_run(tmp_path: Path) -> None:
    privacy = Privacy(noise_multiplier=3, max_grad_norm=0.3, delta=1e-4, max_epsilon=9)
    options = TaskOptions(data=tmp_path, classes=("1", "2"), drop=("x",), bounds=(("a:b", 0.0, 1.0),))
    config = replace(
        suggested_run("mnist", privacy=privacy, options=options), hidden_sizes=(), threads=None, momentum=0.0, seed=7
    )
    (tmp_path / "config.json").write_text(json.dumps(config_to_json(config)))
    assert configured(values_from_file(tmp_path / "config.json")) == config


def test_defaults_then_file_then_set_then_flags(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("epochs = 3\nbatch_size = 30\nlearning_rate = 0.3\nnoise_multiplier = 1.0\n")
    file = values_from_file(tmp_path / "run.toml")
    config = configured(merged(file, values_from_text(["batch_size=40", "learning_rate=0.4"]), {"learning_rate": 0.5}))
    found = suggested_run("digits", privacy=config.privacy)
    assert config == replace(found, epochs=3, batch_size=40, learning_rate=0.5)


def test_a_later_way_to_say_how_much_noise_takes_the_place_of_an_earlier_one() -> None:
    later = configured(merged({"noise_multiplier": 1.0, "target_epsilon": None}, {"target_epsilon": 2.0}))
    assert later.privacy is not None
    assert (later.privacy.noise_multiplier, later.privacy.target_epsilon) == (None, 2.0)
    with pytest.raises(InvalidArgumentError, match="exactly one"):
        configured(merged({}, {"noise_multiplier": 1.0, "target_epsilon": 2.0}))


def test_the_settings_of_a_target_follow_the_target() -> None:
    config = configured({"target_epsilon": 8.0})
    assert config == suggested_run("digits", privacy=config.privacy)


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("epochs=3", "epochs", 3),
        ("lr=1", None, "Write learning_rate"),
        ("batchsize=1", None, "Write batch_size"),
        ("epsilon=1", None, "Write target_epsilon"),
        ("batch-size=1", None, "Write batch_size"),
        ("zzz=1", None, "Write one of task, model"),
        ("epochs", None, "'epochs' sets nothing. Write it as name=value"),
        ("epochs=x", None, "epochs is written INTEGER, got 'x'. Give a whole number"),
        ("hidden_sizes=none", "hidden_sizes", ()),
        ("hidden_sizes=5,4", "hidden_sizes", (5, 4)),
        ("classes=3, 8", "classes", ("3", "8")),
        ("data=a=b", "data", Path("a=b")),
        ("bounds=a:b:0:9", "bounds", (("a:b", 0.0, 9.0),)),
        ("privacy=1", None, "there is no setting 'privacy'"),
    ],
)
def test_a_text_sets_a_setting_or_is_refused_with_the_cure(text: str, name: str | None, value: object) -> None:
    if name is not None:
        assert values_from_text([text]) == {name: value}
        return
    with pytest.raises(InvalidArgumentError) as caught:
        values_from_text([text])
    assert str(value) in str(caught.value)


def test_a_setting_that_repeats_collects_its_items() -> None:
    assert values_from_text(["bounds=a:0:1", "bounds=b:0:2"])["bounds"] == (("a", 0.0, 1.0), ("b", 0.0, 2.0))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("run.toml", "epoch = 3", "there is no setting 'epoch'. Write epochs"),
        ("run.toml", "epochs = [", "is not valid TOML"),
        ("run.json", "{", "is not valid JSON"),
        ("run.json", "[1]", "must hold names and values"),
        ("run.toml", "privacy = 3", "privacy must be a table"),
        ("run.toml", "delta = 1e-4\n[privacy]\ndelta = 1e-5", "delta stands twice. Keep one"),
        ("run.toml", "[privacy]\nepochs = 3\n[options]\ntask = 'csv'", None),
        ("run.toml", "noise_multiplier = 1\nepochs = '3'", "epochs: must be a whole number, got str"),
        ("run.toml", "noise_multiplier = 1\ncategorical = 'a,b'", "categorical: must be names"),
        ("run.toml", "noise_multiplier = 1\nhidden_sizes = 64", "hidden_sizes: must be whole numbers"),
        ("run.toml", "noise_multiplier = 1\nbounds = ['age']", "bounds: must be triples"),
        ("run.toml", "noise_multiplier = 1\ntask = 3", "task: must be one of"),
        ("run.toml", "noise_multiplier = 1\ndevice = 3", "device: must be text, got int"),
        ("run.toml", "noise_multiplier = 1\ndata = 3", "data: must be a path, got int"),
    ],
)
def test_a_bad_file_is_refused_in_one_sentence(tmp_path: Path, name: str, content: str, said: str | None) -> None:
    (tmp_path / name).write_text(content)
    if said is None:
        assert values_from_file(tmp_path / name) == {"epochs": 3, "task": "csv"}
        return
    with pytest.raises(InvalidArgumentError) as caught:
        configured(values_from_file(tmp_path / name))
    assert said in str(caught.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot be read"):
        values_from_file(tmp_path / "absent.toml")


def test_nearest_knows_names_and_flags() -> None:
    assert [nearest(word) for word in ("physical_batch_size", "--hidden", "EPOCHS")] == [
        "max_physical_batch_size", "hidden_sizes", "epochs",
    ]  # fmt: skip


def test_a_summary_says_every_setting_that_it_does_not_say_in_another_way() -> None:
    config = configured({**NOISY, "batch_size": 20, "drop": ("x",)})
    said = asked_for(config)
    assert (said["expected_batch_size"], said["dropped"], said["max_epsilon"]) == (20, ("x",), None)
    ordinary = asked_for(replace(config, privacy=None))
    assert ordinary.keys() == said.keys()
    assert ordinary["max_grad_norm"] is None
    elsewhere = {"noise_multiplier", "delta", "hidden_sizes", "data", "classes", "vocabulary", "subgroup", "schema"}
    elsewhere |= {"base", "tokens", "lora_rank", "depth", "width"}
    assert {name for name, found in SETTINGS.items() if found.key is None} == elsewhere
    assert len(said) == len(SETTINGS) - len(elsewhere)
    assert set(asdict(config)) - settings_of(RunConfig).keys() == {"privacy", "options"}
