import gzip

import pytest
import torch

from hushgrad.errors import InvalidArgumentError, TaskDataError
from hushgrad.study.tasks import TaskOptions, load_task
from hushgrad.study.tasks.words import BUCKETS, LENGTH, make_vocabulary, words_of


@pytest.fixture
def folder(tmp_path):
    """A folder like SST-2's."""
    (tmp_path / "train.tsv").write_text("label\tsentence\n1\ta good film\n0\ta bad film\n1\tgood , good\n")
    (tmp_path / "dev.tsv.gz").write_bytes(gzip.compress(b"label\tcontent\n0\tbad\n"))
    return tmp_path


def test_a_folder_of_tables_gives_rows_of_word_numbers(folder):
    task = load_task("text", TaskOptions(data=folder, classes=("0", "1")))
    assert task.train.tensors[0].shape == (3, LENGTH)
    assert task.train.tensors[0].dtype == torch.int64
    assert task.train.tensors[1].tolist() == [1, 0, 1]
    assert task.vocabulary_size == BUCKETS + 1
    assert int(task.train.tensors[0].max()) < task.vocabulary_size
    assert not task.outside_the_guarantee


def test_with_a_hashed_or_a_public_vocabulary_a_sentences_numbers_depend_on_that_sentence_alone(tmp_path):
    """Guarantee: with a hashed or a public vocabulary, a sentence's numbers depend on that sentence alone."""
    (tmp_path / "words").write_text("good\nfilm\nGood\n")
    for kind in (None, "hashed", str(tmp_path / "words")):
        one = make_vocabulary(kind, ["a good film"])
        many = make_vocabulary(kind, ["a good film", "something else", "!"])
        assert not one.outside_the_guarantee
        assert torch.equal(one.encode(["a good film"]), many.encode(["x", "a good film"])[1:])


def test_a_vocabulary_from_training_records_is_said_to_be_outside_the_guarantee(folder):
    task = load_task("text", TaskOptions(data=folder, classes=("0", "1"), vocabulary="train"))
    assert any("vocabulary was counted on the training records" in said for said in task.outside_the_guarantee)
    assert task.vocabulary_size == 2 + len({"a", "good", "bad", "film", ","})


def test_unknown_words_of_a_public_file_share_a_number(tmp_path):
    (tmp_path / "words").write_text("good\nfilm\n")
    vocabulary = make_vocabulary(str(tmp_path / "words"), [])
    assert vocabulary.encode(["Good one two film"])[0, :4].tolist() == [2, 1, 1, 3]
    assert vocabulary.size == 4


def test_words_are_letters_and_marks_in_lower_case():
    assert words_of("It's GOOD, isn't_it?") == ["it's", "good", ",", "isn't", "it", "?"]


def test_text_files_in_folders_of_their_classes_are_read(tmp_path):
    for number in range(10):
        place = tmp_path / ("bad" if number % 2 else "good")
        place.mkdir(exist_ok=True)
        (place / f"{number}.txt").write_text(f"sentence {number}")
    task = load_task("text", TaskOptions(data=tmp_path))
    assert (len(task.train), len(task.test)) == (8, 2)
    assert task.class_names == ("bad", "good")
    assert any("list of classes was read" in said for said in task.outside_the_guarantee)


@pytest.mark.parametrize(
    ("content", "said"),
    [("label\tsentence\n", "must hold sentences"), ("label\tsentence\nno tab\n", "'train.tsv', line 2: must be")],
)
def test_a_table_that_is_none_is_refused_without_its_content(folder, content, said):
    (folder / "train.tsv").write_text(content)
    with pytest.raises(TaskDataError, match=said) as caught:
        load_task("text", TaskOptions(data=folder))
    assert "no tab" not in str(caught.value)


def test_one_table_is_split_in_the_same_way_always(tmp_path):
    lines = [f"{row % 2}\tsentence {row}" for row in range(10)]
    (tmp_path / "all.tsv").write_text("\n".join(["label\tsentence", *lines]) + "\n")
    first, second = (load_task("text", TaskOptions(data=tmp_path / "all.tsv", classes=("0", "1"))) for _ in range(2))
    assert (len(first.train), len(first.test)) == (8, 2)
    assert all(torch.equal(a, b) for a, b in zip(first.train.tensors, second.train.tensors, strict=True))


def test_missing_data_and_foreign_options_are_refused(tmp_path):
    with pytest.raises(InvalidArgumentError, match="needs a folder"):
        load_task("text", TaskOptions())
    with pytest.raises(TaskDataError, match="one folder for each class"):
        load_task("text", TaskOptions(data=tmp_path))
    with pytest.raises(InvalidArgumentError, match="takes no subgroup"):
        load_task("text", TaskOptions(data=tmp_path, subgroup="x"))
