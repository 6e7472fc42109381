"""The contract of a ledger: what is fixed for its whole life and is not in its events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hushgrad.arguments import count_of, non_negative_number, one_of, positive_number
from hushgrad.errors import InvalidArgumentError

ONE_RECORD = "one record"
"""The unit of privacy where nothing else is said: whose presence is protected."""

OBSERVED = "observed"
DECLARED = "declared by the caller"
OPERATING_SYSTEM = "operating system"
FIXED_KEY = "fixed key: NOT PRIVATE"
NOT_OBSERVED = "not observed"


def noun_of(unit: str) -> str:
    """Return what a unit of privacy is one of, "record" or "user"."""
    return [*unit.split(), "record", "record"][1]


@dataclass(frozen=True, slots=True)
class Rounding:
    """A grid that sums are rounded to and noise is drawn on.

    `grid`: its spacing; `error`: how far the sum may be from the exact one for the noise that it gets, as an L2 norm;
    both in units of the gradient, of the first step where the clip norm changes. `distance`: of the law of one step's
    noise, in all its values, from rounded Gaussian noise, in total variation. `everywhere` is False where some steps
    of an account had no grid.
    """

    grid: float
    error: float
    distance: float
    everywhere: bool = True

    def __post_init__(self) -> None:
        for name in ("grid", "error", "distance"):
            object.__setattr__(self, name, positive_number(f"rounding: {name}", getattr(self, name)))


@dataclass(frozen=True, slots=True)
class Contract:
    """What is fixed for the life of a ledger and is not in its events.

    `sampling`: "observed" where hushgrad's own loader drew the batches, else "declared by the caller".
    `noise_source`: "operating system"; "fixed key: NOT PRIVATE"; or "not observed" for steps that another library ran,
    whose noise nobody here vouches for.
    `expected_batch_size`: the public constant that the noised sum is divided by, in units; None if not declared.
    `max_grad_norm`: the largest norm with which one record enters the sum (the clip norm, of flat clipping), in units
    of the gradient; None if not declared.
    `loss_reduction`: "mean" or "sum".
    `population`: the declared public number of units, or None.
    `clipping`: the clip rule and all its constants, in its own words (`ClipRule.describe`); None if not declared.
    `unit`: whose presence is protected, "one record", or "one user" with how users are told: "one" and a noun, which
    batch size and population are counted in.
    `strategy`: how noise is correlated between steps, with all constants as hexadecimal floating-point numbers
    (`Strategy.describe`); None for noise that is independent in every step.
    `sparse_rows`: the tables of which each step updated only rows that were chosen by noised counts, with all
    constants (`SparseRows.describe`); None where all of what is trained was updated.
    `rounding`: the grid of noise on a grid; None for noise that is added to sums as they are.
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
    rounding: Rounding | None = None
    sparse_rows: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.rounding, Mapping):
            object.__setattr__(self, "rounding", Rounding(**self.rounding))
        if not (self.rounding is None or isinstance(self.rounding, Rounding)):
            raise InvalidArgumentError(
                f"must be a Rounding, got {type(self.rounding).__name__}", where="rounding", cure="Leave it out"
            )
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
        for name in ("clipping", "unit", "strategy", "sparse_rows"):
            text = getattr(self, name)
            if not ((text is None and name != "unit") or (isinstance(text, str) and text and text.isprintable())):
                raise InvalidArgumentError(
                    f"must be one printable line of text, got {type(text).__name__}",
                    where=name,
                    cure="Pass one line without control characters",
                )

    def to_json(self) -> dict[str, Any]:
        """Return the contract as a JSON object. One without a strategy, a grid or chosen rows says nothing of it."""
        said = asdict(self)
        for name in ("strategy", "rounding", "sparse_rows"):
            if said[name] is None:
                del said[name]
        return said

    @property
    def noise_is_secret(self) -> bool:
        """Whether nothing says that the noise can be predicted: its key is not a fixed one."""
        return self.noise_source != FIXED_KEY

    @property
    def noise_is_observed(self) -> bool:
        """Whether the noise of all steps was drawn here."""
        return self.noise_source != NOT_OBSERVED
