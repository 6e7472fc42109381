"""Accounting: what ran (events, ledger) and what it cost (accountants, calibration, guarantee)."""

from hushgrad.accounting.accountants import (
    ACCOUNTANTS,
    DEFAULT_ACCOUNTANT,
    Accountant,
    epsilon,
    epsilon_bounds,
    register_accountant,
)
from hushgrad.accounting.bounds import DeltaBounds, EpsilonBounds
from hushgrad.accounting.budget import Budget
from hushgrad.accounting.calibration import (
    allocated_passes,
    calibrate_noise_multiplier,
    disjoint_passes,
    poisson_steps,
)
from hushgrad.accounting.composition import Composition
from hushgrad.accounting.events.balls_in_bins import BallsInBins
from hushgrad.accounting.events.cyclic_poisson import CyclicPoisson
from hushgrad.accounting.events.disjoint_pass import DisjointPass
from hushgrad.accounting.events.event import Event
from hushgrad.accounting.events.fixed_order import FixedOrder
from hushgrad.accounting.events.fixed_order_buffered import FixedOrderBuffered
from hushgrad.accounting.events.fixed_size import FixedSizeSampled
from hushgrad.accounting.events.gaussian import Gaussian
from hushgrad.accounting.events.poisson import PoissonSampled
from hushgrad.accounting.events.random_allocation import RandomAllocation
from hushgrad.accounting.events.registry import event_from_json, register_event
from hushgrad.accounting.events.release import Release, ReplacedRelease, ZeroedOutRelease
from hushgrad.accounting.events.truncated_poisson import TruncatedPoisson
from hushgrad.accounting.guarantee import Guarantee, guarantee
from hushgrad.accounting.ledger.contract import Contract
from hushgrad.accounting.ledger.ledger import Ledger
from hushgrad.accounting.ledger.records import LedgerHead
from hushgrad.accounting.ledger.view import LedgerView, read_ledger

__all__ = [
    "ACCOUNTANTS",
    "DEFAULT_ACCOUNTANT",
    "Accountant",
    "BallsInBins",
    "Budget",
    "Composition",
    "Contract",
    "CyclicPoisson",
    "DeltaBounds",
    "DisjointPass",
    "EpsilonBounds",
    "Event",
    "FixedOrder",
    "FixedOrderBuffered",
    "FixedSizeSampled",
    "Gaussian",
    "Guarantee",
    "Ledger",
    "LedgerHead",
    "LedgerView",
    "PoissonSampled",
    "RandomAllocation",
    "Release",
    "ReplacedRelease",
    "TruncatedPoisson",
    "ZeroedOutRelease",
    "allocated_passes",
    "calibrate_noise_multiplier",
    "disjoint_passes",
    "epsilon",
    "epsilon_bounds",
    "event_from_json",
    "guarantee",
    "poisson_steps",
    "read_ledger",
    "register_accountant",
    "register_event",
]
