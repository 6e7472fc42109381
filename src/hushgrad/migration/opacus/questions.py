"""What a checkpoint of Opacus does not say, so that whoever imports it must: all asked at once, each with its why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hushgrad.accounting.ledger.contract import DECLARED, NOT_OBSERVED, Contract
from hushgrad.arguments import count_of, one_of, positive_number
from hushgrad.errors import InvalidArgumentError

CLIPPING = ("flat", "per_layer", "adaptive")

QUESTIONS = {
    "poisson_sampling": "how records were drawn. True where make_private had its default; False where it was given "
    "poisson_sampling=False. Opacus charges both as Poisson sampling, but batches of a shuffled loader get no "
    "amplification",
    "batch_size": "B, the batch size of the DataLoader that Opacus was given (of all processes together)",
    "population": "N, the number of records: len(dataset)",
    "max_grad_norm": "C, as make_private was given it; a list for clipping='per_layer'",
    "clipping": "the clipping= of make_private, 'flat' where it was left out",
    "passes": "how often the loop began to go through the loader, epochs that were left early included. A record is in "
    "one batch of each",
}
"""The arguments and what each is. `passes` is asked of shuffled batches only."""


@dataclass(frozen=True, slots=True)
class Declared:
    """What whoever imports a checkpoint says of the run that wrote it.

    `batch_size` and `population` in records; `max_grad_norm`, the largest norm with which one record entered a sum, in
    units of the gradient; `clipping`, the rule in words; `passes`, None for Poisson sampling.
    """

    poisson_sampling: bool
    batch_size: float
    population: int
    max_grad_norm: float
    clipping: str
    passes: int | None
    loss_reduction: str

    @property
    def contract(self) -> Contract:
        """What the ledger of these steps says of them."""
        return Contract(
            sampling=DECLARED,
            noise_source=NOT_OBSERVED,
            expected_batch_size=self.batch_size,
            max_grad_norm=self.max_grad_norm,
            loss_reduction=self.loss_reduction,
            population=self.population,
            clipping=self.clipping,
        )


def declared(
    *,
    poisson_sampling: bool | None,
    batch_size: float | None,
    population: int | None,
    max_grad_norm: float | Sequence[float] | None,
    clipping: str | None,
    passes: int | None,
    loss_reduction: str,
    least_passes: int,
) -> Declared:
    """Return the answers, checked. Raises `InvalidArgumentError` that names every question that was left open.

    `least_passes` is how many passes the steps of the file take where each was run to its end.
    """
    given = {
        "poisson_sampling": poisson_sampling,
        "batch_size": batch_size,
        "population": population,
        "max_grad_norm": max_grad_norm,
        "clipping": clipping,
    }
    if poisson_sampling is False:
        given["passes"] = passes
    open_ones = [name for name, value in given.items() if value is None]
    if open_ones:
        told = "; ".join(f"{name}: {QUESTIONS[name]}" for name in open_ones)
        hint = f" Where every pass was run to its end, passes={least_passes}" if "passes" in open_ones else ""
        raise InvalidArgumentError(
            f"a checkpoint of Opacus does not say {told}",
            where="read_checkpoint",
            cure=f"Look it up in the script that trained it, and pass {', '.join(f'{name}=' for name in open_ones)}."
            + hint,
        )
    if not isinstance(poisson_sampling, bool):
        raise InvalidArgumentError("must be True or False", where="poisson_sampling", cure="Pass True or False")
    assert batch_size is not None
    assert population is not None
    assert max_grad_norm is not None
    rule = one_of("clipping", str(clipping), CLIPPING)
    if rule == "adaptive":
        raise InvalidArgumentError(
            "Opacus up to 1.5 charged adaptive clipping with the noise of the gradients alone, without what the noisy "
            "count of clipped records costs, and the file does not say which version wrote it",
            where="clipping",
            cure="There is no true account of these steps: train again from the start",
        )
    if passes is not None and poisson_sampling:
        raise InvalidArgumentError(
            "Poisson sampling has no passes over the data", where="passes", cure="Leave passes= out"
        )
    norm, words = _clip_rule(rule, max_grad_norm)
    return Declared(
        poisson_sampling=poisson_sampling,
        batch_size=positive_number("batch_size", batch_size),
        population=count_of("population", population, minimum=1),
        max_grad_norm=norm,
        clipping=words,
        passes=None if passes is None else _enough(passes, least_passes),
        loss_reduction=one_of("loss_reduction", loss_reduction, ("mean", "sum")),
    )


def _clip_rule(rule: str, given: float | Sequence[float]) -> tuple[float, str]:
    """Return the largest norm of one record in a sum, and the rule in words."""
    if rule == "per_layer":
        if not isinstance(given, Sequence) or not given:
            raise InvalidArgumentError(
                "clipping='per_layer' has one norm for each parameter",
                where="max_grad_norm",
                cure="Pass the list that make_private was given",
            )
        norms = [positive_number("max_grad_norm", norm) for norm in given]
        return math.hypot(*norms), f"Opacus: per layer, to norms that are {math.hypot(*norms):g} together"
    if isinstance(given, Sequence):
        raise InvalidArgumentError(
            "clipping='flat' has one norm", where="max_grad_norm", cure="Pass one number, or clipping='per_layer'"
        )
    norm = positive_number("max_grad_norm", given)
    return norm, f"Opacus: flat, to {norm:g}"


def _enough(passes: int, least: int) -> int:
    given = count_of("passes", passes, minimum=1)
    if given < least:
        raise InvalidArgumentError(
            f"the steps of the file take at least {least} passes over the loader, got {given}",
            where="passes",
            cure=f"Pass how often the loop began to go through the loader: {least} where each pass ran to its end",
        )
    return given
