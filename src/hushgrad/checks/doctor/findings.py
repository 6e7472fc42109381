"""A diagnosis as a value: the uses of the parameters, what stands in the way, and what is good to know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hushgrad.checks.doctor.report import html_report, report
from hushgrad.errors import HushgradError
from hushgrad.gradients.machine import NO_LIMIT


@dataclass(frozen=True)
class Use:
    """How one operator of a model uses trainable parameters, and what that costs in a private step.

    Attributes:
        module: the dotted name of the module in whose forward it happened; empty for the model itself.
        operator: such as "linear" or "conv2d".
        parameters: their dotted names.
        way: how per-example norms are taken: "product", "gram", "instantiate" (as in `Contribution.way`), "rows" of a
            table, "per example" (small enough to keep), "derived" (the weight is computed from parameters), or
            "generic: slices" and "generic: masks" for operators without a rule.
        calls: how often it ran in one forward.
        batch_size, positions, outputs, inputs: B, T, p and d of a `[p, d]` weight; None where it has no such form.
        ordinary_flops, private_flops: multiplications and additions of an ordinary and of a private step, estimated
            by the counts that also choose the way.
        memory_bytes: what is kept from the backward until the clipped sums are formed.
    """

    module: str
    operator: str
    parameters: tuple[str, ...]
    way: str
    calls: int
    batch_size: int
    positions: int | None
    outputs: int | None
    inputs: int | None
    ordinary_flops: int
    private_flops: int
    memory_bytes: int

    @property
    def cost(self) -> float:
        """Operations of a private step over those of an ordinary one, for this use."""
        return self.private_flops / self.ordinary_flops if self.ordinary_flops else 1.0


@dataclass(frozen=True)
class Finding:
    """Something that was found.

    Attributes:
        code: the code of the error that would be raised; empty for a note.
        where: the dotted name of the module, parameter or operator; empty where it is no one part.
        what: what it is.
        cure: what to do; may be empty for a note.
    """

    code: str
    where: str
    what: str
    cure: str = ""

    @classmethod
    def of(cls, error: HushgradError) -> Finding:
        """Return an error as a finding."""
        return cls(error.code, error.where, error.what, error.cure)


@dataclass(frozen=True)
class Diagnosis:
    """What the doctor found. `str()` is the report as text, 100 characters wide; `text(width)` fits it to a screen.

    Attributes:
        model: the class of the model.
        batch_size: B of the batch it ran on; None if it did not run.
        uses: a row for each use of trainable parameters, in the order of the backward reversed.
        problems: what would be refused, all of it.
        notes: what is good to know.
        parameters: the number of trainable values, each of which gets noise in every update.
        budget_bytes: what per-example gradients may take beyond what they replace.
        machine: where the constants that ways are chosen by come from, "measured" or "as shipped".
        is_sharded: whether `fully_shard` was called on the model.
        sum_bytes: what its clipped sums take whole, in a tensor parallel model those of this process.
        sum_budget_bytes: what they may take whole in each process of a sharded model.
        operand_bytes: what the operands of its uses take on this batch, at most, until the norms are known.
        operand_budget_bytes: what they may take, before norms and sums are taken inside the backward.
        norm_groups: how many norms of each example a group-wise clip rule takes, by the rule's name; others take one.
    """

    model: str
    batch_size: int | None
    uses: tuple[Use, ...]
    problems: tuple[Finding, ...]
    notes: tuple[Finding, ...]
    parameters: int
    budget_bytes: int
    machine: str
    norm_groups: Mapping[str, int]
    is_sharded: bool = False
    sum_bytes: int = 0
    sum_budget_bytes: int = 0
    operand_bytes: int = 0
    operand_budget_bytes: int = NO_LIMIT

    @property
    def are_sums_scattered(self) -> bool:
        """Whether the sums of the model, sharded, are added up after each item, so that no process has them whole."""
        return self.sum_bytes > self.sum_budget_bytes

    @property
    def are_operands_let_go(self) -> bool:
        """Whether norms and sums of such a batch are taken inside the backward, so that no operand lives longer."""
        return self.operand_bytes > self.operand_budget_bytes

    @property
    def is_ready(self) -> bool:
        """Whether nothing was found that would be refused."""
        return not self.problems

    @property
    def cost(self) -> float | None:
        """Operations of all uses in a private step over those in an ordinary one; None if the model did not run."""
        ordinary = sum(use.ordinary_flops for use in self.uses)
        return sum(use.private_flops for use in self.uses) / ordinary if ordinary else None

    @property
    def memory_bytes(self) -> int:
        """What all uses keep from the backward until the clipped sums are formed."""
        return sum(use.memory_bytes for use in self.uses)

    def as_json(self) -> dict[str, Any]:
        """Return the diagnosis as plain values."""
        return {
            "ready": self.is_ready,
            **asdict(self),
            "uses": [{**asdict(use), "cost": use.cost} for use in self.uses],
            "cost": self.cost,
            "memory_bytes": self.memory_bytes,
            "sums_scattered": self.are_sums_scattered,
            "operands_let_go": self.are_operands_let_go,
        }

    def text(self, width: int) -> str:
        """Return the report in lines of at most `width` characters, its verdict last."""
        return report(self, width)

    def __str__(self) -> str:
        return self.text(100)

    def _repr_html_(self) -> str:
        return html_report(self)
