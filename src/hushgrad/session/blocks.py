"""How long a new block of steps may be, beside those that were charged before: into the plan, and into the budget."""

from __future__ import annotations

from hushgrad.accounting.budget import MOST, Budget
from hushgrad.accounting.composition import Composition, costs_no_more, count_steps
from hushgrad.mechanism import Mechanism


def steps_of_block(
    mechanism: Mechanism, index: int, before: Composition, within: Composition, budget: Budget | None
) -> int | None:
    """Return the most steps of block `index`; None where nothing limits them.

    A block is charged for the participations that it adds, so the last steps of a plan may not fit after a resume.

    Args:
        mechanism: what plans `steps` steps without a break, if it does.
        index: the number of the block.
        before: what was charged in earlier phases.
        within: what was charged in this one: earlier blocks.
        budget: that of the whole account, if it has one.

    Guarantee: with such a block the phase costs no more than the steps that are planned without a break, and the
    account no more than its budget.

    Raises `UnreachableTargetError` where the budget has no room for a first step.
    """
    planned, event = mechanism.steps, mechanism.event(index)
    if planned is None and budget is None:
        return None

    def fits(count: int) -> bool:
        phase = [*within, (event, count)]
        if planned is not None and not costs_no_more(phase, mechanism.first(planned)):
            return False
        return budget is None or budget.spent([*before, *phase]) <= budget.epsilon

    if budget is not None and not within:
        budget.most(lambda count: [*before, (event, count)], 1)  # says that nothing fits, where it does not
    room = (MOST if planned is None else planned) - count_steps(within)
    good, bad = 0, 1
    while bad <= room and fits(bad):
        good, bad = bad, 2 * bad
    bad = min(bad, room + 1)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return max(good, 0)
