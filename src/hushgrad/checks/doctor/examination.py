"""`hushgrad.doctor`: reads a model, runs it once forward and backward on a batch, and tells what it saw."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hushgrad.capture.axes.batch_axes import BatchAxes, tensors_in
from hushgrad.capture.scope import Scope
from hushgrad.checks.doctor.findings import Diagnosis, Finding
from hushgrad.checks.doctor.recording import ModuleAttribution, RecordingPool
from hushgrad.checks.doctor.sparse_tables import notes_of_tables, other_uses
from hushgrad.checks.doctor.static_checks import can_run, problems_of, put_right
from hushgrad.checks.doctor.uses import uses_of
from hushgrad.clipping.named import GROUPWISE, rule_named
from hushgrad.errors import (
    HushgradError,
    InvalidArgumentError,
    StrayGradientError,
    UncoveredParameterUseError,
    UnsupportedModelError,
    where_raised,
)
from hushgrad.gradients.contribution import Plan
from hushgrad.gradients.machine import is_measured
from hushgrad.guards.compatibility import require_module, require_no_session, require_optimizer
from hushgrad.guards.probing.calls import SEED, devices_of
from hushgrad.guards.probing.probe import Probe
from hushgrad.guards.probing.state import State, forked_randomness
from hushgrad.guards.probing.trees import with_tensors
from hushgrad.losses import PerExampleLoss
from hushgrad.parallel.grid import WHOLE, row_of
from hushgrad.parallel.rows import bytes_of_sums, owners_of
from hushgrad.sparse_rows.rule import SparseRows, require_sparse_rows
from hushgrad.torch_internals import BatchNorm
from hushgrad.torch_sharding import fully_sharded, is_split

Criterion = nn.Module | Callable[[Any, Any], Tensor]


def doctor(
    model: nn.Module,
    batch: Any = None,
    *,
    criterion: Criterion | None = None,
    optimizer: Optimizer | None = None,
    sparse_rows: SparseRows | None = None,
) -> Diagnosis:
    """Say how a model would be trained privately, what it would cost, and what would be refused.

    The model is run forward and backward on the batch, and then probed: once more with one example altered, left out
    and poisoned. What reading alone refuses (BatchNorm, say) is taken out of the way for the run, so that one look
    tells everything.

    Args:
        model: an ordinary model, in the mode it will be trained in.
        batch: what the model takes: a tensor, a tuple of arguments, or a dict of keyword arguments; with a criterion
            `(inputs, target)`, where the inputs are any of these. None reads the model and runs nothing.
        criterion: the loss, as for `PrivacyEngine.per_example`. Without it the loss is not looked at.
        optimizer: looked at as well, if given.
        sparse_rows: tables of which each step is to update some rows alone; they, their use and their optimizer are
            looked at as well.

    Guarantee: the model is left exactly as it was: parameters, gradients, buffers, modes, hooks and random numbers.

    Raises:
        InvalidArgumentError: not a module, or a batch that is not what is described above.
        ProtocolError: the model belongs to an open session.
    """
    require_module(model, "model")
    if optimizer is not None:
        require_optimizer(optimizer)
    require_no_session(model)
    if criterion is not None and batch is None:
        raise InvalidArgumentError(
            "a criterion needs a batch to be examined on, got None", cure="Pass batch=(inputs, target)"
        )
    problems, notes = problems_of(model, optimizer, sparse_rows), _notes_of(model)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if sparse_rows is not None:
        notes += notes_of_tables(require_sparse_rows(sparse_rows), trainable)
    examination = None
    if batch is not None and can_run(model):
        tables = () if sparse_rows is None else tuple(name for name in sparse_rows.tables if name in trainable)
        examination = _ModelExamination(model, trainable, criterion, problems, notes, tables)
        examination.run(*_arguments(model, batch, criterion))
        if sparse_rows is not None:
            problems += other_uses(sparse_rows, examination.pool.recorded)
    elif batch is not None:
        why = "before the problems above are solved"
        if is_split(model) and not problems:
            why = "in one process alone: ask before fully_shard or parallelize_module is called"
        notes.append(Finding("", "", f"the model was not run: it cannot be, {why}"))
    device = next((p.device for p in trainable.values()), torch.device("cpu"))
    plan = Plan.of_device(device)
    trained = {name: p for name, p in trainable.items() if not isinstance(p, nn.UninitializedParameter)}
    grid = WHOLE if problems else row_of(model)
    return Diagnosis(
        model=type(model).__name__,
        batch_size=None if examination is None else examination.pool.batch_size,
        uses=() if examination is None else uses_of(examination.pool.recorded, plan),
        problems=tuple(problems),
        notes=tuple(notes),
        parameters=sum(p.numel() for p in trained.values()),
        budget_bytes=plan.keep_bytes,
        machine="measured" if is_measured(device) else "as shipped",
        is_sharded=bool(fully_sharded(model)),
        sum_bytes=bytes_of_sums(trained, owners_of(trained, grid), grid),
        sum_budget_bytes=plan.sum_bytes,
        operand_bytes=0 if examination is None else examination.operand_bytes,
        operand_budget_bytes=plan.operand_bytes,
        norm_groups={name: len(rule_named(name, 1.0, 1.0).groups(tuple(trainable))) for name in GROUPWISE},
    )


class _ModelExamination:
    """One forward, backward and probe of a model."""

    def __init__(
        self,
        model: nn.Module,
        trainable: dict[str, nn.Parameter],
        criterion: Criterion | None,
        problems: list[Finding],
        notes: list[Finding],
        sparse: Sequence[str],
    ) -> None:
        self.pool = RecordingPool(None, sparse)
        self._sparse = sparse
        self.operand_bytes = 0
        self._model = model
        self._trainable = trainable
        self._criterion = criterion
        self._problems = problems
        self._notes = notes

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any], target: Any) -> None:
        """Run on a batch and add what is found to the problems and notes."""
        model, pool = self._model, self.pool
        pool.batch_size = BatchAxes().seed((args, kwargs), None)
        if pool.batch_size is None:
            raise InvalidArgumentError(
                "batch must hold at least one tensor, got none",
                cure="Pass what the model takes, with the examples on the first dimension",
            )
        if pool.batch_size == 1:
            self._note("the batch has one example, so nothing can be said about whether examples are mixed")
        probe = Probe(model, self._trainable, "mean", sparse=self._sparse)
        with ExitStack() as stack:
            stack.enter_context(_left_as_it_was(model, (args, kwargs, target)))
            stack.enter_context(put_right(model))
            stack.enter_context(torch.enable_grad())
            attribution = ModuleAttribution(model, pool.backward)
            stack.callback(attribution.remove)
            for name, module in model.named_modules():
                if isinstance(module, nn.GroupNorm):
                    stack.callback(module.register_forward_pre_hook(self._look_at_groups(name)).remove)
            scope = Scope(model, pool, probe)
            probe.join(scope)
            stack.callback(scope.detach)
            stack.callback(pool.clear)
            stack.callback(probe.forget)
            if self._attempt(lambda: self._forward_and_backward(probe, args, kwargs, target)):
                self._look_at_gradients()
            self._attempt(lambda: self._probe(probe))  # it tells more of a backward that was refused

    def _look_at_groups(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            assert isinstance(module, nn.GroupNorm)
            if args and args[0].ndim > 1 and args[0][0].numel() <= module.num_groups:
                self._note("normalises groups of one value each, of which nothing is left. Use fewer groups", name)

        return hook

    def _forward_and_backward(self, probe: Probe, args: tuple[Any, ...], kwargs: dict[str, Any], target: Any) -> None:
        output = self._model(*args, **kwargs)
        loss = self._loss(output, target, probe)
        self.operand_bytes = 0 if self.pool.expected is None else self.pool.expected.nbytes
        with self.pool.backward:
            loss.backward()  # type: ignore[no-untyped-call]

    def _loss(self, output: Any, target: Any, probe: Probe) -> Tensor:
        if self._criterion is not None:
            criterion = PerExampleLoss(
                self._criterion, loss_reduction="mean", batch_size=lambda: self.pool.batch_size, observer=probe
            )
            found = criterion(output, target)
            assert isinstance(found, Tensor)
            return found
        outputs = [part for part in tensors_in(output) if part.requires_grad]
        scalars = [part for part in outputs if part.ndim == 0]
        if not outputs:
            raise UncoveredParameterUseError(
                "no output of the model requires gradients, so no parameter gets one",
                cure="Run no part of the forward under torch.no_grad(), and detach nothing on the way",
            )
        if scalars:
            self._note(
                "the model returned a scalar, which was taken for its loss: that it is the mean of one loss for each "
                "example is checked, what it compares is not"
            )
            return scalars[0]
        self._note("no criterion was given, so the loss was not looked at")
        return torch.stack([part.float().sum() for part in outputs]).sum()

    def _look_at_gradients(self) -> None:
        used = {part.parameter for part in self.pool.recorded}
        stray = [name for name, parameter in self._trainable.items() if parameter.grad is not None]
        for name in stray:
            self._problems.append(
                Finding(
                    StrayGradientError.code,
                    name,
                    "got an ordinary gradient, without clipping and noise",
                    "Use each parameter inside the model's own forward only",
                )
            )
        for name in self._trainable:
            if name not in used and name not in stray:
                self._note("not used on this batch; every update adds noise to it all the same", name)

    def _probe(self, probe: Probe) -> None:
        size = self.pool.batch_size
        assert size is not None
        probe.examine(size)
        for text in probe.report.notes:
            self._note(text)

    def _attempt(self, work: Callable[[], None]) -> bool:
        """Run a part of the examination; what it raises is a problem. Return whether it came to its end."""
        try:
            work()
        except HushgradError as error:
            self._refuse(Finding.of(error))
            return False
        except Exception as error:
            # The text of a foreign exception may hold data: its type and place are told.
            self._refuse(
                Finding(
                    UnsupportedModelError.code,
                    "",
                    f"the model cannot be run forward and backward on this batch: {where_raised(error)}",
                    "See that it runs without hushgrad on this batch; with it, every operator must return new tensors",
                )
            )
            return False
        return True

    def _refuse(self, finding: Finding) -> None:
        if finding not in self._problems:
            self._problems.append(finding)

    def _note(self, what: str, where: str = "") -> None:
        self._notes.append(Finding("", where, what))


@contextmanager
def _left_as_it_was(model: nn.Module, values: Any) -> Iterator[None]:
    """Give back gradients, buffers, attributes and random numbers afterwards."""
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    state = State(model)
    try:
        for parameter, _ in gradients:
            parameter.grad = None
        with forked_randomness(devices_of(model, values), SEED):
            yield
    finally:
        state.restore()
        for parameter, gradient in gradients:
            parameter.grad = gradient


def _arguments(
    model: nn.Module, batch: Any, criterion: Criterion | None
) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Return `(args, kwargs, target)` as copies, so that nothing that runs can change the caller's batch."""
    target = None
    inputs = batch
    if criterion is not None or _is_pair_of_input_and_target(model, batch):
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise InvalidArgumentError(
                f"with a criterion the batch must be (inputs, target), got {type(batch).__name__}"
                + (f" of length {len(batch)}" if isinstance(batch, (tuple, list)) else ""),
                cure="Pass a pair; inputs may be a tensor, a tuple or a dictionary",
            )
        inputs, target = batch
    if isinstance(inputs, Mapping):
        args, kwargs = (), dict(inputs)
    else:
        args, kwargs = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,), {}
    copied: tuple[tuple[Any, ...], dict[str, Any], Any] = with_tensors((args, kwargs, target), _copy)
    return copied


def _copy(path: Any, tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def _is_pair_of_input_and_target(model: nn.Module, batch: Any) -> bool:
    """Whether a batch without a criterion is an item of a data loader: a pair, where the forward takes one argument."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        return False
    signature = inspect.signature(model.forward)
    try:
        signature.bind(*batch)
    except TypeError:
        return True
    return False


def _notes_of(model: nn.Module) -> list[Finding]:
    notes = [Finding("", name, "frozen: not trained") for name, p in model.named_parameters() if not p.requires_grad]
    if model.training:
        notes += [
            Finding("", name, "in eval(): uses frozen statistics. Put it into eval() again after every model.train()")
            for name, module in model.named_modules()
            if isinstance(module, BatchNorm) and not module.training and module.running_mean is not None
        ]
    return notes
