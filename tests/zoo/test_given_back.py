"""Every clean model comes back from the probe and from doctor as an untouched one is after its first forward."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES
from clean_models import CLEAN, Clean, call, losses
from test_clean import Records
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hushgrad import PrivacyEngine, doctor
from hushgrad.guards.probing.trees import tensors_at

B = 3
ZOO: dict[str, Clean] = {**CLEAN, **ARCHITECTURES}


def kept(value: Any, depth: int = 3) -> Any:
    """Return what an object or a container holds, in values that can be compared."""
    if isinstance(value, Tensor):
        return value.detach().shape, value.detach().double().nan_to_num().sum().item(), value.requires_grad
    if isinstance(value, (bool, int, float, str, type(None))):
        return value
    if isinstance(value, dict) and depth:
        return [(key if isinstance(key, str) else "", kept(part, depth - 1)) for key, part in value.items()]
    if isinstance(value, (list, tuple)) and depth:
        return [kept(part, depth - 1) for part in value]
    if callable(value):
        return type(value).__name__  # a hook
    return type(value).__name__, kept(vars(value), depth - 1) if depth and "__dict__" in dir(value) else None


def of_modules(model: nn.Module) -> dict[str, Any]:
    """Return what every module holds; parts are those of the list of modules itself."""
    return {
        name: {key: kept(part) for key, part in vars(module).items() if key != "_modules"}
        for name, module in model.named_modules()
    }


def built(name: str) -> tuple[nn.Module, nn.Module, Any]:
    """Return a model that shows all its hidden states if it can, an untouched twin, and inputs."""
    entry = ZOO[name]
    model = entry.make()
    if (config := vars(model).get("config")) is not None:
        config.output_hidden_states = True
    frozen = {part for part in model.modules() if not part.training}
    model.train()
    for part in frozen:
        part.eval()
    return model, copy.deepcopy(model), entry.inputs(B)


def outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    torch.manual_seed(1)
    with torch.no_grad():
        return [tensor for _, tensor in tensors_at(call(model, inputs))]


def assert_alike(model: nn.Module, twin: nn.Module, inputs: Any) -> None:
    one, other = of_modules(model), of_modules(twin)
    assert one.keys() == other.keys()
    for name, own in other.items():
        assert one[name] == own, name
    for mode in (True, False):  # with the random numbers of training, and without
        found, wanted = outputs(model.train(mode), inputs), outputs(twin.train(mode), inputs)
        assert len(found) == len(wanted) > 0
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ZOO)
def test_a_probed_model_is_an_untouched_one_after_its_first_forward(name: str) -> None:
    model, twin, inputs = built(name)
    engine = PrivacyEngine(test_key=1)
    _, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.0),
        data_loader=DataLoader(Records(inputs, B), batch_size=B),
        noise_multiplier=0.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
    )
    for item in loader:
        torch.manual_seed(0)
        engine.session.backward(losses(ZOO[name].take(call(model, item))))
        optimizer.step()
    assert engine.session.probe_report.examined
    engine.session.close()
    optimizer.zero_grad()
    torch.manual_seed(0)
    call(twin, inputs)
    assert_alike(model, twin, inputs)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_doctor_leaves_a_model_that_never_ran(name: str) -> None:
    model, twin, inputs = built(name)
    assert doctor(model, inputs).uses
    assert_alike(model, twin, inputs)
