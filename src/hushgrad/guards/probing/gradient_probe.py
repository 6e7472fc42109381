"""Is the captured gradient of one example the gradient that this example gives alone?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hushgrad.capture.axes.batch_axes import NARROW
from hushgrad.capture.uses import UsePool
from hushgrad.errors import CrossSampleLeakError
from hushgrad.gradients.ordinary import kept_gradients, may_run_backwards, ordinary_gradients
from hushgrad.guards.probing.calls import Outcome, Runner
from hushgrad.guards.probing.loss_sizes import LARGE, by_their_size
from hushgrad.guards.probing.probed import Probed
from hushgrad.guards.probing.rows import Batch
from hushgrad.guards.probing.sparse_lookups import SparseLookups
from hushgrad.guards.probing.state_values import PART
from hushgrad.guards.probing.trees import Path, tensors_at

LOOSENESS = {torch.float64: 1e-6, torch.float32: 1e-2}
LOW_LOOSENESS = 0.2
"""How far ‖captured − alone‖ / ‖alone‖ may be from 0; below float32 rounding is large."""


@dataclass(frozen=True)
class GradientProbe:
    """A call that is run forward and backward, for a few examples of its batch or for one of them alone.

    Attributes:
        probed: the model.
        runner: runs the call again.
        batch: its inputs, all examples.
        axes: the axis of the examples in each output; others that gradients reach are scalars.
    """

    probed: Probed
    runner: Runner
    batch: Batch
    axes: Mapping[Path, int]

    def require_own_gradient(
        self, rows: Sequence[int], example: int, *, quiet: bool, whole: Any, fewer: Any, scale: float = 1.0
    ) -> tuple[Outcome | None, bool]:
        """Run some examples forward and backward under capture, and one of them alone without; compare its gradient.

        The loss is a fixed random sum of the outputs that the loop's own backward came through, so nothing is recorded
        that the loop would not record. The others' weights are larger by far: a small part of theirs shows, too.

        Args:
            rows: the examples that are run under capture, into a pool of its own.
            example: the one of them that is compared.
            quiet: run without randomness. Nothing is compared where a random operator could not be made quiet.
            whole, fewer: the outputs for the batch, and for it without the example.
            scale: how large the example's weights are: a hook may change large gradients only.

        Returns the outcome of the captured run, or None where no gradient reached any output; and whether anything
        could be told, for which the gradient of the example must be finite.

        Raises:
            CrossSampleLeakError: the gradients differ, or a scalar output is not the mean (or sum) of one value for
                each example.
        """
        call, scope, axes = self.runner.call, self.probed.scope, self.axes
        if not call.reached:
            return None, True
        count, place = len(rows), rows.index(example)
        is_mean = self.probed.loss_reduction == "mean"
        own: dict[str, Tensor] = {}
        alone: dict[Path, Tensor] = {}

        runs_backwards = False

        def run_alone(output: Any) -> None:
            nonlocal runs_backwards
            outputs = dict(tensors_at(output))
            taken = [path for path in outputs if path in call.reached and outputs[path].requires_grad]
            alone.update({path: outputs[path].detach() for path in outputs})
            if taken:
                cotangents = [
                    scale * _weights_alone(outputs[path], axes[path], place)
                    if path in axes
                    else torch.ones_like(outputs[path])
                    for path in taken
                ]
                tensors = [outputs[path] for path in taken]
                runs_backwards = may_run_backwards(tensors)
                own.update(ordinary_gradients(tensors, cotangents, self._trained))

        single = self._run_alone(example, quiet, run_alone)

        weight = float(count) if is_mean else 1.0
        pool = UsePool(sparse=self.probed.sparse)
        pool.batch_size = count

        def run_captured(output: Any) -> None:
            pairs = []
            for path, tensor in tensors_at(output):
                if path not in call.reached or not tensor.requires_grad or path not in alone:
                    continue
                if path in axes:
                    weights = _spread(alone[path], tensor, axes[path], _scales(tensor, count, place))
                    pairs.append((tensor, scale * weights))
                else:
                    pairs.append((tensor, torch.full_like(tensor, weight)))
            tensors, cotangents = [tensor for tensor, _ in pairs], [cotangent for _, cotangent in pairs]
            if runs_backwards:
                with kept_gradients(tensors, self.probed.parameters.values()):
                    torch.autograd.backward(tensors, cotangents)
            elif pairs:
                torch.autograd.backward(tensors, cotangents, inputs=[scope.anchor])

        with scope.recording_into(pool):
            share = 3 * count / self.batch.size
            outcome = self.runner.run(self.batch.only(rows), quiet=quiet, share=share, then=run_captured)
        if outcome.unknown is not None or single.unknown is not None:
            pool.clear()
            return outcome, True  # other random numbers for the example alone; the caller takes note of it
        less = dict(tensors_at(fewer))
        is_told = True
        for path, tensor in tensors_at(whole):
            if path in call.reached and path not in axes and path in alone and tensor.numel() == 1:
                size = self.batch.size
                is_told &= _require_sum_of_losses(path, tensor, less.get(path), alone[path], size, is_mean)
        try:  # a gradient that is not finite contributes nothing, and shows nothing
            return outcome, self._require_same(pool.gradient_of(place), own) and is_told
        finally:
            pool.clear()  # its operands are on the graph whose nodes hold the pool: nothing else would let them go

    def require_gradient_of_batch(
        self, example: int, *, place: tuple[int, int], recorded: Iterable[tuple[str, Tensor]]
    ) -> None:
        """Compare one example's recorded gradient, of the loop's loss in the whole batch, with the one it gives alone.

        The example runs alone on the gradient that the loop's loss gave its outputs, or that the loop's own hooks on
        them handed on. So hooks and custom functions see the values and the number of examples that they see in
        training. The call draws no random numbers.

        Args:
            example: which one.
            place: its number in the batch of the loop, and the size of that.
            recorded: its gradients by the parameters.

        Raises:
            CrossSampleLeakError: they differ.
        """
        call, axes = self.runner.call, self.axes
        own: dict[str, Tensor] = {}
        is_whole = True

        def run_alone(output: Any) -> None:
            nonlocal is_whole
            tensors, cotangents = [], []
            for path, tensor in tensors_at(output):
                gradient = call.gradients.get(path)
                if self.probed.is_hooked_by_loop and gradient is not None:
                    gradient = call.handed_on.get(path, gradient)
                if path not in call.reached or not tensor.requires_grad:
                    continue
                if gradient is None or path not in axes:
                    is_whole = False
                    return
                unit = gradient.shape[axes[path]] // place[1]
                part = gradient.narrow(axes[path], place[0] * unit, unit)
                if part.shape != tensor.shape:
                    is_whole = False
                    return
                tensors.append(tensor)
                cotangents.append(part)
            if tensors:
                own.update(ordinary_gradients(tensors, cotangents, self._trained))

        self._run_alone(example, False, run_alone)
        if is_whole and own:
            self._require_same(recorded, own)

    def require_proportional(self, example: int, *, quiet: bool, scales: Sequence[float]) -> None:
        """Refuse gradients of one example that do not grow as those of its outputs do: a hook's threshold, or a clamp.

        A mean divides the gradients of outputs by the number of drawn records, so that what changes them by their size
        makes each example's gradient depend on how many there are.

        Args:
            example: that is run alone.
            quiet: as of `require_own_gradient`.
            scales: of the gradients that its outputs get.

        Raises:
            CrossSampleLeakError: they are not proportional.
        """
        found: list[dict[str, Tensor]] = []
        for scale in scales:

            def run(output: Any, scale: float = scale) -> None:
                if gradients := self._weighted_gradients(output, scale=scale):
                    found.append({name: gradient / scale for name, gradient in gradients.items()})

            outcome = self._run_alone(example, quiet, run)
            if outcome.unknown is not None:
                return
        try:
            for other in found[1:]:
                self._require_same(found[0].items(), dict(other))
        except CrossSampleLeakError as error:
            raise by_their_size(error.where) from None

    def run_backward_alone(self, example: int, *, quiet: bool, turn: int) -> Outcome:
        """Run one example alone, forward and backward, by fixed random weights: other ones in each `turn`."""
        return self._run_alone(example, quiet, lambda output: self._weighted_gradients(output, turn=turn))

    def _weighted_gradients(self, output: Any, *, turn: int = 0, scale: float = 1.0) -> dict[str, Tensor]:
        """Return the gradients of one example's outputs, weighted at random; none where no gradient reached them."""
        taken = [
            (tensor, scale * _weights_alone(tensor, self.axes[path], turn))
            for path, tensor in tensors_at(output)
            if path in self.runner.call.reached and path in self.axes and tensor.requires_grad
        ]
        if not taken:
            return {}
        return ordinary_gradients([tensor for tensor, _ in taken], [weights for _, weights in taken], self._trained)

    def _run_alone(self, example: int, quiet: bool, then: Callable[[Any], object]) -> Outcome:
        """Run one example without capture, and `then` on its output; a forward and a backward count as three."""
        tables = [self.probed.parameters[name] for name in self.probed.sparse]
        with self.probed.scope.off(), SparseLookups(tables) if tables else nullcontext():
            return self.runner.run(self.batch.only([example]), quiet=quiet, share=3 / self.batch.size, then=then)

    @property
    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in self.probed.parameters.items() if parameter.requires_grad}

    @torch.no_grad()
    def _require_same(self, captured: Iterable[tuple[str, Tensor]], own: dict[str, Tensor]) -> bool:
        """Return whether both are finite, so that it could be told. What is compared of `own` is taken out of it."""
        difference, size, worst, culprit = 0.0, 0.0, 0.0, ""
        for name, found, wanted in _pairs(captured, own):
            off, wanted_square = _distance(found, wanted)
            difference, size = difference + off, size + wanted_square
            if off > worst:
                worst, culprit = off, name
        sums = torch.tensor([difference, size], dtype=torch.float64)
        difference, size = self.probed.across.added(sums).tolist()
        low = any(enabled for _, enabled, _ in self.runner.call.autocast)
        looseness = max(
            LOW_LOOSENESS if low else LOOSENESS.get(parameter.dtype, LOW_LOOSENESS)
            for parameter in self.probed.parameters.values()
        )
        if not (difference < float("inf") and size < float("inf")):
            return False
        if difference > looseness**2 * size:
            raise CrossSampleLeakError(
                "the gradient of one example depends on the others of its batch, though its output does not: it is not "
                "the gradient that the example gives alone, most of all for this parameter",
                where=culprit,
                cure="Detach, replace and normalise gradients within one example only, never by values of the batch",
            )
        return True


