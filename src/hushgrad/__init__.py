"""hushgrad: differentially private training for PyTorch.

Names are imported on first use, so that the commands which need no torch start without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from hushgrad._version import __version__

if TYPE_CHECKING:
    from hushgrad.accounting.budget import Budget
    from hushgrad.accounting.filter import PrivacyFilter
    from hushgrad.capture.operators.registered import register_operator
    from hushgrad.checks.doctor.examination import doctor
    from hushgrad.checks.doctor.readiness import make_private_ready
    from hushgrad.checks.verification.training.verify import verify
    from hushgrad.checks.verification.update.verify_update import verify_update
    from hushgrad.clipping.automatic import AutomaticClipping
    from hushgrad.clipping.flat import FlatClipping
    from hushgrad.clipping.groupwise import GroupwiseClipping
    from hushgrad.clipping.per_sample_adaptive import PerSampleAdaptiveClipping
    from hushgrad.clipping.quantile import QuantileClipping
    from hushgrad.clipping.rule import ClipRule
    from hushgrad.engine import PrivacyEngine
    from hushgrad.guards.monitoring.monitor import Monitor, NoisedUpdate
    from hushgrad.joined_optimizer import JoinedOptimizer
    from hushgrad.mechanism import DPSGD, CorrelatedNoise, GaussianNoise, GridNoise, Mechanism, NoiseMechanism
    from hushgrad.mechanism.choice import compare_noise
    from hushgrad.privacy import Privacy
    from hushgrad.releases.releasing import release
    from hushgrad.sampling.balls_in_bins import BallsInBinsSampling
    from hushgrad.sampling.contribution_bounds import bounded_contributions
    from hushgrad.sampling.cyclic import CyclicPoissonSampling
    from hushgrad.sampling.disjoint import DisjointBatches
    from hushgrad.sampling.fixed_order import FixedOrderBatches
    from hushgrad.sampling.fixed_size import FixedSizeSampling
    from hushgrad.sampling.poisson import PoissonSampling
    from hushgrad.sampling.scheme import SamplingScheme
    from hushgrad.sampling.truncated_poisson import TruncatedPoissonSampling
    from hushgrad.sampling.users import UserSampling
    from hushgrad.session.privatize import privatize
    from hushgrad.session.session import Session
    from hushgrad.session.session_of import session_of
    from hushgrad.sparse_rows.rule import SparseRows
    from hushgrad.strategies.optimal_banded import optimal_banded
    from hushgrad.strategies.optimal_buffered import optimal_buffered
    from hushgrad.study.trained.loading import load

__all__ = [  # noqa: RUF022 - in plain order
    "AutomaticClipping",
    "BallsInBinsSampling",
    "Budget",
    "ClipRule",
    "CorrelatedNoise",
    "CyclicPoissonSampling",
    "DPSGD",
    "DisjointBatches",
    "FixedOrderBatches",
    "FixedSizeSampling",
    "FlatClipping",
    "GaussianNoise",
    "GridNoise",
    "GroupwiseClipping",
    "JoinedOptimizer",
    "Mechanism",
    "Monitor",
    "NoiseMechanism",
    "NoisedUpdate",
    "PerSampleAdaptiveClipping",
    "PoissonSampling",
    "Privacy",
    "PrivacyEngine",
    "PrivacyFilter",
    "QuantileClipping",
    "SamplingScheme",
    "Session",
    "SparseRows",
    "TruncatedPoissonSampling",
    "UserSampling",
    "__version__",
    "bounded_contributions",
    "compare_noise",
    "doctor",
    "load",
    "make_private_ready",
    "optimal_banded",
    "optimal_buffered",
    "privatize",
    "register_operator",
    "release",
    "session_of",
    "verify",
    "verify_update",
]

_HOMES = {
    "AutomaticClipping": "hushgrad.clipping.automatic",
    "BallsInBinsSampling": "hushgrad.sampling.balls_in_bins",
    "Budget": "hushgrad.accounting.budget",
    "ClipRule": "hushgrad.clipping.rule",
    "CorrelatedNoise": "hushgrad.mechanism",
    "CyclicPoissonSampling": "hushgrad.sampling.cyclic",
    "DPSGD": "hushgrad.mechanism",
    "DisjointBatches": "hushgrad.sampling.disjoint",
    "FixedOrderBatches": "hushgrad.sampling.fixed_order",
    "FixedSizeSampling": "hushgrad.sampling.fixed_size",
    "FlatClipping": "hushgrad.clipping.flat",
    "GaussianNoise": "hushgrad.mechanism",
    "GridNoise": "hushgrad.mechanism",
    "GroupwiseClipping": "hushgrad.clipping.groupwise",
    "JoinedOptimizer": "hushgrad.joined_optimizer",
    "Mechanism": "hushgrad.mechanism",
    "Monitor": "hushgrad.guards.monitoring.monitor",
    "NoiseMechanism": "hushgrad.mechanism",
    "NoisedUpdate": "hushgrad.guards.monitoring.monitor",
    "PerSampleAdaptiveClipping": "hushgrad.clipping.per_sample_adaptive",
    "PoissonSampling": "hushgrad.sampling.poisson",
    "Privacy": "hushgrad.privacy",
    "PrivacyEngine": "hushgrad.engine",
    "PrivacyFilter": "hushgrad.accounting.filter",
    "QuantileClipping": "hushgrad.clipping.quantile",
    "SamplingScheme": "hushgrad.sampling.scheme",
    "Session": "hushgrad.session.session",
    "SparseRows": "hushgrad.sparse_rows.rule",
    "TruncatedPoissonSampling": "hushgrad.sampling.truncated_poisson",
    "UserSampling": "hushgrad.sampling.users",
    "bounded_contributions": "hushgrad.sampling.contribution_bounds",
    "compare_noise": "hushgrad.mechanism.choice",
    "doctor": "hushgrad.checks.doctor.examination",
    "load": "hushgrad.study.trained.loading",
    "make_private_ready": "hushgrad.checks.doctor.readiness",
    "optimal_banded": "hushgrad.strategies.optimal_banded",
    "optimal_buffered": "hushgrad.strategies.optimal_buffered",
    "privatize": "hushgrad.session.privatize",
    "register_operator": "hushgrad.capture.operators.registered",
    "release": "hushgrad.releases.releasing",
    "session_of": "hushgrad.session.session_of",
    "verify": "hushgrad.checks.verification.training.verify",
    "verify_update": "hushgrad.checks.verification.update.verify_update",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
