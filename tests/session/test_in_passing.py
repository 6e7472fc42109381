"""Items whose norms and sums are taken inside their backward: the same updates, and what cannot be is refused."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import (
    DPSGD,
    ClipRule,
    DisjointBatches,
    FlatClipping,
    GroupwiseClipping,
    PoissonSampling,
    QuantileClipping,
    Session,
    privatize,
)
from hushgrad.errors import (
    CrossSampleLeakError,
    HushgradError,
    ProtocolError,
    SensitivityMismatchError,
    UncoveredParameterUseError,
    UnsupportedModelError,
)
from hushgrad.gradients.contribution import Contribution, Plan
from hushgrad.gradients.in_passing import TwoPasses
from hushgrad.gradients.oracle import clipped_sum_of, one_at_a_time
from hushgrad.randomness import KeyStream

N, B, C = 12, 6, 0.1
KEPT, LET_GO = Plan(), Plan(operand_bytes=0)
Way = Callable[["Training", Tensor, Tensor], None]


class Network(nn.Module):
    """A table that is tied to the head, two blocks, computed again in the backward or not, and dropout."""

    def __init__(self, reentrant: bool | None = None, dropout: float = 0.0, keeps_seed: bool = True) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.token = nn.Embedding(9, 6)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6), nn.Dropout(dropout)) for _ in "ab")
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.token.weight
        self.reentrant, self.keeps_seed = reentrant, keeps_seed

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token(ids)
        for block in self.blocks:
            if self.reentrant is None:
                x = x + block(x)
            else:
                how = {"use_reentrant": self.reentrant, "preserve_rng_state": self.keeps_seed}
                x = x + checkpoint(block, x, **how)
        found: Tensor = self.head(x.tanh()).mean(1)
        return found


class Training:
    """A private loop without noise over two logical batches of six records, in items of four and two."""

    def __init__(
        self, plan: Plan, rule: ClipRule | None = None, model: nn.Module | None = None, *, rows: int = 4, **options: Any
    ) -> None:
        self.model = model or Network()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1.0)
        torch.manual_seed(0)
        self.data = TensorDataset(torch.randint(0, 9, (N, 5)), torch.randint(0, 9, (N,)))
        mechanism = DPSGD(
            noise_multiplier=options.pop("sigma", 0.0),
            clipping=rule or FlatClipping(C),
            sampling=DisjointBatches(),
            expected_batch_size=B,
            noise_kind=options.pop("noise_kind", "gaussian"),
        )
        scale = options.pop("loss_scale", 1.0)
        key = KeyStream.fixed_for_tests(5)
        self.session = privatize(self.model, self.optimizer, mechanism, plan=plan, key=key, loss_scale=scale)
        loader = DataLoader(self.data, batch_size=B)
        self.loader = self.session.batches_of(loader, max_physical_batch_size=rows, **options)
        self.criterion = self.session.per_example(nn.CrossEntropyLoss())
        self.let_go: list[bool] = []

    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.model(x), y, reduction="none")

    def run(self, way: Way) -> list[Tensor]:
        """Train on all items, and return the weights."""
        for x, y in self.loader:
            self.optimizer.zero_grad()
            way(self, x, y)
            self.let_go.append(self.session._loop._batch._passing.is_done)  # type: ignore[attr-defined]
            self.optimizer.step()
        return [parameter.detach().clone() for parameter in self.model.parameters()]


def by_criterion(training: Training, x: Tensor, y: Tensor) -> None:
    training.criterion(training.model(x), y).backward()


def by_session(training: Training, x: Tensor, y: Tensor) -> None:
    training.session.backward(training.losses(x, y))


def by_loss(training: Training, x: Tensor, y: Tensor) -> None:
    (training.session.loss(training.losses(x, y), scale=0.5) / 2).backward()  # type: ignore[no-untyped-call]


def on_its_own(training: Training, x: Tensor, y: Tensor) -> None:
    F.cross_entropy(training.model(x), y).backward()


def same(first: list[Tensor], second: list[Tensor]) -> float:
    one, other = (torch.cat([part.flatten() for part in parts]) for parts in (first, second))
    before = torch.cat([p.flatten() for p in Network().parameters()]).detach()
    return float((one - other).norm() / (one - before).norm())


# The same updates ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "reentrant"), [(by_criterion, None), (by_criterion, False), (by_session, False), (by_loss, None)]
)
def test_updates_are_those_of_operands_that_are_kept(way: Way, reentrant: bool | None) -> None:
    kept, let_go = Training(KEPT, model=Network(reentrant)), Training(LET_GO, model=Network(reentrant))
    assert same(kept.run(way), let_go.run(way)) <= 5e-7
    assert (any(kept.let_go), all(let_go.let_go)) == (False, True)
    assert let_go.session.probe_report == kept.session.probe_report
    assert let_go.session.sensitivity_monitor.verdict == "within the clip norm"


@pytest.mark.parametrize(
    ("rule", "constant_shapes"),
    [(GroupwiseClipping(C), True), (GroupwiseClipping(C, "parameter"), False), (QuantileClipping(C), True)],
)
def test_any_clip_rule_is_followed_and_padding_counts_for_nothing(rule: ClipRule, constant_shapes: bool) -> None:
    weights = []
    for plan in (KEPT, LET_GO):
        training = Training(plan, rule, sigma=1e-3, constant_shapes=constant_shapes)
        weights.append(training.run(by_criterion))
    assert same(*weights) <= 5e-7


def test_sums_in_float64_for_noise_on_a_grid_know_their_error() -> None:
    kept, let_go = (Training(plan, sigma=0.01, noise_kind="grid").run(by_criterion) for plan in (KEPT, LET_GO))
    assert same(kept, let_go) <= 5e-7


def test_losses_are_scaled_and_not_divided_where_gradients_pass_through_16_bits() -> None:
    def narrow(training: Training, x: Tensor, y: Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            output = training.model(x)
        training.criterion(output.float(), y).backward()

    weights = [Training(plan, model=Network(False), loss_scale=1024.0).run(narrow) for plan in (KEPT, LET_GO)]
    assert same(*weights) <= 5e-7


def oracle(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    runs = [lambda i=i: F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]) for i in range(len(x))]
    return one_at_a_time(model, runs)


def declared(plan: Plan, model: nn.Module, rule: ClipRule) -> tuple[Session, torch.optim.Optimizer]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    mechanism = DPSGD(noise_multiplier=0.0, clipping=rule, sampling=PoissonSampling(0.5), expected_batch_size=B)
    return privatize(model, optimizer, mechanism, plan=plan, key=KeyStream.fixed_for_tests(5)), optimizer


@pytest.mark.parametrize("rule", [FlatClipping(C), GroupwiseClipping(C)])
def test_updates_are_those_of_one_example_at_a_time(rule: ClipRule) -> None:
    """Each example alone adds no more than the clip norm, too; batches are declared here."""
    x, y = torch.randint(0, 9, (B, 5)), torch.randint(0, 9, (B,))
    per_example = oracle(Network().double(), x, y)
    for rows in (slice(0, B), slice(0, 1), slice(3, 4)):
        model = Network(False).double()
        session, optimizer = declared(LET_GO, model, rule)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        session.backward(F.cross_entropy(model(x[rows]), y[rows], reduction="none"))
        optimizer.step()
        found = {name: (before[name] - p.detach()) * B for name, p in model.named_parameters()}
        wanted = clipped_sum_of({name: part[rows] for name, part in per_example.items()}, rule)
        assert torch.cat([(found[name] - wanted[name]).flatten() for name in found]).norm() <= 1e-9 * C
        if rows != slice(0, B):
            assert torch.cat([part.flatten() for part in found.values()]).norm() <= C * (1 + 1e-5)


# What is let go ------------------------------------------------------------------------------------------------------


def test_what_was_measured_or_summed_is_gone_before_the_next_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee: of parameters that are used once no two have operands at a time; nothing is left after the item."""
    held: list[weakref.ref[Contribution]] = []
    most: list[int] = []

    def watched(method: Callable[..., Any]) -> Callable[..., Any]:
        def run(self: TwoPasses, name: str, parts: list[Contribution]) -> Any:
            most.append(sum(part() is not None for part in held))
            held.extend(weakref.ref(part) for part in parts)
            return method(self, name, parts)

        return run

    for name in ("measure", "sum"):
        monkeypatch.setattr(TwoPasses, name, watched(getattr(TwoPasses, name)))
    training = Training(LET_GO, model=Network(False))
    training.session._parts.probe.stop_looks()
    training.run(by_criterion)
    most.clear()
    gc.collect()
    gc.disable()
    try:
        training.run(by_criterion)
        assert not any(part() is not None for part in held)
    finally:
        gc.enable()
    assert len(most) > 20
    assert max(most) <= 1  # a bias comes with its weight


