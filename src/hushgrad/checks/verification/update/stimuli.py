"""Per-example gradients that make mistakes visible: huge, small, aligned, spiky, in one parameter, not finite."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hushgrad.arguments import whole_number
from hushgrad.checks.verification.update.paired_update import read_output
from hushgrad.errors import InvalidArgumentError

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Stimulus:
    """Per-example gradients `[n, *shape]` by parameter, and what they are for."""

    what: str
    gradients: dict[str, Tensor]

    @property
    def count(self) -> int:
        """The number of examples."""
        return next(iter(self.gradients.values())).shape[0]

    def without(self, place: int) -> Stimulus:
        """Return the same examples but one."""
        keep = [row for row in range(self.count) if row != place]
        return Stimulus(self.what, {name: value[keep] for name, value in self.gradients.items()})


@dataclass(frozen=True, slots=True)
class Form:
    """How a loop wants its gradients: one tensor, a list, or a dict."""

    shapes: Shapes
    kind: str
    dtype: torch.dtype

    @classmethod
    def of(cls, parameters: Any, dtype: torch.dtype) -> Form:
        """Read `parameters`: a shape, a list of shapes, or a mapping from names to shapes."""
        if isinstance(parameters, Mapping):
            return cls({str(name): _shape(value) for name, value in parameters.items()}, "dict", dtype)
        if isinstance(parameters, Sequence) and parameters and not isinstance(parameters[0], int):
            return cls({str(place): _shape(value) for place, value in enumerate(parameters)}, "list", dtype)
        return cls({"update": _shape(parameters)}, "tensor", dtype)

    @property
    def size(self) -> int:
        """The number of values of an update."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def hand_over(self, stimulus: Stimulus) -> Any:
        """Return the gradients in the loop's own form; copies."""
        values = {name: value.to(self.dtype).clone() for name, value in stimulus.gradients.items()}
        if self.kind == "tensor":
            return values["update"]
        return list(values.values()) if self.kind == "list" else values

    def read(self, output: Any) -> dict[str, Tensor]:
        """Return the loop's update under the names of the parameters, in their order.

        Raises `InvalidArgumentError` where its shapes are not those of the gradients.
        """
        found = read_output(output)
        if set(found) != set(self.shapes) and len(found) == len(self.shapes):
            found = dict(zip(self.shapes, found.values(), strict=True))
        shapes = {name: tuple(value.shape) for name, value in found.items()}
        if shapes != self.shapes:
            raise InvalidArgumentError(
                f"the update must have the shapes of its gradients without their first dimension, {self.shapes}, got "
                f"{shapes}",
                cure="Sum over the examples, and return one value for each parameter",
            )
        return {name: found[name] for name in self.shapes}


def _shape(value: Any) -> tuple[int, ...]:
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, int) and not isinstance(value, bool):
        return (whole_number("a size of parameters", value, minimum=1),)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise InvalidArgumentError(
            f"parameters must be shapes, got {type(value).__name__}", cure="Pass tuples such as (32, 32)"
        )
    return tuple(whole_number("a size of parameters", part, minimum=1) for part in value)


