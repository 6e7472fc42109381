"""What does not go with private training in a framework: every reason at once, each with its cure."""

from __future__ import annotations

from collections.abc import Sequence

from hushgrad.errors import IncompatibleFrameworkError

WIDE_ENOUGH = frozenset({"32-true", "64-true", "bf16-mixed", "bf16-true"})
"""The precisions of Lightning and Fabric that scale no loss."""


def refuse(framework: str, problems: Sequence[tuple[str, str]]) -> None:
    """Raise `IncompatibleFrameworkError` that names every problem and every cure, if there are any."""
    if problems:
        raise IncompatibleFrameworkError(
            "; ".join(what for what, _ in problems),
            where=framework,
            cure="; ".join(cure for _, cure in problems),
        )
