"""What a framework's user says about privacy, in one value: batch size, rate and steps are read from the framework."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from hushgrad.accounting.accountants import ACCOUNTANTS, DEFAULT_ACCOUNTANT
from hushgrad.accounting.budget import Budget
from hushgrad.accounting.guarantee import Guarantee
from hushgrad.accounting.ledger.phases import phase_name
from hushgrad.arguments import (
    non_negative_number,
    one_of,
    open_unit_interval,
    positive_number,
    whole_number,
)
from hushgrad.clipping.named import chosen
from hushgrad.clipping.rule import ClipRule
from hushgrad.errors import InvalidArgumentError
from hushgrad.mechanism import DPSGD
from hushgrad.mechanism.known import NAMED
from hushgrad.mechanism.named_noise import CHOSEN
from hushgrad.randomness import KeyStream
from hushgrad.sampling.choice import NAMES as SAMPLINGS
from hushgrad.sampling.choice import passes_of, scheme_named, size_of
from hushgrad.sampling.scheme import SamplingScheme
from hushgrad.session.privatize import privatize
from hushgrad.session.session import Session
from hushgrad.session.spending import calibrated
from hushgrad.sparse_rows.rule import SparseRows, require_sparse_rows
from hushgrad.strategies.strategy import Strategy


@dataclass(frozen=True, kw_only=True)
class Privacy:
    """The privacy of a training run, for the integrations (`hushgrad.integrations`).

    Attributes:
        max_grad_norm: C, the norm to which each example's gradient is clipped. None with a `ClipRule`, which says it.
        target_delta: δ, in (0, 1); usual: less than 1 / (number of records).
        target_epsilon: ε at the planned end: the noise is the smallest that keeps to it; with a `phase`, ε of the whole
            account. Beside a `noise_multiplier` it is a budget at which training ends.
        clipping: "flat", another rule by its name, or a `ClipRule`, as in `PrivacyEngine.make_private`.
        noise_multiplier: σ; by default it is chosen for `target_epsilon`.
        noise: "gaussian", or "grid": on a grid, to which sums are rounded (docs/floating-point.md).
        sampling: how records are drawn: "poisson", "balls-in-bins" (each in one random step of a pass, which is charged
            whole: a resume in its middle begins another) or "fixed-size", as in `PrivacyEngine.make_private`.
        sparse_rows: tables of millions of rows of which each step updates some rows alone, chosen by noised counts
            (docs/sparse-rows.md), as in `PrivacyEngine.make_private`: with "gaussian" noise and the optimizers named
            there. In Lightning names are those in the module's one part that is trained, if it has no other.
        ledger: a path makes the record of what ran durable; integrations that have an output folder keep it there.
        spare_steps: so many steps more are paid for, for those that a crash takes away.
        phase: the name of a part of the account, which takes a `ledger`: staged training on one ledger, each stage
            under a name of its own, with other batches, clip norm or records.
        group_size: k > 1: `target_epsilon` is for k records at once, for people who have at most k (docs/users.md).
        accountant: "saddle-point", "pld" or "rdp".
        strict: True refuses what would be taken on trust of the model and its loss.
        test_key: a fixed key for tests only: every ε then says NOT PRIVATE.

    Raises `InvalidArgumentError` for a value out of range, where neither ε nor σ is given, and for a phase without a
    ledger.
    """

    max_grad_norm: float | None = None
    target_delta: float
    target_epsilon: float | None = None
    noise_multiplier: float | None = None
    clipping: str | ClipRule = "flat"
    noise: str = "gaussian"
    sampling: str = "poisson"
    sparse_rows: SparseRows | None = None
    ledger: str | os.PathLike[str] | None = None
    spare_steps: int = 0
    phase: str | None = None
    group_size: int = 1
    accountant: str = DEFAULT_ACCOUNTANT
    strict: bool = False
    test_key: int | None = None

    def __post_init__(self) -> None:
        chosen(self.clipping, self.max_grad_norm, 1.0)
        open_unit_interval("target_delta", self.target_delta, "Pass less than 1 / (number of records)")
        if self.target_epsilon is not None:
            positive_number("target_epsilon", self.target_epsilon)
        if self.noise_multiplier is not None:
            non_negative_number("noise_multiplier", self.noise_multiplier)
        if self.target_epsilon is None and self.noise_multiplier is None:
            raise InvalidArgumentError(
                "target_epsilon and noise_multiplier are both missing",
                cure="Give target_epsilon, noise_multiplier, or both (then the epsilon is a budget)",
            )
        self._check_names()
        if self.sparse_rows is not None:
            require_sparse_rows(self.sparse_rows)
        whole_number("spare_steps", self.spare_steps, minimum=0)
        passes_of(scheme_named(self.sampling, 1, 1, 1), 1, 1, self.spare_steps)
        whole_number("group_size", self.group_size, minimum=1)
        one_of("accountant", self.accountant, tuple(ACCOUNTANTS))
        if not isinstance(self.strict, bool):
            raise InvalidArgumentError(
                f"must be True or False, got {type(self.strict).__name__}", where="strict", cure="Pass True or False"
            )
        if self.ledger is not None and not isinstance(self.ledger, str | os.PathLike):
            raise InvalidArgumentError(
                f"must be a path, got {type(self.ledger).__name__}", where="ledger", cure="Pass a path, or leave it out"
            )
        if self.phase is not None and phase_name(self.phase) and self.ledger is None:
            raise InvalidArgumentError(
                "a phase is a part of an account, and no ledger is named that holds it",
                where="phase",
                cure="Give all phases one path: Privacy(ledger=..., phase=...)",
            )

    def _check_names(self) -> None:
        """Refuse what the loops of frameworks do not follow, and say what does."""
        if isinstance(self.noise, Strategy) or self.noise in CHOSEN:
            raise InvalidArgumentError(
                "the loops of frameworks take noise that is independent in every step, and this is correlated between "
                "them",
                where="noise",
                cure='Take "gaussian" or "grid", or write the loop with '
                "PrivacyEngine.make_private_with_epsilon(noise=...)",
            )
        one_of("noise", self.noise, tuple(NAMED))
        if isinstance(self.sampling, SamplingScheme):
            raise InvalidArgumentError(
                f"must be one of {', '.join(SAMPLINGS)}, got {type(self.sampling).__name__}: batch size, number of "
                f"records and steps are the framework's",
                where="sampling",
                cure="Give a name, or write the loop with PrivacyEngine.make_private(sampling=...)",
            )
        one_of("sampling", self.sampling, SAMPLINGS)

    def mechanism(self, *, batch_size: float, population: int, steps: int, steps_per_pass: int | None = None) -> DPSGD:
        """Return the mechanism of a run of `steps` steps and the spare ones, `steps_per_pass` in each pass (None: all).

        Of several processes all call it, and the first one reads what earlier phases spent.

        Raises `InvalidArgumentError` where a batch is larger than the data, `AccountingError` where no noise keeps to
        ε, and `LedgerError` for a ledger that cannot be read.
        """
        if batch_size > population:
            raise InvalidArgumentError(
                f"a logical batch has {batch_size:g} records on average, and there are {population}",
                where="the batch size",
                cure=f"Choose a batch size of at most {population} (in a Trainer: per_device_train_batch_size times "
                f"gradient_accumulation_steps)",
            )
        in_a_pass = steps if steps_per_pass is None else steps_per_pass
        sampling = scheme_named(self.sampling, batch_size, population, in_a_pass)
        plan = DPSGD(
            noise_multiplier=1.0 if self.noise_multiplier is None else self.noise_multiplier,
            noise_kind=self.noise,
            clipping=chosen(self.clipping, self.max_grad_norm, batch_size),
            sampling=sampling,
            expected_batch_size=size_of(sampling, batch_size, population),
            steps=steps + self.spare_steps,
            passes=passes_of(sampling, steps, in_a_pass, self.spare_steps),
            sparse_rows=self.sparse_rows,
        )
        if self.noise_multiplier is not None:
            return plan
        assert self.target_epsilon is not None  # one of both is given
        target: dict[str, Any] = {
            "epsilon": self.target_epsilon,
            "delta": self.target_delta,
            "group_size": self.group_size,
        }
        return calibrated(plan, self.ledger, self.phase, accountant=self.accountant, **target)

    def privatize(
        self, model: nn.Module, optimizer: Optimizer, mechanism: DPSGD, ledger: str | os.PathLike[str] | None
    ) -> Session:
        """Return the session of a run. Raises what `hushgrad.privatize` raises."""
        named: dict[str, Any] = {"ledger": ledger, "strict": self.strict, "phase": self.phase}
        if self.noise_multiplier is not None and self.target_epsilon is not None:
            named["budget"] = Budget(self.target_epsilon, self.target_delta, self.accountant, self.group_size)
        if self.test_key is not None:
            named["key"] = KeyStream.fixed_for_tests(self.test_key)
        return privatize(model, optimizer, mechanism, **named)

    def spent(self, session: Session) -> float:
        """Return ε at `target_delta` of what a session has charged, for as many records as were asked for."""
        return session.epsilon(self.target_delta, self.accountant, group_size=self.group_size)

    def guarantee(self, session: Session) -> Guarantee:
        """Return the guarantee of a session at `target_delta` with all its conditions."""
        return session.guarantee(self.target_delta, self.accountant, group_size=self.group_size)