@pytest.mark.parametrize(("plan", "is_let_go"), [(Plan(operand_bytes=1 << 20), False), (Plan(operand_bytes=100), True)])
def test_the_budget_decides(plan: Plan, is_let_go: bool) -> None:
    training = Training(plan)
    training.run(by_criterion)
    assert set(training.let_go) == {is_let_go}


def test_operands_of_a_loss_of_the_loops_own_are_kept() -> None:
    """As the doctor says: nothing of it tells when its backward begins."""
    kept, let_go = Training(KEPT), Training(LET_GO)
    assert same(kept.run(on_its_own), let_go.run(on_its_own)) <= 5e-7
    assert not any(let_go.let_go)


# What is refused -----------------------------------------------------------------------------------------------------


def refused(training: Training, way: Way, kind: type[HushgradError], text: str, *, may_step: bool = False) -> None:
    """Nothing is charged or released; `may_step`: what came before in whole is."""
    before = [parameter.detach().clone() for parameter in training.model.parameters()]
    with pytest.raises(kind, match=text):
        training.run(way)
    if not may_step:
        with pytest.raises(HushgradError):
            training.optimizer.step()
    assert training.session.steps == 0
    assert all(map(torch.equal, before, training.model.parameters()))
    training.session.discard()


def test_another_dropout_mask_the_second_time_is_refused() -> None:
    training = Training(LET_GO, FlatClipping(1e3), model=Network(False, 0.5, keeps_seed=False))
    refused(training, by_session, SensitivityMismatchError, "another norm the second time")
    kept, let_go = Training(KEPT, model=Network(False, 0.5)), Training(LET_GO, model=Network(False, 0.5))
    torch.manual_seed(3)
    first = kept.run(by_session)
    torch.manual_seed(3)
    assert same(first, let_go.run(by_session)) <= 5e-7, "one that is kept is the same"


