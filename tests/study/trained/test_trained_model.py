"""A trained model on new rows: as the run itself evaluated it, from the run's folder alone."""

import csv
import gzip
import json
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner

import hushgrad
from hushgrad.cli.main import main
from hushgrad.errors import CheckpointError, InvalidArgumentError, TaskDataError
from hushgrad.study.configuration import Privacy, suggested_run
from hushgrad.study.run import run
from hushgrad.study.tasks import TaskOptions
from hushgrad.study.tasks.encoder_file import encoding_from_json
from hushgrad.study.tasks.encoding import encode
from hushgrad.study.tasks.table import Table
from hushgrad.study.tasks.tables.column import Column
from hushgrad.study.tasks.tables.spelling import Spelling

PRIVACY = Privacy(noise_multiplier=1.0, max_grad_norm=1.0, delta=1e-4)


def trained(out, task, options, **changes):
    config = replace(suggested_run(task, privacy=PRIVACY, options=options), **{"epochs": 1, **changes})
    return run(config, out)


def table_of(path, count, start=0):
    rows = [(start + row) % 90 for row in range(count)]
    lines = [f"{age},{'city' if age % 3 else 'land'},{'=yes' if age > 45 else '-1'}" for age in rows]
    path.write_text("\n".join(["age,place,label", *lines]) + "\n")
    return path


@pytest.fixture(scope="module")
def of_a_table(tmp_path_factory):
    """A run on train.csv and test.csv."""
    folder = tmp_path_factory.mktemp("table")
    table_of(folder / "train.csv", 300)
    table_of(folder / "test.csv", 60, start=7)
    options = TaskOptions(data=folder, target="label", bounds=(("age", 0.0, 100.0),), categorical=("place",))
    return trained(folder / "run", "csv", options, batch_size=50, epochs=3), folder


@pytest.fixture(scope="module")
def of_sentences(tmp_path_factory):
    """A run on train.tsv and dev.tsv."""
    folder = tmp_path_factory.mktemp("sentences")
    for name, count in (("train", 200), ("dev", 50)):
        lines = [f"{row % 2}\ta film {row % 5} that is {'good' if row % 2 else 'bad'}" for row in range(count)]
        (folder / f"{name}.tsv").write_text("\n".join(["label\tsentence", *lines]) + "\n")
    return trained(folder / "run", "text", TaskOptions(data=folder), batch_size=100), folder


@pytest.fixture(scope="module")
def of_digits(tmp_path_factory):
    """A run on scikit-learn's digits."""
    folder = tmp_path_factory.mktemp("digits")
    return trained(folder / "run", "digits", TaskOptions(), batch_size=400), folder


def predicted(run_folder, data, *more):
    result = CliRunner().invoke(main, ["predict", str(run_folder), "--data", str(data), *more])
    assert result.exit_code == 0, result.output
    return list(csv.DictReader(result.stdout.splitlines()))


def test_predictions_on_the_test_rows_have_the_accuracy_of_the_summary(of_a_table, of_sentences):
    """Guarantee: new rows are encoded as the run's own were, and classified as the run's model classified them."""
    finished, folder = of_a_table
    truth = [row["label"] for row in csv.DictReader((folder / "test.csv").open())]
    found = [row["class"].lstrip("'") for row in predicted(folder / "run", folder / "test.csv")]
    assert np.mean([a == b for a, b in zip(found, truth, strict=True)]) == finished.summary["test_accuracy"]
    finished, folder = of_sentences
    truth = [line.split("\t")[0] for line in (folder / "dev.tsv").read_text().splitlines()[1:]]
    found = [row["class"] for row in predicted(folder / "run", folder / "dev.tsv")]
    assert np.mean([a == b for a, b in zip(found, truth, strict=True)]) == finished.summary["test_accuracy"]


def test_images_are_read_from_arrays_and_idx_files(of_digits):
    finished, folder = of_digits
    inputs, labels = finished.task.test.tensors
    pixels = (inputs[:, 0] * 16).round().to(torch.uint8).numpy()
    np.save(folder / "test.npy", pixels)
    np.savez_compressed(folder / "test.npz", images=pixels)
    header = bytes([0, 0, 8, 3]) + b"".join(int(size).to_bytes(4, "big") for size in pixels.shape)
    (folder / "test.gz").write_bytes(gzip.compress(header + pixels.tobytes()))
    loaded = hushgrad.load(folder / "run")
    tables = [loaded.predict(loaded.read(folder / name)) for name in ("test.npy", "test.npz", "test.gz")]
    assert tables[0] == tables[1] == tables[2]
    right = np.mean([int(name) == label for name, label in zip(tables[0], labels.tolist(), strict=True)])
    assert right == finished.summary["test_accuracy"]


