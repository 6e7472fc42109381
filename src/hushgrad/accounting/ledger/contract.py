"""The contract of a ledger: what is fixed for its whole life and is not in its events."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from hushgrad.arguments import count_of, non_negative_number, one_of, positive_number
from hushgrad.errors import InvalidArgumentError

ONE_RECORD = "one record"
"""The unit of privacy of every ledger so far: whose presence is protected."""

OBSERVED = "observed"
DECLARED = "declared by the caller"
OPERATING_SYSTEM = "operating system"
FIXED_KEY = "fixed key: NOT PRIVATE"
NOT_OBSERVED = "not observed"


@dataclass(frozen=True, slots=True)
class Contract:
    """What is fixed for the life of a ledger and is not in its events.

    `sampling`: "observed" where hushgrad's own loader drew the batches, else "declared by the caller".
    `noise_source`: "operating system"; "fixed key: NOT PRIVATE"; or "not observed" for steps that another library ran,
    whose noise nobody here vouches for.
    `expected_batch_size`: the public constant that the noised sum is divided by, in records; None if not declared.
    `max_grad_norm`: the largest norm with which one record enters the sum (the clip norm, of flat clipping), in units
    of the gradient; None if not declared.
    `loss_reduction`: "mean" or "sum".
    `population`: the declared public number of records, or None.
    `clipping`: the clip rule and all its constants, in its own words (`ClipRule.describe`); None if not declared.
    `unit`: whose presence is protected, "one record".
    `strategy`: how noise is correlated between steps, with all constants as hexadecimal floating-point numbers
    (`Strategy.describe`); None for noise that is independent in every step.
    """

    sampling: str
    noise_source: str
    expected_batch_size: float | None = None
    max_grad_norm: float | None = None
    loss_reduction: str = "mean"
    population: int | None = None
    clipping: str | None = None
    unit: str = ONE_RECORD
    strategy: str | None = None

    def __post_init__(self) -> None:
        one_of("sampling", self.sampling, (OBSERVED, DECLARED))
        one_of("noise_source", self.noise_source, (OPERATING_SYSTEM, FIXED_KEY, NOT_OBSERVED))
        one_of("loss_reduction", self.loss_reduction, ("mean", "sum"))
        if self.expected_batch_size is not None:
            object.__setattr__(
                self, "expected_batch_size", positive_number("expected_batch_size", self.expected_batch_size)
            )
        if self.max_grad_norm is not None:
            object.__setattr__(self, "max_grad_norm", non_negative_number("max_grad_norm", self.max_grad_norm))
        if self.population is not None:
            object.__setattr__(self, "population", count_of("population", self.population, minimum=1))
        for name, text in (("clipping", self.clipping), ("unit", self.unit), ("strategy", self.strategy)):
            if not ((text is None and name != "unit") or (isinstance(text, str) and text and text.isprintable())):
                raise InvalidArgumentError(
                    f"must be one printable line of text, got {type(text).__name__}",
                    where=name,
                    cure="Pass one line without control characters",
                )

    def to_json(self) -> dict[str, Any]:
        """Return the contract as a JSON object. What a ledger without a strategy says is what it always was."""
        said = asdict(self)
        if self.strategy is None:
            del said["strategy"]
        return said

    @property
    def noise_is_secret(self) -> bool:
        """Whether nothing says that the noise can be predicted: its key is not a fixed one."""
        return self.noise_source != FIXED_KEY

    @property
    def noise_is_observed(self) -> bool:
        """Whether the noise of all steps was drawn here."""
        return self.noise_source != NOT_OBSERVED