def test_blocks_that_run_a_backward_of_their_own_are_refused() -> None:
    refused(Training(LET_GO, model=Network(True)), by_session, UnsupportedModelError, "use_reentrant=True")
    by_groups = Training(LET_GO, GroupwiseClipping(C), model=Network(True))
    refused(by_groups, by_session, UncoveredParameterUseError, "no forward had announced")


def test_blocks_that_keep_some_of_their_values_are_run_backward_once_alone() -> None:
    class Selective(Network):
        def forward(self, ids: Tensor) -> Tensor:
            keeps = partial(create_selective_checkpoint_contexts, [torch.ops.aten.tanh.default])
            run = lambda x: self.blocks[0](x).tanh()  # noqa: E731
            found: Tensor = checkpoint(run, self.token(ids), use_reentrant=False, context_fn=keeps).mean(1)
            return found @ torch.ones(6, 9)

    refused(Training(LET_GO, model=Selective()), by_session, UnsupportedModelError, "selective checkpointing")
    weights = [Training(plan, GroupwiseClipping(C), model=Selective()).run(by_session) for plan in (KEPT, LET_GO)]
    assert same(*weights) <= 5e-7


def test_several_backwards_over_one_item_are_refused() -> None:
    def twice(training: Training, x: Tensor, y: Tensor) -> None:
        by_session(training, x, y)
        by_session(training, x, y)

    def own_one_after(training: Training, x: Tensor, y: Tensor) -> None:
        by_session(training, x, y)
        on_its_own(training, x, y)

    refused(Training(LET_GO), twice, ProtocolError, "a second backward came over one item", may_step=True)
    text = "from another backward of this item"
    refused(Training(LET_GO), own_one_after, UncoveredParameterUseError, text, may_step=True)


def test_a_loss_of_the_loops_own_beside_the_sessions_is_refused() -> None:
    def beside(training: Training, x: Tensor, y: Tensor) -> None:
        output = training.model(x)
        own = output.square().mean()
        (training.session.loss(F.cross_entropy(output, y, reduction="none")) + own).backward()  # type: ignore[no-untyped-call]

    refused(Training(LET_GO), beside, SensitivityMismatchError, "another norm the second time")


def test_a_backward_that_was_left_in_its_middle_is_never_released() -> None:
    """Guarantee: an item of which a backward was left by an exception is never released, nor run backward again."""
    fails = [False]

    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.requires_grad:
                x.register_hook(self._hook)
            return x

        @staticmethod
        def _hook(gradient: Tensor) -> None:
            fails.append(True)
            if len(fails) == 3:  # of the second run, which sums
                raise RuntimeError("out of memory")

    model = Network()
    model.blocks[0].append(Fails())
    training = Training(LET_GO, model=model)

    def again(training: Training, x: Tensor, y: Tensor) -> None:
        with pytest.raises(RuntimeError, match="out of memory"):
            by_session(training, x, y)
        by_session(training, x, y)

    refused(training, again, ProtocolError, "left by an exception")


def test_a_gradient_penalty_is_refused() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 9)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).tanh()

    def penalized(training: Training, x: Tensor, y: Tensor) -> None:
        given = x.float().requires_grad_()
        output = training.model(given)
        [slope] = torch.autograd.grad(output.sum(), given, create_graph=True)
        training.session.backward(F.cross_entropy(output, y, reduction="none") + slope.square().sum(1))

    refused(Training(LET_GO, model=Plain()), penalized, UncoveredParameterUseError, "would be run twice")


def test_a_criterions_loss_is_not_multiplied() -> None:
    def doubled(training: Training, x: Tensor, y: Tensor) -> None:
        (2 * training.criterion(training.model(x), y)).backward()

    refused(Training(LET_GO), doubled, ProtocolError, "or operands are above their budget")


class Mixing(nn.Module):
    """Scales small gradients by the largest of the batch, which only the loop's own backward shows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.token, self.head = nn.Embedding(9, 6), nn.Linear(6, 9)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token(ids)
        if x.requires_grad:
            x.register_hook(lambda grad: grad.sign() * grad.abs().max() if grad.abs().max() < 0.2 else grad)
        found: Tensor = self.head(x.tanh()).mean(1)
        return found


@pytest.mark.parametrize("plan", [KEPT, LET_GO])
def test_gradients_that_the_probe_compares_are_kept_of_two_examples(plan: Plan) -> None:
    """Guarantee: what mixes examples in the loop's own backward alone is found as where all operands are kept."""
    with pytest.raises(CrossSampleLeakError, match="the gradient of one example depends on the others"):
        Training(plan, model=Mixing(), rows=B).run(by_session)
