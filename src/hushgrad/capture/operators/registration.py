"""One decorator holds what is known of an operator: how its use is captured, and where the batch lies in its result.

    @captures(torch.addmm, Tensor.addmm, axis=products.added_product)
    def addmm(context, func, args, kwargs): ...

The axis rule is part of it because a captured use whose result nobody can follow would be refused at the next layer.
Operators that no parameter meets, and that only move the batch, stand in `axes/table.py`.

Guarantee: an operator that is registered twice raises at import.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from hushgrad.capture.axes.rules import AxisRule
from hushgrad.capture.axes.table import AXIS_RULES
from hushgrad.capture.operators.operator import Composite, Rule
from hushgrad.capture.torch_names import Function, add

RULES: dict[Function, Rule] = {}
COMPOSITES: dict[Function, Composite] = {}
FIRST: dict[Function, Rule] = {}
"""What was registered: by `captures`, by `opens`, and by `asked_first`. Read in the order of `consultation.py`."""

R = TypeVar("R", bound=Rule)


def captures(*functions: Function, axis: AxisRule | None, follows: Sequence[Function] = ()) -> Callable[[R], R]:
    """Register a rule for some operators.

    Args:
        functions: what torch calls the operator: functions and methods that the rule's arguments fit.
        axis: where the batch lies in its result; None where the rule, or the mode, says that itself.
        follows: other spellings whose results the axis rule knows, and whose arguments the rule does not take.

    Raises:
        InvalidArgumentError: an operator that has a rule already.
    """
    return _registering(RULES, functions, axis, follows)


def opens(*functions: Function, axis: AxisRule) -> Callable[[R], R]:
    """Register a rule that runs with the mode on, for operators made of others: each part is captured by its own rule.

    Args:
        functions: what torch calls the operator.
        axis: where the batch lies in the result of a call that runs as it is, without a parameter.

    Raises:
        InvalidArgumentError: an operator that has a rule already.
    """
    return _registering(COMPOSITES, functions, axis, ())


def asked_first(*functions: Function) -> Callable[[R], R]:
    """Register a rule that is asked before all others, with a parameter or without: what is to be refused in any case.

    Raises:
        InvalidArgumentError: an operator that has such a rule already.
    """

    def register(rule: R) -> R:
        entries: dict[Function, Rule] = dict.fromkeys(functions, rule)
        add(FIRST, entries)
        return rule

    return register


def _registering(
    table: dict[Function, Rule], functions: Sequence[Function], axis: AxisRule | None, follows: Sequence[Function]
) -> Callable[[R], R]:
    def register(rule: R) -> R:
        other = COMPOSITES if table is RULES else RULES
        entries: dict[Function, Rule] = dict.fromkeys(functions, rule)
        add(table, entries, apart_from={*other, *AXIS_RULES})
        if axis is not None:
            add(AXIS_RULES, dict.fromkeys([*functions, *follows], axis))
        return rule

    return register
