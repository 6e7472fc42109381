"""Do the gradients that a loop's calls hand to the model's outputs grow as the losses' own do?

A mean divides them by the number of drawn records. What changes them by their size (a clamp, a threshold, a norm of 1,
in a hook or an autograd function of the loop's) then makes each example's gradient depend on how many there are.
"""

from __future__ import annotations

from hushgrad.errors import CrossSampleLeakError
from hushgrad.guards.probing.loss_program import Program
from hushgrad.guards.probing.loss_replay import NotRunningError, gradient_pairs, is_same, replayed

LARGE = 1e4
"""By how much gradients are scaled: what changes large ones only, or small ones only, is met."""


def by_their_size(where: str) -> CrossSampleLeakError:
    """Return the error for gradients that are changed so."""
    return CrossSampleLeakError(
        "gradients are changed by their size (a clamp, a threshold, a normalisation, in a hook or a custom function), "
        "and the loop's own mean divides them by the number of drawn records, so that each example's gradient depends "
        "on how many there are; most of all for this",
        where=where,
        cure="Compute the loss by engine.per_example(criterion), or call engine.session.backward(losses) with one loss "
        "per example: both divide nothing",
    )


def require_proportional_gradients(program: Program) -> None:
    """Run an item's calls again with losses of other sizes.

    Raises:
        CrossSampleLeakError: the gradients that come to the model's outputs are not proportional to them.
    """
    for scale in (1 / LARGE, LARGE):
        try:
            base, other = replayed(program, {}), replayed(program, {}, scale=scale)
        except NotRunningError:
            return
        for _, one, two in gradient_pairs(program, base, other):
            if not is_same(one.reshape(1, -1), two.reshape(1, -1), factor=scale):
                names = ("register_hook", "apply")
                hooks = (call for call in program.calls if getattr(call.function, "__name__", "") in names)
                raise by_their_size(str(next(hooks, "a hook of the loop's")))
