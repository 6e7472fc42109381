"""What is taken for granted of `fully_shard` and of distributed tensors holds in this torch; one process is enough."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import DPSGD, FlatClipping, PoissonSampling, PrivacyEngine, doctor, verify
from hushgrad import torch_sharding as insides
from hushgrad.errors import UnsupportedModelError
from hushgrad.guards.compatibility import require_trainable_privately
from hushgrad.torch_internals import function_of, gradient_hooks_of, parameters_of


@pytest.fixture(autouse=True)
def alone(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Tanh(), nn.Linear(4, 4)), nn.Linear(4, 2))


def sharded() -> nn.Sequential:
    model = plain()
    fully_shard(model[1])
    return fully_shard(model)


def parallel() -> nn.Sequential:
    mesh = init_device_mesh("cpu", (1,))
    return parallelize_module(plain(), mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})


def kinds(model: nn.Module) -> list[type]:
    return [type(parameter) for parameter in model.parameters()]


def test_a_hook_of_ours_on_a_call_finds_whole_parameters_in_place_and_the_same_ones_each_time() -> None:
    model, seen = sharded(), []
    model[1].register_forward_pre_hook(lambda part, _: seen.append(part[1].weight))
    model(torch.ones(2, 3)).sum().backward()
    model(torch.ones(2, 3))
    assert type(seen[0]) is nn.Parameter
    assert seen[0] is seen[1]
    assert seen[0].shape == (4, 4)


def test_an_evaluation_leaves_whole_parameters_in_place_and_they_are_known_and_put_back() -> None:
    model = sharded()
    before = dict(model.named_parameters())
    with torch.no_grad():
        model(torch.ones(2, 3))
    assert nn.Parameter in kinds(model)
    assert all(found is before[name] for name, found in insides.at_rest(model))
    insides.settle(insides.fully_sharded(model))
    assert all(found is before[name] for name, found in model.named_parameters())


def test_a_forward_that_failed_is_recovered_from() -> None:
    model = sharded()
    handle = model[2].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(torch.ones(2, 3))
    handle.remove()
    insides.recover(insides.fully_sharded(model))
    assert set(kinds(model)) == {DTensor}
    model(torch.ones(2, 3)).sum().backward()
    assert model[0].weight.grad is not None


def test_inside_whole_parameters_stay_in_place_and_nothing_of_fsdp_runs() -> None:
    model, x = sharded(), torch.ones(2, 3, requires_grad=True)
    wanted = plain()(x)
    model(x).sum().backward()
    model.zero_grad()
    with insides.whole_parameters(insides.fully_sharded(model)):
        for _ in range(2):
            output = model(x)
            assert torch.equal(output, wanted)
            assert set(kinds(model)) == {nn.Parameter}
            nodes, waiting = set(), [output.grad_fn]
            while waiting:
                node = waiting.pop()
                if node is not None and node not in nodes:
                    nodes.add(node)
                    waiting += [below for below, _ in node.next_functions]
            assert not any(function_of(node) for node in nodes)
            assert gradient_hooks_of(output) == []
            [gradient] = torch.autograd.grad(output.sum(), [model[1][1].weight])
            assert gradient.shape == (4, 4)
    assert set(kinds(model)) == {DTensor}
    model(x).sum().backward()
    assert isinstance(model[0].weight.grad, DTensor)


def test_a_gradient_that_is_asked_for_without_messages_leaves_the_backward_that_follows_as_it_was() -> None:
    model = sharded()
    parts = insides.fully_sharded(model)
    output = model(torch.ones(2, 3))
    with insides.without_messages(parts):
        torch.autograd.grad(output.sum(), [output], retain_graph=True)
        assert type(model[2].weight) is nn.Parameter
    output.sum().backward()
    wanted = plain()
    wanted(torch.ones(2, 3)).sum().backward()
    for found, own in zip(model.parameters(), wanted.parameters(), strict=True):
        assert torch.equal(insides.whole(found.grad), own.grad)


def test_hooks_and_functions_of_fsdp_are_known() -> None:
    model = sharded()
    inner: list[Tensor] = []
    model[1].register_forward_pre_hook(lambda _, given: inner.append(given[0]))
    output = model(torch.ones(2, 3))
    [hook] = gradient_hooks_of(output)
    assert insides.is_hook_of_fsdp(hook)
    assert not insides.is_hook_of_fsdp(print)
    function = function_of(inner[0].grad_fn)
    assert function is not None
    assert insides.is_of_distributed_torch(function)


class Converting(TorchFunctionMode):
    """Keeps the shapes of what a conversion was seen to take, and its placements."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[list[int], str]] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        running = insides.running_conversion()
        if running is not None:
            self.seen.append((list(running.tensor.shape), str(running.placements)))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("wants", [True, False])
