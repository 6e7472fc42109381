"""Several optimizers of one model as one: their parameters are clipped together, noised together and charged once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from hushgrad.errors import InvalidArgumentError, ProtocolError
from hushgrad.torch_internals import step_pre_hooks_of


class JoinedOptimizer(Optimizer):
    """Two optimizers, or more, over different parameters of one model, that step together.

    A step of a private model is one release of all of its parameters. With an optimizer for each part (SGD for the
    body, Adam for the head, say) that is one step of all of them::

        joined = hushgrad.JoinedOptimizer([SGD(model.body.parameters(), 0.1), Adam(model.head.parameters())])
        model, joined, loader = engine.make_private(module=model, optimizer=joined, ...)
        ...
        joined.step()

    Its groups are those of its parts, so that schedulers may be given it or any part. A part stepped by itself is
    refused: whatever it did would come without the others, and a release of its own is another charge. Where parts are
    to be trained apart, freeze the others and make two accounts' steps of it, in phases.

    Guarantee: one step is one step of every part, in the order given.

    Args:
        optimizers: at least two of torch's optimizers, with no parameter in common.

    Raises:
        InvalidArgumentError: fewer than two, something else (joined ones, too), or a parameter in two of them.
        ProtocolError: from a part's own `step()`.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self._parts = _required(tuple(optimizers))
        self._stepping: Optimizer | None = None
        super().__init__(self.param_groups, {})
        for part in self._parts:
            part.register_step_pre_hook(self._require_its_turn)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies join copies of the parts."""
        return type(self), (self._parts,)

    @property
    def parts(self) -> tuple[Optimizer, ...]:
        """The optimizers, in the order given."""
        return self._parts

    @property  # type: ignore[override]
    def param_groups(self) -> tuple[dict[str, Any], ...]:
        """The groups of all parts, one part after the other, as they are now."""
        return tuple(group for part in self._parts for group in part.param_groups)

    @param_groups.setter
    def param_groups(self, value: Any) -> None:
        """Torch sets an empty list when an optimizer is made; the parts have theirs."""

    @property
    def state(self) -> defaultdict[Tensor, Any]:
        """What all parts keep of their parameters."""
        return defaultdict(dict, {key: kept for part in self._parts for key, kept in part.state.items()})

    @state.setter
    def state(self, value: Any) -> None:
        """Torch sets an empty one when an optimizer is made; the parts have theirs."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step of every part; a closure is evaluated once, before the first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        try:
            for part in self._parts:
                self._stepping = part
                part.step()
        finally:
            self._stepping = None
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take a group of a part; others are added to a part itself.

        Raises `InvalidArgumentError` for any other group.
        """
        if not any(param_group is group for group in self.param_groups):
            raise InvalidArgumentError(
                "a joined optimizer has the groups of its parts", where="param_group", cure="Add it to one of the parts"
            )

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Give each part its share of what `state_dict` returned."""
        groups, kept = list(state_dict["param_groups"]), state_dict["state"]
        if len(groups) != len(self.param_groups):
            raise ValueError("loaded state dict has a different number of parameter groups")
        for part in self._parts:
            own, groups = groups[: len(part.param_groups)], groups[len(part.param_groups) :]
            places = [place for group in own for place in group["params"]]
            part.load_state_dict({"param_groups": own, "state": {at: kept[at] for at in places if at in kept}})

    def _require_its_turn(self, part: Optimizer, *_: Any) -> None:
        if part is not self._stepping:
            raise ProtocolError(
                "a part of a joined optimizer was stepped by itself",
                where="optimizer.step()",
                cure="Call step() of the joined optimizer, once for all of its parts",
            )


def _required(optimizers: tuple[Any, ...]) -> tuple[Optimizer, ...]:
    wrong = next(
        (part for part in optimizers if not isinstance(part, Optimizer) or isinstance(part, JoinedOptimizer)), None
    )
    if wrong is not None or len(optimizers) < 2:
        got = f"{len(optimizers)} of them" if wrong is None else type(wrong).__name__
        raise InvalidArgumentError(
            f"must be two optimizers of torch.optim or more, got {got}",
            where="optimizers",
            cure="Pass JoinedOptimizer([first, second]); of joined ones, their parts",
        )
    parameters = [id(p) for part in optimizers for group in part.param_groups for p in group["params"]]
    if len(set(parameters)) < len(parameters):
        raise InvalidArgumentError(
            "a parameter is in two of them, and would be updated twice by one release",
            where="optimizers",
            cure="Give each parameter to one optimizer",
        )
    return tuple(optimizers)


def kind_of(optimizer: object) -> str:
    """Return the class of an optimizer, or of whatever else, by name; of joined ones with those of their parts."""
    if isinstance(optimizer, JoinedOptimizer):
        return f"JoinedOptimizer({', '.join(map(kind_of, optimizer.parts))})"
    return type(optimizer).__name__


def hooks_of_parts(optimizer: Optimizer) -> list[Callable[..., Any]]:
    """Return what others have hung on the steps of a joined optimizer's parts, which see what it was handed."""
    if not isinstance(optimizer, JoinedOptimizer):
        return []
    found = [hook for part in optimizer.parts for hook in step_pre_hooks_of(part).values()]
    return [hook for hook in found if getattr(hook, "__self__", None) is not optimizer]


def with_parts(optimizer: Optimizer) -> tuple[Optimizer, ...]:
    """Return the optimizer and, of joined ones, its parts."""
    return (optimizer, *optimizer.parts) if isinstance(optimizer, JoinedOptimizer) else (optimizer,)


def parts_of(optimizer: Optimizer) -> tuple[Optimizer, ...]:
    """Return the optimizers that a step is made of: the parts of joined ones, else the optimizer itself."""
    return optimizer.parts if isinstance(optimizer, JoinedOptimizer) else (optimizer,)
