"""What comes of one architecture: exact, refused, or something that must not be."""

from __future__ import annotations

import contextlib
import copy
import importlib
import re
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from hushgrad import PrivacyEngine, make_private_ready, register_operator
from hushgrad.errors import HushgradError
from walk.inputs import B, forms
from walk.registry import model_class
from walk.shrinking import small

LARGEST = 4_000_000
TOLERANCE = 1e-5
DETAIL = 700
"""How many characters of a message are kept."""

_registered: dict[Any, Any] = {}
"""What cures registered; a process registers an operator once."""


@dataclass
class Outcome:
    """What came of one program.

    Attributes:
        name: the model type, or the adapter and its base.
        verdict: exact; refused (though nothing mixes); cured, by the line of code that the refusal says; alone, refused
            but exact in items of one example, as the refusal says; mixes (and is refused); wrong; untyped; unbuilt; or
            unfed.
        detail: the message of a refusal, or what went wrong.
        error: ‖found − wanted‖ / ‖wanted‖.
        notes: what was done to the model first.
    """

    name: str
    verdict: str
    detail: str = ""
    error: float | None = None
    built: str = ""
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return what is kept in the file: short, and the same where nothing has changed."""
        found = {key: value for key, value in asdict(self).items() if value}
        if self.error is not None:
            found["error"] = float(f"{self.error:.0e}")
        return {**found, "detail": self.detail[:DETAIL]}


class Records(Dataset[Any]):
    """The examples of a batch of inputs."""

    def __init__(self, inputs: dict[str, Tensor]) -> None:
        self.inputs = inputs

    def __len__(self) -> int:
        return B

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: value[index] for name, value in self.inputs.items()}


def built(name: str, overrides: dict[str, Any] | None = None) -> nn.Module:
    """Return a small model of a class, its values all drawn."""
    kind = model_class(name)
    config = small(kind.config_class(), overrides)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in kind(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size} parameters")
    torch.manual_seed(7)
    model = kind(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    for part in model.modules():
        if isinstance(part, nn.modules.dropout._DropoutNd):
            part.p = 0.0
    return model


def outputs_of(outputs: Any) -> list[str]:
    """Return the names of the outputs that a loss may be taken of, the likeliest first."""
    values = outputs if isinstance(outputs, dict) else {}
    names = dict.fromkeys(["logits", "last_hidden_state", "pooler_output", "pred_logits", *values])
    return [name for name in names if _has_rows(values.get(name))]


def _has_rows(value: Any) -> bool:
    is_data = isinstance(value, Tensor) and value.is_floating_point() and value.requires_grad
    return is_data and value.ndim > 1 and value.shape[0] == B


def losses(out: Tensor) -> Tensor:
    """One loss for each example, that treats all values of its output differently."""
    flat = out.flatten(1)
    kept = flat.masked_fill(~torch.isfinite(flat), 0)
    return (kept * torch.linspace(-1, 2, flat.shape[1], dtype=flat.dtype)).sin().mean(1)


def row(inputs: dict[str, Tensor], i: int) -> dict[str, Tensor]:
    return {name: value[i : i + 1] for name, value in inputs.items()}


def fed(model: nn.Module) -> tuple[dict[str, Tensor], str]:
    """Return inputs that an ordinary model takes, and an output of it: one that mixes no examples if there is any."""
    errors: list[str] = []
    for inputs in forms(model):
        try:
            torch.manual_seed(1)
            whole, alone = model(**inputs), model(**row(inputs, 0))
            names = [name for name in outputs_of(whole) if name in alone and alone[name].shape[0] == 1]
            if names:
                apart = [name for name in names if _agree(alone[name][0], whole[name][0])]
                return inputs, (apart or names)[0]
            errors.append("no output has a row for each example")
        except Exception as error:  # whatever a model says of inputs that it does not take
            errors.append(f"{type(error).__name__}: {str(error)[:160]}")
    raise LookupError(" / ".join(list(dict.fromkeys(errors))[-4:]) or "no form of inputs fits")


def _agree(alone: Tensor, together: Tensor) -> bool:
    """Whether an example gives the same alone as in a batch."""
    same = alone.shape == together.shape
    return same and torch.allclose(alone.detach(), together.detach(), rtol=1e-3, atol=1e-4, equal_nan=True)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def oracle(model: nn.Module, inputs: dict[str, Tensor], name: str) -> tuple[list[dict[str, Tensor]], bool]:
    """Return the gradients of each example alone, and whether examples mix in the model itself."""
    all_outputs = model(**inputs)
    whole = all_outputs[name]
    losses(whole).sum().backward()
    joint = gradients(model)
    singles, mixes = [], False
    for i in range(B):
        model.zero_grad(set_to_none=True)
        own_outputs = model(**row(inputs, i))
        alone = own_outputs[name]
        mixes |= any(not _agree(own_outputs[key][0], all_outputs[key][i]) for key in outputs_of(all_outputs))
        losses(alone).sum().backward()
        singles.append(gradients(model))
    model.zero_grad(set_to_none=True)
    total = {key: sum(single[key] for single in singles) for key in joint}
    return singles, mixes or distance(joint, total) > 1e-3


def distance(found: dict[str, Tensor], wanted: dict[str, Any]) -> float:
    difference = sum(float((found[key] - wanted[key]).double().square().sum()) for key in wanted)
    size = sum(float(wanted[key].double().square().sum()) for key in wanted)
    return (difference / size) ** 0.5 if size else float("inf") if difference else 0.0


def clipped(singles: list[dict[str, Tensor]], limit: float) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for single in singles:
        factor = min(1.0, limit / max(norm(single), 1e-30))
        for key, value in single.items():
            total[key] = total.get(key, 0) + factor * value.double()
    return total


def norm(single: dict[str, Tensor]) -> float:
    return sum(float(value.double().square().sum()) for value in single.values()) ** 0.5


def by_hushgrad(
    model: nn.Module, inputs: dict[str, Tensor], name: str, limit: float, physical: int | None = None
) -> dict[str, Tensor]:
    """Return the clipped sum of a step without noise, as a user's loop gets it, in items of so many examples."""
    model.train()
    engine = PrivacyEngine(test_key=1)
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    _, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(trained.values(), 0.0, momentum=0.9),
        data_loader=DataLoader(Records(inputs), batch_size=B),
        noise_multiplier=0.0,
        max_grad_norm=limit,
        poisson_sampling=False,
        max_physical_batch_size=physical,
    )
    try:
        model.eval()
        for batch in loader:
            optimizer.zero_grad()
            engine.session.backward(losses(model(**batch)[name]))
            optimizer.step()
        return {key: optimizer.state[p]["momentum_buffer"].double() * B for key, p in trained.items()}
    finally:
        engine.session.close()


