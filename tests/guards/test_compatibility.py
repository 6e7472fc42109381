"""What may be made private, and that a refusal names all offenders. What is refused: see test_bad_inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hushgrad import doctor
from hushgrad.errors import (
    CrossSampleLeakError,
    HushgradError,
    InvalidArgumentError,
    ParameterMismatchError,
    UnsupportedModelError,
    UnsupportedOptimizerError,
)
from hushgrad.guards.compatibility import require_trainable_privately


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def frozen(module: nn.Module) -> nn.Module:
    return module.requires_grad_(False)


def tied() -> nn.Module:
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False))
    model[1].weight = model[0].weight
    return model


class Quantised(nn.Module):
    """An int8 base that cannot be trained, with a low-rank correction that can."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Parameter(torch.zeros(3, 4, dtype=torch.int8), requires_grad=False)
        self.down, self.up = nn.Linear(4, 1, bias=False), nn.Linear(1, 3, bias=False)


ACCEPTED: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "linear": (lambda: nn.Linear(3, 2), ["weight", "bias"]),
    "bfloat16": (lambda: nn.Linear(3, 2, bias=False, dtype=torch.bfloat16), ["weight"]),
    "float16": (lambda: nn.Linear(3, 2, bias=False, dtype=torch.float16), ["weight"]),
    "batch norm with frozen statistics": (
        lambda: nn.Sequential(nn.Linear(3, 2, bias=False), nn.BatchNorm1d(2).eval()),
        ["0.weight", "1.weight", "1.bias"],
    ),
    "instance norm without statistics": (
        lambda: nn.Sequential(nn.Conv1d(3, 2, 1, bias=False), nn.InstanceNorm1d(2)),
        ["0.weight"],
    ),
    "a frozen layer": (lambda: nn.Sequential(frozen(nn.Linear(3, 3)), nn.Linear(3, 2)), ["1.weight", "1.bias"]),
    "a frozen layer on the meta device": (
        lambda: nn.Sequential(frozen(nn.Linear(3, 3, device="meta")), nn.Linear(3, 2, bias=False)),
        ["1.weight"],
    ),
    "a quantised base": (Quantised, ["down.weight", "up.weight"]),
    "tied weights, each once": (tied, ["0.weight"]),
    "dropout in eval": (lambda: nn.Sequential(nn.Dropout().eval(), nn.Linear(3, 2, bias=False)), ["1.weight"]),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepts_and_returns_the_trainable_parameters_by_name(name: str) -> None:
    make, names = ACCEPTED[name]
    model = make()
    found = require_trainable_privately(model, sgd(model))
    assert list(found) == names
    assert all(found[name] is dict(model.named_parameters())[name] for name in names)


def test_accepts_several_groups_and_an_optimizer_of_the_trainable_parameters_alone() -> None:
    model = nn.Sequential(frozen(nn.Linear(3, 3)), nn.Linear(3, 2))
    groups = torch.optim.SGD([{"params": [model[1].weight]}, {"params": [model[1].bias], "lr": 1.0}], lr=0.1)
    assert len(require_trainable_privately(model, groups)) == 2


def test_every_layer_that_mixes_examples_is_named() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3), nn.Sequential(nn.BatchNorm1d(3, affine=False)))
    with pytest.raises(CrossSampleLeakError, match=r"^DP301 0, 2\.0: BatchNorm"):
        require_trainable_privately(model, sgd(model))


def test_a_subclass_of_batch_norm_is_recognised() -> None:
    class Own(nn.BatchNorm2d):
        pass

    model = nn.Sequential(nn.Conv2d(1, 2, 1), Own(2))
    with pytest.raises(CrossSampleLeakError):
        require_trainable_privately(model, sgd(model))


def test_every_parameter_that_cannot_be_trained_is_named_with_its_cure() -> None:
    model = nn.Sequential(nn.Linear(3, 2, dtype=torch.complex64), nn.Linear(3, 2, device="meta"), nn.Linear(3, 2))
    with pytest.raises(UnsupportedModelError) as caught:
        require_trainable_privately(model, sgd(model))
    for part in ("0.weight", "0.bias", "complex64", "1.weight", "meta device"):
        assert part in str(caught.value)
    assert "2.weight" not in str(caught.value)


@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
def test_hooks_on_gradients_are_refused(register: str) -> None:
    """The optimizer-in-backward trick, for one, would see nothing and train nothing."""
    model = nn.Linear(3, 2)
    vars(torch.Tensor)[register](model.weight, lambda _: None)
    with pytest.raises(UnsupportedModelError, match="weight: has a gradient hook"):
        require_trainable_privately(model, sgd(model))


def test_missing_parameters_are_all_named() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    with pytest.raises(ParameterMismatchError, match=r"0\.bias, 1\.weight, 1\.bias"):
        require_trainable_privately(model, torch.optim.SGD([model[0].weight], lr=0.1))


@pytest.mark.parametrize("base", [torch.optim.LBFGS, torch.optim.SparseAdam])
def test_subclasses_of_refused_optimizers_are_refused(base: Any) -> None:
    own = type("Own", (base,), {})
    model = nn.Linear(3, 2)
    with pytest.raises(UnsupportedOptimizerError):
        require_trainable_privately(model, own(model.parameters()))


