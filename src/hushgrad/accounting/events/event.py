"""Privacy events: what one step did, completely enough to be charged and to be read again in years.

An event is data. It holds no curve and no accountant: it says which of the costs that accountants know it has
(`add_to`), and how its examples were drawn, in words (`sentence`). A type or a version that was once written to a
ledger is never removed from this folder.

Neighbouring relations (the "adjacency" printed beside every epsilon):

- add/remove-one: the two data sets differ by the presence of one record;
- zero-out: one record of the one is replaced, in its place, by a record that contributes nothing;
- replace-one: one record of the one is replaced, in its place, by any other record.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, ClassVar, Self, TypeAlias, final

from hushgrad.accounting.events.costs import Costs, FilterRule
from hushgrad.errors import AccountingError, InvalidArgumentError

ADD_REMOVE_ONE = "add/remove-one"
ZERO_OUT = "zero-out"
REPLACE_ONE = "replace-one"
RELATIONS = (ADD_REMOVE_ONE, ZERO_OUT, REPLACE_ONE)

JSON: TypeAlias = dict[str, Any]


class Event(ABC):
    """What one step released. A kind is a frozen dataclass of numbers and text that are checked when it is made.

    `type` and `version` name the kind in a ledger; `adjacency` is the neighbouring relation it is charged under;
    `noise_multiplier` (no unit), a field of every kind, is the standard deviation of the noise over the clip norm.
    """

    __slots__ = ()

    type: ClassVar[str]
    version: ClassVar[int]
    adjacency: ClassVar[str]
    noise_multiplier: float

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # The second time, with slots, it is the dataclass's own.
        if "__eq__" in vars(cls) and "__dataclass_fields__" not in vars(cls):
            raise InvalidArgumentError(
                "equal events are charged as one, so whether two are equal is a matter of all their fields",
                where=cls.__name__,
                cure="Remove its __eq__: that of the dataclass compares the fields",
            )

    @abstractmethod
    def add_to(self, costs: Costs, count: int) -> None:
        """Add to `costs` what `count` such steps cost one record, under `adjacency`: the truth, or an upper bound."""

    @classmethod
    @abstractmethod
    def sentence(cls, ran: Sequence[tuple[Self, int]], *, alone: bool) -> str:
        """Return in words how records were drawn for `ran`: all steps of this kind, as `(event, count)`, in order.

        `alone` says that no steps of another kind ran. There is at least one; the text has no full stop.
        """

    @property
    def data_pass(self) -> int | None:
        """Which of the caller's own passes over the data the step belongs to; None where it belongs to none."""
        return None

    @property
    def in_block(self) -> int | None:
        """Which unbroken run of steps the step belongs to, where a run costs what follows from its length.

        `add_to` then gets the length of the run: all steps of a block are equal events. None where steps cost apart.
        """
        return None

    def later(self, by: int) -> Self:
        """Return the step as one of a pass, or of a block, whose number is higher by `by`: of another account.

        Passes and blocks of two accounts are different ones, also where their numbers are the same. A kind that has
        either overrides it. Raises `AccountingError` where that is not done.
        """
        if self.data_pass is None and self.in_block is None:
            return self
        raise AccountingError(
            f"{type(self).__name__} does not say how it is numbered, so its passes or blocks cannot be told from those "
            f"of another account",
            where="the total of several accounts",
            cure="Override later() in its kind",
        )

    @property
    def poisson_rate(self) -> float | None:
        """The rate with which every record is drawn independently; None where records are drawn otherwise."""
        return None

    @property
    def charged_rate(self) -> float | None:
        """How likely the charge takes a record's part in the step to be; None: charged without amplification."""
        return None

    @property
    def finding(self) -> str | None:
        """For what is no step: what was found after which nothing charged before is established. None for a step."""
        return None

    @property
    def filter_rule(self) -> FilterRule | None:
        """For what is no step: the filter that the account it stands first in is charged by. None for a step."""
        return None

    @property
    def is_release(self) -> bool:
        """Whether anything was released: not for a finding, nor for the rule of a filter."""
        return self.finding is None and self.filter_rule is None

    @property
    def is_step(self) -> bool:
        """Whether it is a step of training, and counted as one; a statistic that was released beside it is none."""
        return self.is_release

    @property
    def distance_of_noise(self) -> float:
        """How far the law of its noise is from what is charged, in total variation, where the contract says nothing."""
        return 0.0

    @final
    def to_json(self) -> JSON:
        """Return the event as a JSON object with its type and version."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {"type": self.type, "version": self.version, **values}
