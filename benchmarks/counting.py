"""What a step costs without a clock: floating point operations and peak live bytes of tensors.

Both are the same on every run and every machine, so that a test can hold them.
"""

from __future__ import annotations

import math
import re
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry, shape_wrapper

from benchmarks.contestants import CONTESTANTS
from benchmarks.workloads import Workload

aten = torch.ops.aten
Shape = list[int]

WARM_UP = 2
"""Steps before the counted one: the first step of a session examines the model once."""

ARITHMETIC = re.compile(
    r"[a-z]*mm|(add)?mv|v?dot|ger|addr|outer|[a-z]*linear|conv(olution|\dd)?|einsum|attention|matmul|cdist|rnn|lstm|gru"
)
"""Words in names of operators that multiply and add over an axis."""


def convolution_backward_flops(
    grad_out: Shape,
    inputs: Shape,
    weight: Shape,
    _bias: object,
    _stride: object,
    _padding: object,
    _dilation: object,
    transposed: bool,
    _output_padding: object,
    _groups: int,
    output_mask: list[bool],
    **_: object,
) -> int:
    """Count a convolution's backward. torch's own formula counts a grouped weight gradient `groups` times too often.

    The input gradient and the weight gradient each multiply every value of one side by every weight that meets it.
    """
    places = math.prod((inputs if transposed else grad_out)[2:])
    return 2 * inputs[0] * places * math.prod(weight) * sum(bool(wanted) for wanted in output_mask[:2])


def _twice_first(first: Shape, *_: object, **__: object) -> int:
    return 2 * math.prod(first)


def _twice_second(_: Shape, second: Shape, *__: object, **___: object) -> int:
    return 2 * math.prod(second)


def _twice_product(_: Shape, first: Shape, second: Shape, *__: object, **___: object) -> int:
    return 2 * math.prod(first) * math.prod(second)


def _attention_flops(query: Shape, key: Shape, value: Shape, *_: object, **__: object) -> int:
    places = math.prod(query[:-1]) * key[-2]
    return 2 * places * (query[-1] + value[-1])


def _attention_backward_flops(_: Shape, query: Shape, key: Shape, value: Shape, *__: object, **___: object) -> int:
    # The probabilities are formed again, and then four products: with respect to them, query, key and value.
    places = math.prod(query[:-1]) * key[-2]
    return 2 * places * (3 * query[-1] + 2 * value[-1])


FORMULAS: dict[Any, Callable[..., int]] = {
    aten.convolution_backward: convolution_backward_flops,
    aten.mv: _twice_first,
    aten.dot: _twice_first,
    aten.vdot: _twice_first,
    aten.addmv: _twice_second,
    aten.addmv_: _twice_second,
    aten.addr: _twice_product,
    aten.addr_: _twice_product,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}
"""Operators that torch's counter leaves out or counts wrongly."""


class Flops(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the operations of matrix products, convolutions and attention, by torch's formulas and `FORMULAS`.

    `FlopCounterMode` itself also hangs hooks on the tensors that go into modules, to count for each module. That makes
    it a part of the program it measures; a private forward refuses such hooks on what is still a pure function of
    parameters.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0
        self.unknown: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        formula = _FORMULAS.get(func.overloadpacket)
        if formula is None and func is not torch.ops.prim.device.default:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = func(*args, **kwargs)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=result)
        elif is_arithmetic(str(func.overloadpacket)):
            self.unknown.add(str(func.overloadpacket))
        return result


_FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    **{
        operator: shape_wrapper(formula)  # type: ignore[no-untyped-call]
        for operator, formula in FORMULAS.items()
    },
}


def flops(action: Callable[[], None]) -> int:
    """Return the floating point operations while `action` runs. Element-wise work is not counted.

    Raises LookupError for an operator that multiplies and adds over an axis and has no formula: it would count as
    nothing.
    """
    with Flops() as counter:
        action()
    if counter.unknown:
        raise LookupError(f"no formula for the operations of {', '.join(sorted(counter.unknown))}")
    return int(counter.total)


def is_arithmetic(operator: str) -> bool:
    """Return whether the name of an operator, such as "aten.addmm", says that it multiplies and adds over an axis."""
    words = operator.rpartition(".")[2].split("_")
    return "upsample" not in words and any(ARITHMETIC.fullmatch(word) for word in words)


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages of all tensors that an operator has taken or returned and that are still alive.

    Not seen: what an operator holds while it runs, and memory that no torch operator touches.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._sizes: dict[int, tuple[int, weakref.ref[Any]]] = {}
        self.now = 0
        self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.note((args, kwargs, result))
        return result

    def note(self, values: Any) -> None:
        """Count the storages of all tensors in a nest of values; one that was counted before is looked at again."""
        for value in tree_iter(values):
            if isinstance(value, Tensor):
                self._hold(value.untyped_storage())

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        counted = self._sizes.get(key)
        if counted is None:
            self._sizes[key] = (size, weakref.ref(storage, lambda _: self._release(key)))
            self.now += size
        elif counted[0] != size:  # resized
            self._sizes[key] = (size, counted[1])
            self.now += size - counted[0]
        self.peak = max(self.peak, self.now)

    def _release(self, key: int) -> None:
        self.now -= self._sizes.pop(key)[0]


@dataclass(frozen=True)
class Cost:
    """What one step of a contestant costs.

    Attributes:
        flops: floating point operations.
        peak_bytes: live bytes at their highest, above parameters and batch; what a contestant keeps between steps is
            part of it.
    """

    flops: int
    peak_bytes: int


def cost(workload: Workload, contestant: str) -> Cost:
    """Count a step of a contestant with noise, after `WARM_UP` others."""
    runner = CONTESTANTS[contestant].build(workload, 1.0)
    batch = runner.prepare()
    with LiveBytes() as live:
        for _ in range(WARM_UP):
            runner.step(batch)
        live.peak = live.now
        runner.step(batch)
    counted = flops(lambda: runner.step(batch))
    return Cost(counted, live.peak - _bytes((*runner.parameters, *batch)))


def _bytes(tensors: Iterable[Tensor]) -> int:
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
