"""How well a model classifies examples: counts for each class, and what follows from them.

Accuracy alone misleads where one class is large: a model that always gives the largest class has its share as
accuracy. So it is kept beside that share, with the recall of each class and the area under the ROC curve.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

EVALUATION_BATCH = 2048


@dataclass(frozen=True, slots=True)
class Scores:
    """What a model made of N examples, by class: whole numbers, from which every share follows.

    Attributes:
        count: examples of each class.
        right: those of them that were classified correctly.
        answered: how often each class was the model's answer.
        auc: area under the ROC curve (`area_under_roc`); None where it is not defined.
    """

    count: tuple[int, ...]
    right: tuple[int, ...]
    answered: tuple[int, ...]
    auc: float | None = None

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Scores:
        """Return what `dataclasses.asdict` made JSON of. Raises ValueError or TypeError for anything else."""
        count, right, answered = (tuple(value[name]) for name in ("count", "right", "answered"))
        if any(type(number) is not int or number < 0 for number in (*count, *right, *answered)):
            raise ValueError("scores are whole numbers")
        fits = len(count) == len(right) == len(answered) and 0 < sum(count) == sum(answered)
        if not fits or any(found > there for found, there in zip(right, count, strict=True)):
            raise ValueError("scores are counts of the same examples, for each class")
        auc = value["auc"]
        return cls(count, right, answered, None if auc is None else float(auc))

    @property
    def examples(self) -> int:
        """N."""
        return sum(self.count)

    @property
    def accuracy(self) -> float:
        """The share of examples that were classified correctly."""
        return sum(self.right) / self.examples

    @property
    def largest_class(self) -> int:
        """The number of the class that most examples are of."""
        return self.count.index(max(self.count))

    @property
    def largest_share(self) -> float:
        """The share of examples of the largest class: the accuracy of always answering it."""
        return max(self.count) / self.examples

    @property
    def recalls(self) -> tuple[float | None, ...]:
        """The share of each class that was classified correctly; None for a class without an example."""
        return tuple(right / count if count else None for count, right in zip(self.count, self.right, strict=True))

    @property
    def balanced_accuracy(self) -> float:
        """The mean recall of the classes that have examples: 1/classes for one answer to all."""
        known = [recall for recall in self.recalls if recall is not None]
        return sum(known) / len(known)

    @property
    def only_answer(self) -> int | None:
        """The class that the model answers to all examples; None where it gives more than one answer."""
        given = [label for label, times in enumerate(self.answered) if times]
        return given[0] if len(given) == 1 else None


@torch.no_grad()
def logits_on(model: nn.Module, examples: TensorDataset, device: str) -> Tensor:
    """Return the model's logits, [N, classes] on the CPU, computed in evaluation mode."""
    was_training = model.training
    model.eval()
    inputs = examples.tensors[0]
    chunks = [slice(first, first + EVALUATION_BATCH) for first in range(0, len(inputs), EVALUATION_BATCH)]
    logits = [model(inputs[chunk].to(device)).float().cpu() for chunk in chunks]
    model.train(was_training)
    return torch.cat(logits)


def right_on(model: nn.Module, examples: TensorDataset, device: str) -> Tensor:
    """Return for each example whether the model classifies it correctly, [N] bool on the CPU."""
    return logits_on(model, examples, device).argmax(1) == examples.tensors[1]


def score(model: nn.Module, examples: TensorDataset, device: str) -> Scores:
    """Return what the model makes of examples."""
    logits_NL, labels_N = logits_on(model, examples, device), examples.tensors[1]
    classes, answers_N = logits_NL.shape[1], logits_NL.argmax(1)

    def by_class(labels: Tensor) -> tuple[int, ...]:
        return tuple(torch.bincount(labels, minlength=classes).tolist())

    right = by_class(labels_N[answers_N == labels_N])
    return Scores(by_class(labels_N), right, by_class(answers_N), area_under_roc(logits_NL, labels_N))


def area_under_roc(logits_NL: Tensor, labels_N: Tensor) -> float | None:
    """Return the probability that a random example of a class is ranked above one of the others, ties counting half.

    Of two classes the second is ranked by the difference of its logits. Of more, each class is ranked against the rest
    by its probability, and the mean is taken over the classes that have examples and are not all (macro average).
    None where there is no such class, or where a logit is not finite.
    """
    if not bool(torch.isfinite(logits_NL).all()):
        return None
    logits = logits_NL.double()
    if logits.shape[1] == 2:
        ranked = [(logits[:, 1] - logits[:, 0], labels_N == 1)]
    else:
        likelihoods = logits.log_softmax(1)
        ranked = [(likelihoods[:, label], labels_N == label) for label in range(logits.shape[1])]
    areas = [_area(values, is_of_class) for values, is_of_class in ranked if 0 < int(is_of_class.sum()) < len(labels_N)]
    return sum(areas) / len(areas) if areas else None


def _area(values_N: Tensor, is_of_class_N: Tensor) -> float:
    """Return the Mann-Whitney statistic of two groups, over the number of pairs."""
    above, others = values_N[is_of_class_N], values_N[~is_of_class_N].sort().values
    below = torch.searchsorted(others, above, right=False) + torch.searchsorted(others, above, right=True)
    return float(below.sum()) / (2 * len(above) * len(others))
