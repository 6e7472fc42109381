"""`lstm`, `gru` and plain RNNs by their own unrolled form: layers, directions, projections, dropout, packed sequences.

Each layer and direction is one captured operator. Its backward keeps the derivatives by all gates, `[T, N, G·H]`, so
the per-example gradients of both weights are outer products over time.

A worked example: an LSTM (G = 4 gates) with D inputs and H states on N sequences of T steps. Step t computes

    z_t = x_t W_ihᵀ + b_ih + h_{t-1} W_hhᵀ + b_hh        [N, 4H], then gates, cell and h_t (`cells.py`)

The backward goes through the steps from the last to the first with dh, dc, the derivatives by the state, and gets
s_t, that by z_t, from each. Then, with example i in row i,

    W_ih:  Σ_t s_t[i] ⊗ x_t[i]           `OuterProducts` of s [N, T, 4H] and x [N, T, D]
    W_hh:  Σ_t s_t[i] ⊗ h_{t-1}[i]       the same of s and the states before each step
    b_ih, b_hh:  Σ_t s_t[i]

which is the form of a linear layer with T positions, so norms and sums cost what they cost there. (A GRU's reset gate
acts on the state's part alone, so its s differs between input and state: `Slopes`.) Behind the end of a shorter
sequence a mask keeps the state and sets s_t to 0. Packed input is padded, run, and packed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hushgrad.capture.axes import products as products
from hushgrad.capture.axes.owners import BatchLocation, SegmentIds
from hushgrad.capture.leaves import TrackedTensor
from hushgrad.capture.operators.cells import Cell, GRUCell, LSTMCell, ReluCell, TanhCell
from hushgrad.capture.operators.operator import Composite, ForwardContext, Recorded, first_order_only, in_autocast_dtype
from hushgrad.capture.operators.registration import opens
from hushgrad.capture.uses import UsePool
from hushgrad.gradients.contribution import accumulation_dtype
from hushgrad.gradients.dense import Dense
from hushgrad.gradients.outer import OuterProducts
from hushgrad.torch_internals import PACK, PAD_PACKED, VARIABLE_FUNCTIONS, unseen


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer in one direction, and how it runs.

    `leaves` are those of w_ih, w_hh, b_ih, b_hh and the projection w_hr, None where frozen or absent.
    """

    name: str
    cell: Cell
    leaves: tuple[TrackedTensor | None, ...]
    location: BatchLocation
    reverse: bool

    def times(self, steps: int) -> Sequence[int]:
        """Return the time steps in the order in which the layer takes them."""
        return range(steps - 1, -1, -1) if self.reverse else range(steps)


Weights = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]


