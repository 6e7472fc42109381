"""The probe by itself: what it finds by running a model, without what capture sees in the operators."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from queue import SimpleQueue

import harmless_models
import leaky_models
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from benchmarks.llama import Llama
from leaky_models import BATCH, CLASSES, WIDTH, layer
from torch import Tensor, nn

from hushgrad import DPSGD, FlatClipping, PoissonSampling, privatize
from hushgrad.capture.scope import Scope
from hushgrad.capture.uses import UsePool
from hushgrad.errors import (
    CrossSampleLeakError,
    HushgradError,
    PrivacyUnitError,
    PrivateBufferError,
    UnsupportedModelError,
)
from hushgrad.guards.probing.calls import Call
from hushgrad.guards.probing.model_probe import examine
from hushgrad.guards.probing.probed import Probed

SEEN_IN_GRADIENTS_ONLY = {"gradients normalised over the batch", "gradients centred by a hook"}


def probed(model: nn.Module, *inputs: Tensor, reached: bool = False) -> Probed:
    """Run the model once as a loop would, and probe that call."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    scope = Scope(model, UsePool())
    try:
        call = Call.begun(model, model, inputs, {})
        scope.paused = True
        call.returned(model(*inputs), False, lambda: True)
        scope.paused = False
        if reached:
            call.reached.add(())
        probe = Probed(model, scope, parameters, "mean")
        examine(probe, call, BATCH)
    finally:
        scope.detach()
    return probe


def features() -> Tensor:
    return torch.randn(BATCH, WIDTH)


def tokens() -> Tensor:
    return torch.randint(0, 11, (BATCH, 5))


CASES = [
    *[(name, make, features) for name, make, _, _ in leaky_models.ON_FEATURES],
    *[(name, make, tokens) for name, make, _, _ in leaky_models.ON_TOKENS],
]


@pytest.mark.parametrize(("name", "make", "batch"), CASES, ids=[case[0] for case in CASES])
def test_running_alone_finds_every_leaky_model(
    name: str, make: Callable[[], nn.Module], batch: Callable[[], Tensor]
) -> None:
    with pytest.raises((CrossSampleLeakError, PrivateBufferError, PrivacyUnitError)):
        probed(make(), batch(), reached=name in SEEN_IN_GRADIENTS_ONLY or "straight" in name)


HARMLESS = [
    *[(name, make, features) for name, make, _ in harmless_models.ON_FEATURES],
    *[(name, make, tokens) for name, make, _ in harmless_models.ON_TOKENS],
]


@pytest.mark.parametrize(("name", "make", "batch"), HARMLESS, ids=[case[0] for case in HARMLESS])
def test_a_probe_leaves_nothing_behind(name: str, make: Callable[[], nn.Module], batch: Callable[[], Tensor]) -> None:
    """Guarantee: parameters, buffers, attributes and random states are afterwards what they were before."""
    model, x = make(), batch()
    if "float64" in name:
        x = x.double()
    untouched = x.clone()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    scope = Scope(model, UsePool())
    try:
        call = Call.begun(model, model, (x,), {})
        call.returned(model(x), False, lambda: True)
        before = {name: value.detach().clone() for name, value in model.state_dict().items()}
        attributes = [
            {key: value for key, value in vars(part).items() if not key.startswith("_")} for part in model.modules()
        ]
        states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
        examine(Probed(model, scope, parameters, "mean"), call, BATCH)
    finally:
        scope.detach()
    assert torch.equal(x, untouched)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    for part, kept in zip(model.modules(), attributes, strict=True):
        own = {key: value for key, value in vars(part).items() if not key.startswith("_")}
        assert own.keys() == kept.keys()
        assert all(own[key] is value or own[key] == value for key, value in kept.items())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("make", "place"),
    [
        (layer(leaky_models.Centred), "1 (Centred)"),
        (lambda: nn.Sequential(nn.Sequential(nn.Linear(WIDTH, 3), leaky_models.GhostNorm())), "0.1 (GhostNorm)"),
        (leaky_models.at_the_end(lambda h: h - h.mean(0)), "the forward of Mixing itself"),
        (leaky_models.Hooked, "head (Linear)"),
        (layer(leaky_models.Mixup), "1 (Mixup)"),
    ],
)
def test_the_message_names_the_innermost_module_in_which_examples_met(
    make: Callable[[], nn.Module], place: str
) -> None:
    with pytest.raises(CrossSampleLeakError) as raised:
        probed(make(), features())
    assert place in str(raised.value)


def test_attention_over_the_wrong_axis_is_named_with_its_cure() -> None:
    with pytest.raises(CrossSampleLeakError, match=r"body.attention \(MultiheadAttention\).*batch_first=True"):
        probed(leaky_models.Tokens(leaky_models.SelfAttention()), tokens())


