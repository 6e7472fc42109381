"""Does what a model keeps follow the data? Then it is refused."""

from __future__ import annotations

import pytest
from first_forwards import Body, train
from torch import Tensor, nn

from hushgrad.errors import PrivateBufferError


class HookOfABatch(Body):
    def after(self, out: Tensor) -> Tensor:
        if "is_ready" not in vars(self):
            mean = out.detach().mean(0)
            self.head.register_forward_hook(lambda module, args, out: out - mean)
            self.is_ready = True
        return out


class HookOfEveryBatch(Body):
    def after(self, out: Tensor) -> Tensor:
        mean = out.detach().mean(0)
        self.head.register_forward_hook(lambda module, args, out: out - mean)
        return out


class PartOfABatch(Body):
    def after(self, out: Tensor) -> Tensor:
        if "minus" in self._modules:
            return self.minus(out)
        mean = out.detach().mean(0)

        class Minus(nn.Module):
            def forward(self, h: Tensor) -> Tensor:
                return h - mean

        self.minus = Minus()
        return out


class BufferOfABatch(Body):
    def prepare(self, x: Tensor) -> None:
        if "mean" not in self._buffers:
            self.register_buffer("mean", x.mean(0))


class ClassOfABatch(Body):
    largest = 0.0

    def prepare(self, x: Tensor) -> None:
        type(self).largest = float(x.max())


class ObjectOfABatch(Body):
    def prepare(self, x: Tensor) -> None:
        self.box.largest = float(x.max())


LEAKY = [HookOfABatch, HookOfEveryBatch, PartOfABatch, BufferOfABatch, ClassOfABatch, ObjectOfABatch]


@pytest.mark.parametrize("make", LEAKY)
def test_what_a_first_forward_makes_of_its_batch_is_refused(make: type[Body]) -> None:
    with pytest.raises(PrivateBufferError):
        train(make())
