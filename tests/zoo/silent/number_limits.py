"""What one record contributes, in double precision: rounding may not add to the clip norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from silent_programs import Kept, Kind, Measured, Program
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hushgrad import PrivacyEngine

SLACK = 1e-5


def total(make: Callable[[], nn.Module], records: list[Tensor], clip: float, loss: Any) -> Tensor:
    torch.manual_seed(0)
    model, engine = make(), PrivacyEngine()
    optimizer = Kept([p for p in model.parameters() if p.requires_grad], lr=1e-9)
    _, _, loader = engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(records, batch_size=len(records)),  # type: ignore[arg-type]
        noise_multiplier=0.0,
        max_grad_norm=clip,
        poisson_sampling=False,
    )
    for x in loader:
        engine.session.backward(loss(model(x)))
        optimizer.step()
    engine.session.close()
    wide = torch.complex128 if optimizer.seen.is_complex() else torch.float64
    return optimizer.seen.to(wide) * len(records)


def summed(out: Tensor) -> Tensor:
    return out.flatten(1).sum(1)


def contribution(
    name: str, make: Any, record: Callable[[], Tensor], *, clip: float = 1.0, loss: Any = summed, is_clean: bool = False
) -> Program:
    """S is the norm of what one record adds, in C."""

    def measure(way: str) -> Measured:
        return Measured(float(total(make, [record()], clip, loss).norm()) / clip)

    return Program(name, measure, ways=("session",), slack=SLACK, is_clean=is_clean)


def gradient(
    name: str, make: Any, records: Callable[[], list[Tensor]], *, loss: Any = summed, is_clean: bool = False
) -> Program:
    """S is the distance between the sum and autograd's own, relative to it: nothing is clipped."""

    def measure(way: str) -> Measured:
        data = records()
        found = total(make, data, 1e6, loss)
        torch.manual_seed(0)
        model = make()
        loss(model(torch.stack(data))).sum().backward()
        wanted = torch.cat([p.grad.flatten() for p in model.parameters()]).to(found.dtype)
        return Measured(float((found - wanted).norm() / wanted.norm()))

    return Program(name, measure, ways=("session",), limit=0.0, is_clean=is_clean)


class Scaled(nn.Module):
    """Multiplies by a vector of its own, so that a record's gradient is the record."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.w).sum(1, keepdim=True)


def sequence() -> nn.Module:
    return nn.Linear(8, 8)


def alternating(length: int, width: int = 8) -> Tensor:
    """Positions that cancel but for a rest."""
    torch.manual_seed(3)
    x = torch.randn(length, width)
    x[1::2] = -x[::2] + 1e-3 * torch.randn(length // 2, width)
    return x


class Signed(nn.Module):
    """One row of a table, looked up many times with signs that nearly cancel."""

    def __init__(self) -> None:
        super().__init__()
        self.e = nn.Embedding(3, 16)

    def forward(self, ids: Tensor) -> Tensor:
        sign = torch.ones(ids.shape[1], 1)
        sign[1::2] = -0.999
        return (self.e(ids) * sign).sum(1)


class Complex(nn.Module):
    """A product with a complex matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 3, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.view_as_real(torch.complex(x, x.flip(1)) @ self.w).flatten(1)


class Fourier(nn.Module):
    """A layer of a Fourier neural operator."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(2, 2, 5, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.irfft(torch.einsum("bix,iox->box", torch.fft.rfft(x), self.w), n=8)


class Spectrum(nn.Module):
    """A real layer on the sizes of Fourier coefficients."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(torch.fft.rfft(x).abs())


class Phase(nn.Module):
    """Elementwise with a complex vector."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.view_as_real(torch.complex(x, x.flip(1)) * self.w).flatten(1)


def many(shape: tuple[int, ...], count: int) -> Callable[[], list[Tensor]]:
    return lambda: list(torch.randn(count, *shape, generator=torch.Generator().manual_seed(4)))


def squares(out: Tensor) -> Tensor:
    return out.square().flatten(1).sum(1)


LEAKY: tuple[Program, ...] = (
    contribution(
        "a dense gradient of 4e6 equal values", lambda: Scaled(4_000_000), lambda: torch.full((4_000_000,), 0.1)
    ),
    contribution(
        "a dense gradient of 1e7 random values",
        lambda: Scaled(10_000_000),
        lambda: torch.rand(10_000_000, generator=torch.Generator().manual_seed(5)),
    ),
    contribution(
        "weight_norm of Linear(2000, 2000)",
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2000, 2000)),
        lambda: torch.full((2000,), 0.1),
    ),
    contribution("Gram norm of 1024 positions that cancel", sequence, lambda: alternating(1024)),
    contribution("Gram norm of 4096 positions that cancel", lambda: nn.Linear(64, 64), lambda: alternating(4096, 64)),
    contribution("one row looked up 4096 times, cancelling", Signed, lambda: torch.ones(4096, dtype=torch.long)),
    contribution("C = 1e-18", sequence, lambda: torch.ones(8), clip=1e-18),
    contribution("C = 1e-22", sequence, lambda: torch.ones(8), clip=1e-22),
    contribution("C = 1e-25, small gradients", sequence, lambda: torch.full((8,), 1e-23), clip=1e-25),
    contribution("gradients of 1e20", sequence, lambda: torch.full((8,), 1e20)),
    gradient("a complex matrix, one record", Complex, many((4,), 1), loss=squares),
    gradient("a complex matrix, four records", Complex, many((4,), 4), loss=squares),
    gradient("a Fourier layer, one record", Fourier, many((2, 8), 1), loss=squares),
    gradient("a complex vector, one record", Phase, many((4,), 1), loss=squares),
)

CLEAN: tuple[Program, ...] = (
    contribution(
        "a dense gradient of 1e4 values", lambda: Scaled(10_000), lambda: torch.full((10_000,), 0.1), is_clean=True
    ),
    contribution(
        "weight_norm of Linear(50, 50)",
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(50, 50)),
        lambda: torch.full((50,), 0.1),
        is_clean=True,
    ),
    contribution("Gram norm of 64 positions", sequence, lambda: torch.ones(64, 8), is_clean=True),
    contribution(
        "one row looked up 64 times",
        lambda: nn.Embedding(3, 16),
        lambda: torch.ones(64, dtype=torch.long),
        is_clean=True,
    ),
    contribution("C = 1e-6", sequence, lambda: torch.ones(8), clip=1e-6, is_clean=True),
    contribution("C = 1e6", sequence, lambda: torch.ones(8), clip=1e6, is_clean=True),
    gradient("a real matrix, one record", lambda: nn.Linear(4, 3), many((4,), 1), loss=squares, is_clean=True),
    gradient("a real layer on Fourier coefficients", Spectrum, many((8,), 4), loss=squares, is_clean=True),
)

KIND = Kind(
    "numbers",
    "the norm of each contribution, in blocks summed in float64",
    "every step",
    "in 16 bits: how a record changes the rounding of the others",
    (*LEAKY, *CLEAN),
)
