"""Models that let one example influence another one, each as people write it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hushgrad.errors import CrossSampleLeakError, HushgradError, PrivacyUnitError, PrivateBufferError

WIDTH, CLASSES, BATCH = 6, 3, 8


class Body(nn.Module):
    """A small classifier; subclasses leak between its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.first(x).tanh()))

    def middle(self, h: Tensor) -> Tensor:
        raise NotImplementedError


class AtTheEnd(Body):
    """A leak behind the last parameter, where no operator that is captured comes after it."""

    def forward(self, x: Tensor) -> Tensor:
        return self.middle(self.head(self.first(x).tanh()))


def in_the_middle(mix: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    class Mixing(Body):
        def middle(self, h: Tensor) -> Tensor:
            return mix(h)

    return Mixing


def at_the_end(mix: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    class Mixing(AtTheEnd):
        def middle(self, h: Tensor) -> Tensor:
            return mix(h)

    return Mixing


def by_halves(h: Tensor) -> Tensor:
    half = len(h) // 2
    return torch.cat([h[:half].tanh(), h[half:].sin()])


def carried(h: Tensor) -> Tensor:
    state, rows = torch.zeros(h.shape[1]), []
    for row in h:
        state = 0.5 * state + row
        rows.append(state)
    return torch.stack(rows)


def overwritten(h: Tensor) -> Tensor:
    h = h * 1
    h[0].copy_(h[1])
    return h


def class_means(h: Tensor) -> Tensor:
    kind = (h[:, 0] > 0).long()
    return h - torch.zeros(2, h.shape[1]).index_add(0, kind, h.detach())[kind]


def ranked(h: Tensor) -> Tensor:
    return h * torch.searchsorted(h[:, 0].detach().sort().values, h.detach()).float()


def sampled(h: Tensor) -> Tensor:
    grid = h.detach().mean(0)[:2].tanh().expand(len(h), 1, 1, 2)
    return h + F.grid_sample(h[:, None, None], grid, align_corners=False).flatten(1)


def by_use(h: Tensor) -> Tensor:
    codes = torch.cdist(h.detach(), torch.eye(h.shape[1])).argmin(1)
    return h * torch.bincount(codes, minlength=h.shape[1])[codes].unsqueeze(1)


def layer(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """A classifier with a layer behind its first one."""
    return lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), make(), nn.Tanh(), nn.Linear(WIDTH, CLASSES))


def last_layer(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """A classifier with a layer behind its last one."""
    return lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, CLASSES), make())


class MyNorm(nn.BatchNorm1d):
    """A BatchNorm under another name."""


class Centred(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return h - h.mean(0)


class GhostNorm(nn.Module):
    """Statistics of halves of the batch."""

    def forward(self, h: Tensor) -> Tensor:
        return torch.cat([(part - part.mean(0)) / (part.std(0) + 1e-3) for part in h.chunk(2)])


class MinibatchStdDev(nn.Module):
    """ProGAN's layer: the batch's standard deviation as a feature."""

    def forward(self, h: Tensor) -> Tensor:
        return h + h.std(0).mean()


class MovingMean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(CLASSES))

    def forward(self, h: Tensor) -> Tensor:
        with torch.no_grad():
            self.mean.mul_(0.9).add_(0.1 * h.mean(0))
        return h - self.mean.detach()


class StatisticsOnly(nn.Module):
    """Keeps a mean that it never uses."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(CLASSES))

    def forward(self, h: Tensor) -> Tensor:
        self.seen += h.detach().mean(0)
        return h


class PlainMean(nn.Module):
    """A moving mean in an ordinary attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.zeros(CLASSES)

    def forward(self, h: Tensor) -> Tensor:
        before = self.mean
        self.mean = 0.9 * self.mean + 0.1 * h.detach().mean(0)
        return h - before


class Scale(nn.Module):
    """A moving maximum in a Python number, as quantisers keep it."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 1.0

    def forward(self, h: Tensor) -> Tensor:
        self.largest = 0.9 * self.largest + 0.1 * float(h.detach().abs().max())
        return h / 4.0


class History:
    def __init__(self) -> None:
        self.amax: deque[float] = deque([1.0] * 4, maxlen=4)


class Float8(nn.Module):
    """An amax history in an object of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.history = History()

    def forward(self, h: Tensor) -> Tensor:
        self.history.amax.append(float(h.detach().abs().amax()))
        return h


