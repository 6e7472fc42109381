"""What a session shows of itself in a notebook and at a prompt: what was charged, what is left, by which mechanism."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hushgrad.session.session import Session


def facts_of(session: Session) -> dict[str, object]:
    """Return names and values that are public: settings, and what was charged. No ε, which needs a δ."""
    mechanism = session.mechanism
    limits: dict[str, object] = {"steps left": session.steps_left, "passes left": session.passes_left}
    return {
        "state": "closed" if session.is_closed else "open",
        "steps charged": session.steps,
        **{name: value for name, value in limits.items() if value is not None},
        "noise": mechanism.noise.describe(),
        "clip rule": mechanism.clipping.describe(),
        "sampling": mechanism.sampling.describe(),
        "expected batch size": f"{mechanism.expected_batch_size:g}",
    }


def line_of(session: Session) -> str:
    """Return the most important of it on one line."""
    facts = facts_of(session)
    said = ", ".join(f"{name} {facts[name]}" for name in ("steps charged", "steps left") if name in facts)
    return f"<{type(session).__name__}, {facts['state']}: {said}>"
