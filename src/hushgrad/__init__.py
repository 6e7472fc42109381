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
    from hushgrad.clipping.flat import FlatClipping
    from hushgrad.clipping.rule import ClipRule
    from hushgrad.engine import PrivacyEngine
    from hushgrad.guards.monitoring.monitor import Monitor, NoisedUpdate
    from hushgrad.mechanism import DPSGD, GaussianNoise, GridNoise, Mechanism, NoiseMechanism
    from hushgrad.privacy import Privacy
    from hushgrad.sampling.disjoint import DisjointBatches
    from hushgrad.sampling.poisson import PoissonSampling
    from hushgrad.sampling.scheme import SamplingScheme
    from hushgrad.sampling.truncated_poisson import TruncatedPoissonSampling
    from hushgrad.session.privatize import privatize
    from hushgrad.session.session import Session
    from hushgrad.session.session_of import session_of
    from hushgrad.study.trained.loading import load

__all__ = [  # noqa: RUF022 - in plain order
    "Budget",
    "ClipRule",
    "DPSGD",
    "DisjointBatches",
    "FlatClipping",
    "GaussianNoise",
    "GridNoise",
    "Mechanism",
    "Monitor",
    "NoiseMechanism",
    "NoisedUpdate",
    "PoissonSampling",
    "Privacy",
    "PrivacyEngine",
    "PrivacyFilter",
    "SamplingScheme",
    "Session",
    "TruncatedPoissonSampling",
    "__version__",
    "doctor",
    "load",
    "make_private_ready",
    "privatize",
    "register_operator",
    "session_of",
    "verify",
    "verify_update",
]

_HOMES = {
    "Budget": "hushgrad.accounting.budget",
    "ClipRule": "hushgrad.clipping.rule",
    "DPSGD": "hushgrad.mechanism",
    "DisjointBatches": "hushgrad.sampling.disjoint",
    "FlatClipping": "hushgrad.clipping.flat",
    "GaussianNoise": "hushgrad.mechanism",
    "GridNoise": "hushgrad.mechanism",
    "Mechanism": "hushgrad.mechanism",
    "Monitor": "hushgrad.guards.monitoring.monitor",
    "NoiseMechanism": "hushgrad.mechanism",
    "NoisedUpdate": "hushgrad.guards.monitoring.monitor",
    "PoissonSampling": "hushgrad.sampling.poisson",
    "Privacy": "hushgrad.privacy",
    "PrivacyEngine": "hushgrad.engine",
    "PrivacyFilter": "hushgrad.accounting.filter",
    "SamplingScheme": "hushgrad.sampling.scheme",
    "Session": "hushgrad.session.session",
    "TruncatedPoissonSampling": "hushgrad.sampling.truncated_poisson",
    "doctor": "hushgrad.checks.doctor.examination",
    "load": "hushgrad.study.trained.loading",
    "make_private_ready": "hushgrad.checks.doctor.readiness",
    "privatize": "hushgrad.session.privatize",
    "register_operator": "hushgrad.capture.operators.registered",
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