def _weights(alone: Tensor, axis: int, size: int) -> Tensor:
    """Return fixed random weights `[B, k, ...]` for the outputs of every example, other ones for each.

    NumPy draws them: a run without randomness makes constants of what torch draws, and weights of 0 would show nothing.
    """
    shape = (size, *alone.movedim(axis, 0).shape)
    drawn = torch.from_numpy(np.random.default_rng(1).random(shape, dtype=np.float32)).mul_(2).sub_(1)
    return drawn.to(alone.device, alone.dtype)


def _weights_alone(alone: Tensor, axis: int, place: int) -> Tensor:
    """Return the weights of one example, laid out as its output."""
    return _weights(alone, axis, place + 1)[place].movedim(0, axis)


def _scales(output: Tensor, size: int, place: int) -> Tensor:
    """Return by what each example's weights are multiplied `[B]`: 1 of the one that is compared, LARGE of the others.

    So a part of theirs shows as small as it may be.

    16 bits hold no numbers so far apart: what others do to small ones would be lost, or theirs too large.
    """
    scales = torch.full((size,), 1.0 if output.dtype in NARROW else LARGE, device=output.device)
    scales[place] = 1.0
    return scales


def _spread(alone: Tensor, output: Tensor, axis: int, scales: Tensor) -> Tensor:
    """Return the weights laid out as the output of the whole batch; 0 beyond the length of the example alone."""
    front, size = output.detach().movedim(axis, 0), len(scales)
    blocks = front.new_zeros(size, front.shape[0] // size, *front.shape[1:])
    weights = _weights(alone, axis, size) * scales.to(alone.dtype).reshape(size, *[1] * alone.ndim)
    part = tuple(slice(0, min(a, b)) for a, b in zip(weights.shape, blocks.shape, strict=True))
    blocks[part] = weights[part].to(blocks.dtype)
    return blocks.reshape(front.shape).movedim(0, axis)


def _require_sum_of_losses(
    path: Path, whole: Tensor, fewer: Tensor | None, alone: Tensor, size: int, mean: bool
) -> bool:
    """Return whether the values are finite, so that it could be told."""
    if fewer is None or fewer.numel() != 1 or alone.numel() != 1:
        return True
    all_of_it, rest, one = (float(value.detach().double()) for value in (whole, fewer, alone))
    terms = (size * all_of_it, (size - 1) * rest, one) if mean else (all_of_it, rest, one)
    if not all(map(math.isfinite, terms)):
        return False
    difference = abs(terms[0] - terms[1] - terms[2])
    looseness = 1e-5 if whole.dtype in (torch.float32, torch.float64) else 1e-2
    if not difference <= looseness * size * max(abs(term) for term in terms):
        raise CrossSampleLeakError(
            f"the loss that the model returns ({_called(path)}) is not the {'mean' if mean else 'sum'} of one loss for "
            f"each example: an example's part in it depends on the others (a mean over the tokens of the whole batch, "
            f"say, or negatives from it)",
            cure="Take the model's outputs instead, and average within each example: engine.per_example(criterion)",
        )
    return True


def _called(path: Path) -> str:
    return "its output" if not path else "output " + ".".join(str(part) for part in path)


def _pairs(
    captured: Iterable[tuple[str, Tensor]], own: dict[str, Tensor]
) -> Iterator[tuple[str, Tensor | None, Tensor | None]]:
    for name, found in captured:
        yield name, found, own.pop(name, None)
    for name, wanted in own.items():
        yield name, None, wanted


def _distance(found: Tensor | None, wanted: Tensor | None) -> tuple[float, float]:
    """Return ‖found − wanted‖² and what it is held against: ‖wanted‖², or the same where one of them is missing."""
    if found is None or wanted is None:
        square = sum(_square(part) for part in _parts(wanted if found is None else found))
        return square, square
    if found.is_sparse and wanted.is_sparse:
        found, wanted = (found - wanted).coalesce().values(), wanted.coalesce().values()
        return _square(found), _square(wanted)
    if found.is_sparse or wanted.is_sparse:
        found, wanted = (part.to_dense() if part.is_sparse else part for part in (found, wanted))
    off = size = 0.0
    for one, two in zip(_parts(found), _parts(wanted), strict=True):
        two = two.double()
        off, size = off + _square(one.double() - two), size + _square(two)
    return off, size


def _parts(values: Tensor | None) -> Sequence[Tensor]:
    """Return the values in parts that a processor's cache holds, complex ones as pairs."""
    if values is None:
        return ()
    if values.is_sparse:
        values = values.coalesce().values()
    if values.is_complex():
        values = torch.view_as_real(values.resolve_conj())
    parts: Sequence[Tensor] = values.reshape(-1).split(PART)  # type: ignore[no-untyped-call]
    return parts


def _square(part: Tensor) -> float:
    values = part.double().reshape(-1)
    return float(values.dot(values))
