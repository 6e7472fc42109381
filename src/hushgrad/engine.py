"""`PrivacyEngine`: the façade, with the names that users of Opacus know."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer

from hushgrad.accounting.accountants import ACCOUNTANTS, DEFAULT_ACCOUNTANT
from hushgrad.accounting.budget import Budget
from hushgrad.accounting.filter import PrivacyFilter
from hushgrad.accounting.guarantee import Guarantee
from hushgrad.accounting.neighbours import epsilon_of_group
from hushgrad.arguments import one_of, open_unit_interval, positive_number, whole_number
from hushgrad.clipping.named import chosen
from hushgrad.clipping.rule import ClipRule
from hushgrad.errors import InvalidArgumentError, ProtocolError
from hushgrad.guards.monitoring.monitor import Monitor
from hushgrad.losses import PerExampleLoss
from hushgrad.mechanism import DPSGD, Mechanism
from hushgrad.mechanism.named_noise import apart, kind_of, require_fixed_order, steps_of, strategy_for, strategy_given
from hushgrad.notebook import escaped
from hushgrad.parallel.agreement import together
from hushgrad.parallel.world import join_world
from hushgrad.randomness import KeyStream
from hushgrad.sampling.choice import Reading, counted_in, passes_of, scheme_for, size_for
from hushgrad.sampling.loader import PrivateLoader
from hushgrad.sampling.scheme import SamplingScheme
from hushgrad.sampling.stream import StreamLoader, StreamReading, is_stream, read_stream
from hushgrad.sampling.torch_loader import accumulated, read_data_loader
from hushgrad.session.checkpoint import Resumed, Stateful
from hushgrad.session.loss_scale import Scale
from hushgrad.session.privatize import privatize
from hushgrad.session.session import Session
from hushgrad.session.spending import calibrated, events_at
from hushgrad.sparse_rows.rule import SparseRows
from hushgrad.strategies.banded import INDEPENDENT
from hushgrad.strategies.strategy import Strategy

Module = TypeVar("Module", bound=nn.Module)
AnyOptimizer = TypeVar("AnyOptimizer", bound=Optimizer)


class PrivacyEngine:
    """Makes an ordinary training loop differentially private.

    Guarantee: `make_private` returns the same model and optimizer objects, and always three values.
    """

    def __init__(
        self,
        *,
        accountant: str = DEFAULT_ACCOUNTANT,
        ledger: str | os.PathLike[str] | None = None,
        test_key: int | None = None,
        lease: int = 1,
        monitors: Sequence[Monitor] = (),
        strict: bool = False,
        loss_scale: Scale = 1.0,
    ) -> None:
        """Make an engine for one training run.

        Args:
            accountant: "saddle-point" (sharp, with an error bound), "pld" or "rdp" (an upper bound).
            ledger: a path makes the record of what ran durable; an existing file is verified and continued.
            lease: how many steps are put on disk at once; a crash over-charges fewer than that many.
            monitors: what watches the noised updates, beside the monitors that are always on.
            strict: True refuses, before anything of it is released, what would be taken on trust of the model and its
                loss (docs/probe.md lists it): `TakenOnTrustError`.
            loss_scale: for float16, in the place of torch's `GradScaler`: what losses are multiplied by in a backward
                through 16 bits, and gradients divided by again before they are clipped (see `privatize`).
            test_key: a fixed key for noise and sampling, for tests only: every ε then says NOT PRIVATE.
        """
        self._accountant = one_of("accountant", accountant, tuple(ACCOUNTANTS))
        self._ledger = ledger
        self._lease = whole_number("lease", lease, minimum=1)
        self._key = (
            None if test_key is None else KeyStream.fixed_for_tests(whole_number("test_key", test_key, minimum=0))
        )
        self._monitors = monitors
        if not isinstance(strict, bool):
            raise InvalidArgumentError(
                f"must be True or False, got {type(strict).__name__}", where="strict", cure="Pass True or False"
            )
        self._strict = strict
        self._loss_scale = loss_scale
        self._session: Session | None = None

    def make_private(
        self,
        *,
        module: Module,
        optimizer: AnyOptimizer,
        data_loader: Any,
        noise_multiplier: float,
        max_grad_norm: float | None = None,
        loss_reduction: str = "mean",
        poisson_sampling: bool = True,
        sampling: str | SamplingScheme | None = None,
        clipping: str | ClipRule = "flat",
        noise: str | Strategy = "gaussian",
        sparse_rows: SparseRows | None = None,
        max_physical_batch_size: int | None = None,
        constant_shapes: bool = False,
        max_batch_size: int | Literal["auto"] | None = None,
        accumulation: int = 1,
        max_epsilon: float | None = None,
        max_delta: float | None = None,
        fully_adaptive: bool = False,
        phase: str | None = None,
        group_size: int = 1,
        target_epsilon: None = None,
        target_delta: None = None,
    ) -> tuple[Module, AnyOptimizer, PrivateLoader | StreamLoader]:
        """Return the same module and optimizer, and a loader that draws private batches.

        Args:
            module: in training mode.
            optimizer: any torch optimizer over all of the module's trainable parameters, but LBFGS and SparseAdam
                (which updates tables of `sparse_rows`).
            data_loader: a `torch.utils.data.DataLoader`; read for its dataset, batch size, `collate_fn` and workers.
            noise_multiplier: σ; the noise on the sum of clipped gradients has standard deviation σ · max_grad_norm (σ
                times the sensitivity of the clip rule).
            max_grad_norm: C, the norm to which each example's gradient is clipped. Left out with a `ClipRule`.
            loss_reduction: "mean" if the loss is a mean over the batch, "sum" if it is a sum. A scalar loss of the
                loop's own is looked at by its graph, which does not show all: `per_example(criterion)` makes sure.
            poisson_sampling: True draws every record independently with rate batch_size / len(dataset). False keeps
                the loader's own batches, charged without amplification under zero-out adjacency.
            sampling: in the place of `poisson_sampling`. "balls-in-bins" puts every record into one random step of each
                epoch, drawn anew for each (`BallsInBinsSampling(len(data_loader))`, with N / len(data_loader) as the
                expected batch size); "fixed-size" draws exactly batch_size records in every step, under replace-one
                neighbours (`FixedSizeSampling`). Or a `SamplingScheme`; with `UserSampling` batch_size counts users,
                and an epoch is as many steps as that makes of all users (docs/users.md).
            clipping: "flat" clips the whole gradient of an example to max_grad_norm; "automatic",
                "per-sample-adaptive", "per-layer", "per-block", "per-parameter" and "quantile" are other rules with C =
                max_grad_norm, constants after a colon ("automatic:gamma=0.1"; see docs/clipping.md). A `ClipRule` clips
                as it says, and its own constants count: max_grad_norm is left out, or is the rule's `sensitivity`.
            noise: "gaussian", drawn anew in every step; "grid", the same on a grid, to which the sum is rounded, so
                that the low bits of what is released say nothing of it (docs/floating-point.md); or a strategy that
                correlates the noise of a step with that of earlier ones, so that much of it cancels
                (`optimal_banded(steps, bands)`; docs/correlated-noise.md): records are then drawn by cyclic Poisson
                sampling (b groups in turn), or, with poisson_sampling=False, come as the loader's own batches in the
                same order in every pass.
            sparse_rows: tables of millions of rows (nn.Embedding) of which each step updates some rows alone, chosen by
                noised counts of the records that touch them, at the same ε: noise, update, memory and time follow these
                rows, and the table's `.grad` is sparse (`SparseRows`; docs/sparse-rows.md).
            max_physical_batch_size: the most records to be in memory at once; larger draws come in several items.
            constant_shapes: True gives every item exactly `max_physical_batch_size` rows, for compilers and graphs that
                want one shape. Rows that no record was drawn for are padding: other records, which contribute exactly 0
                and come last. So rows must stay in the loader's order, from the item to the losses.
            max_batch_size: the most records in a logical batch: larger draws are cut at random, and every step is
                charged as truncated Poisson sampling. With `constant_shapes` every logical batch then has the same
                number of items (one, if `max_physical_batch_size` is None). "auto" leaves room of five standard
                deviations above the batch size, which hardly costs anything. None cuts nothing.
            accumulation: k batches of the loader make one logical batch, in the place of gradient accumulation: records
                are drawn at rate k · batch_size / len(dataset) (or k of the loader's own batches are joined), the sum
                is divided by k · batch_size, and `max_physical_batch_size` is by default the loader's batch_size. The
                loop steps after every item, or calls `session.end_item()`; the last step of a logical batch updates.
                Charged as a loader of k · batch_size records is. Don't divide the loss by k.
            max_epsilon: a budget, with max_delta: the first `optimizer.step()` that would spend more raises
                `BudgetExhaustedError` and updates nothing; the same step also after a crash and a resume.
            max_delta: the δ of that budget; usual: less than 1 / len(dataset).
            fully_adaptive: makes max_epsilon and max_delta the budget of a filter, fixed before the first step of the
                account: noise, rate, clip rule and length of what is trained later may then be chosen after seeing what
                was released, and ε is max_epsilon from the start (see `PrivacyFilter`).
            group_size: k > 1: max_epsilon is for k records at once, for people who have at most k. k times the ε of one
                record is no bound: it can be too little.
            phase: the name of a part of the account, with a batch size, clip rule, population or sampling of its own.
                Close the session of the part before, and call `make_private` with the same ledger path and a new name;
                all parts are composed in one ε, as if every record were in each of them.
            target_epsilon: refused, as `target_delta` is: a target that the noise is chosen for belongs to
                `make_private_with_epsilon`, and a budget is `max_epsilon`.

        Raises a typed error with the cure for whatever cannot be trained privately, before data is read.
        """
        with together(join_world(), "make_private", {}):
            if target_epsilon is not None or target_delta is not None:
                raise InvalidArgumentError(
                    "make_private takes the noise as it is given, so it has no target_epsilon and no target_delta",
                    cure="Write max_epsilon= and max_delta= for a budget at which training stops, or call "
                    "make_private_with_epsilon(target_epsilon=, target_delta=, epochs=) to have the noise chosen",
                )
            self._require_free()
            reading, max_physical_batch_size = _accumulated(data_loader, accumulation, max_physical_batch_size)
            scheme = scheme_for(reading, sampling, poisson_sampling, max_batch_size, max_physical_batch_size)
            reading = counted_in(reading, scheme)
            mechanism = _plan(
                reading,
                max_grad_norm,
                loss_reduction,
                clipping,
                noise,
                noise_multiplier=noise_multiplier,
                sampling=scheme,
                strategy=strategy_given(noise),
                sparse_rows=sparse_rows,
            )
            if (max_epsilon is None) != (max_delta is None):
                raise InvalidArgumentError(
                    "max_epsilon and max_delta are one budget, and one of them is missing", cure="Give both or neither"
                )
            budget = _budget(max_epsilon, max_delta, fully_adaptive, self._accountant, group_size)
        return self._attach(
            module, optimizer, reading, mechanism, max_physical_batch_size, constant_shapes, phase, budget
        )

    def make_private_with_epsilon(
        self,
        *,
        module: Module,
        optimizer: AnyOptimizer,
        data_loader: Any,
        target_epsilon: float,
        target_delta: float,
        epochs: int,
        max_grad_norm: float | None = None,
        loss_reduction: str = "mean",
        poisson_sampling: bool = True,
        sampling: str | SamplingScheme | None = None,
        clipping: str | ClipRule = "flat",
        noise: str | Strategy = "gaussian",
        sparse_rows: SparseRows | None = None,
        max_physical_batch_size: int | None = None,
        constant_shapes: bool = False,
        max_batch_size: int | Literal["auto"] | None = None,
        accumulation: int = 1,
        spare_steps: int = 0,
        phase: str | None = None,
        group_size: int = 1,
    ) -> tuple[Module, AnyOptimizer, PrivateLoader | StreamLoader]:
        """As `make_private`, with the smallest noise multiplier that keeps `epochs` epochs within `target_epsilon`.

        An epoch is len(data_loader) steps. A step beyond these and `spare_steps` raises `BudgetExhaustedError`.

        Args:
            target_epsilon: ε at the end of the last epoch, greater than 0; with a `phase`, that of the whole account,
                in which what earlier phases spent counts.
            target_delta: δ, in (0, 1); usual: less than 1 / len(dataset).
            epochs: the number of epochs that will be trained.
            noise: "gaussian", "grid"; "banded" or "buffered" (with poisson_sampling=False), correlated between steps by
                the strategy that leaves the least noise in sums of releases at this ε; "best", whichever of all
                leaves less (`hushgrad.compare_noise` says how much); or a strategy.
            spare_steps: so many steps more are paid for with a little more noise. Steps that a crash takes away after
                the last checkpoint stay charged; with spare ones training goes on to the planned end all the same. With
                correlated noise a resume is charged as a participation more: a cycle of spare steps (as many as there
                are bands; of own batches a pass) pays for one.
            group_size: k > 1: `target_epsilon` is to hold for k records at once, for people who have at most k
                (`bounded_contributions` sees to it). k times the ε of one record is no bound. Ask for
                `get_epsilon(delta, group_size=k)`; `UserSampling` draws whole people instead.

        All other arguments are those of `make_private`.
        """
        with together(join_world(), "make_private_with_epsilon", {}):
            self._require_free()
            positive_number("target_epsilon", target_epsilon)
            open_unit_interval("target_delta", target_delta, "Pass less than 1 / len(dataset)")
            reading, max_physical_batch_size = _accumulated(data_loader, accumulation, max_physical_batch_size)
            target: dict[str, Any] = {"epsilon": target_epsilon, "delta": target_delta}
            scheme = scheme_for(reading, sampling, poisson_sampling, max_batch_size, max_physical_batch_size)
            reading = counted_in(reading, scheme)
            mechanism = _plan(
                reading,
                max_grad_norm,
                loss_reduction,
                clipping,
                noise,
                noise_multiplier=1.0,
                sampling=scheme,
                strategy=strategy_for(noise, reading, scheme, epochs, spare_steps, self._accountant, **target),
                sparse_rows=sparse_rows,
                epochs=epochs,
                spare_steps=spare_steps,
            )
        mechanism = calibrated(
            mechanism, self._ledger, phase, accountant=self._accountant, group_size=group_size, **target
        )
        return self._attach(module, optimizer, reading, mechanism, max_physical_batch_size, constant_shapes, phase)

    def per_example(self, criterion: nn.Module | Callable[..., Tensor]) -> PerExampleLoss:
        """Return a criterion that is checked to give one loss per example.

        A loss module is evaluated without reduction and then averaged (or summed, for loss_reduction="sum") over each
        example's own elements; elements at `ignore_index` are left out, and class weights are not normalised over the
        batch. A function `(output, target)` must return shape `[B]`.

        Either may take any arguments, by place or by name (`TripletMarginLoss`, `CTCLoss` with its lengths): it is then
        examined by the rows of all of them.
        """
        return self.session.per_example(criterion)

    def save_checkpoint(
        self, path: str | os.PathLike[str], *, schedulers: Sequence[Stateful] = (), extra: Any = None
    ) -> None:
        """Write model, optimizer, schedulers and the receipt of what they cost (see `Session.save_checkpoint`)."""
        self.session.save_checkpoint(path, schedulers=schedulers, extra=extra)

    def load_checkpoint(self, path: str | os.PathLike[str], *, schedulers: Sequence[Stateful] = ()) -> Resumed:
        """Go on from a checkpoint, after `make_private` with the same ledger (see `Session.load_checkpoint`).

        ::

            engine = PrivacyEngine(ledger="run/ledger.jsonl")
            model, optimizer, loader = engine.make_private(...)  # as in the run that stopped
            resumed = engine.load_checkpoint("run/checkpoint", schedulers=[scheduler])
            print(resumed.steps, resumed.lost_steps, resumed.extra)
        """
        return self.session.load_checkpoint(path, schedulers=schedulers)

    def get_epsilon(self, delta: float, *, group_size: int = 1) -> float:
        """Return ε at `delta` for the steps in the ledger; 0 before the first, inf if the noise multiplier is 0.

        With a `group_size` k that of k records at once, of a person who has at most k. k times that of one record is
        no bound: it can be too little.
        """
        if self._session is None:
            return epsilon_of_group(events_at(self._ledger), delta, group_size, self._accountant).upper
        return self._session.epsilon(delta, self._accountant, group_size=group_size)

    def guarantee(self, delta: float, *, group_size: int = 1) -> Guarantee:
        """Return the guarantee at `delta` with all its conditions; `str()` of it is the full sentence.

        With a `group_size` k it is for k records at once.
        """
        return self.session.guarantee(delta, self._accountant, group_size=group_size)

    def __repr__(self) -> str:
        return f"<PrivacyEngine of {self._session!r}>" if self._session else "<PrivacyEngine, trains no model yet>"

    def _repr_html_(self) -> str:
        return self._session._repr_html_() if self._session else escaped(repr(self))

    @property
    def session(self) -> Session:
        """The session under the façade."""
        if self._session is None:
            raise ProtocolError("this engine trains no model yet", cure="Call make_private first")
        return self._session

    @property
    def mechanism(self) -> Mechanism:
        """What every step does and costs."""
        return self.session.mechanism

    @property
    def last_step_updated(self) -> bool:
        """Whether the last `optimizer.step()` ended a logical batch; step schedulers only then."""
        return self.session.last_step_updated

    def _require_free(self) -> None:
        if self._session is not None and not (self._session.is_closed and self._ledger is not None):
            raise ProtocolError(
                "this engine is in use",
                cure="Make a new PrivacyEngine for another model; to train on in one account, close its session "
                "(engine.session.close()) and give both the same ledger path",
            )

    def _attach(
        self,
        module: Module,
        optimizer: AnyOptimizer,
        reading: Reading,
        mechanism: Mechanism,
        max_physical_batch_size: int | None,
        constant_shapes: bool,
        phase: str | None,
        budget: Budget | PrivacyFilter | None = None,
    ) -> tuple[Module, AnyOptimizer, PrivateLoader | StreamLoader]:
        session = privatize(
            module,
            optimizer,
            mechanism,
            ledger=self._ledger,
            key=self._key,
            budget=budget,
            lease=self._lease,
            phase=phase,
            monitors=self._monitors,
            strict=self._strict,
            loss_scale=self._loss_scale,
        )
        try:
            loader = session.batches_of(
                reading, max_physical_batch_size=max_physical_batch_size, constant_shapes=constant_shapes
            )
        except BaseException:
            session.close()
            raise
        self._session = session
        return module, optimizer, loader


def _budget(
    max_epsilon: float | None, max_delta: float | None, fully_adaptive: bool, accountant: str, group_size: int
) -> Budget | PrivacyFilter | None:
    """Return what limits the account, or None."""
    if not isinstance(fully_adaptive, bool):
        raise InvalidArgumentError(
            f"must be True or False, got {type(fully_adaptive).__name__}",
            where="fully_adaptive",
            cure="Pass True or False",
        )
    is_group = whole_number("group_size", group_size, minimum=1) > 1
    if is_group and (max_epsilon is None or fully_adaptive):
        raise InvalidArgumentError(
            "there is no budget for a group: it is that of max_epsilon and max_delta, and of no filter",
            where="group_size",
            cure="Give max_epsilon and max_delta, without fully_adaptive; or ask get_epsilon(delta, group_size=k)",
        )
    if max_epsilon is None or max_delta is None:
        if fully_adaptive:
            raise InvalidArgumentError(
                "a fully adaptive account has a budget that is fixed before its first step",
                where="fully_adaptive",
                cure="Give max_epsilon and max_delta",
            )
        return None
    most = positive_number("max_epsilon", max_epsilon)
    at = open_unit_interval("max_delta", max_delta, "Pass less than 1 / len(dataset)")
    return PrivacyFilter(most, at) if fully_adaptive else Budget(most, at, accountant, group_size)


def _accumulated(data_loader: Any, accumulation: int, rows: int | None) -> tuple[Reading, int | None]:
    """Return the reading of a loader whose batches are `accumulation` joined, and the most records in one item."""
    if is_stream(data_loader):
        stream = read_stream(data_loader).accumulated(accumulation)
        return stream, stream.rows if rows is None and stream.rows < stream.batch_size else rows
    reading = read_data_loader(data_loader)
    joined = accumulated(reading, accumulation)
    return joined, reading.batches.batch_size if rows is None and joined is not reading else rows


def _plan(
    reading: Reading,
    max_grad_norm: float | None,
    loss_reduction: str,
    clipping: str | ClipRule,
    noise: str | Strategy,
    *,
    noise_multiplier: float,
    sampling: SamplingScheme,
    strategy: Strategy,
    sparse_rows: SparseRows | None,
    epochs: int | None = None,
    spare_steps: int = 0,
) -> DPSGD:
    """Return the mechanism for a data loader: steps = epochs · len(data_loader), and spare ones."""
    count = None if epochs is None else whole_number("epochs", epochs, minimum=1)
    spare = whole_number("spare_steps", spare_steps, minimum=0)
    if strategy != INDEPENDENT:
        sampling = apart(sampling, strategy, steps_per_pass=steps_of(reading))
        require_fixed_order(reading, sampling)
    return DPSGD(
        noise_multiplier=noise_multiplier,
        noise_kind=kind_of(noise),
        clipping=chosen(clipping, max_grad_norm, reading.batch_size),
        sampling=sampling,
        expected_batch_size=size_for(reading, sampling),
        steps=None if count is None or isinstance(reading, StreamReading) else count * reading.steps + spare,
        passes=None if count is None else passes_of(sampling, count, 1, spare),
        loss_reduction=loss_reduction,
        strategy=strategy,
        sparse_rows=sparse_rows,
    )
