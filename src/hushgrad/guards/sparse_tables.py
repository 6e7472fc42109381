"""What is refused of tables whose rows are chosen privately (`SparseRows`), at set-up, as a list of errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adagrad, Optimizer, SparseAdam

from hushgrad.errors import HushgradError, ParameterMismatchError, UnsupportedModelError, UnsupportedOptimizerError
from hushgrad.joined_optimizer import parts_of
from hushgrad.printable import full_name
from hushgrad.sparse_rows.rule import SparseRows

_CURE = (
    "Use SGD without momentum and weight decay, Adagrad without weight decay, or SparseAdam; and another optimizer for "
    "the other parameters if you like: hushgrad.JoinedOptimizer([for_tables, for_the_rest])"
)

_REFUSED_OPTIONS: Mapping[type[Optimizer], Mapping[str, str]] = {
    SGD: {
        "momentum": "moves rows that were not chosen",
        "weight_decay": "moves rows that were not chosen",
        "fused": "takes no sparse gradients",
    },
    Adagrad: {"weight_decay": "moves rows that were not chosen", "fused": "takes no sparse gradients"},
    SparseAdam: {},
}
"""The optimizers that touch the rows of a sparse gradient alone, and under which options they do not."""


def sparse_table_problems(model: nn.Module, rule: SparseRows, optimizer: Optimizer | None) -> Iterator[HushgradError]:
    """Yield what is wrong with the tables of `rule` in a model, and with the optimizer that updates them."""
    names = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    tables = {name: names[name] for name in rule.tables if name in names}
    for name in rule.tables:
        if name not in tables:
            yield ParameterMismatchError(
                "is no trainable parameter of the model, or another name of one",
                where=name,
                cure="Give SparseRows(tables=...) names of model.named_parameters(), and freeze none of them",
            )
    yield from _problems_of_tables(model, tables)
    if names and not names.keys() - tables.keys():
        yield UnsupportedModelError(
            "all that is trained are tables of SparseRows: nothing is left that shows whether a loop clears gradients",
            where=", ".join(tables),
            cure="Train one more parameter, such as a bias of the prediction",
        )
    if optimizer is not None:
        yield from update_problems(optimizer, tables)


def _problems_of_tables(model: nn.Module, tables: Mapping[str, nn.Parameter]) -> Iterator[HushgradError]:
    every_name: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        every_name.setdefault(id(parameter), []).append(name)
    for name, table in tables.items():
        if isinstance(table, nn.UninitializedParameter):
            continue  # refused as such
        if table.ndim != 2 or not table.is_contiguous() or not table.numel():
            yield UnsupportedModelError(
                f"is no contiguous table [rows, dim] with values, but {list(table.shape)} with strides "
                f"{list(table.stride())}",
                where=name,
                cure="Leave it out of SparseRows(tables=...), or make it contiguous",
            )
        if len(every_name[id(table)]) > 1:
            others = ", ".join(other for other in every_name[id(table)] if other != name)
            yield UnsupportedModelError(
                f"is tied to {others}: another layer's use of the table touches every row of it",
                where=name,
                cure="Give that layer weights of its own, or leave the table out of SparseRows(tables=...)",
            )


def update_problems(optimizer: Optimizer, tables: Mapping[str, nn.Parameter]) -> Iterator[HushgradError]:
    """Yield under which of its present options an optimizer would not touch the chosen rows of `tables` alone."""
    name_of = {id(table): name for name, table in tables.items()}
    for part in parts_of(optimizer):
        for group in part.param_groups:
            held = [name_of[id(parameter)] for parameter in group["params"] if id(parameter) in name_of]
            if held:
                yield from _problems_of_group(part, group, ", ".join(held))


def _problems_of_group(optimizer: Optimizer, group: Mapping[str, Any], where: str) -> Iterator[HushgradError]:
    options = _REFUSED_OPTIONS.get(type(optimizer))
    if options is None:
        yield UnsupportedOptimizerError(
            f"{full_name(type(optimizer))} is not known to touch the chosen rows of a sparse gradient alone",
            where=where,
            cure=_CURE,
        )
        return
    for option, what in options.items():
        if _is_set(group.get(option)):
            yield UnsupportedOptimizerError(
                f"{option} of {type(optimizer).__name__} {what} of a table", where=where, cure=_CURE
            )


def _is_set(value: Any) -> bool:
    return bool((value != 0).any()) if isinstance(value, torch.Tensor) else bool(value)


def updates_tables_alone(optimizer: Optimizer, rule: SparseRows | None, model: nn.Module) -> bool:
    """Return whether all that an optimizer updates are tables of `rule`."""
    if rule is None:
        return False
    tables = {id(parameter) for name, parameter in model.named_parameters() if name in rule.tables}
    return all(id(parameter) in tables for group in optimizer.param_groups for parameter in group["params"])