class _Unrolled(torch.autograd.Function):
    """Runs a layer over time: `x [T, N, D]`, `h [N, P]`, `c [N, H]` to all states, the last state and cell.

    `mask [T, N, 1]` is False behind the end of a sequence, where the state stays what it was.
    """

    @staticmethod
    def forward(
        ctx: Any,
        layer: Layer,
        context: ForwardContext,
        anchor: Tensor,
        mask: Tensor | None,
        x: Tensor,
        h: Tensor,
        c: Tensor,
        *weights: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        w_ih, w_hh, b_ih, b_hh, w_hr = weights
        wide = accumulation_dtype(x.dtype)
        assert w_hh is not None
        from_input = F.linear(x, w_ih, b_ih)  # type: ignore[arg-type]
        states: list[Tensor] = [h] * x.shape[0]
        before: list[Tensor] = [h] * x.shape[0]
        kept: list[tuple[Tensor, ...]] = [()] * x.shape[0]
        h, c = h.to(x.dtype), c.to(wide)
        for t in layer.times(x.shape[0]):
            before[t] = h
            from_state = F.linear(h, w_hh, b_hh)
            step = layer.cell.step(from_input[t].to(wide), from_state.to(wide), h.to(wide), c)
            new_h, new_c, kept[t] = step.h.to(x.dtype), step.c, step.kept
            if w_hr is not None:
                kept[t] = (*kept[t], new_h)
                new_h = F.linear(new_h, w_hr)
            h = new_h if mask is None else torch.where(mask[t], new_h, h)
            c = new_c if mask is None else torch.where(mask[t], new_c, c)
            states[t] = h
        ctx.layer, ctx.context, ctx.count = layer, context, len(kept[0])
        context.announce(layer.leaves, (x, states[0].expand(len(states), *states[0].shape), from_input, from_input))
        ctx.save_for_backward(mask, x, torch.stack(before), w_ih, w_hh, w_hr, *(part for step in kept for part in step))
        return torch.stack(states), h, c.to(x.dtype)

    @staticmethod
    @first_order_only
    def backward(ctx: Any, d_states: Tensor, dh: Tensor, dc: Tensor) -> tuple[Any, ...]:
        layer, context = ctx.layer, ctx.context
        mask, x, before, w_ih, w_hh, w_hr, *kept = ctx.saved_tensors
        wide = accumulation_dtype(x.dtype)
        steps, count = x.shape[0], ctx.count
        dh, dc = dh.to(wide), dc.to(wide)
        w_state = w_hh.to(wide)
        w_projection = None if w_hr is None else w_hr.to(wide)
        by_input: list[Tensor] = [dh] * steps
        by_state: list[Tensor] = [dh] * steps
        projected: list[Tensor] = [dh] * steps
        for t in reversed(layer.times(steps)):
            dh = dh + d_states[t]
            own = kept[t * count : (t + 1) * count]
            active_h, active_c = (dh, dc) if mask is None else (_where(mask[t], dh), _where(mask[t], dc))
            raw = active_h if w_projection is None else active_h @ w_projection
            projected[t] = active_h
            slopes = layer.cell.back(tuple(own if w_hr is None else own[:-1]), raw, active_c)
            by_input[t], by_state[t] = slopes.from_input, slopes.from_state
            if mask is not None:  # what is kept of a step behind the end may not be finite
                by_input[t], by_state[t] = _where(mask[t], by_input[t]), _where(mask[t], by_state[t])
            back = by_state[t] @ w_state
            back = back if slopes.h is None else back + slopes.h
            dh = back if mask is None else torch.where(mask[t], back, dh)
            dc = slopes.c if mask is None else torch.where(mask[t], slopes.c, dc)
        gates = torch.stack(by_input)

        def uses() -> Recorded:
            raw_states = None if w_hr is None else torch.stack(kept[count - 1 :: count])
            return _uses(layer, context.pool, x, before, gates, by_state, projected, raw_states)

        context.record(layer.name, [layer.location], uses)
        dx = (gates @ w_ih.to(wide)).to(x.dtype) if ctx.needs_input_grad[4] else None
        nothing = [None] * 5
        return (None, None, None, None, dx, dh.to(x.dtype), dc.to(x.dtype), *nothing)


def _where(mask: Tensor, value: Tensor) -> Tensor:
    return torch.where(mask, value, torch.zeros_like(value))


def _uses(
    layer: Layer,
    pool: UsePool,
    x: Tensor,
    before: Tensor,
    gates: Tensor,
    by_state: list[Tensor],
    projected: list[Tensor],
    raw_states: Tensor | None,
) -> Recorded:
    def examples(tensor: Tensor) -> Tensor:
        found = pool.examples(tensor, layer.location, layer.name)  # [B, T, d], or [B, k, T, d] with rows folded in
        return found.flatten(1, -2)

    w_ih, w_hh, b_ih, b_hh, w_hr = layer.leaves
    uses: list[tuple[TrackedTensor, Any]] = []
    gates_BTg, states_BTg = examples(gates), examples(torch.stack(by_state))
    if w_ih is not None:
        uses.append((w_ih, OuterProducts(gates_BTg, examples(x))))
    if b_ih is not None:
        uses.append((b_ih, Dense(gates_BTg.sum(1))))
    if w_hh is not None:
        uses.append((w_hh, OuterProducts(states_BTg, examples(before))))
    if b_hh is not None:
        uses.append((b_hh, Dense(states_BTg.sum(1))))
    if w_hr is not None:
        assert raw_states is not None
        uses.append((w_hr, OuterProducts(examples(torch.stack(projected)), examples(raw_states))))
    return uses


# The calls as torch makes them ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Run:
    """One call of a recurrent operator."""

    kind: str
    cell: Cell
    weights: list[Tensor]
    has_biases: bool
    layers: int
    dropout: float
    training: bool
    bidirectional: bool

    def parts(self) -> Iterator[Weights]:
        """Yield the weights of each layer and direction."""
        directions = 2 if self.bidirectional else 1
        each = len(self.weights) // (self.layers * directions)
        for start in range(0, len(self.weights), each):
            part = self.weights[start : start + each]
            biases = part[2:4] if self.has_biases else [None, None]
            projection = part[-1] if each % 2 else None
            yield (part[0], part[1], biases[0], biases[1], projection)


def _rule(kind: str, cell: Cell) -> Composite:
    def recurrent(
        context: ForwardContext, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if kwargs or len(args) != 9:
            return NotImplemented
        is_packed = isinstance(args[1], Tensor) and isinstance(args[3], (tuple, list))
        if is_packed:
            data, batch_sizes, state, weights, *rest, bidirectional = args
            batch_first = False
        else:
            data, state, weights, *rest, bidirectional, batch_first = args
            batch_sizes = None
        has_biases, layers, dropout, training = rest
        run = Run(kind, cell, list(weights), has_biases, layers, dropout, training, bidirectional)
        hidden, cells = state if isinstance(state, (tuple, list)) else (state, None)
        if not context.is_data(data) or not all(_is_parameter(context, weight) for weight in run.weights):
            return NotImplemented
        if batch_sizes is not None:
            lengths = (batch_sizes.unsqueeze(1) > torch.arange(int(batch_sizes[0]))).sum(0)
            out, last = _packed(context, run, data, batch_sizes, lengths, hidden, cells)
        else:
            x = data.transpose(0, 1) if batch_first else data
            out, last = _layers(context, run, x, hidden, cells, None, None)
            out = out.transpose(0, 1) if batch_first else out
        return (out, *last)

    return recurrent


def _is_parameter(context: ForwardContext, weight: Tensor) -> bool:
    return context.leaf(weight) is not None or not (weight.requires_grad or context.axes.descends(weight))


def _packed(
    context: ForwardContext,
    run: Run,
    data: Tensor,
    batch_sizes: Tensor,
    lengths: Tensor,
    hidden: Tensor,
    cells: Tensor | None,
) -> tuple[Tensor, list[Tensor]]:
    steps = batch_sizes.shape[0]

    def padded(packed: Tensor) -> Tensor:
        return PAD_PACKED(packed, batch_sizes, False, 0.0, steps)[0]

    def packed(value: Tensor) -> Tensor:
        return PACK(value, lengths, False)[0]

    mask = (torch.arange(int(batch_sizes[0])) < batch_sizes.unsqueeze(1)).unsqueeze(-1).to(data.device)

    def dropped(value: Tensor) -> Tensor:  # as torch does it: on the packed rows
        return padded(F.dropout(packed(value), run.dropout, run.training))

    out, last = _layers(context, run, padded(data), hidden, cells, mask, dropped)
    return packed(out), last


def _layers(
    context: ForwardContext,
    run: Run,
    x: Tensor,
    hidden: Tensor,
    cells: Tensor | None,
    mask: Tensor | None,
    dropped: Callable[[Tensor], Tensor] | None,
) -> tuple[Tensor, list[Tensor]]:
    """Run all layers on padded data `[T, N, D]`; return the outputs `[T, N, *]` and the last states `[L, N, *]`."""
    location = _shared_location(context, x, [value for value in (hidden, cells) if value is not None])
    hidden = _per_example(context, x, hidden)
    cells = torch.zeros_like(hidden) if cells is None else _per_example(context, x, cells)
    directions = 2 if run.bidirectional else 1
    last_h: list[Tensor] = []
    last_c: list[Tensor] = []
    outs: list[Tensor] = []
    for number, weights in enumerate(run.parts()):
        layer = _layer(context, run, weights, location, reverse=number % directions == 1)
        values = [weight if (leaf := context.leaf(weight)) is None else leaf.value for weight in weights]
        inputs = in_autocast_dtype([x, hidden[number], *values])
        with unseen():  # the mode needs not see each step
            out, h, c = _Unrolled.apply(  # type: ignore[no-untyped-call]
                layer, context, context.anchor.tensor, mask, *inputs[:2], cells[number], *inputs[2:]
            )
        outs.append(out.to(x.dtype))
        last_h.append(h.to(x.dtype))
        last_c.append(c.to(x.dtype))
        if len(outs) == directions:
            x = torch.cat(outs, -1) if directions > 1 else outs[0]
            context.axes.set(x, location)
            outs = []
            if number + 1 < run.layers * directions and run.dropout and run.training:
                x = F.dropout(x, run.dropout, True) if dropped is None else dropped(x)
    states = [torch.stack(last_h)] + ([torch.stack(last_c)] if run.kind == "lstm" else [])
    for value in states:
        context.axes.set(value, location)
    return x, states


def _layer(context: ForwardContext, run: Run, weights: Weights, location: BatchLocation, *, reverse: bool) -> Layer:
    leaves = tuple(context.leaf(weight) for weight in weights)
    name = f"{run.kind}({', '.join(leaf.name for leaf in leaves if leaf is not None)})"
    return Layer(name, run.cell, leaves, location, reverse)


def _shared_location(context: ForwardContext, x: Tensor, states: list[Tensor]) -> BatchLocation:
    """Where the batch lies: on dimension 1 of the data and of each state that descends from it, in one order."""
    location = context.axes.location(x)
    if (location.dim if isinstance(location, SegmentIds) else location) != 1:
        return None
    for state in states:
        if not context.is_data(state):
            continue
        other = context.axes.location(state)
        if isinstance(location, SegmentIds) and isinstance(other, SegmentIds):
            if other.dim != 1 or not location.same_rows(other):
                return None
        elif isinstance(location, SegmentIds) or other != location:
            return None
    return location


def _per_example(context: ForwardContext, x: Tensor, state: Tensor) -> Tensor:
    """Return a first state that is a parameter as one with a row for each example, so that its use is captured."""
    return state + torch.zeros_like(x[:1, :, :1]) if context.leaf(state) is not None else state


CELLS: dict[str, Cell] = {"lstm": LSTMCell(), "gru": GRUCell(), "rnn_tanh": TanhCell(), "rnn_relu": ReluCell()}
for _kind, _cell in CELLS.items():
    opens(getattr(VARIABLE_FUNCTIONS, _kind), axis=products.recurrent)(_rule(_kind, _cell))
