"""A clip rule: how the gradient of each example is bounded before it enters the sum, and by how much.

A rule is a frozen value. It cuts the parameters into groups, gives each example a factor for each group from the norms
of its gradient there, and says how large what then enters the sum can be. hushgrad measures the norms, multiplies and
adds, makes the noise from `sensitivity`, and looks in every step whether the factors keep to the limits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from hushgrad.clipping.adaptation import Adaptation
from hushgrad.errors import InvalidArgumentError


class ClipRule(ABC):
    """How examples are clipped. A kind is a frozen dataclass of the rule's public constants, `@dataclass(frozen=True)`.

    `sensitivity`, a field or a property of every kind, is the largest L2 norm over all parameters together with which
    one example enters the sum, in units of the gradient. The noise is made from it. It must be at least √Σ limits².
    """

    if TYPE_CHECKING:  # at run time a field's default would be found here

        @property
        def sensitivity(self) -> float:
            """√Σ limits² or more."""

    def groups(self, names: Sequence[str]) -> Sequence[Sequence[str]]:
        """Return the parameters in groups that are measured and scaled apart; by default one group of all of them.

        `names` are the model's trainable parameters, in its order. Each must be in exactly one group, and a group
        holds one at least.
        """
        return (tuple(names),)

    @abstractmethod
    def limits(self, count: int) -> Sequence[float]:
        """Return for each of the `count` groups, in their order, the largest L2 norm that an example may have there."""

    @abstractmethod
    def factors(self, norms_GB: Tensor) -> Tensor:
        """Return what each example's gradient is multiplied with in each group, `[G, B]`, at most limit / norm.

        Args:
            norms_GB: L2 norms of each example's gradient in each group, `[G, B]`, in float32 or float64, of the loss
                of that example alone (undivided). Some may be 0 (also of a group that was not used), infinite or NaN;
                an example with one that is not finite is left out of the sum, whatever its factor is.

        A column must be a function of that column alone: what enters for one example may not depend on another one.
        """

    def relative_noise(self, sizes: Sequence[int]) -> Sequence[float]:
        """Return for each group its noise's standard deviation over σ · sensitivity; by default 1 for each.

        With r_l for the group l, Σ (limit_l / r_l)² must be at most sensitivity²: the groups, each divided by its r_l,
        are then one release with equal noise everywhere.

        Args:
            sizes: how many values each group has, in their order.
        """
        return (1.0,) * len(sizes)

    @property
    def noise_differs(self) -> bool:
        """Whether a group may have more or less noise than another: `relative_noise` is asked for only then.

        By default, whether the kind has a `relative_noise` of its own.
        """
        return type(self).relative_noise is not ClipRule.relative_noise

    @property
    def clips_groups_apart(self) -> bool:
        """Whether the factors of a group follow from the norms there alone, so that it may be summed before others."""
        return False

    @property
    def adaptation(self) -> Adaptation | None:
        """What is counted to find the next step's norm; None for a rule whose norm is fixed."""
        return None

    @abstractmethod
    def scaled(self, factor: float) -> Self:
        """Return this rule with all limits, and with them the sensitivity, times `factor` > 0 (for `clip_schedule`)."""

    @abstractmethod
    def reference(self, per_example: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the sum of clipped gradients from the gradients themselves, plainly: what the rule means.

        Tests and `hushgrad.verify` compare training with it, so it is best written apart from `factors`.

        Args:
            per_example: for each parameter the gradients of B ≥ 1 examples, `[B, *shape]`, in float64, all finite.
        """

    def describe(self) -> str:
        """Return the rule's name and all its constants in one line: a ledger is continued only under the same text.

        By default `Name(constant=value, ...)`, from the fields of the dataclass.
        """
        told = (f"{field.name}={_written(getattr(self, field.name))}" for field in fields(self))  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(told)})"


def derived(kind: type, rule: str) -> InvalidArgumentError:
    """Return the error for a class that is derived from a rule of hushgrad's."""
    return InvalidArgumentError(
        f"{kind.__name__} would be taken for {rule}, in ledgers too, whatever it computes",
        cure="Derive it from hushgrad.ClipRule, which lets a rule say what it does (docs/extending.md)",
    )


def whole_norms(per_example: Mapping[str, Tensor]) -> Tensor:
    """Return the norm of each example's gradient, all given parameters together, `[B]`: for references."""
    squares = [gradients.reshape(len(gradients), -1).square().sum(1) for gradients in per_example.values()]
    return torch.stack(squares).sum(0).sqrt()


def scaled_by(factors_B: Tensor, per_example: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return Σ_i factors_B[i] · g_i for each parameter: for references."""
    return {name: torch.tensordot(factors_B, gradients, 1) for name, gradients in per_example.items()}


def _written(value: Any) -> str:
    """Return a constant in its one spelling; refuse what has none."""
    if isinstance(value, float):
        return repr(float(value))  # also of NumPy, whose own spelling changes
    if value is None or isinstance(value, bool | int | str):
        return repr(value)
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_written, value))})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_written(key)}: {_written(part)}' for key, part in value.items())}}}"
    raise InvalidArgumentError(
        f"a clip rule's text must name all its constants, and a value of the class {type(value).__name__} has no one "
        f"spelling",
        cure="Keep numbers, text and tuples of them in the rule, or write its describe()",
    )
