"""All rules in one table."""

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
from hushgrad.capture.operators.operator import Rules

RULES: Rules = {
    **linear.RULES,
    **convolution.RULES,
    **embedding.RULES,
    **normalization.RULES,
    **broadcast.RULES,
    **differentiation.RULES,
}
REFUSALS = normalization.REFUSALS
COMPOSITES = composite.COMPOSITES
