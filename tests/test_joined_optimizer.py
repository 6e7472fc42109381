"""Several optimizers of one model as one: one joint clip, one noised sum, one charge."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from hushgrad import DPSGD, FlatClipping, JoinedOptimizer, PoissonSampling, Session, privatize, session_of
from hushgrad.errors import (
    CheckpointError,
    ContractChangedError,
    InvalidArgumentError,
    ParameterMismatchError,
    ProtocolError,
    UnsupportedOptimizerError,
)
from hushgrad.randomness import KeyStream

X, Y = torch.randn(12, 3), torch.randint(0, 2, (12,))


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def plan(noise_multiplier: float = 0.0, **changes: Any) -> DPSGD:
    given: dict[str, Any] = {"clipping": FlatClipping(0.3), "sampling": PoissonSampling(0.5), "expected_batch_size": 6}
    return DPSGD(noise_multiplier=noise_multiplier, **{**given, **changes})


def parts(model: nn.Sequential) -> tuple[Optimizer, Optimizer]:
    return SGD(model[0].parameters(), lr=0.5, momentum=0.9), Adam(model[2].parameters(), lr=0.01)


def losses(model: nn.Module) -> Tensor:
    return nn.functional.cross_entropy(model(X), Y, reduction="none")


def run(model: nn.Module, optimizer: Any, session: Session, steps: int = 3) -> None:
    for _ in range(steps):
        session.backward(losses(model))
        optimizer.step()


def values(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def by_hand(steps: int) -> list[Tensor]:
    """Each example's gradient of all parameters is clipped as one, and each optimizer takes its own part of the sum."""
    model = network()
    optimizers = parts(model)
    for _ in range(steps):
        total = [torch.zeros_like(p) for p in model.parameters()]
        for loss in losses(model):
            gradients = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
            norm = torch.sqrt(sum((g.square().sum() for g in gradients), torch.zeros(())))
            for into, gradient in zip(total, gradients, strict=True):
                into += gradient * min(1.0, 0.3 / float(norm))
        for parameter, summed in zip(model.parameters(), total, strict=True):
            parameter.grad = summed / 6
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return values(model)