class TwoSteps(torch.optim.SGD):
    """An optimizer with the steps of SAM."""

    def first_step(self, zero_grad: bool = False) -> None:
        """Move to where the loss is greatest nearby."""

    def second_step(self, zero_grad: bool = False) -> None:
        """Move back, and on."""


class Wrapper(torch.optim.Optimizer):
    """A wrapper of another optimizer, which has none of its hooks."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner, self.param_groups = inner, inner.param_groups


def test_an_optimizer_with_the_steps_of_sam_is_refused_with_the_reason() -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(UnsupportedOptimizerError, match="as SAM does") as raised:
        require_trainable_privately(model, TwoSteps(model.parameters(), lr=0.1))
    assert "base optimizer" in raised.value.cure


def test_a_wrapper_without_step_hooks_is_refused_with_the_order_that_works() -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(UnsupportedOptimizerError, match="no step hooks") as raised:
        require_trainable_privately(model, Wrapper(sgd(model)))
    assert "make_private first" in raised.value.cure


@pytest.mark.parametrize("wrong", [None, 3, "model", [nn.Linear(2, 2)]])
def test_what_is_no_module_or_no_optimizer_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="module: must be"):
        require_trainable_privately(wrong, sgd(nn.Linear(2, 2)))
    with pytest.raises(InvalidArgumentError, match="optimizer: must be"):
        require_trainable_privately(nn.Linear(2, 2), wrong)


def test_replicas_that_are_not_the_whole_model_are_refused_at_set_up(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        for wrapped in (
            nn.DataParallel(nn.Linear(2, 2)),
            nn.Sequential(nn.parallel.DistributedDataParallel(nn.Linear(2, 2))),
        ):
            with pytest.raises(UnsupportedModelError, match="DistributedDataParallel"):
                require_trainable_privately(wrapped, torch.optim.SGD(wrapped.parameters(), 0.1))
    finally:
        torch.distributed.destroy_process_group()


def kinds() -> dict[str, Callable[[], tuple[nn.Module, torch.optim.Optimizer]]]:
    """Return programs that set-up refuses, each for one reason."""

    def of(model: nn.Module) -> Callable[[], tuple[nn.Module, torch.optim.Optimizer]]:
        return lambda: (model, sgd(model))

    hooked, with_gradient, alone = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(3, 2)
    hooked.weight.register_hook(lambda _: None)
    with_gradient.weight.grad = torch.zeros(2, 3)
    return {
        "batch norm": of(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))),
        "instance norm": of(nn.Sequential(nn.Conv1d(3, 3, 1), nn.InstanceNorm1d(3, track_running_stats=True))),
        "sparse": of(nn.Sequential(nn.Embedding(5, 3, sparse=True))),
        "max_norm": of(nn.Sequential(nn.EmbeddingBag(5, 3, max_norm=1.0))),
        "scale_grad_by_freq": of(nn.Sequential(nn.Embedding(5, 3, scale_grad_by_freq=True))),
        "eval": of(nn.Linear(3, 2).eval()),
        "a hook": of(hooked),
        "a gradient": of(with_gradient),
        "complex": of(nn.Linear(3, 2, dtype=torch.complex64)),
        "half in the optimizer": lambda: (alone, torch.optim.SGD([alone.weight], lr=0.1)),
        "another optimizer": lambda: (alone, torch.optim.SGD([*alone.parameters(), nn.Parameter(torch.ones(1))])),
        "LBFGS": lambda: (alone, torch.optim.LBFGS(alone.parameters())),
    }


@pytest.mark.parametrize("name", kinds())
def test_what_set_up_raises_is_what_the_doctor_shows(name: str) -> None:
    """Both read one list of checks: the same kind, place, fact and cure."""
    model, optimizer = kinds()[name]()
    with pytest.raises(HushgradError) as caught:
        require_trainable_privately(model, optimizer)
    problems = doctor(model, optimizer=optimizer).problems
    assert {problem.code for problem in problems} == {caught.value.code}
    for problem in problems:
        assert problem.what in caught.value.what
        assert problem.cure in f"{caught.value.what} {caught.value.cure}"
        assert problem.cure
        assert problem.where in f"{caught.value.where} {caught.value.what}"


@pytest.mark.parametrize("options", [{"sparse": True}, {"scale_grad_by_freq": True}])
def test_options_of_gradients_are_no_matter_in_a_table_that_is_not_trained(options: dict[str, bool]) -> None:
    model = nn.Sequential(frozen(nn.Embedding(5, 3, **options)), nn.Linear(3, 2))
    require_trainable_privately(model, torch.optim.SGD(model[1].parameters(), lr=0.1))


def test_a_frozen_table_with_max_norm_is_refused() -> None:
    """Its forward writes to the rows that the batch looks up, which would show them."""
    model = nn.Sequential(frozen(nn.Embedding(5, 3, max_norm=1.0)), nn.Linear(3, 2))
    with pytest.raises(UnsupportedModelError, match="DP306 0: max_norm rescales"):
        require_trainable_privately(model, torch.optim.SGD(model[1].parameters(), lr=0.1))
