"""The options of lookup tables under which one example would change what another one gets, or show which rows it read.

One list for all who need it: the rules of the operators, the checks at set-up, and what makes a model ready.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from hushgrad.errors import CrossSampleLeakError, HushgradError, SparseGradientError, UnsupportedModelError

TABLES = (nn.Embedding, nn.EmbeddingBag)

ALLOWED: dict[str, Any] = {"sparse": False, "max_norm": None, "scale_grad_by_freq": False}
"""The options, and the one value that each may have."""

OF_GRADIENTS = frozenset({"sparse", "scale_grad_by_freq"})
"""Those that do nothing to a table which is not trained."""

_REASONS: dict[str, tuple[type[HushgradError], str]] = {
    "sparse": (SparseGradientError, "sparse=True would show which rows were touched"),
    "max_norm": (UnsupportedModelError, "max_norm rescales the rows that the batch looks up, without noise"),
    "scale_grad_by_freq": (
        CrossSampleLeakError,
        "scale_grad_by_freq divides an example's gradient by counts over the whole batch",
    ),
}


def refused_options(given: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of those of the given options that cannot be kept."""
    for option, allowed in ALLOWED.items():
        value = given[option]
        if value is not allowed and value != allowed:
            yield option


def reason(option: str) -> str:
    """Return why an option cannot be kept."""
    return _REASONS[option][1]


def option_error(option: str, where: str, *, helped_by: str = "") -> HushgradError:
    """Return the error for an option of the table `where`; `helped_by` names what sets the option for the user."""
    kind, what = _REASONS[option]
    helper = f", as {helped_by} does" if helped_by else ""
    return kind(what, where=where, cure=f"Set {option}={ALLOWED[option]}{helper}")
