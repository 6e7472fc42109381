"""Per-example gradients of a structure: by the oracle, by this library, and by Opacus."""

from __future__ import annotations

import copy
import functools
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from clean_models import rows
from clean_structures import SINGLE, B, Structure
from torch import Tensor, nn

from hushgrad.capture.scope import Scope
from hushgrad.capture.uses import UsePool
from hushgrad.errors import HushgradError
from hushgrad.gradients.combine import combine
from hushgrad.guards.compatibility import require_separate_examples

Gradients = Mapping[str, Tensor]


@dataclass(frozen=True)
class Outcome:
    """What came of a structure: `verdict` is one word for the table, `detail` says more."""

    verdict: str
    detail: str = ""


def built(structure: Structure) -> tuple[nn.Module, Any]:
    torch.manual_seed(11)
    model, inputs = structure.make(), structure.inputs(B)
    single = structure.program in SINGLE
    return (model if single else model.double()), inputs


def oracle(structure: Structure) -> Gradients:
    """One example at a time through an ordinary copy of the model, `[B, *shape]` for each trainable parameter."""
    model, inputs = built(structure)
    found: dict[str, list[Tensor]] = {}
    for i in range(B):
        alone = copy.deepcopy(model)
        structure.program(alone, rows(inputs, slice(i, i + 1)))
        for name, parameter in alone.named_parameters():
            if parameter.requires_grad:
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                found.setdefault(name, []).append(gradient.double())
    return {name: torch.stack(parts) for name, parts in found.items()}


@functools.cache
def by_hushgrad(structure: Structure) -> Outcome:
    model, inputs = built(structure)
    pool = UsePool()
    pool.batch_size = B
    scope = None
    try:
        require_separate_examples(model, list(model.modules()))
        scope = Scope(model, pool)
        structure.program(model, inputs)
    except (HushgradError, RuntimeError) as error:
        if not str(error).startswith("DP"):
            raise
        return Outcome("refused", str(error))
    finally:
        if scope is not None:
            scope.detach()
    stray = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    if stray:
        return Outcome("refused", f"DP401 at the step: an ordinary gradient on {', '.join(stray)}")
    return judged({name: combine(parts).per_example() for name, parts in pool.take().items()}, structure)


@functools.cache
def by_opacus(structure: Structure) -> Outcome:
    """The default mode of Opacus: validated as `make_private` does, hooks, functorch for layers without a rule."""
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer
    from opacus.validators import ModuleValidator

    model, inputs = built(structure)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ModuleValidator.validate(model, strict=True)
            wrapped = GradSampleModule(model, batch_first=structure.batch_first, loss_reduction="sum")
        except Exception as error:  # whatever it raises is what its user sees
            return Outcome("refused", _first_line(error))
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = DPOptimizer(
            torch.optim.SGD(trained, 0.0),
            noise_multiplier=0.0,
            max_grad_norm=1.0,
            expected_batch_size=B,
            loss_reduction="sum",
        )
        try:
            structure.program(wrapped, inputs)
            found = {names[id(parameter)]: sample.clone() for parameter, sample in _samples(optimizer)}
            optimizer.step()
        except Exception as error:
            return Outcome("fails", _first_line(error))
    return judged(found, structure)


def _samples(optimizer: Any) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Yield the per-example gradients as the optimizer reads them, those of several backwards one behind the other."""
    yield from zip(optimizer.params, optimizer.grad_samples, strict=True)


def _first_line(error: Exception) -> str:
    """The first sentence of a message; Opacus lists its errors inside one another."""
    line = next((line for line in str(error).splitlines() if line.strip()), "")
    inner = re.search(r"Error\(['\"](.*?)['\"]\)", line)
    sentence = (inner.group(1) if inner else line).split(". ")[0].strip()
    sentence = sentence if len(sentence) <= 160 else sentence.split("(:")[0][:160] + " ..."
    return f"{type(error).__name__}: {sentence}"


def judged(found: Gradients, structure: Structure) -> Outcome:
    """Compare with the oracle: what is missing, counted several times, or wrong."""
    wanted = oracle(structure)
    left_out = [name for name, value in wanted.items() if name not in found and bool(value.any())]
    if left_out:
        return Outcome("wrong", f"left out in silence: {', '.join(left_out)}")
    sizes = {value.shape[0] for name, value in found.items() if name in wanted} - {B}
    if sizes:
        return Outcome("wrong", f"has gradients for {sizes.pop()} records, not {B}")
    difference = size = 0.0
    for name, value in wanted.items():
        own = found.get(name, torch.zeros_like(value)).double().reshape(value.shape)
        difference += float((own - value).square().sum())
        size += float(value.square().sum())
    error = (difference / size) ** 0.5
    tolerance = 2e-2 if structure.program in SINGLE else 1e-5
    return Outcome("exact") if error <= tolerance else Outcome("wrong", f"gradients are {100 * error:.0f}% off")
