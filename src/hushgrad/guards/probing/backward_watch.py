"""What an item's own backward runs beside torch's operators, and the gradients that it gives the model's outputs.

Hooks on tensors and nodes, autograd functions, what unpacks saved tensors, blocks that are computed again, modes: code
of the loop's that torch runs in a backward shows itself to no mode. What can be run again is added to the loop's
program, with what it may read. What cannot shows in the gradients: the program, run on the item as it was, must give
the model's outputs those that the backward gave them.
"""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hushgrad.guards.probing.loss_program import Program, slots_of
from hushgrad.guards.probing.loss_replay import NotRunningError, is_same, replayed, rounding, row_axis
from hushgrad.guards.probing.rows import blocks
from hushgrad.guards.probing.user_code import is_own
from hushgrad.torch_internals import (
    current_graph_task,
    dispatch_modes,
    hooks_of_node,
    put_first,
)

MOST_NODES = 20_000
"""Of larger graphs the rest is not looked at."""

OTHER_GRADIENTS = "its backward gives the model's outputs other gradients than its calls say"


@dataclass(frozen=True, eq=False)
class NodeHooks:
    """Hooks of the loop's on a node: which one, from a tensor of the program on, and before or after it runs.

    `path` are places among the `next_functions`, from the node that made the tensor. `name` is the node's.
    """

    slot: int
    path: tuple[int, ...]
    name: str
    before: tuple[Any, ...]
    after: tuple[Any, ...]

    def hang(self, tensor: Tensor) -> None:
        """Put them on the node of a replay."""
        node: Any = tensor.grad_fn
        for place in self.path:
            node = node.next_functions[place][0]
        if node is None or node.name().split("0x")[0] != self.name:
            raise LookupError("another graph")
        for hook in self.before:
            node.register_prehook(hook)
        for hook in self.after:
            node.register_hook(hook)


