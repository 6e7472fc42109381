"""What was fixed when training was made private, and is looked at again in every step.

A parameter that became trainable afterwards would be updated without clipping and noise; a BatchNorm that went back to
train() would mix examples. Neither is visible from the sums.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hushgrad.accounting.conditions import CHANGED_IN_ITEM, Condition
from hushgrad.errors import ContractChangedError, StrayGradientError, UnsupportedOptimizerError
from hushgrad.guards.compatibility import require_separate_examples
from hushgrad.guards.sparse_tables import update_problems
from hushgrad.joined_optimizer import with_parts
from hushgrad.sampling.records import PhysicalBatch
from hushgrad.torch_internals import has_gradient_hooks, modules_of, own_parameters, version, versions_of
from hushgrad.torch_sharding import local_part

EVERY = 64
"""The values of parameters are looked at in one of so many steps without gradients, the first one included."""


SIZES = 3
"""Items of so many sizes are looked at before a value is said to go with the size."""


class SetupInvariants:
    """The model's parameters, the optimizer's groups and the layers' modes, as they were at set-up."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        trainable: dict[str, nn.Parameter],
        tables: Sequence[str] = (),
    ) -> None:
        """Begin at set-up; of the `tables` among what is trained some rows alone are updated."""
        self._model = model
        self._optimizer = optimizer
        self._trainable = {id(parameter): name for name, parameter in trainable.items()}
        self._tables = {name: trainable[name] for name in tables}
        self._held = [*trainable.values(), *_updated(optimizer)]  # while they live no other tensor can have their ids
        self._updated = [id(tensor) for tensor in _updated(optimizer)]
        self._values: list[dict[str, Any]] | None = None
        self._versions: list[int] | None = None
        self._values_before: list[Tensor] | None = None
        self._steps_without_update = 0
        self._has_moved = False
        self._unmoved: list[tuple[int, Tensor]] | None = None
        self._marks: list[object] | None = None
        self._shares: dict[tuple[int, float], float] | None = None
        self._sizes: set[int] = set()
        self.conditions: tuple[Condition, ...] = ()
        """What was taken on trust so far."""

    def require_same_parameters(self) -> None:
        """Refuse to go on with other trainable parameters than at set-up.

        Raises:
            ContractChangedError: parameters became trainable, were replaced, are all frozen, or entered the optimizer.
        """
        self._require_same_parameters(own_parameters(modules_of(self._model)))

    def require_no_surprises(self) -> None:
        """Refuse to end a physical batch where anything happened that the clipped sums do not show.

        Raises:
            ContractChangedError: as `require_same_parameters`; or a parameter got a gradient hook.
            CrossSampleLeakError, PrivateBufferError: a normalization layer is in a mode that set-up would have refused.
            UnsupportedOptimizerError: a GradScaler drives the optimizer, or an option of it moves all rows of a table.
            StrayGradientError: something wrote a gradient that was not clipped and noised.
        """
        modules = modules_of(self._model)
        parameters = own_parameters(modules)
        self._require_same_parameters(parameters)
        require_separate_examples(self._model, modules)
        if any("grad_scale" in vars(part) for part in with_parts(self._optimizer)):
            raise UnsupportedOptimizerError(
                "a GradScaler calls the optimizer: it skips steps by looking at gradients without noise, and scales "
                "losses that are clipped",
                cure="Call loss.backward() and optimizer.step() yourself, with bfloat16 autocast, or with float16 and "
                "PrivacyEngine(loss_scale=2.0**10), a constant that no overflow changes",
            )
        for problem in update_problems(self._optimizer, self._tables) if self._tables else ():
            raise problem
        if [True for parameter in parameters if parameter.grad is not None or has_gradient_hooks(parameter)]:
            self._refuse_gradients()

    def _refuse_gradients(self) -> NoReturn:
        """Name the parameters with a gradient hook, or with an ordinary gradient."""
        if hooked := [name for name, parameter in self._model.named_parameters() if has_gradient_hooks(parameter)]:
            raise ContractChangedError(
                "got a gradient hook after it was made private, which would see gradients without clipping and noise",
                where=", ".join(hooked),
                cure="Remove the hook",
            )
        stray = [name for name, parameter in self._model.named_parameters() if parameter.grad is not None]
        raise StrayGradientError(
            "got an ordinary gradient, without clipping and noise",
            where=", ".join(stray),
            cure="Run the model after it was made private, use each parameter inside the model's own forward only "
            "(in a custom autograd function by hushgrad.register_operator), write nothing to .grad, and call "
            "optimizer.zero_grad() before going on. A term of parameters alone (a penalty, a prior) is declared "
            "before the loop: session.regularizer(fn, weight=...)",
        )

    def _require_same_parameters(self, parameters: Sequence[nn.Parameter]) -> None:
        now = {id(parameter) for parameter in parameters if parameter.requires_grad}
        if now != self._trainable.keys() and not self._are_only_frozen(now, parameters):
            raise ContractChangedError(
                f"{self._difference(now)}: what is trained was fixed by make_private",
                cure="Call optimizer.step() outside of session.paused(); to train other parameters, close the session "
                "and make the model private again",
            )
        if [id(tensor) for tensor in _updated(self._optimizer)] != self._updated:
            raise ContractChangedError(
                "the optimizer's param_groups hold other tensors than when it was made private",
                cure="Close the session, change them, and make the model private again",
            )

    def begin_item(self) -> None:
        """An item is handed out: what changes the optimizer's values from here on may follow it."""
        self._marks = self._group_marks()

    def require_steady_groups(self, item: PhysicalBatch) -> None:
        """Refuse values that change inside a logical batch: its number of physical batches is secret.

        Between an item and its step a schedule may change them, which is a condition; what follows the number of
        records is refused.

        Raises:
            ContractChangedError: values changed inside a logical batch, or go with its size.
        """
        marks, self._marks = self._marks, None
        if marks is not None and marks != self._group_marks():
            self.conditions = (CHANGED_IN_ITEM,)
            self._require_unrelated(item.size)
        if item.first:
            self._values = None if item.last else self._group_values()
        elif self._values != self._group_values():
            raise ContractChangedError(
                "a value of the optimizer's param_groups (the learning rate, say) changed inside a logical batch, "
                "whose number of physical batches is secret",
                cure="Step schedulers only when last_step_updated is True",
            )

    def _require_unrelated(self, size: int) -> None:
        """Refuse numbers that kept to a power of the size of items while they had `SIZES` sizes."""
        now = [
            float(value)
            for group in self._group_values()
            for value in group.values()
            if isinstance(value, int | float) and not isinstance(value, bool)
        ]
        shares = {
            (place, power): value / size**power
            for place, value in enumerate(now)
            for power in (1.0, 0.5, -0.5, -1.0)
            if value and size
        }
        before = shares if self._shares is None else self._shares
        self._shares = {
            key: share
            for key, share in before.items()
            if key in shares and math.isclose(share, shares[key], rel_tol=1e-9)
        }
        self._sizes.add(size)
        if self._shares and len(self._sizes) >= SIZES:
            raise ContractChangedError(
                "a value of the optimizer's param_groups (the learning rate, say) goes with the number of records of "
                "the item, which is secret",
                cure="Let it follow the number of the step alone; the update is divided by the expected batch size "
                "already",
            )

    def expect_no_update(self) -> None:
        """A step begins that does not end a logical batch, so there is no gradient to update with."""
        self._versions = self._parameter_versions()
        # A write through `.data` leaves no mark but the values, which are dearer to look at.
        if self._steps_without_update % EVERY == 0:
            self._values_before = [sample(parameter) for parameter in self._trained()]
        self._steps_without_update += 1

    def require_expected_update(self) -> None:
        """The step has ended: refuse an optimizer that changes parameters without gradients.

        It would do so once per physical batch, whose number is secret.
        """
        expected, self._versions = self._versions, None
        values, self._values_before = self._values_before, None
        is_same = values is None or all(
            is_same_sample(sample(parameter), before) for parameter, before in zip(self._trained(), values, strict=True)
        )
        if expected is not None and not (is_same and expected == self._parameter_versions()):
            raise UnsupportedOptimizerError(
                "the optimizer changed parameters in a step without gradients, so the model would show how many "
                "physical batches there were, which is secret",
                cure="Use an optimizer that skips parameters without a gradient, as all of torch.optim do, or "
                "max_physical_batch_size=None",
            )

    def expect_nothing(self) -> None:
        """The step was left before its end: nothing can be said of what it changed."""
        self._versions, self._values_before, self._unmoved = None, None, None

    def expect_moved_weights(self) -> None:
        """An update is about to be written; the first one is watched."""
        if not self._has_moved and not self._is_at_rest():
            self._unmoved = [(version(parameter), sample(parameter)) for parameter in self._trained()]

    def require_moved_weights(self) -> None:
        """The step has ended: refuse an optimizer that did nothing with the first update.

        Raises:
            UnsupportedOptimizerError: no trained parameter was written to.
        """
        before, self._unmoved = self._unmoved, None
        if before is None:
            return
        self._has_moved = any(
            version(parameter) != number or not torch.equal(sample(parameter), values)
            for parameter, (number, values) in zip(self._trained(), before, strict=True)
        )
        if not self._has_moved:
            raise UnsupportedOptimizerError(
                "optimizer.step() was charged and left every parameter of the model as it was",
                cure="Use an optimizer whose step writes to the parameters of its param_groups each time that they "
                "hold a gradient",
            )

    def _is_at_rest(self) -> bool:
        """Whether every learning rate is 0, as in the first step of a warm-up: such a step moves nothing, rightly."""
        return all("lr" in group and float(group["lr"]) == 0.0 for group in self._optimizer.param_groups)

    def _trained(self) -> list[nn.Parameter]:
        return [parameter for parameter in own_parameters(modules_of(self._model)) if id(parameter) in self._trainable]

    def _parameter_versions(self) -> list[int]:
        return versions_of(own_parameters(modules_of(self._model)))

    def _group_values(self) -> list[dict[str, Any]]:
        return [
            {
                key: value.tolist() if isinstance(value, Tensor) else value
                for key, value in group.items()
                if key != "params"
            }
            for group in self._optimizer.param_groups
        ]

    def _group_marks(self) -> list[object]:
        """Return what a change of a group's values shows in, without waiting for a device."""
        return [
            (key, id(value), version(value)) if isinstance(value, Tensor) else (key, value)
            for group in self._optimizer.param_groups
            for key, value in group.items()
            if key != "params"
        ]

    def _are_only_frozen(self, now: set[int], parameters: Sequence[nn.Parameter]) -> bool:
        """Whether some of the parameters are frozen for a while, and nothing else has changed."""
        return bool(now) and now <= self._trainable.keys() <= {id(parameter) for parameter in parameters}

    def _difference(self, now: set[int]) -> str:
        names = {id(parameter): name for name, parameter in self._model.named_parameters()}
        new = [names[key] for key in names if key in now - self._trainable.keys()]
        gone = [name for key, name in self._trainable.items() if key not in now]
        parts = [f"became trainable or took another one's place: {', '.join(new)}"] if new else []
        return "; ".join([*parts, *([f"no longer trainable: {', '.join(gone)}"] if gone else [])])


def sample(parameter: Tensor) -> Tensor:
    """Some values of a parameter: an optimizer that writes to `parameter.data` leaves no mark but these."""
    return local_part(parameter).detach().reshape(-1)[:64].clone()


def is_same_sample(now: Tensor, before: Tensor) -> bool:
    """Whether two samples hold the same values; NaN is itself."""
    return torch.allclose(now, before, rtol=0, atol=0, equal_nan=True)


def _updated(optimizer: Optimizer) -> list[Tensor]:
    return [tensor for group in optimizer.param_groups for tensor in group["params"]]