class TwoInputs(nn.Module):
    """Takes a mask over positions that has as many rows as there are examples by chance."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, WIDTH)
        self.body = nn.TransformerEncoderLayer(WIDTH, 2, 8, batch_first=True, dropout=0.0)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.body(self.table(ids), src_mask=mask)


def test_a_square_mask_over_as_many_positions_as_examples_is_a_constant() -> None:
    mask = nn.Transformer.generate_square_subsequent_mask(BATCH)
    probed(TwoInputs(), torch.randint(0, 11, (BATCH, BATCH)), mask)


class WithState(nn.Module):
    """Takes the first state of its recurrence, with the batch on axis 1."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.GRU(WIDTH, WIDTH, batch_first=True)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        out: tuple[Tensor, Tensor] = self.body(x, state)
        return out


def test_a_second_input_with_its_batch_on_another_axis_is_followed() -> None:
    probed(WithState(), torch.randn(BATCH, 5, WIDTH), torch.randn(1, BATCH, WIDTH))


def test_time_first_inputs_are_probed_along_their_own_axis() -> None:
    class TimeFirst(nn.Module):
        def __init__(self, leak: bool) -> None:
            super().__init__()
            self.body, self.leak = nn.GRU(WIDTH, WIDTH), leak

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.body(x)[0]
            return out - out.mean(1, keepdim=True) if self.leak else out

    probed(TimeFirst(leak=False), torch.randn(5, BATCH, WIDTH))
    with pytest.raises(CrossSampleLeakError):
        probed(TimeFirst(leak=True), torch.randn(5, BATCH, WIDTH))


def test_a_model_that_cannot_run_on_one_example_fewer_is_refused() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(WIDTH, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.view(BATCH, WIDTH))

    with pytest.raises(CrossSampleLeakError, match=r"fails without one of them \(RuntimeError in forward"):
        probed(Fixed(), features())


def test_a_model_that_wants_its_rows_in_their_places_is_refused_with_its_cure() -> None:
    class Numbered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(WIDTH, CLASSES)

        def forward(self, x: Tensor, numbers: Tensor) -> Tensor:
            if bool((numbers.diff() <= 0).any()):
                raise ValueError("numbers must rise")
            return self.head(x)

    with pytest.raises(UnsupportedModelError, match=r"take each other's place \(ValueError.*enforce_sorted=False"):
        probed(Numbered(), features(), torch.arange(BATCH) + 10)


def test_a_model_that_wants_its_rows_in_the_order_of_their_lengths_is_examined() -> None:
    class Packed(nn.Module):
        def __init__(self, enforce_sorted: bool) -> None:
            super().__init__()
            self.body, self.enforce_sorted = nn.GRU(WIDTH, CLASSES, batch_first=True), enforce_sorted

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, True, self.enforce_sorted)
            return self.body(packed)[1][0]

    x, lengths = torch.randn(BATCH, 9, WIDTH), torch.arange(9, 9 - BATCH, -1)
    for enforce_sorted in (True, False):
        assert not probed(Packed(enforce_sorted), x, lengths).skipped