class Queue(nn.Module):
    """MoCo's queue of keys, in a list; later batches are compared with it."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: list[Tensor] = [torch.zeros(CLASSES)]

    def forward(self, h: Tensor) -> Tensor:
        out = h + torch.stack(list(self.keys)).mean(0)
        self.keys = [*self.keys, *h.detach()][-16:]
        return out


class LastBatch(nn.Module):
    """Adds what the batch before gave."""

    def __init__(self) -> None:
        super().__init__()
        self.before: Tensor | None = None

    def forward(self, h: Tensor) -> Tensor:
        out = h if self.before is None or self.before.shape != h.shape else h + self.before
        self.before = h.detach()
        return out


class Codebook(nn.Module):
    """Vector quantisation whose codes follow the data as a moving average."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.randn(4, CLASSES))

    def forward(self, h: Tensor) -> Tensor:
        nearest = torch.cdist(h.detach(), self.codes).argmin(1)
        with torch.no_grad():
            for code in nearest.unique().tolist():
                self.codes[code] = 0.9 * self.codes[code] + 0.1 * h[nearest == code].mean(0)
        return h


class CodebookParameter(nn.Module):
    """The same in a parameter that gets no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.randn(4, CLASSES), requires_grad=False)

    def forward(self, h: Tensor) -> Tensor:
        self.codes.data = 0.9 * self.codes.data + 0.1 * h.detach().mean(0)
        return h


class ActNorm(nn.Module):
    """Sets its scale from the first batch that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(CLASSES))
        self.is_set = False

    def forward(self, h: Tensor) -> Tensor:
        if not self.is_set:
            with torch.no_grad():
                self.scale.copy_(1 / (h.std(0) + 1e-3))
            self.is_set = True
        return h * self.scale


class FirstBatchMean(nn.Module):
    """Sets a buffer from the first batch that it sees, and never again."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(CLASSES))
        self.is_set = False

    def forward(self, h: Tensor) -> Tensor:
        if not self.is_set:
            self.mean.copy_(h.detach().mean(0))
            self.is_set = True
        return h - self.mean


STORE: list[Tensor] = []


class GlobalMemory(nn.Module):
    """Keeps what it saw in a variable of the module's file."""

    def forward(self, h: Tensor) -> Tensor:
        out = h + (torch.stack(STORE).mean(0) if STORE else 0.0)
        STORE.append(h.detach().mean(0) + 1)
        return out


CALLS: SimpleQueue[int] = SimpleQueue()


class HiddenCount(nn.Module):
    """Counts its calls where nobody can look."""

    def forward(self, h: Tensor) -> Tensor:
        CALLS.put(1)
        return h + CALLS.qsize()


class EarlyExit(nn.Module):
    """Skips work when the batch is easy."""

    def forward(self, h: Tensor) -> Tensor:
        return h if h.detach().abs().mean() < 20 else h.tanh()


class Capacity(nn.Module):
    """A mixture of experts whose first expert takes the three best examples of a batch."""

    def forward(self, h: Tensor) -> Tensor:
        chosen = torch.zeros(h.shape[0], dtype=torch.bool)
        chosen[h[:, 0].topk(min(3, h.shape[0])).indices] = True
        return torch.where(chosen[:, None], h * 2, h)


class Balanced(nn.Module):
    """Gates that are normalised over the batch."""

    def forward(self, h: Tensor) -> Tensor:
        gates = h.exp()
        return h * gates / gates.sum(0)


class StraightThrough(nn.Module):
    """Its values are each example's own, its gradients are the batch's."""

    def forward(self, h: Tensor) -> Tensor:
        mean = h.mean(0, keepdim=True).expand_as(h)
        return h + (mean - mean.detach())


class _UnitGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        return h.view_as(h)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient / (gradient.norm() + 1e-6)


class UnitGradient(nn.Module):
    """Normalises the gradient over the whole batch on its way back."""

    def forward(self, h: Tensor) -> Tensor:
        return _UnitGradient.apply(h)


class HookedGradient(nn.Module):
    """The same by a hook on a tensor."""

    def forward(self, h: Tensor) -> Tensor:
        h = h * 1.0
        if h.requires_grad:
            h.register_hook(lambda g: g - g.mean(0))
        return h


