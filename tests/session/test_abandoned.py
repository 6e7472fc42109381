"""A loop that is left in the middle of an item tells nobody: all of it is collected once nobody holds it."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hushgrad import PrivacyEngine
from hushgrad.errors import CrossSampleLeakError


def losses(out: Tensor) -> Tensor:
    return out.square().sum(1)


def left(*, after: str, dtype: torch.dtype = torch.float32, way: str = "mean") -> tuple[weakref.ref[Any], ...]:
    """Train one step, and leave the next item after its draw, its forward or its backward, or where it is refused."""
    model, engine = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).to(dtype), PrivacyEngine()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    _, _, loader = engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(torch.randn(32, 4, dtype=dtype), batch_size=8),  # type: ignore[arg-type]
        noise_multiplier=1.0,
        max_grad_norm=1.0,
    )
    criterion = engine.per_example(losses)
    for step, x in enumerate(loader):
        if step and after == "draw":
            break
        out = model(x)
        if step and after == "forward":
            break
        mixed = out / out.detach().norm() if step and after == "refusal" else out
        (criterion(mixed) if way == "per_example" else losses(mixed).mean()).backward()
        if step and after == "backward":
            break
        optimizer.step()
    return tuple(map(weakref.ref, (engine.session, model, loader)))


@pytest.mark.parametrize("way", ["mean", "per_example"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("after", ["draw", "forward", "backward"])
def test_a_loop_that_was_left_is_collected(after: str, dtype: torch.dtype, way: str) -> None:
    gone = left(after=after, dtype=dtype, way=way)
    gc.collect()
    assert [part() for part in gone] == [None] * 3


def test_a_loop_that_was_refused_is_collected_once_its_error_is() -> None:
    with pytest.raises(CrossSampleLeakError) as caught:
        left(after="refusal")
    frames = []
    at = caught.value.__traceback__
    while at is not None:
        frames.append(at.tb_frame)
        at = at.tb_next
    gone = next(weakref.ref(frame.f_locals["model"]) for frame in frames if frame.f_code is left.__code__)
    del caught, frames, at
    gc.collect()
    assert gone() is None


def test_code_that_the_next_loop_compiles_is_compiled() -> None:
    """While a loop's calls are written down, nothing is: an abandoned one must not keep the process so."""
    seen: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        seen.append(graph)
        return graph.forward

    torch._dynamo.reset()
    left(after="forward")
    gc.collect()
    assert torch.compile(lambda x: x * 2 + 1, backend=backend)(torch.ones(2)).tolist() == [3, 3]
    assert len(seen) == 1