class BackwardWatch:
    """Watches the backwards of one item; nothing that it registers changes a gradient."""

    def __init__(self, is_private: Callable[[], bool]) -> None:
        self._is_private = is_private
        self._found: dict[int, dict[int, Tensor]] = {}  # gradients of outputs, by slot and backward
        self._nodes: dict[int, tuple[Any, dict[int, int], list[Any]]] = {}  # slots by output, hooks
        self._on_nodes: dict[int, Any] = {}  # handles
        self._handles: list[Any] = []
        self._ends: dict[int, Tensor] = {}
        self._weights: dict[int, dict[int, Tensor]] = {}  # the gradients that losses got, by slot and backward
        self._factors: dict[int, float] = {}
        self._tasks: set[int] = set()
        self.codes: list[Any] = []
        """Functions of the loop's that torch runs in its backward."""
        self._has_hooks_above = False  # nearer to the root than losses [B] are
        self.is_whole = True
        """Whether each gradient of an output comes by the losses alone."""
        self.foreign = ""
        """What else changes gradients, as far as it is known."""

    # What the trace tells --------------------------------------------------------------------------------------------

    def returned(self, slot: int, output: Tensor) -> None:
        """The model returned this."""
        node = output.grad_fn
        if node is None:
            return
        if id(node) not in self._nodes:
            others = hooks_of_node(node)[0]  # the model's own
            self._nodes[id(node)] = node, {}, others
            self._watch(node)
        self._nodes[id(node)][1][output.output_nr] = slot

    def _watch(self, node: Any) -> None:
        places, watch = self._nodes[id(node)][1], weakref.ref(self)  # no hook holds what a graph may be held by

        def keep(gradients: tuple[Tensor | None, ...]) -> None:
            known = watch()
            if known is None or not known._is_private():
                return
            task = current_graph_task()
            known._tasks.add(task)
            for place, slot in places.items():
                gradient = gradients[place]
                if gradient is not None:
                    known._found.setdefault(slot, {})[task] = gradient.detach().clone()

        if id(node) in self._on_nodes:
            self._on_nodes[id(node)].remove()
        self._on_nodes[id(node)] = node.register_prehook(keep)

    def ends(self, slot: int, losses: Tensor) -> None:
        """A backward will run on these losses `[B]`."""
        self._ends[slot] = losses
        watch = weakref.ref(self)

        def keep(gradient: Tensor | None) -> None:  # None for one of an operator's outputs that no loss is made of
            known = watch()
            if known is not None and gradient is not None and known._is_private():
                known._weights.setdefault(slot, {})[current_graph_task()] = gradient.detach().clone()

        self._handles.append(put_first(losses, keep))

    def multiplied(self, factor: float) -> None:
        """The backward that runs had the gradient of its loss multiplied."""
        self._factors[current_graph_task()] = factor

    def runs(self, roots: Sequence[Tensor], slots: dict[int, tuple[Tensor, int]]) -> list[NodeHooks]:
        """A backward runs from these roots: return the hooks of the loop's that are on its nodes.

        `slots`: tensors of the program that are there, by the nodes that made them.
        """
        for mode in dispatch_modes():
            if not type(mode).__module__.startswith(("torch.", "hushgrad.")):
                self.foreign = f"{type(mode).__name__}, a dispatch mode of the loop's own, is around its backward"
        found = []
        for node, slot, path in self._walk(roots, slots):
            before, after = ([hook for hook in hooks if _is_loops(hook)] for hooks in hooks_of_node(node))
            if id(node) in self._nodes:
                before = [hook for hook in before if not any(hook is other for other in self._nodes[id(node)][2])]
                after = []  # the model's own node: what comes after it is the model's
            if before or after:
                if slot is None:
                    self._has_hooks_above = True
                    continue
                found.append(NodeHooks(slot, path, node.name().split("0x")[0], tuple(before), tuple(after)))
                self.codes += [*before, *after]
        for node, _, _ in self._nodes.values():  # once more, behind those of the loop's
            self._watch(node)
        return found

    def _walk(
        self, roots: Sequence[Tensor], slots: dict[int, tuple[Tensor, int]]
    ) -> Iterator[tuple[Any, int | None, tuple[int, ...]]]:
        seen: dict[int, Any] = {}
        ends = {id(loss.grad_fn): (loss, slot) for slot, loss in self._ends.items()}
        waiting: deque[tuple[Any, int | None, tuple[int, ...]]] = deque()
        for root in roots:
            waiting.append((root.grad_fn, None if ends else slots.get(id(root.grad_fn), (root, None))[1], ()))
        while waiting and len(seen) < MOST_NODES:
            node, slot, path = waiting.popleft()
            if node is None or id(node) in seen:
                continue
            seen[id(node)] = node
            if id(node) in ends:
                slot, path = ends[id(node)][1], ()
            elif slot is not None and id(node) in slots:
                slot, path = slots[id(node)][1], ()
            yield node, slot, path
            if id(node) in self._nodes:
                continue
            waiting += [(part, slot, (*path, place)) for place, (part, _) in enumerate(node.next_functions)]

    def close(self) -> None:
        """Take the hooks away, and hold no graph any more."""
        for handle in (*self._on_nodes.values(), *self._handles):
            handle.remove()
        self._on_nodes.clear()
        self._handles.clear()
        self._nodes.clear()
        self._ends.clear()
        self.codes.clear()

    # The comparison --------------------------------------------------------------------------------------------------

    def untold(self, program: Program) -> str:
        """Run the program on the item as it was; return why its gradients are not the backward's, "" if they are.

        Nothing is said of programs that draw, or whose outputs get gradients another way.
        """
        if self.foreign:
            return self.foreign
        kinds = {end.is_rows for end in program.ends}
        if not self.is_whole or len(kinds) != 1 or not self._found or len(self._tasks) > len(program.ends):
            return ""
        weights: dict[int, float] = {}
        if True in kinds:
            for end in program.ends:
                given = list(self._weights.get(end.slot, {}).values())
                if len(given) > 1:
                    return ""
                if given and not bool((given[0] == given[0].reshape(-1)[0]).all()):
                    return OTHER_GRADIENTS
                weights[end.slot] = float(given[0].reshape(-1)[0]) if given else 0.0
            plain = (0.0, 1.0, 1 / program.size)
            is_usual = all(any(math.isclose(one, other, rel_tol=1e-5) for other in plain) for one in weights.values())
            if not is_usual and (self._has_hooks_above or _has_hooks_aside(program)):
                return "a hook changes the gradient that its losses get"
        factors = {self._factors.get(task, 1.0) for task in self._tasks}
        if len(factors) > 1:
            return ""
        [scale] = factors
        try:
            base = replayed(program, {}, scale=scale, weights=weights)
            other = replayed(program, {}, scale=scale, weights=weights, turn=1)
        except NotRunningError:
            return ""
        within = rounding(program, base)
        for slot, first, second in zip(program.outputs, base.gradients, other.gradients, strict=True):
            found = self._sum(slot)
            if first is None or second is None or found is None:
                continue
            if not _agree(program, slot, first, second, within):
                return ""  # it draws
        for slot, first in zip(program.outputs, base.gradients, strict=True):
            found = self._sum(slot)
            if found is not None and first is not None and not _agree(program, slot, found, first, within):
                return OTHER_GRADIENTS
        return ""

    def _sum(self, slot: int) -> Tensor | None:
        parts = [*self._found.get(slot, {}).values()]
        return torch.stack(parts).sum(0) if parts else None


def _has_hooks_aside(program: Program) -> bool:
    """Whether there are hooks on tensors that no loss is made of: on what is made of losses, then."""
    hooked = [call.args[0].number for call in program.calls if call.function is Tensor.register_hook]
    made = {end.slot for end in program.ends}
    for call in reversed(program.calls):
        if made & set(call.outputs):
            made |= {slot.number for slot in slots_of((call.args, call.kwargs))}
    return not made.issuperset(hooked)


def _agree(program: Program, slot: int, one: Tensor, other: Tensor, within: float) -> bool:
    if one.shape != other.shape:
        return True
    axis = row_axis(program, slot, one)
    first, second = (
        (part.reshape(1, -1) if axis is None else blocks(part, axis, program.size)).double() for part in (one, other)
    )
    smallest = 1e-6 * float(first.abs().nan_to_num(0.0, 0.0, 0.0).max()) if first.numel() else 0.0
    return is_same(first, second, within=within) or bool(((first - second).abs() <= smallest).all())


def _is_loops(hook: Any) -> bool:
    return not is_own(hook) and not str(getattr(hook, "__module__", "")).startswith("torch.")
