"""Forwards that mix no examples, in operators that hide it: geometry, codebooks, algebra, quantisation."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brought.running import SEQUENCES, B, Brought, D, Of, T, Y, by, exact, network, refused


def labelled(inputs: Any) -> list[Any]:
    return list(zip(inputs, Y, strict=True))


PICTURES = labelled(torch.randn(B, 1, 4, 4, generator=torch.Generator().manual_seed(4)))


def between(f: Any, outputs: int = 6) -> Any:
    """Return what makes two layers with `f(h)` between them; six values of each record go in."""
    return lambda: Of(lambda m, x: m.head(f(m.first(x))), first=nn.Linear(D, 6), head=nn.Linear(outputs, 3))


def vectors(f: Any, **options: Any) -> Brought:
    return exact(make=between(f, options.pop("outputs", 6)), **options)


def of_pictures(f: Any) -> Any:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(f(m, m.first(x)).flatten(1))

    return lambda: Of(forward, first=nn.Conv2d(1, 2, 3, padding=1), head=nn.Linear(32, 3))


def pictures(f: Any) -> Brought:
    return exact(make=of_pictures(f), records=PICTURES)


def layer() -> nn.Module:
    return nn.Linear(D, D)


def rotary(m: Any, x: Tensor) -> Tensor:
    turns = torch.polar(torch.ones(T, D // 2), torch.outer(torch.arange(T), torch.tensor([1.0, 0.1])))
    pairs = torch.view_as_complex(m.first(x).unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns).flatten(2)


def on_sequence(f: Any, **parts: Any) -> Any:
    """Return what makes a model of `f(m, x)`, tokens `[B, *, D]` whose sum is classified; `m.first` is a layer."""

    def make() -> nn.Module:
        made = {name: part() for name, part in parts.items()}
        return Of(lambda m, x: m.head(f(m, x).sum(1)), head=nn.Linear(D, 3), first=layer(), **made)

    return make


def of_sequence(f: Any, **parts: Any) -> Brought:
    return exact(make=on_sequence(f, **parts), records=SEQUENCES)


def codes(h: Tensor) -> Tensor:
    book = torch.eye(6)
    return h + (book[torch.cdist(h, book).argmin(1)] - h).detach()


def at_affine(m: Any, x: Tensor) -> Tensor:
    theta = torch.eye(2, 3) + 0.1 * x.mean((1, 2, 3))[:, None, None]
    return F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)


def unpooled(m: Any, x: Tensor) -> Tensor:
    out, places = F.max_pool2d(x, 2, return_indices=True)
    return F.max_unpool2d(out, places, 2)


def masks_of_each(m: Any, x: Tensor) -> Tensor:
    mask = (x[:, :1] > 0).float()
    return x * F.interpolate(mask, size=(4, 4))


def masks_of_one(m: Any, x: Tensor) -> Tensor:
    mask = (x[:, 0] > 0).float()
    return x * F.interpolate(mask[None], size=(4, 4))[0][:, None]


def matrices(h: Tensor) -> Tensor:
    return h.view(-1, 2, 3) @ h.view(-1, 3, 2) + 3 * torch.eye(2)


def quantised(h: Tensor) -> Tensor:
    return torch.fake_quantize_per_tensor_affine(h, 0.1, 0, -128, 127)


def signs_of_hashes(m: Any, x: Tensor) -> Tensor:
    """Locality-sensitive buckets of tokens, sorted by bucket within a record."""
    h = m.first(x)
    order = (h @ torch.ones(D, 1)).sign().sum(-1).argsort(-1)
    return h.gather(1, order[..., None].expand_as(h)).cumsum(1)


def with_pairs(m: Any, x: Tensor) -> Any:
    h = m.head(x)
    return {"logits": h, "pairs": h.detach() @ h.detach().T}


def paired_by_the_loop(model: Any, x: Tensor, y: Tensor) -> Tensor:
    h = model(x)
    h.detach() @ h.detach().T  # for a log
    return F.cross_entropy(h, y)


def batch_norm() -> nn.Module:
    class Active(nn.BatchNorm1d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input).relu()

    return nn.Sequential(nn.Linear(D, 6), Active(6), nn.Linear(6, 3))


def group_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(D, 6), nn.GroupNorm(2, 6), nn.ReLU(), nn.Linear(6, 3))


GEOMETRY: dict[str, Brought] = {
    "`torch.cdist` to fixed prototypes": vectors(lambda h: torch.cdist(h, torch.eye(6))),
    "a codebook: `cdist`, `argmin`, straight through": vectors(codes),
    "`F.pairwise_distance` to a fixed point": vectors(
        lambda h: F.pairwise_distance(h, torch.ones(6), keepdim=True), outputs=1
    ),
    "`F.cosine_similarity` without `dim`": vectors(
        lambda h: F.cosine_similarity(h, torch.ones(1, 6))[:, None], outputs=1
    ),
    "`affine_grid` and `grid_sample`": pictures(at_affine),
    "`F.fold`": pictures(lambda m, x: F.fold(F.unfold(x, 2, stride=2).tanh(), (4, 4), 2, stride=2)),
    "`F.max_unpool2d`": pictures(unpooled),
    "`F.interpolate` of masks `[1, B, H, W]`": refused(
        "DP304",
        {"make": of_pictures(masks_of_one), "records": PICTURES},
        "the batch first: `mask[:, None]`",
        {"make": of_pictures(masks_of_each)},
    ),
    "`torch.as_strided` windows": of_sequence(
        lambda m, x: (h := m.first(x)).as_strided((len(h), T - 1, D), (T * D, D, 1), D)
    ),
    "sorted by hash buckets within a record": of_sequence(signs_of_hashes),
    "complex rotary positions, `view_as_complex`": of_sequence(rotary),
}

ALGEBRA: dict[str, Brought] = {
    "`torch.linalg.inv`": vectors(lambda h: torch.linalg.inv(matrices(h)).flatten(1), outputs=4),
    "`torch.linalg.solve_triangular`": vectors(
        lambda h: torch.linalg.solve_triangular(matrices(h).tril(), h.view(-1, 2, 3), upper=False).flatten(1)
    ),
    "`torch.linalg.cross`": vectors(
        lambda h: torch.linalg.cross(h[:, :3], h[:, 3:]), outputs=3
    ),
    "`torch.tensordot`": vectors(lambda h: torch.tensordot(h, torch.ones(6, 6).tril(), 1)),
    "`torch.einsum` without `->`": vectors(lambda h: torch.einsum("bi,ij", h, torch.ones(6, 6).tril())),
    "`torch.searchsorted`, `torch.bucketize`": vectors(
        lambda h: h * (torch.bucketize(h, torch.tensor([-0.5, 0.0, 0.5])) + torch.searchsorted(torch.tensor([0.0]), h))
    ),
    "`fake_quantize` (training for quantisation)": vectors(quantised),
    "`to_sparse` and back": refused(
        "DP304", {"make": between(lambda h: h.relu().to_sparse().to_dense())}, "dense: `h.relu()`",
        {"make": between(torch.relu)},
    ),
    "a scripted part without parameters": refused(
        "DP304",
        {"make": lambda: nn.Sequential(nn.Linear(D, 6), torch.jit.script(nn.Tanh()), nn.Linear(6, 3))},
        "the part as it was before `torch.jit.script`",
        {"make": network},
    ),
    "a subclass of `BatchNorm`": refused(
        "DP301", {"make": batch_norm, "clip": 1.0}, "`nn.GroupNorm`, then the activation", {"make": group_norm}
    ),
    "an output of all pairs `[B, B]` beside the logits": refused(
        "DP301",
        {
            "make": lambda: Of(with_pairs, head=network()),
            **by(lambda m, x, y: F.cross_entropy(m(x)["logits"], y)),
        },
        "the pairs outside of the model, from what it returned",
        {"make": network, **by(paired_by_the_loop)},
    ),
}  # fmt: skip