def test_values_out_of_a_models_range_are_not_put_in() -> None:
    """A model that looks values up cannot take an example far away, nor NaN: the exchanged content is enough."""

    class Lookup(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(256, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.table((x * 255).round().long()).mean(1)

    probe = probed(Lookup(), torch.rand(BATCH, WIDTH))
    assert probe.skipped


class Columns(nn.Module):
    """Looks each column of ids up in a table of its own; may keep the first one."""

    def __init__(self, keeps: bool) -> None:
        super().__init__()
        self.tables = nn.ModuleList([nn.Embedding(count, 4) for count in (3, 7, 20)])
        self.keeps, self.last = keeps, 0

    def forward(self, ids: Tensor) -> Tensor:
        if self.keeps:
            self.last = int(ids[0, -1])
        return sum(table(ids[:, i]) for i, table in enumerate(self.tables))


def test_a_lone_row_of_ids_of_different_tables_is_examined() -> None:
    for keeps in (False, True):
        model = Columns(keeps)
        parameters = dict(model.named_parameters())
        scope = Scope(model, UsePool())
        scope.paused = True
        ids = torch.tensor([[2, 5, 19]])
        call = Call.begun(model, model, (ids,), {})
        call.returned(model(ids), False, lambda: True)
        scope.paused = False
        try:
            if keeps:
                with pytest.raises(PrivateBufferError, match="last"):
                    examine(Probed(model, scope, parameters, "mean"), call, 1)
            else:
                examine(Probed(model, scope, parameters, "mean"), call, 1)
        finally:
            scope.detach()


def test_a_nan_example_that_only_meets_zeros_of_others_is_still_a_leak() -> None:
    with pytest.raises(CrossSampleLeakError, match="were NaN"):
        probed(leaky_models.at_the_end(lambda h: h + 0 * h.sum(0))(), features())


def test_low_precision_is_no_leak() -> None:
    """Other batch sizes round otherwise; in bfloat16 by percents."""
    model = nn.Sequential(nn.Linear(WIDTH, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, CLASSES))
    probed(model.to(torch.bfloat16), features().to(torch.bfloat16), reached=True)


@pytest.mark.parametrize("seed", range(6))
def test_a_decoder_in_low_precision_trains_on_two_records_at_a_time(seed: int) -> None:
    """A batch that is looked at whole runs again with the shapes of the captured forward, and by other kernels."""
    torch.manual_seed(seed)
    model = Llama(vocabulary=50, width=16, depth=1, heads=4, shared_heads=2, inner=24).to(torch.bfloat16)
    mechanism = DPSGD(
        noise_multiplier=1.0,
        clipping=FlatClipping(1.0),
        sampling=PoissonSampling(rate=0.01),
        expected_batch_size=2,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    session = privatize(model, optimizer, mechanism)
    for _ in range(16):
        ids, labels = torch.randint(0, 50, (2, 6)), torch.randint(0, 50, (2, 6))
        optimizer.zero_grad()
        session.backward(F.cross_entropy(model(ids).mT, labels, reduction="none").mean(1))
        optimizer.step()


def test_autocast_around_the_call_is_kept() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, 64), nn.Linear(64, CLASSES))
    x, scope = features(), Scope(model, UsePool())
    with torch.autocast("cpu", torch.bfloat16):
        call = Call.begun(model, model, (x,), {})
        call.returned(model(x), False, lambda: True)
    probe = Probed(model, scope, dict(model.named_parameters()), "mean", keeps_runs=True)
    examine(probe, call, BATCH)
    scope.detach()
    assert probe.runs is not None
    assert probe.runs.whole.dtype == torch.bfloat16


def test_errors_of_the_library_pass_through() -> None:
    class Refusing(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[0] < BATCH:
                raise PrivateBufferError("mine")
            return F.linear(x, self.weight)

    with pytest.raises(HushgradError, match="mine"):
        probed(Refusing(WIDTH, CLASSES), features())


class ChangesWithItsCalls(nn.Module):
    """Counts its forwards where nobody sees it, and computes something else from one of them on."""

    def __init__(self, first: int) -> None:
        super().__init__()
        calls = itertools.count()
        self.layer = nn.Linear(WIDTH, CLASSES)
        self.factor = lambda: 2.0 if next(calls) >= first else 1.0

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.factor() * self.layer(x)
        return out


@pytest.mark.parametrize("size", [2, 4, 5, 9])
@pytest.mark.parametrize("first", range(2, 5))
def test_a_model_that_changes_with_its_calls_is_told_so_in_batches_of_every_size(first: int, size: int) -> None:
    model = ChangesWithItsCalls(first)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mechanism = DPSGD(
        noise_multiplier=1.0, clipping=FlatClipping(1.0), sampling=PoissonSampling(0.1), expected_batch_size=4
    )
    session = privatize(model, optimizer, mechanism)
    with pytest.raises(CrossSampleLeakError):
        session.backward(model(torch.randn(size, WIDTH)).square().sum(1))
    session.close()


class Counts(nn.Module):
    """A layer that counts its runs on the whole batch; `change` is made where gradients are recorded, as in a loop."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.change, self.runs = nn.Linear(WIDTH, CLASSES), change, SimpleQueue[int]()

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == BATCH:
            self.runs.put(1)
        return self.change(self.layer(x)) if torch.is_grad_enabled() else self.layer(x)


@pytest.mark.parametrize(
    ("change", "runs"),
    [(lambda h: h, 3), (lambda h: h * (1 + 2**-23), 4), (lambda h: h + 0.1 * h.abs(), 4)],
    ids=["the same bits", "another bit", "other values"],
)
def test_the_loops_own_forward_is_the_second_run_where_it_gave_the_same_bits(
    change: Callable[[Tensor], Tensor], runs: int
) -> None:
    model = Counts(change)
    probe = probed(model, features())
    assert model.runs.qsize() == 1 + runs  # its own, the batch itself (once or twice), two altered ones
    assert probe.forwards == runs + 1  # and one without an example


def test_random_numbers_that_are_the_same_in_the_loop_by_chance_are_run_twice() -> None:
    model = nn.Sequential(Counts(lambda h: h), nn.Dropout(0.5))
    with torch.no_grad():
        model[0].layer.weight.zero_()
        model[0].layer.bias.zero_()  # type: ignore[union-attr]
    probed(model, features())
    assert model[0].runs.qsize() == 1 + 5  # the batch itself three times, once of these without randomness


@pytest.mark.parametrize("later", [1, 2, 3])
def test_what_is_kept_out_of_reach_and_comes_out_some_calls_later_is_refused(later: int) -> None:
    """The loop's own forward and the first run may be the same then."""
    hidden: SimpleQueue[Tensor] = SimpleQueue()

    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(WIDTH, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            h = self.layer(x)
            hidden.put(h.detach().mean(0))
            return h + hidden.get() if hidden.qsize() > later else h

    with pytest.raises(CrossSampleLeakError, match=r"mixes the examples|gives other outputs"):
        probed(Late(), features())


class NoisyByNumpy(nn.Module):
    """Noise of a fixed scale, drawn for the whole batch outside of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + torch.from_numpy(np.random.normal(0, 0.1, tuple(x.shape))).to(x.dtype))  # type: ignore[no-any-return]


def test_numbers_that_numpy_draws_for_a_batch_are_refused_for_that() -> None:
    with pytest.raises(CrossSampleLeakError, match="draws random numbers by Python or NumPy"):
        probed(NoisyByNumpy(), features())
