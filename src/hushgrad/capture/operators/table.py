"""All rules: to import this module is to register them, each beside its operator by a decorator."""

from __future__ import annotations

from hushgrad.capture.operators import (
    broadcast,
    composite,
    convolution,
    differentiation,
    embedding,
    grouped,
    linear,
    lookup,
    normalization,
    recurrent,
    sparse,
)
from hushgrad.capture.operators.registration import COMPOSITES as COMPOSITES
from hushgrad.capture.operators.registration import FIRST as FIRST
from hushgrad.capture.operators.registration import RULES as RULES

MODULES = (
    broadcast,
    composite,
    convolution,
    differentiation,
    embedding,
    grouped,
    linear,
    lookup,
    normalization,
    recurrent,
    sparse,
)
"""Every module that registers rules."""
