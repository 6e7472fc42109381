"""hushgrad: differentially private training for PyTorch.

Names are imported on first use, so that the commands which need no torch start without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from hushgrad._version import __version__

if TYPE_CHECKING:
    from hushgrad.accounting.budget import Budget
    from hushgrad.clipping import FlatClipping
    from hushgrad.diagnosis.examination import doctor
    from hushgrad.engine import PrivacyEngine
    from hushgrad.mechanism import DPSGD
    from hushgrad.readiness import make_private_ready
    from hushgrad.sampling.specs import DisjointBatches, PoissonSampling, TruncatedPoissonSampling
    from hushgrad.session import Session, privatize
    from hushgrad.verification.hand_written import verify_update
    from hushgrad.verification.training import verify

__all__ = [  # noqa: RUF022 - in plain order
    "Budget",
    "DPSGD",
    "DisjointBatches",
    "FlatClipping",
    "PoissonSampling",
    "PrivacyEngine",
    "Session",
    "TruncatedPoissonSampling",
    "__version__",
    "doctor",
    "make_private_ready",
    "privatize",
    "verify",
    "verify_update",
]

_HOMES = {
    "Budget": "hushgrad.accounting.budget",
    "DPSGD": "hushgrad.mechanism",
    "DisjointBatches": "hushgrad.sampling.specs",
    "FlatClipping": "hushgrad.clipping",
    "PoissonSampling": "hushgrad.sampling.specs",
    "PrivacyEngine": "hushgrad.engine",
    "Session": "hushgrad.session",
    "TruncatedPoissonSampling": "hushgrad.sampling.specs",
    "doctor": "hushgrad.diagnosis.examination",
    "make_private_ready": "hushgrad.readiness",
    "privatize": "hushgrad.session",
    "verify": "hushgrad.verification.training",
    "verify_update": "hushgrad.verification.hand_written",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
