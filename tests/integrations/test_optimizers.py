"""Every optimizer of the Trainer's menu, and of torch's: it gets the noised update and nothing else, or is refused.

The table in docs/frameworks.md is compared with what is said here.
"""

from __future__ import annotations

import copy
import importlib.util
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_transformers import NOISY, SILENT, Watched, is_as, trainer, weights
from tiny import Texts, bert
from torch import nn
from transformers import Trainer
from transformers.training_args import OptimizerNames

from hushgrad.errors import IncompatibleFrameworkError

EXACT = {
    *("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"),
    *("schedule_free_adamw", "schedule_free_sgd", "schedule_free_radam"),
}
REFUSED = {
    *("galore_adamw_layerwise", "galore_adamw_8bit_layerwise", "galore_adafactor_layerwise", "apollo_adamw_layerwise"),
    *("lomo", "adalomo"),
}
LACKS = {
    "adamw_torch_xla": "torch_xla",
    "adamw_torch_npu_fused": "torch_npu",
    "adamw_anyprecision": "torchdistx",
    "adamw_torch_4bit": "torchao",
    "adamw_torch_8bit": "torchao",
    "galore_adamw": "galore_torch",
    "galore_adamw_8bit": "galore_torch",
    "galore_adafactor": "galore_torch",
    "grokadamw": "grokadamw",
    "apollo_adamw": "apollo_torch",
    "stable_adamw": "optimi",
    **dict.fromkeys(
        (
            *("ademamix", "adamw_bnb_8bit", "adamw_8bit", "ademamix_8bit", "lion_8bit", "lion_32bit"),
            *("paged_adamw_32bit", "paged_adamw_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit"),
            *("paged_lion_32bit", "paged_lion_8bit", "rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit"),
        ),
        "bitsandbytes",
    ),
}
"""Those that an environment without these packages cannot run: exact where it has them, or the test says otherwise."""

MENU = {one.value for one in OptimizerNames}
STEPS = 4
FEW = {"adamw_torch", "adamw_torch_fused", "adafactor", "schedule_free_adamw", "galore_adamw_layerwise", "lomo", *LACKS}
FEW_DIRECT = {"AdamW, fused", "Muon", "schedule-free AdamW"}


def slow_but(few: set[str], names: Iterable[str]) -> list[Any]:
    """Return all as parameters of a test, those that are not among the few for `make test-slow`."""
    return [pytest.param(name, marks=[] if name in few else pytest.mark.slow) for name in names]


def test_every_optimizer_of_the_menu_has_a_verdict() -> None:
    assert EXACT | REFUSED | set(LACKS) == MENU
    assert len(MENU) == len(EXACT) + len(REFUSED) + len(LACKS)


def test_the_table_of_the_page_says_what_the_tests_say() -> None:
    page = (Path(__file__).parents[2] / "docs" / "frameworks.md").read_text()
    rows = re.findall(r"^\| (`[^|]*`) \| (exact|refused|not run)[^|]*\|", page, re.MULTILINE)
    said = {name: verdict for names, verdict in rows for name in re.findall(r"`([a-z0-9_]+)`", names)}
    wanted = dict.fromkeys(EXACT, "exact") | dict.fromkeys(REFUSED, "refused") | dict.fromkeys(LACKS, "not run")
    assert {name: verdict for name, verdict in said.items() if name in MENU} == wanted


def require_same_as_by_hand(run: Any, optimizer_of: Callable[[nn.Module], torch.optim.Optimizer]) -> None:
    """The same optimizer, given the sums of clipped gradients in an ordinary loop, moves the weights to the same."""
    data = Texts(3)
    assert max(run.steps.errors(data)) < 1e-5
    plain = bert()
    optimizer = optimizer_of(plain)
    for _, before, update in run.steps.steps:
        if hasattr(optimizer, "train"):
            optimizer.train()
        state = plain.state_dict()
        assert all(torch.allclose(state[name], value, rtol=1e-5, atol=1e-6) for name, value in before.items())
        for name, parameter in plain.named_parameters():
            parameter.grad = update[name].clone() if name in update else None
        optimizer.step()
    assert not is_as(run.model, weights(bert()))


@pytest.mark.parametrize("name", slow_but(FEW, sorted(EXACT | set(LACKS))))
def test_an_optimizer_of_the_menu_gets_the_private_update(name: str, tmp_path: Path) -> None:
    if name in LACKS and importlib.util.find_spec(LACKS[name]) is None:
        pytest.skip(f"{LACKS[name]} is not installed")
    if name.startswith("schedule_free") and importlib.util.find_spec("schedulefree") is None:
        pytest.skip("schedulefree is not installed")
    settings: dict[str, Any] = {"optim": name, "learning_rate": 1e-2, "lr_scheduler_type": "constant"}
    run = trainer(
        tmp_path, bert(), Texts(3), max_steps=2 * STEPS, eval_strategy="steps", eval_steps=3, eval_dataset=Texts(3),
        **settings,
    )  # fmt: skip
    run.train()
    assert run.session.steps == 2 * STEPS  # the rectified Adam moves nothing in its first four

    def ordinary(model: nn.Module) -> torch.optim.Optimizer:
        return Trainer(model=model, args=copy.copy(run.args), eval_dataset=Texts(3)).create_optimizer()

    require_same_as_by_hand(run, ordinary)


@pytest.mark.parametrize("name", slow_but(FEW, sorted(REFUSED)))
def test_an_optimizer_that_updates_inside_the_backward_is_refused_and_another_trains(name: str, tmp_path: Path) -> None:
    model = bert()
    before = weights(model)
    with pytest.raises(IncompatibleFrameworkError, match="inside the backward") as caught:
        trainer(tmp_path, model, Texts(3), NOISY, optim=name)
    assert is_as(model, before)
    assert not (tmp_path / "ledger.jsonl").exists()
    cure = caught.value.cure.rpartition(" ")[2]
    assert cure in EXACT
    run = trainer(tmp_path, model, Texts(3), NOISY, optim=cure, max_steps=1)
    run.train()
    assert run.session.steps == 1


def schedule_free(parameters: Any) -> Any:
    return pytest.importorskip("schedulefree").AdamWScheduleFree(parameters, lr=1e-2)


DIRECT: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "AdamW, fused": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, fused=True),
    "AdamW, foreach": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, foreach=True),
    "Adafactor": lambda parameters: torch.optim.Adafactor(parameters, lr=1e-2),
    "NAdam": lambda parameters: torch.optim.NAdam(parameters, lr=1e-2),
    "Muon": lambda parameters: torch.optim.Muon(parameters, lr=1e-2),
    "schedule-free AdamW": schedule_free,
}


@pytest.mark.parametrize("name", slow_but(FEW_DIRECT, DIRECT))
def test_an_optimizer_that_is_handed_over_gets_the_private_update(name: str, tmp_path: Path) -> None:
    def trained(model: nn.Module) -> list[nn.Parameter]:
        if name == "Muon":  # which is of matrices alone
            for parameter in model.parameters():
                parameter.requires_grad_(parameter.ndim == 2)
        return [parameter for parameter in model.parameters() if parameter.requires_grad]

    model = bert()
    run = trainer(
        tmp_path, model, Texts(3), SILENT, kind=Watched, max_steps=STEPS, lr_scheduler_type="constant",
        optimizers=(DIRECT[name](trained(model)), None),
    )  # fmt: skip
    run.train()
    require_same_as_by_hand(run, lambda plain: DIRECT[name](trained(plain)))