def test_the_calls_inside_of_a_conversion_are_known_for_such(wants: bool) -> None:
    """With gradients and without: what is converted, and to which layout, is read from torch's running function."""
    mesh = init_device_mesh("cpu", (1,))
    x = torch.ones(2, 3, requires_grad=wants)
    with Converting() as mode:
        made = DTensor.from_local(x, mesh, [Partial()], run_check=False)
        assert mode.seen == []
        made = made.redistribute(placements=[Replicate()])
        assert mode.seen
        assert set(map(str, mode.seen)) == {str(([2, 3], "(Replicate(),)"))}
        mode.seen.clear()
        own = made.to_local()
    assert mode.seen
    assert set(map(str, mode.seen)) == {str(([2, 3], "(Replicate(),)"))}
    assert insides.running_conversion() is None
    assert not insides.is_part(own)
    assert insides.is_part(made)
    if wants:
        function = function_of(own.grad_fn)
        assert function is not None
        assert insides.is_of_distributed_torch(function)
        assert insides.is_part(DTensor.from_local(x, mesh, [Shard(1)], run_check=False).to_local())


def test_what_lies_beside_fully_shard_is_known_by_name() -> None:
    model = parallel()
    meshes = insides.parallel_meshes(model)
    assert set(meshes) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert insides.is_split(model)
    assert not insides.is_split(plain())
    assert insides.parallel_meshes(sharded()) == {}


def test_where_parameters_are_swapped_is_known() -> None:
    model = sharded()
    assert insides.places_of_swapped(model) == {id(parameters_of(part)) for part in (model[0], model[1][1], model[2])}
    assert list(insides.companions(model)) == [model]


def test_a_tensor_that_lies_as_a_parameter_does_is_taken_for_its_gradient() -> None:
    model = sharded()
    parameter = model[0].weight
    own = torch.ones_like(insides.local_part(parameter))
    parameter.grad = insides.like(parameter, own)
    assert insides.local_part(parameter.grad) is own or insides.local_part(parameter.grad).data_ptr() == own.data_ptr()
    assert insides.placed(parameter) == insides.placed(parameter.grad) == "(Shard(dim=0),) on [0]"
    torch.optim.SGD([parameter], 1.0).step()
    assert torch.equal(insides.whole(parameter.detach()), plain()[0].weight.detach() - 1)


def test_options_that_change_what_is_reduced_are_seen() -> None:
    model = sharded()
    assert not [
        what for group in insides.groups_of(insides.fully_sharded(model)) for what in insides.options_set(group)
    ]
    model.set_all_reduce_hook(lambda gradient: None)
    model.set_unshard_in_backward(False)
    [group, *_] = insides.groups_of([model])
    assert len(list(insides.options_set(group))) == 2
    with pytest.raises(UnsupportedModelError, match="mesh of all processes"):
        require_trainable_privately(model, torch.optim.SGD(model.parameters(), 0.1))


def test_a_stage_of_a_pipeline_is_refused() -> None:
    stage = PipelineStage(nn.Linear(3, 2), 0, 1, torch.device("cpu"), input_args=(torch.ones(1, 3),))
    with pytest.raises(UnsupportedModelError, match="fully_shard"):
        require_trainable_privately(stage, torch.optim.SGD(nn.Linear(3, 2).parameters(), 0.1))


def test_a_sharded_model_is_verified_and_diagnosed_before_it_is_sharded() -> None:
    model = sharded()
    x, y = torch.randn(8, 3), torch.zeros(8, dtype=torch.long)
    mechanism = DPSGD(
        noise_multiplier=1.0, clipping=FlatClipping(1.0), sampling=PoissonSampling(rate=0.5), expected_batch_size=4
    )
    loader = DataLoader(TensorDataset(x, y), batch_size=4)
    with pytest.raises(UnsupportedModelError, match="before fully_shard"):
        verify(model, loader, nn.CrossEntropyLoss(), mechanism)
    assert "ask before fully_shard" in str(doctor(model, batch=(x, y), criterion=nn.CrossEntropyLoss()))


def test_a_split_model_in_one_process_is_updated_bit_for_bit_as_a_whole_one() -> None:
    """Noise of one key and all: a sum that is split into one part is laid out as one that is not split."""
    found = []
    for model in (plain(), sharded(), parallel()):
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        session = PrivacyEngine(test_key=3)
        x, y = torch.randn(16, 3, generator=torch.Generator().manual_seed(1)), torch.zeros(16, dtype=torch.long)
        _, _, loader = session.make_private(
            module=model, optimizer=optimizer, noise_multiplier=1.0, max_grad_norm=1.0,
            data_loader=DataLoader(TensorDataset(x, y), batch_size=4),
        )  # fmt: skip
        criterion = session.per_example(nn.CrossEntropyLoss())
        for inputs, labels in loader:
            optimizer.zero_grad()
            criterion(model(inputs), labels).backward()
            optimizer.step()
        session.session.close()
        found.append([insides.whole(parameter.detach()) for parameter in model.parameters()])
    for one, *others in zip(*found, strict=True):
        assert all(torch.equal(one, other) for other in others)
