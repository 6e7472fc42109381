"""From recorded contributions to one row for each operator of each module."""

from __future__ import annotations

from collections.abc import Sequence

from hushgrad.checks.doctor.cost import SLICES_COST, Cost, LayerSetting, cost_of, taken_by
from hushgrad.checks.doctor.findings import Use
from hushgrad.checks.doctor.recording import Recorded
from hushgrad.gradients.combine import combine
from hushgrad.gradients.contribution import Plan

Key = tuple[str, str, tuple[str, ...], str]


def uses_of(recorded: Sequence[Recorded], plan: Plan) -> tuple[Use, ...]:
    """Return the uses in the order of the forward; calls of one operator on the same parameters are one row."""
    by_parameter: dict[str, list[Recorded]] = {}
    for part in recorded:
        by_parameter.setdefault(part.parameter, []).append(part)
    wholes = {name: combine([part.contribution for part in parts]) for name, parts in by_parameter.items()}
    calls: dict[tuple[int, str], list[Recorded]] = {}
    for part in recorded:
        calls.setdefault((part.call, part.operator), []).append(part)
    rows: dict[Key, list[list[tuple[Recorded, Cost]]]] = {}
    for parts in calls.values():
        costs = []
        for part in parts:
            whole, count = wholes[part.parameter], len(by_parameter[part.parameter])
            setting = LayerSetting(whole, count, part.held_bytes, part.output_values, part.input_needed)
            costs.append((part, cost_of(part.contribution, setting, plan)))
            if count == 1:  # its gradients are formed at once, in this order
                plan = plan.after(taken_by(whole, plan))
        rows.setdefault(_key(parts), []).append(costs)
    return tuple(reversed([_use(key, calls) for key, calls in rows.items()]))


def _key(parts: Sequence[Recorded]) -> Key:
    operator = parts[0].operator.partition("(")[0]
    names = tuple(dict.fromkeys(part.parameter for part in parts))
    module = parts[0].module
    if module is None:
        module = names[0].rpartition(".")[0]
    return module, operator, names, parts[0].route


def _use(key: Key, calls: Sequence[Sequence[tuple[Recorded, Cost]]]) -> Use:
    module, operator, names, route = key
    everything = [cost for call in calls for _, cost in call]
    main = max(everything, key=lambda cost: cost.ordinary_flops)
    part = calls[0][0][0]
    ordinary = sum(cost.ordinary_flops for cost in everything)
    private = sum(cost.private_flops for cost in everything)
    way = main.way
    if route:
        way = f"generic: {route}"
        private += ordinary * (SLICES_COST - 1 if route == "slices" else part.contribution.batch_size - 1)
    elif "(" in part.operator.partition("(")[2]:
        way = "derived"
    return Use(
        module=module,
        operator=operator,
        parameters=names,
        way=way,
        calls=len(calls),
        batch_size=part.contribution.batch_size,
        positions=main.form.positions,
        outputs=main.form.outputs,
        inputs=main.form.inputs,
        ordinary_flops=ordinary,
        private_flops=private,
        memory_bytes=sum(cost.memory_bytes for cost in everything),
    )