def judged(name: str, make: Callable[[], nn.Module], *, tries_cures: bool = True) -> Outcome:
    """Return what comes of a model; where a refusal says a line of code, with it, too."""
    warnings.simplefilter("ignore")
    hf.logging.set_verbosity_error()
    outcome = Outcome(name, "unbuilt")
    try:
        model = make()
        outcome.built = type(model).__name__
        with contextlib.suppress(HushgradError):  # what cannot be made ready is refused at set-up, or needs nothing
            if make_private_ready(model):
                outcome.notes.append("made ready")
        model.eval()
    except Exception as error:
        outcome.detail = f"{type(error).__name__}: {str(error)[:200]}"
        return outcome
    try:
        outcome.verdict = "unfed"
        inputs, output = fed(model)
        singles, mixes = oracle(copy.deepcopy(model), inputs, output)
        limit = sorted(map(norm, singles))[1]
        if not limit or limit != limit:
            raise LookupError("no gradient")
    except Exception as error:
        outcome.detail = f"{type(error).__name__}: {str(error)[:200]}"
        return outcome
    wanted = clipped(singles, limit)
    _judge(outcome, model, inputs, output, wanted, limit, mixes)
    if outcome.verdict == "refused" and tries_cures:
        _try_cure(outcome, make)
    if outcome.verdict == "refused" and "max_physical_batch_size=1" in outcome.detail:
        with contextlib.suppress(HushgradError):
            outcome.error = distance(by_hushgrad(model, inputs, output, limit, physical=1), wanted)
            outcome.verdict = "alone" if outcome.error <= TOLERANCE else "wrong"
    if mixes:
        outcome.notes.append("one example alone gives something else")
    return outcome


def _judge(
    outcome: Outcome, model: nn.Module, inputs: dict[str, Tensor], output: str, wanted: Any, limit: float, mixes: bool
) -> None:
    try:
        outcome.error = distance(by_hushgrad(copy.deepcopy(model), inputs, output, limit), wanted)
        if outcome.error > TOLERANCE:
            outcome.notes.append("in float64, as float32 rounds it to more than 1e-5")
            outcome.error = _in_double(model, inputs, output)
        outcome.verdict = "exact" if outcome.error <= TOLERANCE else "wrong"
    except HushgradError as refusal:
        outcome.verdict, outcome.detail = "mixes" if mixes else "refused", str(refusal)
    except Exception as error:
        outcome.verdict, outcome.detail = "untyped", f"{type(error).__name__}: {str(error)[:400]}"


def _try_cure(outcome: Outcome, make: Callable[[], nn.Module]) -> None:
    """Do what the message of a refusal says, where that is a line of code, and see whether it helps."""
    if (line := re.search(r"Say (\S+)\.(\w+) = hushgrad\.register_operator", outcome.detail)) is not None:
        module, name = importlib.import_module(line[1]), line[2]
        before = getattr(module, name)
        if before not in _registered:
            _registered[before] = register_operator(before)
        setattr(module, name, _registered[before])
        try:
            again = judged(outcome.name, make, tries_cures=False)
        finally:
            setattr(module, name, before)
    elif "set_experts_implementation" in outcome.detail:
        again = judged(outcome.name, lambda: with_batched_experts(make()), tries_cures=False)
    else:
        return
    if again.verdict == "exact":
        outcome.verdict, outcome.error, outcome.notes = "cured", again.error, again.notes


def with_batched_experts(model: nn.Module) -> nn.Module:
    model.set_experts_implementation("batched_mm")
    return model


def _in_double(model: nn.Module, inputs: dict[str, Tensor], name: str) -> float:
    """Return the error in float64."""
    model = model.double()
    inputs = {key: value.double() if value.is_floating_point() else value for key, value in inputs.items()}
    singles, _ = oracle(copy.deepcopy(model), inputs, name)
    limit = sorted(map(norm, singles))[1]
    return distance(by_hushgrad(model, inputs, name, limit), clipped(singles, limit))