def test_a_loaded_model_is_in_evaluation_mode_and_gives_probabilities(of_a_table):
    _, folder = of_a_table
    loaded = hushgrad.load(folder / "run")
    rows = [{"age": 30, "place": "city"}, {"age": None, "place": "moon", "label": "?"}]
    assert not loaded.model.training
    assert loaded.encode(rows).shape == (2, *loaded.input_shape)
    probabilities = loaded.predict_proba(rows)
    assert probabilities.sum(1).tolist() == pytest.approx([1.0, 1.0])
    assert loaded.predict(rows) == [loaded.classes[place] for place in probabilities.argmax(1)]
    assert loaded.predict([]) == []
    assert "differential privacy" in loaded.guarantee


def test_an_unknown_category_is_encoded_like_any_text_and_an_unknown_word_by_its_hash(of_a_table, of_sentences):
    loaded = hushgrad.load(of_a_table[1] / "run")
    known, unknown = loaded.encode([{"age": 30, "place": "city"}, {"age": 30, "place": "moon"}])
    assert not torch.equal(known, unknown)
    assert hushgrad.load(of_sentences[1] / "run").encode(["a wholly unheard film"]).count_nonzero() == 4


def test_a_class_is_no_formula_in_a_spreadsheet_and_a_number_stays_one(of_a_table):
    """Guarantee: no name of a class or a run becomes a formula."""
    _, folder = of_a_table
    classes = {row["class"] for row in predicted(folder / "run", folder / "test.csv")}
    assert classes <= {"'=yes", "-1"}


def test_predictions_go_to_a_file(of_a_table, tmp_path):
    _, folder = of_a_table
    out = tmp_path / "predictions.csv"
    assert predicted(folder / "run", folder / "test.csv", "--output", str(out)) == []
    lines = out.read_text().splitlines()
    assert len(lines) == 61
    assert lines[0].startswith("row,class,probability of ")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("age\n12345\n", "lacks the column 'place'"),
        ("age,place\n12345,x,y\n", "expected 2 cells"),
        ("age,place\nsecret,x\n", "holds a cell that is not a number"),
        ("", "it is empty"),
    ],
)
def test_bad_rows_are_refused_without_a_value(of_a_table, tmp_path, content, match):
    loaded = hushgrad.load(of_a_table[1] / "run")
    (tmp_path / "bad.csv").write_text(content)
    with pytest.raises(TaskDataError, match=match) as caught:
        loaded.predict(loaded.read(tmp_path / "bad.csv"))
    assert "12345" not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("row", [np.full((8, 8), 17.0), np.zeros((7, 8)), np.full((8, 8), np.nan), "pixels"])
def test_bad_images_are_refused(of_digits, row):
    loaded = hushgrad.load(of_digits[1] / "run")
    with pytest.raises(TaskDataError, match="image 1"):
        loaded.predict([row])


def test_an_array_of_objects_is_never_unpickled(of_digits, tmp_path):
    np.save(tmp_path / "bad.npy", np.array([object()]), allow_pickle=True)
    with pytest.raises(TaskDataError, match="objects are never read"):
        hushgrad.load(of_digits[1] / "run").read(tmp_path / "bad.npy")


def test_a_vocabulary_of_the_training_records_is_not_kept_and_cannot_encode(tmp_path):
    for name, count in (("train", 40), ("dev", 10)):
        lines = [f"{row % 2}\tsecretword{row % 3}" for row in range(count)]
        (tmp_path / f"{name}.tsv").write_text("\n".join(["label\tsentence", *lines]) + "\n")
    trained(tmp_path / "run", "text", TaskOptions(data=tmp_path, vocabulary="train"), batch_size=40)
    assert "secretword" not in (tmp_path / "run" / "encoding.json").read_text()
    with pytest.raises(InvalidArgumentError, match="no epsilon covers them"):
        hushgrad.load(tmp_path / "run").predict(["secretword1"])


def copy_of(folder, to):
    to.mkdir()
    for path in (folder / "run").iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def test_a_model_that_was_exchanged_is_refused(of_digits, tmp_path):
    """Guarantee: a model that is not the one that the summary describes is not used under its name."""
    run_folder = copy_of(of_digits[1], tmp_path / "run")
    values = safetensors.torch.load_file(run_folder / "model.safetensors")
    with safetensors.safe_open(run_folder / "model.safetensors", "pt") as opened:
        words = opened.metadata()
    first = next(iter(values))
    values[first] = values[first] + 1
    safetensors.torch.save_file(values, run_folder / "model.safetensors", metadata=words)
    with pytest.raises(CheckpointError, match="not those that summary"):
        hushgrad.load(run_folder)


