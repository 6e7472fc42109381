"""Settings are chosen on training records alone."""

import csv
import sys

import pytest
import torch
from torch.utils.data import TensorDataset

from benchmarks import validation
from hushgrad.study.tasks import Task


def numbered(first, count):
    return TensorDataset(torch.arange(first, first + count).float().reshape(-1, 1), torch.arange(count) % 2)


def test_parts_divide_the_training_records_and_no_test_record_is_in_any():
    task = Task("digits", "numbers", numbered(0, 23), numbered(100, 9), ("a", "b"))
    held_out = []
    for part in range(validation.PARTS):
        found = validation.without(task, part)
        trained, tested = (set(examples.tensors[0].flatten().tolist()) for examples in (found.train, found.test))
        assert trained | tested == set(range(23))
        assert not trained & tested
        assert all(int(label) == int(row) % 2 for row, label in zip(*found.train.tensors, strict=True))
        held_out += sorted(tested)
    assert sorted(held_out) == list(range(23))


def test_a_run_keeps_the_sampling_rate_and_is_written(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    out = tmp_path / "runs.csv"
    words = f"--task digits --model mlp --epsilons 8 --learning-rates 0.2 --epochs 1 --parts 1 --out {out}"
    monkeypatch.setattr(sys, "argv", ["validation", *words.split()])
    validation.main()
    (row,) = csv.DictReader(out.read_text().splitlines())
    assert (row["epsilon"], row["learning_rate"], row["batch_size"], row["epochs"]) == ("8.0", "0.2", "204", "1")
    assert 0 <= float(row["accuracy"]) <= 1
