"""Names of repeated layers are folded where nothing else differs."""

from __future__ import annotations

from hushgrad.checks.doctor.folding import fold_names, short_list


def test_names_that_differ_in_one_number_are_one_line() -> None:
    entries = [(f"layer.{i}.query", "linear") for i in range(12)]
    assert fold_names(entries) == [("layer.{0…11}.query", "linear", 12)]


def test_other_facts_and_other_names_stay_apart() -> None:
    entries = [("layer.0.query", 1), ("layer.1.query", 2), ("head", 1)]
    assert fold_names(entries) == [("layer.0.query", 1, 1), ("layer.1.query", 2, 1), ("head", 1, 1)]


def test_numbers_are_folded_only_where_all_combinations_are_there() -> None:
    grid = [(f"block.{i}.conv.{j}", 0) for i in range(2) for j in range(2)]
    assert fold_names(grid) == [("block.{0,1}.conv.{0,1}", 0, 4)]
    assert len(fold_names(grid[:3])) == 3


def test_a_common_beginning_is_said_once() -> None:
    assert short_list(["fc.weight", "fc.bias"]) == "fc.weight, .bias"
    assert short_list(["weight", "other.bias"]) == "weight, other.bias"
