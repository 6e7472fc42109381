"""Accounting: what ran (events, ledger) and what it cost (accountants, calibration, guarantee)."""

from hushgrad.accounting.accountants import ACCOUNTANTS, DEFAULT_ACCOUNTANT, Accountant, epsilon, epsilon_bounds
from hushgrad.accounting.bounds import DeltaBounds, EpsilonBounds
from hushgrad.accounting.budget import Budget
from hushgrad.accounting.calibration import calibrate_noise_multiplier, disjoint_passes, poisson_steps
from hushgrad.accounting.composition import Composition
from hushgrad.accounting.events.event import (
    BallsInBins,
    DisjointPass,
    Event,
    FixedSizeSampled,
    Gaussian,
    PoissonSampled,
    TruncatedPoisson,
    event_from_json,
)
from hushgrad.accounting.guarantee import Guarantee, guarantee
from hushgrad.accounting.ledger.ledger import Contract, Ledger, LedgerView, read_ledger
from hushgrad.accounting.ledger.records import Anchor

__all__ = [
    "ACCOUNTANTS",
    "DEFAULT_ACCOUNTANT",
    "Accountant",
    "Anchor",
    "BallsInBins",
    "Budget",
    "Composition",
    "Contract",
    "DeltaBounds",
    "DisjointPass",
    "EpsilonBounds",
    "Event",
    "FixedSizeSampled",
    "Gaussian",
    "Guarantee",
    "Ledger",
    "LedgerView",
    "PoissonSampled",
    "TruncatedPoisson",
    "calibrate_noise_multiplier",
    "disjoint_passes",
    "epsilon",
    "epsilon_bounds",
    "event_from_json",
    "guarantee",
    "poisson_steps",
    "read_ledger",
]
