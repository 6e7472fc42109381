import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import TensorDataset

from hushgrad.study.score_words import beside_accuracy, recall_text, scores_as_json, verdict
from hushgrad.study.scoring import Scores, area_under_roc, score


class Logits(nn.Module):
    """A model that returns its input."""

    def forward(self, logits):
        return logits


def scored(logits, labels):
    return score(Logits(), TensorDataset(torch.tensor(logits), torch.tensor(labels)), "cpu")


def by_pairs(values, of_class):
    """The area by its definition: every pair of one of the class and another, ties counting half."""
    above = [value for value, is_one in zip(values, of_class, strict=True) if is_one]
    below = [value for value, is_one in zip(values, of_class, strict=True) if not is_one]
    pairs = [(one, other) for one in above for other in below]
    return sum(1.0 if one > other else 0.5 if one == other else 0.0 for one, other in pairs) / len(pairs)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30))
def test_the_area_under_the_roc_curve_is_the_share_of_pairs_in_the_right_order(rows):
    """With many ties."""
    values, labels = [float(value) for value, _ in rows], [int(label) for _, label in rows]
    found = area_under_roc(torch.tensor([[0.0, value] for value in values]), torch.tensor(labels))
    if len(set(labels)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(by_pairs(values, labels))


def test_of_three_classes_the_area_is_the_mean_of_each_against_the_rest():
    torch.manual_seed(0)
    logits, labels = torch.randn(40, 3), torch.randint(0, 2, (40,))
    probabilities = logits.double().softmax(1)
    expected = [by_pairs(probabilities[:, label].tolist(), (labels == label).tolist()) for label in (0, 1)]
    assert area_under_roc(logits, labels) == pytest.approx(sum(expected) / 2)  # no example is of class 2


def test_a_model_that_diverged_has_no_area():
    assert area_under_roc(torch.tensor([[0.0, math.nan], [0.0, 1.0]]), torch.tensor([0, 1])) is None


def test_scores_are_counts_of_which_every_share_follows():
    scores = scored([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 0.0]], [0, 0, 0, 1])
    assert (scores.count, scores.right, scores.answered) == ((3, 1), (2, 0), (3, 1))
    assert scores.accuracy == 0.5
    assert scores.largest_share == 0.75
    assert scores.recalls == (2 / 3, 0.0)
    assert scores.balanced_accuracy == pytest.approx(1 / 3)
    assert scores.only_answer is None


def test_a_class_without_an_example_has_no_recall_and_is_left_out_of_balanced_accuracy():
    scores = scored([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]], [0, 1])
    assert scores.recalls == (1.0, 1.0, None)
    assert scores.balanced_accuracy == 1.0


def test_the_empty_model_is_called_empty():
    scores = scored([[2.0, 0.0]] * 25, [0] * 24 + [1])
    assert scores.accuracy == scores.largest_share == 0.96
    assert scores.balanced_accuracy == 0.5
    said = verdict(scores, ("no", "yes"))
    assert said.startswith("The model gives one answer, 'no', to all 25 test records")
    assert "(always answering 'no': 96.00%)" in beside_accuracy(scores, ("no", "yes"))
    assert recall_text(scores, ("no", "yes")) == "'no' 100.0%, 'yes' 0.0%"


def test_an_accuracy_no_better_than_one_answer_is_said_and_a_better_one_is_not():
    worse = scored([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]], [0, 0, 1])
    assert verdict(worse, ("no", "yes")).startswith("The accuracy of 33.3% is no better")
    better = scored([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0]], [0, 0, 1])
    assert verdict(better, ("no", "yes")) is None


def test_of_many_classes_the_worst_recalls_are_shown():
    labels = list(range(20))
    scores = scored([[2.0 if place == 0 else 0.0 for place in range(20)]] * 20, labels)
    assert recall_text(scores, [f"c{label}" for label in labels]).endswith("(the lowest of 20 classes)")


def test_scores_survive_the_way_to_json_and_what_cannot_be_scores_is_refused():
    scores = scored([[2.0, 0.0], [0.0, 2.0]], [0, 0])
    kept = {"count": [2, 0], "right": [1, 0], "answered": [1, 1], "auc": None}
    assert Scores.from_json(kept) == scores
    assert scores_as_json(scores, ("a", "b"))["by_class"][1] == {
        "name": "b", "count": 0, "right": 0, "answered": 1, "recall": None,
    }  # fmt: skip
    for change in ({"right": [3, 0]}, {"answered": [1, 0]}, {"count": [2]}, {"count": [2.0, 0]}, {"right": [-1, 0]}):
        with pytest.raises(ValueError, match="scores are"):
            Scores.from_json({**kept, **change})
