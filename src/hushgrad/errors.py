"""Every error hushgrad raises, each with a stable code: where it is, what is wrong, and what to do now.

Code that needs to know one of these reads the value, never the text, which is formed from them. No part of it contains
a data value: shapes, dtypes, counts that the caller declared and names only.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, Self


class HushgradError(Exception):
    """Base of all errors raised by hushgrad.

    `code` is stable across versions and starts every message; `where` names the part of the program (a parameter, a
    module, a file), `what` says what was expected and what came, and `cure` what to do now. `where` and `cure` may be
    empty. The text is "code where: what. cure".
    """

    code = "DP000"

    def __init__(self, what: str, *, where: str = "", cure: str = "") -> None:
        self.what, self.where, self.cure = what, where, cure
        located = f"{where}: {what}" if where else what
        super().__init__(f"{self.code} {located}. {cure}" if cure else f"{self.code} {located}")

    def __reduce__(self) -> tuple[Any, ...]:
        return self._of_parts, (self.what, self.where, self.cure)

    @classmethod
    def _of_parts(cls, what: str, where: str, cure: str) -> Self:
        return cls(what, where=where, cure=cure)


class HushgradWarning(UserWarning):
    """Something a user should know that is not an error, such as a run that is not private on purpose."""


# 1xx: arguments ------------------------------------------------------------------------------------------------------


class InvalidArgumentError(HushgradError, ValueError):
    """An argument is of the wrong type or out of range."""

    code = "DP101"


class DatasetError(HushgradError, ValueError):
    """A data set is empty, has no length, is smaller than a batch, or has more records of a user than declared."""

    code = "DP102"


class UnreachableTargetError(HushgradError, ValueError):
    """No noise multiplier reaches the requested epsilon."""

    code = "DP103"


class TaskDataError(HushgradError, ValueError):
    """A file of training data is missing, malformed or lacks a requested column or class."""

    code = "DP104"


class MissingExtraError(HushgradError, ModuleNotFoundError):
    """A feature needs a package that is not installed; the cure names the extra that brings it."""

    code = "DP105"


class UnsupportedSystemError(HushgradError, ImportError):
    """The operating system lacks what a ledger needs."""

    code = "DP106"


# 2xx: the sampler and the loop ---------------------------------------------------------------------------------------


class UnsupportedSamplerError(HushgradError, ValueError):
    """The loader draws batches in a way that cannot be honoured or charged."""

    code = "DP201"


class DuplicateRecordError(HushgradError, RuntimeError):
    """One record would take part twice in one logical batch or one pass, or again too soon for correlated noise."""

    code = "DP202"


class ProtocolError(HushgradError, RuntimeError):
    """The loop did not follow: loader item, backward, optimizer.step."""

    code = "DP203"


class BatchStructureError(HushgradError, ValueError):
    """A batch cannot be collated or moved, or its size is not the number of records drawn."""

    code = "DP204"


class IncompatibleFrameworkError(HushgradError, ValueError):
    """A framework is set to do what private training cannot bear."""

    code = "DP205"


# 3xx: the model and the loss -----------------------------------------------------------------------------------------


class CrossSampleLeakError(HushgradError, ValueError):
    """The model or the loss lets one example influence another one's loss or gradient."""

    code = "DP301"


class PrivateBufferError(HushgradError, ValueError):
    """A buffer of the model would follow the data without noise."""

    code = "DP302"


class LossShapeError(HushgradError, ValueError):
    """The loss is not one number per example, or not the declared mean or sum of such."""

    code = "DP303"


class PrivacyUnitError(HushgradError, RuntimeError):
    """Rows cannot be assigned to the examples of the batch, or a forward has written into its inputs unseen."""

    code = "DP304"


class UncoveredParameterUseError(HushgradError, RuntimeError):
    """A trainable parameter was used where its per-example gradient cannot be seen."""

    code = "DP305"


class UnsupportedModelError(HushgradError, ValueError):
    """The model cannot be trained privately as it is."""

    code = "DP306"


class SparseGradientError(HushgradError, ValueError):
    """A sparse gradient would show which rows were touched."""

    code = "DP307"


class TakenOnTrustError(HushgradError, ValueError):
    """What `strict=True` asks to be established would be taken on trust."""

    code = "DP308"


# 4xx: parameters and the optimizer -----------------------------------------------------------------------------------


class StrayGradientError(HushgradError, RuntimeError):
    """A parameter received an ordinary gradient, without clipping and noise."""

    code = "DP401"


class ParameterMismatchError(HushgradError, ValueError):
    """The optimizer's parameters are not the model's trainable parameters."""

    code = "DP402"


class UnsupportedOptimizerError(HushgradError, ValueError):
    """The optimizer evaluates gradients in a way that cannot be charged."""

    code = "DP403"


class ContractChangedError(HushgradError, RuntimeError):
    """Something that was fixed when training was made private has changed since."""

    code = "DP404"


class ClosedSessionError(HushgradError, RuntimeError):
    """The session was closed; the model is an ordinary one again."""

    code = "DP405"


class NoiseMismatchError(HushgradError, RuntimeError):
    """The noise that ran is not the noise that is charged."""

    code = "DP406"


class SensitivityMismatchError(HushgradError, RuntimeError):
    """An example would add more to a sum, or rounding may have moved it by more, than the noise was chosen for."""

    code = "DP407"


class KernelMismatchError(HushgradError, RuntimeError):
    """A kernel does not compute on this device what it is defined to compute."""

    code = "DP408"


class InterruptedDrawError(HushgradError, RuntimeError):
    """Noise was not drawn to its end, so the update was not handed out."""

    code = "DP409"


class MonitorAlarmError(HushgradError, RuntimeError):
    """A monitor that was given to the session ended the step."""

    code = "DP410"


# 5xx: accounting -----------------------------------------------------------------------------------------------------


class AccountingError(HushgradError, ValueError):
    """The requested privacy figure cannot be computed truthfully."""

    code = "DP501"


class LedgerError(HushgradError, RuntimeError):
    """The ledger cannot be read, written or extended."""

    code = "DP502"


class BudgetExhaustedError(HushgradError, RuntimeError):
    """The planned number of steps is spent."""

    code = "DP503"


class UnprovenMechanismError(HushgradError, ValueError):
    """Nobody has proven what this noise costs together with this sampling, clip rule or number of processes."""

    code = "DP504"


class NotEstablishedError(HushgradError, RuntimeError):
    """It was found that earlier steps of this account may have leaked, so nothing is released any more."""

    code = "DP505"


class CheckpointError(HushgradError, RuntimeError):
    """A checkpoint cannot be written or read, or is not one of this training."""

    code = "DP506"


# 6xx: several processes ----------------------------------------------------------------------------------------------


class DesyncError(HushgradError, RuntimeError):
    """The processes that train one model differ in what they train, or make other calls."""

    code = "DP601"


class PeerFailedError(HushgradError, RuntimeError):
    """Another process raised, died, or did not come in time; this one released nothing more."""

    code = "DP602"

    is_finding = False
    """Whether the other process found that earlier steps may have leaked."""

    conditions: Sequence[Mapping[str, Any]] = ()
    """What the other process took on trust and could not leave in the ledger, as notes."""

    is_last = False
    """Whether the others cannot be reached any more, so that nothing more can be agreed on."""


def where_raised(error: BaseException) -> str:
    """Return the type of an exception and the place it comes from; its text may hold data."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {place.name} ({PurePath(place.filename).name}, line {place.lineno})"