class Whitening(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        centred = h - h.mean(0)
        return centred @ torch.linalg.inv(torch.eye(h.shape[1]) + centred.T @ centred)


class Mixup(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return 0.7 * h + 0.3 * h[torch.randperm(h.shape[0])]


class Tokens(nn.Module):
    """A sequence model over `[B, T]` ids, around a layer that takes `[B, T, d]`."""

    def __init__(self, body: nn.Module, pool: Callable[[Tensor], Tensor] = lambda h: h.mean(1)) -> None:
        super().__init__()
        self.table = nn.Embedding(11, WIDTH)
        self.body = body
        self.pool = pool
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        found = self.body(self.table(ids))
        return self.head(self.pool(found[0] if isinstance(found, tuple) else found))


class FrozenTokens(Tokens):
    """The same with a frozen body, whose operators nobody captures."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__(body.requires_grad_(False))


class SelfAttention(nn.Module):
    """Attention that was written for `[T, B, d]`."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2)

    def forward(self, h: Tensor) -> Tensor:
        return self.attention(h, h, h, need_weights=False)[0]


class OwnLoss(nn.Module):
    """Returns the mean loss over all tokens that are not padding, as language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 11)

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        logits = self.table(ids)
        labels = ids.masked_fill(ids < 4, -100)
        return {"loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}


class SharedTemperature(nn.Module):
    """Returns a number of the whole batch beside its outputs, without a gradient; the loss uses it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.head(x)
        return logits, logits.detach().std()


class Hooked(Body):
    """A forward hook of the user's that mixes."""

    def __init__(self) -> None:
        super().__init__()
        self.head.register_forward_hook(lambda module, args, out: out - out.mean(0))

    def middle(self, h: Tensor) -> Tensor:
        return h


class BalancingTerm(Body):
    """Leaves a term for the loss on itself, made of the whole batch."""

    def middle(self, h: Tensor) -> Tensor:
        self.balance = h.mean(0).square().sum()
        return h


Make = Callable[[], nn.Module]

MIXES = CrossSampleLeakError

AT_SETUP: list[tuple[str, Make, type[HushgradError]]] = [
    ("batch norm", layer(lambda: nn.BatchNorm1d(WIDTH)), CrossSampleLeakError),
    ("batch norm without affine", layer(lambda: nn.BatchNorm1d(WIDTH, affine=False)), CrossSampleLeakError),
    ("batch norm, frozen but training", layer(lambda: nn.BatchNorm1d(WIDTH).requires_grad_(False)), MIXES),
    ("batch norm without statistics", layer(lambda: nn.BatchNorm1d(WIDTH, track_running_stats=False).eval()), MIXES),
    ("a subclass of batch norm", layer(lambda: MyNorm(WIDTH)), CrossSampleLeakError),
    ("synchronised batch norm", layer(lambda: nn.SyncBatchNorm(WIDTH)), CrossSampleLeakError),
    ("instance norm with statistics",
     layer(lambda: nn.InstanceNorm1d(WIDTH, track_running_stats=True)), PrivateBufferError),
]  # fmt: skip

CAUGHT: tuple[type[HushgradError], ...] = (CrossSampleLeakError, PrivacyUnitError)

ON_FEATURES: list[tuple[str, Make, str, tuple[type[HushgradError], ...]]] = [
    ("functional batch norm", in_the_middle(lambda h: F.batch_norm(h, None, None, training=True)), "", CAUGHT),
    ("functional batch norm at the end",
     at_the_end(lambda h: F.batch_norm(h, None, None, training=True)), "batch_norm", CAUGHT),
    ("centred over the batch", last_layer(Centred), "Centred", CAUGHT),
    ("centred in the middle", layer(Centred), "", CAUGHT),
    ("divided by the batch's maximum", at_the_end(lambda h: h / h.abs().max().detach()), "Mixing", CAUGHT),
    ("softmax over the batch", at_the_end(lambda h: h.softmax(0)), "Mixing", CAUGHT),
    ("layer norm over the batch", at_the_end(lambda h: F.layer_norm(h.T, h.T.shape[1:]).T), "Mixing", CAUGHT),
    ("divided by the norm of the batch", at_the_end(lambda h: h / h.norm().detach()), "Mixing", CAUGHT),
    ("whitened over the batch", last_layer(Whitening), "Whitening", CAUGHT),
    ("ghost batch norm", last_layer(GhostNorm), "GhostNorm", CAUGHT),
    ("minibatch standard deviation", last_layer(MinibatchStdDev), "MinibatchStdDev", CAUGHT),
    ("neighbours in the batch", at_the_end(lambda h: torch.cdist(h, h).softmax(1) @ h), "Mixing", CAUGHT),
    ("rolled along the batch", at_the_end(lambda h: h + h.roll(1, 0)), "Mixing", CAUGHT),
    ("the first example as a prototype", at_the_end(lambda h: h - h[:1]), "Mixing", CAUGHT),
    ("sums along the batch", at_the_end(lambda h: h.cumsum(0)), "Mixing", CAUGHT),
    ("ranks within the batch", at_the_end(lambda h: h * h.argsort(0).argsort(0)), "Mixing", CAUGHT),
    ("zero times the batch", at_the_end(lambda h: h + 0 * h.sum(0)), "Mixing", CAUGHT),
    ("the batch size as a feature", at_the_end(lambda h: h / h.shape[0]), "Mixing", CAUGHT),
    ("mixup in the forward", last_layer(Mixup), "Mixup", CAUGHT),
    ("outliers of the batch set to zero", at_the_end(lambda h: h * (h < h.quantile(0.9))), "Mixing", CAUGHT),
    ("early exit for the whole batch", last_layer(EarlyExit), "EarlyExit", CAUGHT),
    ("an expert's capacity", last_layer(Capacity), "Capacity", CAUGHT),
    ("gates normalised over the batch", last_layer(Balanced), "Balanced", CAUGHT),
    ("straight through the batch's mean", last_layer(StraightThrough), "StraightThrough", CAUGHT),
    ("gradients normalised over the batch", last_layer(UnitGradient), "", CAUGHT),
    ("gradients centred by a hook", last_layer(HookedGradient), "gradient", CAUGHT),
    ("a user's forward hook", Hooked, "Hooked", CAUGHT),
    ("a moving mean of features", last_layer(MovingMean), "MovingMean", CAUGHT),
    ("statistics that nobody uses", last_layer(StatisticsOnly), "3.seen", (PrivateBufferError,)),
    ("a moving mean in an attribute", last_layer(PlainMean), "3.mean", (PrivateBufferError,)),
    ("a maximum in a Python number", last_layer(Scale), "3.largest", (PrivateBufferError,)),
    ("an amax history in an object", last_layer(Float8), "3.history.amax", (PrivateBufferError,)),
    ("a queue of keys in a list", last_layer(Queue), "3.keys", (PrivateBufferError,)),
    ("the batch before", last_layer(LastBatch), "3.before", (PrivateBufferError,)),
    ("a moving codebook", last_layer(Codebook), "3.codes", (PrivateBufferError,)),
    ("a moving codebook in a frozen parameter", last_layer(CodebookParameter), "3.codes", (PrivateBufferError,)),
    ("a scale set by the first batch", last_layer(ActNorm), "3.scale", (PrivateBufferError,)),
    ("a buffer set by the first batch", last_layer(FirstBatchMean), "FirstBatchMean", CAUGHT),
    ("memory outside of the model", last_layer(GlobalMemory), "leaky_models.STORE", (PrivateBufferError,)),
    ("a count of calls where nobody can look", last_layer(HiddenCount), "run again", CAUGHT),
    ("halves of the batch treated differently", in_the_middle(by_halves), "", CAUGHT),
    ("a state carried from piece to piece", at_the_end(carried), "Mixing", CAUGHT),
    ("pieces put together in the order of their values",
     at_the_end(lambda h: torch.stack([h[i] for i in h[:, 0].argsort().tolist()])), "Mixing", CAUGHT),
    ("a row written over another one", at_the_end(overwritten), "", CAUGHT),
    ("class means", at_the_end(class_means), "Mixing", CAUGHT),
    ("a product over the batch",
     at_the_end(lambda h: h @ torch.tensordot(h, h.detach(), dims=([0], [0]))), "Mixing", CAUGHT),
    ("a sum by einsum", at_the_end(lambda h: h + torch.einsum("bi->i", h.detach())), "Mixing", CAUGHT),
    ("distances to the others",
     at_the_end(lambda h: h * torch.cdist(h, h.detach()).mean(1, keepdim=True)), "Mixing", CAUGHT),
    ("ranks by searchsorted", at_the_end(ranked), "Mixing", CAUGHT),
    ("a grid of the batch's mean", at_the_end(sampled), "Mixing", CAUGHT),
    ("an orthonormal basis of the batch", at_the_end(lambda h: h @ torch.linalg.qr(h.T @ h)[0]), "Mixing", CAUGHT),
    ("codes weighed by their use", at_the_end(by_use), "Mixing", CAUGHT),
    ("a balancing term left on the model", BalancingTerm, "balance", (PrivateBufferError,)),
]  # fmt: skip

ON_TOKENS: list[tuple[str, Make, str, tuple[type[HushgradError], ...]]] = [
    ("attention across the batch", lambda: Tokens(SelfAttention()), "", CAUGHT),
    ("frozen attention across the batch", lambda: FrozenTokens(SelfAttention()), "", CAUGHT),
    ("attention across the batch, no layer behind it",
     lambda: nn.Sequential(nn.Embedding(11, WIDTH), SelfAttention(), nn.Flatten()), "", CAUGHT),
    ("encoder layer across the batch", lambda: FrozenTokens(nn.TransformerEncoderLayer(WIDTH, 2, 8)), "", CAUGHT),
    ("recurrence across the batch", lambda: FrozenTokens(nn.LSTM(WIDTH, WIDTH)), "", CAUGHT),
    ("GRU across the batch", lambda: Tokens(nn.GRU(WIDTH, WIDTH)), "", CAUGHT),
    ("mean over everything", lambda: Tokens(nn.Identity(), lambda h: h.mean(1) + h.mean((0, 1))), "", CAUGHT),
]  # fmt: skip
