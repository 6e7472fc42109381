"""Whose each row is: people are held out whole, bounded whole, and a person more changes nothing of others."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hushgrad.errors import DatasetError, InvalidArgumentError, TaskDataError
from hushgrad.study.configuration import Privacy, suggested_run
from hushgrad.study.tasks import TaskOptions, load_task
from hushgrad.study.tasks.people import People, bounded_rows, split_people
from hushgrad.study.training import check_against_data

people = st.lists(st.text("abcdé12", min_size=1, max_size=2), min_size=1, max_size=60)


@settings(deadline=None)
@given(people)
def test_all_rows_of_a_person_are_on_one_side_by_that_persons_id_alone(ids):
    """Guarantee: which side a person is on depends on that person's id alone."""
    kept, held_out = split_people(ids, 0.2, 1)
    assert sorted(kept + held_out) == list(range(len(ids)))
    assert not {ids[row] for row in kept} & {ids[row] for row in held_out}
    for person in set(ids):
        alone = split_people([person], 0.2, 1)
        assert (alone[0] == [0]) == (person in {ids[row] for row in kept})


@settings(deadline=None)
@given(people, st.integers(1, 4), st.text("xyz", min_size=1, max_size=1), st.integers(0, 60))
def test_which_rows_of_a_person_are_kept_depends_on_that_person_alone(ids, most, another, place):
    """Guarantee: which rows of a person are kept depends on that person's id and number of rows alone."""

    def kept_of(rows, person):
        own = [row for row, id in enumerate(rows) if id == person]
        return [own.index(row) for row in bounded_rows(rows, most, 1) if rows[row] == person]

    more = [*ids[:place], another, *ids[place:]]
    for person in set(ids):
        assert len(kept_of(ids, person)) == min(most, ids.count(person))
        assert kept_of(more, person) == kept_of(ids, person)


def test_people_and_rows_are_chosen_as_if_at_random():
    """20,000 people: a share and each place are within 5 standard deviations; a false alarm with chance below 1e-5."""
    ids = [f"P{number}" for number in range(20_000)]
    assert abs(len(split_people(ids, 0.2, 3)[1]) / 20_000 - 0.2) < 5 * np.sqrt(0.16 / 20_000)
    rows = [person for person in ids for _ in range(4)]
    places = np.bincount(np.asarray(bounded_rows(rows, 1, 3)) % 4, minlength=4) / 20_000
    assert np.abs(places - 0.25).max() < 5 * np.sqrt(0.1875 / 20_000)


def table(tmp_path, ids, name="data.csv"):
    path = tmp_path / name
    lines = [f"{person},{row % 7},{'yes' if row % 3 else 'no'}" for row, person in enumerate(ids)]
    path.write_text("\n".join(["who,size,kind", *lines]))
    return path


def options(path, **more):
    return TaskOptions(**{"data": path, "target": "kind", "person": "who", "records_per_person": 2, **more})


def test_people_are_divided_and_bounded_and_their_column_is_no_feature(tmp_path):
    ids = [f"P{number // 4}" for number in range(400)]
    path = table(tmp_path, ids)
    task = load_task("csv", options(path))
    assert task.population == task.people.count == len(task.train) // 2
    assert task.people.ids.most == 2
    assert len(task.test) == 4 * (100 - task.population)
    assert task.encoder.names == ("size",)
    assert all("column 'who'" not in notice for notice in task.notices)


def test_the_person_of_a_row_stands_at_its_place(tmp_path):
    path = tmp_path / "data.csv"
    rows = [f"P{n % 50},ward {n % 50},{n % 50 * 37},bed {n % 50},{'yes' if n % 3 else 'no'}" for n in range(200)]
    path.write_text("\n".join(["who,ward,number,bed,kind", *rows]))
    task = load_task("csv", options(path, classes=("yes", "no")))
    inputs, codes = task.train.tensors[0], task.people.ids.codes
    for one in range(len(codes)):
        same = (inputs == inputs[one]).all(1).nonzero().flatten().tolist()
        assert same == [row for row in range(len(codes)) if codes[row] == codes[one]]


def test_the_sampling_is_of_whole_people_and_names_the_bound():
    found = People.of(["a", "b", "a", "c"], 2, "patient")
    sampling = found.sampling(1)
    assert sampling.rate == pytest.approx(1 / 3)
    assert sampling.unit == "one user (all records with the same patient, at most 2 of them)"
    assert sampling.ownership.ids.records == 4
    with pytest.raises(DatasetError, match="at most the 3 people in the training rows, got 4"):
        found.sampling(4)


def test_batch_size_and_delta_are_held_against_the_number_of_people(tmp_path):
    task = load_task("csv", options(table(tmp_path, [f"P{number // 4}" for number in range(400)])))
    assert len(task.train) > 100 > task.population
    config = suggested_run("csv", privacy=Privacy(target_epsilon=3, max_grad_norm=1), options=options(None))
    with pytest.raises(DatasetError, match=f"at most the {task.population} people, got 1024"):
        check_against_data(config, task)
    few = replace(config, batch_size=3)
    check_against_data(few, task)
    check_against_data(replace(few, privacy=replace(few.privacy, delta=0.9 / task.population)), task)
    with pytest.raises(InvalidArgumentError, match=f"for {task.population} people"):
        check_against_data(replace(few, privacy=replace(few.privacy, delta=1 / task.population)), task)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"sampling": "balls-in-bins"}, "drawn each by themselves"),
        ({"max_batch_size": 3}, "drawn each by themselves"),
        ({"noise": "banded"}, "drawn each by themselves"),
    ],
)
def test_what_does_not_go_with_people_is_refused_before_data_is_read(tmp_path, more, said):
    with pytest.raises(InvalidArgumentError, match=said):
        suggested_run("csv", privacy=Privacy(target_epsilon=3, max_grad_norm=1, **more), options=options(tmp_path))


def test_a_person_needs_a_bound_and_a_bound_a_person():
    for alone in ({"person": "who"}, {"records_per_person": 3}):
        with pytest.raises(InvalidArgumentError, match="go together"):
            TaskOptions(**alone)
    with pytest.raises(InvalidArgumentError, match="takes no person"):
        load_task("digits", TaskOptions(person="who", records_per_person=3))


def test_rows_of_nobody_and_people_in_both_tables_are_refused_without_a_value(tmp_path):
    secret = [f"secret{number // 2}" for number in range(40)]
    with pytest.raises(TaskDataError, match="do not say whose they are"):
        load_task("csv", options(table(tmp_path, [*secret, "", "NA"])))
    table(tmp_path, secret, "train.csv")
    table(tmp_path, ["other", *secret[:3]], "test.csv")
    (tmp_path / "data.csv").unlink()
    with pytest.raises(TaskDataError, match="in the training table and in the test table") as caught:
        load_task("csv", options(tmp_path))
    assert "secret" not in str(caught.value)
    with pytest.raises(InvalidArgumentError, match="cannot say whose a row is"):
        load_task("csv", options(tmp_path, target="who"))
    with pytest.raises(TaskDataError, match="some people are needed"):
        load_task("csv", options(table(tmp_path, ["one"] * 9, "one.csv")))
