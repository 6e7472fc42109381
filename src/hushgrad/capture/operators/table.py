"""All rules, each operator in one place. An operator that stands in two is refused at import.

A call asks `FIRST`; if it uses a leaf and takes data, it then asks `COMPOSITES`, then `RULES`. A rule that returns
`NotImplemented` hands on to the next, and after the last comes the generic rule.
"""

from __future__ import annotations

from hushgrad.capture.operators import (
    broadcast,
    composite,
    convolution,
    differentiation,
    embedding,
    linear,
    normalization,
)
from hushgrad.capture.operators.operator import Rule, Rules
from hushgrad.capture.torch_names import Function, joined

RULES: Rules = joined(
    linear.RULES,
    convolution.RULES,
    embedding.RULES,
    normalization.RULES,
    broadcast.RULES,
    differentiation.RULES,
)
COMPOSITES: Rules = composite.COMPOSITES
joined(RULES, COMPOSITES)
FIRST: dict[Function, Rule] = dict(normalization.FIRST)
"""Run with leaves or without, gradients or none: what refuses, and the operators that were registered."""