class Stimuli:
    """Makes stimuli for a set of parameters and a clip norm, the same ones in every run."""

    def __init__(self, shapes: Shapes, max_grad_norm: float, count: int) -> None:
        self._shapes = shapes
        self._clip = max_grad_norm
        self._count = count
        self._generator = torch.Generator().manual_seed(20_240_101)

    def zeros(self, count: int) -> Stimulus:
        """Examples whose gradients are 0: an update of noise alone."""
        return Stimulus("zero gradients", {n: torch.zeros(count, *s).double() for n, s in self._shapes.items()})

    def for_the_formula(self) -> list[Stimulus]:
        """Stimuli on which the candidates of `signals` differ."""
        clip, count = self._clip, self._count
        return [
            self._small(count),
            self._small(2 * count),
            self._scaled("one huge example", torch.tensor([10.0 * clip])),
            self._scaled("norms from 0.03 C to 100 C", clip * torch.logspace(-1.5, 2, count)),
            self._mixed_below(),
            self._aligned(),
            self._spike(),
            *(self._in_one_parameter(name) for name in list(self._shapes)[:3] if len(self._shapes) > 1),
            self._even_parameters(),
            self._even_parameters(0.4),
        ]

    def for_sensitivity(self) -> list[Stimulus]:
        """Stimuli of which examples are taken away, one at a time."""
        stimuli = [stimulus for stimulus in self.for_the_formula() if 1 < stimulus.count <= self._count]
        return [*stimuli, self._extreme()]

    def with_bad_rows(self) -> tuple[Stimulus, Stimulus]:
        """A stimulus with two rows that are not finite, and the same without them."""
        good = self._scaled("two rows are not finite", torch.full((self._count,), 0.3 * self._clip / self._count))
        bad = {name: value.clone() for name, value in good.gradients.items()}
        for place, value in enumerate(bad.values()):
            flat = value.reshape(value.shape[0], -1)
            if place == 0:
                flat[0, 0], flat[1, -1] = math.nan, math.inf
        kept = {name: value[2:] for name, value in good.gradients.items()}
        return Stimulus(good.what, bad), Stimulus(good.what, kept)

    def huge_on_top(self) -> Stimulus:
        """Examples of very different norms, for the noise beside them."""
        return self._scaled("very different norms", self._clip * torch.logspace(-1, 3, self._count))

    def _directions(self, count: int) -> dict[str, Tensor]:
        raw = {n: torch.randn(count, *s, generator=self._generator).double() for n, s in self._shapes.items()}
        return self._with_norms(raw, torch.ones(count))

    def _with_norms(self, raw: dict[str, Tensor], wanted: Tensor) -> dict[str, Tensor]:
        squares = sum((value.reshape(value.shape[0], -1) ** 2).sum(1) for value in raw.values())
        scale = wanted.double() / torch.as_tensor(squares).sqrt()
        return {n: v * scale.reshape(-1, *[1] * (v.ndim - 1)) for n, v in raw.items()}

    def _scaled(self, what: str, norms: Tensor) -> Stimulus:
        return Stimulus(what, self._with_norms(self._directions(len(norms)), norms))

    def _small(self, count: int) -> Stimulus:
        return self._scaled(
            f"{count} small gradients, together below C", torch.full((count,), 0.3 * self._clip / count)
        )

    def _mixed_below(self) -> Stimulus:
        return self._scaled("each below C, together above", self._clip * torch.linspace(0.5, 0.95, self._count))

    def _aligned(self) -> Stimulus:
        one = self._directions(1)
        return Stimulus(
            "equal huge gradients",
            {n: (10 * self._clip * v).expand(self._count, *v.shape[1:]).clone() for n, v in one.items()},
        )

    def _spike(self) -> Stimulus:
        values = {n: torch.zeros(2, *s).double() for n, s in self._shapes.items()}
        first = next(iter(values.values())).view(2, -1)
        first[0, 0], first[1, -1] = 10 * self._clip, -3 * self._clip
        return Stimulus("gradients in a single value", values)

    def _in_one_parameter(self, name: str) -> Stimulus:
        values = {n: torch.zeros(2, *s).double() for n, s in self._shapes.items()}
        raw = torch.randn(2, *self._shapes[name], generator=self._generator).double()
        values[name] = raw / raw.reshape(2, -1).norm(dim=1).reshape(2, *[1] * len(self._shapes[name])) * 5 * self._clip
        return Stimulus(f"gradients in {name} only", values)

    def _even_parameters(self, scale: float = 0.9) -> Stimulus:
        raw = {n: torch.randn(2, *s, generator=self._generator).double() for n, s in self._shapes.items()}
        values = {
            n: v / v.reshape(2, -1).norm(dim=1).reshape(2, *[1] * (v.ndim - 1)) * scale * self._clip
            for n, v in raw.items()
        }
        return Stimulus(f"norm {scale:g} C in every parameter", values)

    def _extreme(self) -> Stimulus:
        norms = self._clip * torch.tensor([1e-12, 1e-6, 1.0, 1e3, 1e6, 1e12])
        return self._scaled("norms from 1e-12 C to 1e12 C", norms)