def test_both_parts_step_on_one_joint_clip() -> None:
    model = network()
    joined = JoinedOptimizer(parts(model))
    session = privatize(model, joined, plan())
    run(model, joined, session)
    for found, expected in zip(values(model), by_hand(3), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_joint_step_is_one_charge_and_its_noise_is_that_of_one_optimizer() -> None:
    def noised(join: bool) -> tuple[list[Tensor], int]:
        model = network()
        optimizer: Optimizer = SGD(model.parameters(), lr=0.1)
        if join:
            optimizer = JoinedOptimizer([SGD(model[0].parameters(), lr=0.1), SGD(model[2].parameters(), lr=0.1)])
        session = privatize(model, optimizer, plan(1.0), key=KeyStream.fixed_for_tests(2))
        run(model, optimizer, session, 2)
        return values(model), session.steps

    (one, steps), (joined, joint_steps) = noised(False), noised(True)
    assert steps == joint_steps == 2
    assert all(torch.equal(a, b) for a, b in zip(one, joined, strict=True))


def test_one_step_is_one_step_of_every_part_in_the_order_given() -> None:
    """Guarantee: one step is one step of every part, in the order given."""
    model, order = network(), []
    first, second = parts(model)
    joined = JoinedOptimizer([first, second])
    for name, part in (("second", second), ("first", first)):
        part.register_step_post_hook(lambda *_, name=name: order.append(name))
    model(X).sum().backward()
    assert joined.step(lambda: torch.tensor(3.0)) == 3.0
    assert order == ["first", "second"]


def test_schedulers_of_the_whole_and_of_a_part_move_the_same_groups() -> None:
    model = network()
    first, second = parts(model)
    joined = JoinedOptimizer([first, second])
    session = privatize(model, joined, plan())
    whole = torch.optim.lr_scheduler.LambdaLR(joined, lambda step: 0.5**step)
    alone = torch.optim.lr_scheduler.ExponentialLR(second, 0.1)
    run(model, joined, session, 1)
    whole.step()
    assert (first.param_groups[0]["lr"], joined.param_groups[1]["lr"]) == (0.25, 0.005)
    run(model, joined, session, 1)
    alone.step()
    assert joined.param_groups[1]["lr"] == second.param_groups[0]["lr"] == pytest.approx(0.0005)


@pytest.mark.parametrize("place", [0, 1])
def test_a_part_that_is_stepped_by_itself_is_refused_and_nothing_is_released(place: int) -> None:
    model = network()
    members = parts(model)
    joined = JoinedOptimizer(members)
    session = privatize(model, joined, plan(1.0))
    session.backward(losses(model))
    before = values(model)
    with pytest.raises(ProtocolError, match="stepped by itself"):
        members[place].step()
    assert session.steps == 0
    assert all(torch.equal(a, b) for a, b in zip(values(model), before, strict=True))
    joined.step()
    assert session.steps == 1


class Derived(SGD):
    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


def test_a_part_whose_step_calls_that_of_its_class_is_stepped_once() -> None:
    """Torch hangs its hooks on the step of every class that was made, so that they run twice here."""
    model = network()
    first, second = Derived(model[0].parameters(), lr=0.5), SGD(model[2].parameters(), lr=0.5)
    joined = JoinedOptimizer([first, second])
    before = values(model)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    joined.step()
    for one, other in zip(before, values(model), strict=True):
        torch.testing.assert_close(other, one - 0.5)


def test_a_part_that_a_hook_steps_within_the_joint_step_is_refused() -> None:
    """Guarantee: one step is one step of every part, in the order given."""
    model = network()
    first, second = parts(model)
    joined = JoinedOptimizer([first, second])
    model(X).sum().backward()
    joined.step()
    for part, hook in ((first, lambda *_: second.step()), (second, lambda *_: first.step())):
        handle = part.register_step_post_hook(hook)
        with pytest.raises(ProtocolError, match="stepped by itself"):
            joined.step()
        handle.remove()
    joined.step()
    steps = [int(kept["step"]) for kept in second.state.values()]
    assert steps == [3, 3]  # the first hook raised before its part's turn, the second one after it


def test_a_group_that_a_part_was_given_since_is_refused_before_the_next_release() -> None:
    model = network()
    first, second = parts(model)
    joined = JoinedOptimizer([first, second])
    session = privatize(model, joined, plan(1.0))
    run(model, joined, session, 1)
    second.param_groups.append({**first.param_groups[0]})
    with pytest.raises(ContractChangedError, match="param_groups hold other tensors"):
        run(model, joined, session, 1)
    assert session.steps == 1


def test_a_copy_joins_copies_of_its_parts() -> None:
    model = network()
    twin, joined = copy.deepcopy((model, JoinedOptimizer(parts(model))))
    twin(X).sum().backward()
    with pytest.raises(ProtocolError, match="stepped by itself"):
        joined.parts[0].step()
    joined.step()
    assert not any(torch.equal(a, b) for a, b in zip(values(twin), values(model), strict=True))


def test_a_checkpoint_gives_each_part_its_own_state_again(tmp_path: Path) -> None:
    def begun() -> tuple[nn.Sequential, JoinedOptimizer, Session]:
        model = network()
        joined = JoinedOptimizer(parts(model))
        return model, joined, privatize(model, joined, plan(), ledger=tmp_path / "ledger")

    model, joined, session = begun()
    run(model, joined, session, 2)
    session.save_checkpoint(tmp_path / "checkpoint")
    session.close()
    model, joined, session = begun()
    session.load_checkpoint(tmp_path / "checkpoint")
    run(model, joined, session, 1)
    for found, expected in zip(values(model), by_hand(3), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    session.close()
    model = network()
    other = JoinedOptimizer([SGD(model[0].parameters(), lr=0.5, momentum=0.9), SGD(model[2].parameters(), lr=0.01)])
    session = privatize(model, other, plan(), ledger=tmp_path / "ledger")
    with pytest.raises(CheckpointError, match=r"JoinedOptimizer\(SGD, Adam\)"):
        session.load_checkpoint(tmp_path / "checkpoint")


def test_its_state_goes_through_a_state_dict() -> None:
    model = network()
    joined = JoinedOptimizer(parts(model))
    model(X).sum().backward()
    joined.step()
    state = joined.state_dict()
    again = JoinedOptimizer(parts(model))
    again.load_state_dict(state)
    for parameter in model.parameters():
        for name, value in joined.state[parameter].items():
            torch.testing.assert_close(again.state[parameter][name], value)
    assert [group["lr"] for group in again.param_groups] == [0.5, 0.01]
    assert all(any(group is own for own in again.param_groups) for part in again.parts for group in part.param_groups)
    with pytest.raises(ValueError, match="number of parameter groups"):
        again.load_state_dict(SGD(model.parameters(), lr=1.0).state_dict())


def test_parts_belong_to_the_session_of_the_whole() -> None:
    model = network()
    first, second = parts(model)
    session = privatize(model, JoinedOptimizer([first, second]), plan())
    assert session_of(second) is session
    with pytest.raises(ProtocolError, match="private already"):
        privatize(model, JoinedOptimizer([first, second]), plan())


def test_every_part_is_held_to_what_an_optimizer_is() -> None:
    model = network()
    body, head = model[0].parameters(), model[2].parameters()
    with pytest.raises(UnsupportedOptimizerError, match="LBFGS"):
        privatize(model, JoinedOptimizer([SGD(body, lr=0.1), torch.optim.LBFGS(head)]), plan())
    model = network()
    partial = JoinedOptimizer([SGD([model[0].weight], lr=0.1), SGD([model[0].bias], lr=0.1)])
    with pytest.raises(ParameterMismatchError, match=r"2\.weight"):
        privatize(model, partial, plan())


def test_a_hook_on_a_part_that_sees_the_update_is_told() -> None:
    model = network()
    first, second = parts(model)
    joined = JoinedOptimizer([first, second])
    session = privatize(model, joined, plan(1.0))
    second.register_step_pre_hook(lambda *_: None)
    run(model, joined, session, 1)
    assert any("hooks on the optimizer" in c.name for c in session.guarantee(1e-5).conditions)


@pytest.mark.parametrize(
    "make",
    [
        lambda model: JoinedOptimizer([]),
        lambda model: JoinedOptimizer([SGD(model.parameters(), lr=0.1)]),
        lambda model: JoinedOptimizer([SGD(model.parameters(), lr=0.1), model]),  # type: ignore[list-item]
        lambda model: JoinedOptimizer([SGD(model.parameters(), lr=0.1), Adam(model[0].parameters())]),
        lambda model: JoinedOptimizer([JoinedOptimizer(parts(model)), SGD(network().parameters(), lr=0.1)]),
        lambda model: JoinedOptimizer(parts(model)).add_param_group({"params": [nn.Parameter(torch.ones(1))]}),
    ],
    ids=["none", "one", "a model", "a parameter twice", "joined ones", "a group"],
)
def test_what_cannot_be_joined_is_refused(make: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        make(network())