def test_a_model_of_other_settings_is_refused(of_digits, tmp_path):
    run_folder = copy_of(of_digits[1], tmp_path / "run")
    settings = json.loads((run_folder / "config.json").read_text())
    (run_folder / "config.json").write_text(json.dumps({**settings, "hidden_sizes": [5]}))
    with pytest.raises(CheckpointError, match="not those of the model that config"):
        hushgrad.load(run_folder)


@pytest.mark.parametrize(
    ("missing", "match"),
    [("model.safetensors", "saved no model"), ("config.json", "no run"), ("encoding.json", "missing")],
)
def test_a_folder_that_lacks_a_file_is_refused(of_digits, tmp_path, missing, match):
    run_folder = copy_of(of_digits[1], tmp_path / "run")
    (run_folder / missing).unlink()
    with pytest.raises(InvalidArgumentError, match=match):
        hushgrad.load(run_folder)


class NAType:
    """What pandas writes for a missing value."""

    def __repr__(self):
        return "<NA>"


def test_a_cell_is_text_a_number_or_none_and_a_whole_float_of_a_category_is_its_int(of_a_table):
    """Guarantee: a cell is encoded as the file that holds it, or refused by row and column without its value."""
    loaded = hushgrad.load(of_a_table[1] / "run")
    written = loaded.encode([{"age": "30", "place": "10234"}, {"age": "", "place": ""}])
    for age, place in (
        (30, 10234),
        (30.0, 10234.0),
        (np.float32(30), np.int64(10234)),
        (np.int8(30), np.float64(10234)),
    ):
        assert torch.equal(loaded.encode([{"age": age, "place": place}])[0], written[0])
    assert loaded.encode([{"age": 1, "place": huge} for huge in (10**400, float("inf"), 1e300)]).isfinite().all()
    for missing in (None, float("nan")):
        assert torch.equal(loaded.encode([{"age": missing, "place": missing}])[0], written[1])
    assert loaded.encode([]).shape == (0, *loaded.input_shape)
    for bad in (NAType(), torch.tensor(123456.0), [123456], b"123456", np.array([123456]), True, {"a": 123456}):
        for column in ("age", "place"):
            row = {"age": 1, "place": "x", column: bad}
            with pytest.raises(TaskDataError, match=rf"row 2, column '{column}'") as refused:
                loaded.predict([{"age": 1, "place": "x"}, row])
            assert "123456" not in str(refused.value)


def test_rows_are_a_list(of_a_table, of_digits):
    loaded, row = hushgrad.load(of_a_table[1] / "run"), {"age": 30, "place": "city"}
    for rows in (row, (one for one in [row]), "city", b"city", None, 3, {"city"}, np.array(3.0)):
        for asked in (loaded.predict, loaded.predict_proba, loaded.encode):
            with pytest.raises(TaskDataError, match="must be a list of rows"):
                asked(rows)
    assert loaded.predict((row, row)) == loaded.predict([row, row])
    images = hushgrad.load(of_digits[1] / "run")
    assert len(images.predict(np.zeros((2, 8, 8)))) == len(images.predict(torch.zeros(2, 8, 8))) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"columns": "age"}, {"columns": []}, {"columns": [1, 2]}, {"columns": [{"name": "a"}, {"name": "a"}]},
        {"columns": [{"name": 1}]}, {"columns": [{"type": "text"}]}, {"columns": [{"name": "a", "type": "moon"}]},
        *({"columns": [{"name": "age", "bounds": bounds}]} for bounds in ([0.0], ["a", "b"], [2, 1])),
        {"columns": [{"name": "a", "type": "text", "categories": "xy"}]},
        {"columns": [{"name": "a", "type": "date", "date_format": "%H"}]},
        {"spelling": None}, {"spelling": {"decimal": ";"}}, {"spelling": {"missing": "x"}}, {"delimiter": ";;"},
        {"spelling": {"finds_dates": 1}}, {"encoding": "rot13"}, {"features": "256"}, {"features": True},
        {"features": 0}, {"features": 128}, {"kind": ["table"]}, {"kind": "moon"}, {"classes": "ab"}, {"more": 1},
    ],
)  # fmt: skip
def test_an_encoding_of_wrong_types_is_refused_when_it_is_loaded(of_a_table, tmp_path, change):
    run_folder = copy_of(of_a_table[1], tmp_path / "run")
    kept = json.loads((run_folder / "encoding.json").read_text())
    (run_folder / "encoding.json").write_text(json.dumps({**kept, **change}))
    with pytest.raises((InvalidArgumentError, CheckpointError), match=r"encoding\.json"):
        hushgrad.load(run_folder)


