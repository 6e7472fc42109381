import pytest
import torch

from hushgrad.errors import InvalidArgumentError, TaskDataError
from hushgrad.study.tasks import TaskOptions, load_task


def csv_text(count=20, header="colour,size,kind"):
    rows = [f"{'red' if n % 2 else 'blue'},{n},{'yes' if n % 2 else 'no'}" for n in range(count)]
    return "\n".join([header, *rows]) + "\n"


@pytest.fixture
def table(tmp_path):
    """Return a function that writes a CSV file and gives its path."""

    def write(text=None, name="data.csv"):
        path = tmp_path / name
        path.write_bytes((csv_text() if text is None else text).encode())
        return path

    return write


def load(path, **options):
    return load_task("csv", TaskOptions(data=path, **{"target": "kind", **options}))


def test_one_file_is_split_and_the_target_is_no_feature(table):
    task = load(table())
    assert (len(task.train), len(task.test), task.class_names) == (16, 4, ("no", "yes"))
    without_target = load(table("\n".join(line.rsplit(",", 1)[0] for line in csv_text().splitlines())), target="colour")
    assert task.input_shape == without_target.input_shape


def test_reading_the_list_of_classes_from_the_data_is_said(table):
    """What is derived from the records is named as outside the guarantee; what the user declares is not."""
    assert any("list of classes was read" in item for item in load(table()).outside_the_guarantee)
    assert load(table(), classes=("yes", "no")).outside_the_guarantee == ()


def test_named_classes_give_the_order_of_labels_and_leave_other_rows_out(table):
    text = csv_text() + "red,99,maybe\n" * 10
    task = load(table(text), classes=("yes", "no"))
    assert len(task.train) + len(task.test) == 20
    assert task.class_names == ("yes", "no")
    red = task.train.tensors[1] == 0
    assert bool(red.any())
    assert not bool(red.all())


def test_a_folder_keeps_its_division(tmp_path, table):
    table(name="train.csv")
    table(csv_text(6), name="test.csv")
    task = load(tmp_path)
    assert (len(task.train), len(task.test)) == (20, 6)


def test_tables_with_different_columns_are_refused(tmp_path, table):
    table(name="train.csv")
    table(csv_text(6, "size,colour,kind"), name="test.csv")
    with pytest.raises(TaskDataError, match="same columns"):
        load(tmp_path)


def test_tabs_quotes_and_a_byte_order_mark_are_read(table):
    plain = load(table("a,kind\n" + '"x, y",no\nz,yes\n' * 5))
    tabs = load(table("\ufeffa\tkind\n" + "x, y\tno\nz\tyes\n" * 5, name="data.tsv"))
    assert torch.equal(plain.train.tensors[0], tabs.train.tensors[0])


def test_a_dropped_column_changes_nothing_when_it_changes(table):
    one = load(table(), drop=("size",)).train.tensors[0]
    other = load(table(csv_text().replace("1", "7")), drop=("size",)).train.tensors[0]
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"target": None}, InvalidArgumentError, "--target COLUMN"),
        (
            {"target": "absent"},
            TaskDataError,
            "column 'absent': no column has this name; the columns are colour, size, kind",
        ),
        ({"categorical": ("absent",)}, TaskDataError, "column 'absent': no column has this name"),
        ({"bounds": (("absent", 0.0, 1.0),)}, TaskDataError, "column 'absent': no column has this name"),
        ({"bounds": (("colour", 0.0, 1.0),)}, TaskDataError, "not a number"),
        ({"drop": ("kind",)}, InvalidArgumentError, "is the target"),
        ({"drop": ("colour", "size")}, TaskDataError, "no column is left"),
        ({"classes": ("yes", "absent")}, TaskDataError, "no training example is of class absent"),
    ],
)
def test_bad_options_are_refused_with_the_cure(table, options, error, said):
    with pytest.raises(error, match=said):
        load(table(), **options)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("a,kind\n", "no rows"),
        ("a,a\n1,2\n", "name each column, and each only once"),
        ("a,,kind\n1,2,3\n", "name each column"),
        ("a,kind\n1,x\n1,2,3\n", "line 3: expected 2 cells, got 3"),
        ("a,kind\n1,\n2,x\n3,x\n", "needs a label"),
        ("a,kind\n1,x\n2,x\n3,x\n4,x\n", "2 to 1000 different labels, got 1"),
        ("a,kind\n1,x\n", "at least 3 rows"),
        ("a,kind\n" + "x" * 200_000 + ",1\n", "not readable as CSV"),
        (",".join(f"c{n}" for n in range(5000)) + "\n", "at most 4096 columns"),
    ],
)
def test_a_malformed_table_is_refused(table, text, said):
    with pytest.raises(TaskDataError, match=said):
        load(table(text))


def test_a_table_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "data.csv"
    path.write_bytes(b"a,kind\n\xff\xfe,1\n")
    with pytest.raises(TaskDataError, match="UTF-8 text, and byte 7"):
        load(path)


LATIN = "größe;stadt;y\n" + "".join(
    f"{n},5;{'Köln' if n % 3 else 'Ulm'};{'ja' if n % 2 else 'nein'}\n" for n in range(20)
)


