"""What lies in memory with values of the batch is of the batch, whichever tensor shows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from programs import OUTPUT, TARGETS, B, program, trace_of
from torch import Tensor, nn

from hushgrad.errors import CrossSampleLeakError
from hushgrad.guards.probing.live_memory import MOST_COMPARED, LiveMemory, Written, sets_values
from hushgrad.guards.probing.loss_examination import require_separate_program


def ce(output: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(output, targets, reduction="none")


def largest(targets: Tensor) -> Tensor:
    return 1 / (1 + targets.sum())


def of_zeros(write: Callable[[Any, Any], object], shape: tuple[int, ...] = ()) -> Callable[[Tensor], Tensor]:
    def taken(targets: Tensor) -> Tensor:
        made = torch.zeros(shape)
        write(made, largest(targets))
        return made.sum()

    return taken


def set_data(made: Tensor, value: Tensor) -> None:
    made.data = value


def view_before(targets: Tensor) -> Tensor:
    made = torch.zeros(4)
    view = made[0]
    made.fill_(largest(targets))
    return view


def view_of_a_like(targets: Tensor) -> Tensor:
    made = torch.zeros_like(targets, dtype=torch.float32)
    view = made[:1]
    made.fill_(largest(targets))
    return view


def used_before(targets: Tensor) -> Tensor:
    made = torch.ones(())
    first = targets * made
    made.data.copy_(largest(targets))
    return first.clamp(max=0) + made


def gradient(targets: Tensor) -> Tensor:
    made = torch.zeros((), requires_grad=True)
    made.grad = largest(targets)
    return made.grad


def optimized(targets: Tensor) -> Tensor:
    made = torch.zeros((), requires_grad=True)
    made.grad = largest(targets)
    torch.optim.SGD([made], lr=1.0).step()
    return made.detach()


def statistics(norm: Any, shape: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    def taken(targets: Tensor) -> Tensor:
        norm.reset_running_stats()
        norm(targets.float().reshape(B, 1).expand(B, 2).reshape(shape))
        found: Tensor = norm.running_mean.sum()
        return found

    return taken


def observed(targets: Tensor) -> Tensor:
    least, most, on = torch.zeros(1), torch.zeros(1), torch.ones(1, dtype=torch.long)
    scale, zero = torch.ones(1), torch.zeros(1, dtype=torch.int32)
    torch.fused_moving_avg_obs_fake_quant(targets.float(), on, on, least, most, scale, zero, 1.0, 0, 255, 0)
    return most


TAKEN = {
    ".data =": of_zeros(set_data),
    "set_": of_zeros(lambda made, value: made.set_(value)),
    "copy_ by .data": of_zeros(lambda made, value: made.data.copy_(value)),
    "copy_ by detach": of_zeros(lambda made, value: made.detach().copy_(value)),
    "out=": of_zeros(lambda made, value: torch.mul(value, 1, out=made.data)),
    "foreach": of_zeros(lambda made, value: torch._foreach_copy_([made], [value])),
    "foreach by .data": of_zeros(lambda made, value: torch._foreach_add_([made.data], [value])),
    "ATen": of_zeros(lambda made, value: torch.ops.aten.copy_.default(made.data, value)),
    "an initialiser": of_zeros(lambda made, value: nn.init.constant_(made, value)),
    "a part": of_zeros(lambda made, value: made[1].fill_(value), (4,)),
    "a part by .data": of_zeros(lambda made, value: made.data[1:].fill_(value), (4,)),
    "a view from before": view_before,
    "a view of what has the batch's shape": view_of_a_like,
    "used before": used_before,
    ".grad =": gradient,
    "an optimizer": optimized,
    "batch_norm": statistics(nn.BatchNorm1d(2, affine=False), (B, 2)),
    "instance_norm": statistics(nn.InstanceNorm1d(1, track_running_stats=True), (B, 1, 2)),
    "a fake quantizer": observed,
}


@pytest.mark.parametrize("taken", TAKEN.values(), ids=TAKEN)
def test_a_tensor_that_takes_over_values_or_memory_of_the_batch_is_of_the_batch(
    taken: Callable[[Tensor], Tensor],
) -> None:
    with pytest.raises(CrossSampleLeakError):
        require_separate_program(program(lambda o, y: (ce(o, y) * taken(y).detach()).mean()), "mean", None)


def real_part(targets: Tensor) -> Tensor:
    made = torch.zeros(())
    made.real = largest(targets)
    return made


def other_type(targets: Tensor) -> Tensor:
    made = torch.zeros(4)
    bits = made.view(torch.int32)
    made.copy_(largest(targets))
    return bits.view(torch.float32)[0]


def sparse(targets: Tensor) -> Tensor:
    values = torch.zeros(1)
    made = torch.sparse_coo_tensor(torch.zeros(1, 1, dtype=torch.long), values, (1,))
    values.fill_(largest(targets))
    return made.to_dense()


@pytest.mark.parametrize("taken", [real_part, other_type, sparse])
def test_memory_that_cannot_be_followed_is_said(taken: Callable[[Tensor], Tensor]) -> None:
    assert require_separate_program(program(lambda o, y: (ce(o, y) * taken(y)).mean()), "mean", None) != ""


def shared_with_numpy(targets: Tensor) -> Tensor:
    made = torch.zeros(())
    array = made.numpy()
    made.copy_(largest(targets))
    return torch.tensor(float(array))


def test_values_that_are_written_to_memory_of_numpys_were_read() -> None:
    assert trace_of(lambda o, y: (ce(o, y) * shared_with_numpy(y)).mean(), OUTPUT, TARGETS).has_read
    assert not trace_of(lambda o, y: (ce(o, y) * view_before(y)).mean(), OUTPUT, TARGETS).has_read


def own_rows(write: Callable[[Tensor, Tensor], object]) -> Callable[[Tensor], Tensor]:
    def taken(targets: Tensor) -> Tensor:
        made = torch.zeros(B)
        write(made, targets.float())
        return 1 + made

    return taken


def by_rows(made: Tensor, values: Tensor) -> None:
    for row in range(B):
        made[row].copy_(values[row])


def normalised(targets: Tensor) -> Tensor:
    norm = nn.InstanceNorm1d(1, track_running_stats=True)
    found: Tensor = norm(torch.stack([targets, 2 * targets + 1], 1).float()[:, None]).square().sum((1, 2))
    return found


def broadcast(targets: Tensor) -> Tensor:
    weights = torch.ones(1)
    both: list[Tensor] = list(torch.broadcast_tensors(targets, weights))  # type: ignore[no-untyped-call]
    return both[0] * both[1] * weights.sum()


def constants(targets: Tensor) -> Tensor:
    made = torch.zeros(3)
    view = made[1:]
    made.data[0] = 2.0
    view.fill_(1.0)
    made[:1].add_(1)
    return targets * made.sum()


OWN = {
    ".data =": own_rows(set_data),
    "copy_ by .data": own_rows(lambda made, values: made.data.copy_(values)),
    "row by row": own_rows(by_rows),
    "a part": own_rows(lambda made, values: made[:].copy_(values)),
    "out=": own_rows(lambda made, values: torch.mul(values, 2, out=made)),
    "statistics that nothing reads": normalised,
    "a constant that was broadcast": broadcast,
    "constants, written to": constants,
}


@pytest.mark.parametrize("taken", OWN.values(), ids=OWN)
def test_rows_in_their_own_places_of_memory_and_constants_train_untold(taken: Callable[[Tensor], Tensor]) -> None:
    assert require_separate_program(program(lambda o, y: (ce(o, y) * taken(y)).mean()), "mean", None) == ""


def test_memory_is_known_as_long_as_anything_has_it_and_no_longer() -> None:
    memory = LiveMemory()
    made = torch.zeros(4)
    view = made[1:]
    assert not memory.take(made, 7)
    del made
    assert memory.holds(view)
    found = memory.found(view)
    assert found is not None
    assert (found[0], found[1].start, found[1].shape) == (7, 1, (3,))
    del view
    assert not any(memory.holds(torch.zeros(4)) for _ in range(50))  # the address is not given out again


def test_no_look_at_memory_fails_on_tensors_that_have_none() -> None:
    memory = LiveMemory()
    memory.take(torch.zeros(1), 1)
    sparse_one = torch.eye(2).to_sparse()
    nested = torch.nested.nested_tensor([torch.ones(1), torch.ones(2)])
    quantized = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8)
    for tensor in (sparse_one, nested, torch.ones(2, device="meta"), quantized, torch.ones(2).conj()):
        memory.holds(tensor)
        memory.note([(tensor, 2)])
        assert list(Written([tensor]).changed()) == []
    held: list[bool] = []

    def row_held(row: Tensor) -> Tensor:
        held.append(memory.holds(row))
        return row

    torch.func.vmap(row_held)(torch.ones(2, 3))
    assert held


def test_what_a_call_wrote_to_is_told_by_torchs_count_or_by_its_values() -> None:
    counted, compared, unwritten = torch.zeros(2), torch.zeros(2), torch.tensor([float("nan"), 1.0])
    large = torch.zeros(1).expand(MOST_COMPARED + 1)
    written = Written([counted, compared, unwritten, large])
    counted.add_(0)
    compared.data[0] = 1
    found = list(written.changed())
    assert [tensor is one for (tensor, _), one in zip(found, (counted, compared), strict=True)] == [True, True]
    assert all(before is not None and not before.any() for _, before in found)


def test_only_attributes_that_take_values_are_changes() -> None:
    attributes: Any = Tensor
    data, grad, requires_grad = attributes.data, attributes.grad, attributes.requires_grad
    assert sets_values(data.__set__, (torch.ones(1), torch.ones(1)))
    assert sets_values(grad.__set__, (torch.ones(1), torch.ones(1)))
    assert not sets_values(grad.__set__, (torch.ones(1), None))
    assert not sets_values(requires_grad.__set__, (torch.ones(1), True))
    assert not sets_values(torch.add, (torch.ones(1), torch.ones(1)))