@pytest.mark.parametrize(
    "change",
    [
        {"columns": [{"name": "age", "type": "any", "bounds": [0.0, 100.0]}, {"name": "place"}]},
        {"columns": [{"name": "place", "type": "text"}, {"name": "age", "bounds": [0.0, 100.0]}]},
        {"columns": [{"name": "age", "bounds": [0.0, 1000.0]}, {"name": "place", "type": "text"}]},
        {"spelling": {"decimal": ",", "missing": [], "finds_dates": True}},
    ],
    ids=["no category", "columns in another order", "bounds", "decimal mark"],
)
def test_an_encoding_that_reads_well_and_is_another_is_refused(of_a_table, tmp_path, change):
    """Guarantee: rows are encoded as the training records were, or not at all."""
    run_folder = copy_of(of_a_table[1], tmp_path / "run")
    kept = json.loads((run_folder / "encoding.json").read_text())
    assert {**kept, **change} != kept
    (run_folder / "encoding.json").write_text(json.dumps({**kept, **change}))
    with pytest.raises(CheckpointError, match=r"encoding\.json: it was changed since the run"):
        hushgrad.load(run_folder)
    (run_folder / "encoding.json").write_text(json.dumps(kept, indent=4))  # the same, written otherwise
    hushgrad.load(run_folder)
    summary = json.loads((run_folder / "summary.json").read_text())
    del summary["encoding_digest"]  # a run of before it was kept
    (run_folder / "summary.json").write_text(json.dumps(summary))
    hushgrad.load(run_folder)


BEFORE = {"kind": "table", "columns": ["age", "place"], "categorical": ["place"], "bounds": [["age", 0.0, 100.0]]}


def test_a_table_of_a_run_of_before_is_encoded_as_it_was():
    """Guarantee: rows are encoded as the training records were, or not at all."""
    encoder, _ = encoding_from_json({**BEFORE, "features": 256})
    columns = Column("age", bounds=(0.0, 100.0)), Column("place", "text")
    table = Table(("age", "place"), (("30", "2024-05-31"), ("", "7")))
    expected = encode(table, columns, spelling=Spelling(finds_dates=False), features=256)
    assert torch.equal(encoder.encode([{"age": 30, "place": "2024-05-31"}, {"age": None, "place": 7.0}]), expected)
    encoder, _ = encoding_from_json({**BEFORE, "categorical": [], "bounds": [], "features": 256})
    assert encoder.encode([{"age": "2024-05-31", "place": "1,5"}]).count_nonzero() <= 2  # two texts, as they were


@pytest.mark.parametrize(
    "change",
    [{"categorical": ["moon"]}, {"categorical": "place"}, {"bounds": [["age", 0.0]]}, {"bounds": [["moon", 0, 1]]}],
)
def test_a_damaged_encoding_of_before_is_refused(change):
    with pytest.raises(InvalidArgumentError, match="damaged"):
        encoding_from_json({**BEFORE, "features": 256, **change})


def test_an_encoding_of_wrong_words_is_refused(of_sentences, tmp_path):
    run_folder = copy_of(of_sentences[1], tmp_path / "run")
    kept = json.loads((run_folder / "encoding.json").read_text())
    for change in ({"vocabulary": 3}, {"vocabulary": "moon"}, {"size": "a"}, {"words": [1]}, {"buckets": ["a"]}):
        (run_folder / "encoding.json").write_text(json.dumps({**kept, **change}))
        with pytest.raises(InvalidArgumentError, match=r"encoding\.json"):
            hushgrad.load(run_folder)


def test_classes_in_another_order_are_refused(of_a_table, tmp_path):
    run_folder = copy_of(of_a_table[1], tmp_path / "run")
    summary = json.loads((run_folder / "summary.json").read_text())
    (run_folder / "summary.json").write_text(json.dumps({**summary, "classes": summary["classes"][::-1]}))
    with pytest.raises(CheckpointError, match="classes, or their order"):
        hushgrad.load(run_folder)
    kept = json.loads((run_folder / "encoding.json").read_text())
    del kept["classes"]  # a run of before encoding.json kept them, and the summary a digest of it
    (run_folder / "encoding.json").write_text(json.dumps(kept))
    del summary["encoding_digest"]
    (run_folder / "summary.json").write_text(json.dumps({**summary, "classes": summary["classes"][::-1]}))
    assert hushgrad.load(run_folder).classes == tuple(summary["classes"][::-1])