def test_latin_text_semicolons_and_decimal_commas_are_read_as_utf_8_commas_and_points_are(tmp_path):
    (tmp_path / "a.csv").write_bytes(LATIN.encode("latin-1"))
    (tmp_path / "b.csv").write_bytes(LATIN.replace(",", ".").replace(";", ",").encode())
    (tmp_path / "c.csv").write_bytes(LATIN.encode("utf-16"))
    (tmp_path / "d.csv").write_bytes(LATIN.replace(";", "#").encode())
    exported = load(tmp_path / "a.csv", target="y", encoding="latin-1")
    for other in (
        load(tmp_path / "b.csv", target="y"),
        load(tmp_path / "c.csv", target="y"),
        load(tmp_path / "d.csv", target="y", delimiter="#", decimal=","),
    ):
        assert torch.equal(exported.train.tensors[0], other.train.tensors[0])
    with pytest.raises(TaskDataError, match="its encoding: --encoding latin-1"):
        load(tmp_path / "a.csv", target="y")
    with pytest.raises(TaskDataError, match="another character divides the cells, give hushgrad train --delimiter"):
        load(tmp_path / "d.csv", target="größe#stadt#y", decimal=",")


def test_new_rows_are_read_as_the_training_rows_were_or_refused(tmp_path):
    (tmp_path / "a.csv").write_bytes(LATIN.encode("latin-1"))
    (tmp_path / "b.csv").write_bytes(LATIN.encode())
    (tmp_path / "c.csv").write_bytes(LATIN.replace(",", ".").replace(";", ",").encode())
    encoder = load(tmp_path / "a.csv", target="y", encoding="latin-1").encoder
    rows = [encoder.encode(encoder.read(tmp_path / name)) for name in ("a.csv", "b.csv", "c.csv")]
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(rows[0], rows[2])
    (tmp_path / "d.csv").write_bytes(LATIN.encode("utf-16-le"))
    wide = load(tmp_path / "d.csv", target="y", encoding="utf-16-le").encoder
    assert torch.equal(wide.encode(wide.read(tmp_path / "d.csv")), rows[0])
    points = load(tmp_path / "c.csv", target="y").encoder
    with pytest.raises(TaskDataError, match="numbers have decimal commas, and the model was trained on points"):
        points.read(tmp_path / "b.csv")


@pytest.mark.parametrize("encoding", ["rot13", "hex", "moon", ""])
def test_an_encoding_that_is_none_of_text_is_refused(encoding):
    with pytest.raises(InvalidArgumentError, match="an encoding of text"):
        TaskOptions(encoding=encoding)


@pytest.mark.parametrize("delimiter", [";;", "", '"', "\n"])
def test_a_delimiter_is_one_character(delimiter):
    with pytest.raises(InvalidArgumentError, match="one character"):
        TaskOptions(delimiter=delimiter)


def test_a_numeric_target_is_divided_by_public_edges_or_refused(table):
    with pytest.raises(TaskDataError, match="it does not predict numbers"):
        load(table(csv_text(60)), target="size")
    task = load(table(csv_text(60)), target="size", target_edges=(10.0, 30.0))
    assert task.class_names == ("below 10", "10 to below 30", "30 and more")
    assert task.outside_the_guarantee == ()
    labels = torch.cat([part.tensors[1] for part in (task.train, task.test)])
    assert labels.bincount().tolist() == [10, 20, 30]
    with pytest.raises(TaskDataError, match="a cell that is not a number"):
        load(table(csv_text(60)), target="colour", target_edges=(10.0,))
    for edges, said in (((2.0, 1.0), "must rise"), ((float("nan"),), "finite")):
        with pytest.raises(InvalidArgumentError, match=said):
            TaskOptions(target_edges=edges)


def test_columns_that_may_name_rows_or_people_are_told_before_they_are_learned_from(table):
    rows = [f"N{n},P{n // 3},{n * 1.7:.2f},5,{n % 2 or ''},{'yes' if n % 2 else 'no'}" for n in range(90)]
    text = "\n".join(["row,person,size,same,odd,kind", *rows])
    told = load(table(text)).notices
    assert [notice.split(":")[0].split(" has")[0].split(" holds")[0].split(" becomes")[0] for notice in told[:3]] == [
        "column 'row'",
        "column 'person'",
        "column 'same'",
    ]
    assert told[3:] == ("missing cells count as a value of their own in odd",)
    assert load(table(text), drop=("row", "person", "same", "odd")).notices == ()


def test_an_escape_sequence_in_a_column_name_does_not_reach_a_message(table):
    with pytest.raises(TaskDataError) as caught:
        load(table(csv_text(header="col\x1b[31mour,size,kind")), target="absent")
    assert "\x1b" not in str(caught.value)


def test_no_message_shows_a_cell(table):
    for text in (
        "a,kind\nsecret,x\nsecret,2,3\n",
        "a,kind\nsecret,\n1,1\n1,2\n1,3\n",
        "a,kind\n" + "secret,secret\n" * 4,
    ):
        with pytest.raises(TaskDataError) as caught:
            load(table(text), classes=None, target="kind")
        assert "secret" not in str(caught.value)


def test_bounds_must_be_ordered():
    with pytest.raises(InvalidArgumentError, match="LOW < HIGH"):
        TaskOptions(bounds=(("a", 1.0, 1.0),))
    with pytest.raises(InvalidArgumentError, match="finite"):
        TaskOptions(bounds=(("a", float("nan"), 1.0),))


def test_subgroups_are_the_named_columns_cells_of_the_test_rows(tmp_path):
    rows = [f"{'a' if n % 3 else 'b'},{n},{'yes' if n % 2 else 'no' if n % 5 else 'other'}" for n in range(60)]
    (tmp_path / "data.csv").write_text("\n".join(["kind,size,y", *rows]))
    options = TaskOptions(data=tmp_path / "data.csv", target="y", classes=("yes", "no"), subgroup="kind")
    task = load_task("csv", options)
    assert len(task.test_groups) == len(task.test)
    assert set(task.test_groups) == {"a", "b"}
