"""A monitor of anybody's: it sees each noised update and what is public, may end training, and reports to the ledger.

The built-in monitors look at sums before noise, to tell whether the noise is right. A monitor that is handed in does
not: whatever it does with what it sees is post-processing, which costs no privacy.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor, nn

from hushgrad.accounting.conditions import Condition, third_party
from hushgrad.accounting.ledger.view import NoteValue
from hushgrad.errors import ContractChangedError, InvalidArgumentError
from hushgrad.mechanism import Mechanism
from hushgrad.printable import full_name
from hushgrad.torch_internals import version

Report = Mapping[str, NoteValue]
"""What a monitor leaves in the ledger: names with numbers or short texts."""


@dataclass(frozen=True, slots=True, eq=False)
class NoisedUpdate:
    """What a monitor sees of a step: all of it is public, or noised already.

    Attributes:
        number: of the update in this session, counted from 0.
        mechanism: what this step did and cost: σ, C, the divisor.
        gradients: by parameter name, (sum of clipped gradients + noise) / divisor, a copy of what the optimizer will
            see. To be read only; frozen parameters have none. That of a table of `SparseRows` is sparse: rows that it
            does not hold got neither noise nor update.
        noise_std: by parameter name, the standard deviation of the noise on the sum, before the division. The same for
            all, but where the clip rule gives groups noise of their own.
    """

    number: int
    mechanism: Mechanism
    gradients: Mapping[str, Tensor]
    noise_std: Mapping[str, float]


class Monitor(ABC):
    """Watches the updates of a session, from `privatize(..., monitors=[...])`.

    Guarantee: a monitor that is handed in sees no sum without noise, and is named in the guarantee as somebody else's.
    """

    @abstractmethod
    def see(self, update: NoisedUpdate) -> None:
        """Look at an update that was charged and noised, before the optimizer takes it.

        An exception ends the step: the update is taken away again and the model stays as it was; the charge stands.
        Raise `hushgrad.errors.MonitorAlarmError` for what users should act on.
        """

    def report(self) -> Report | None:
        """Return what the ledger should say when training ends or an alarm was raised; None for nothing."""
        return None

    @property
    def name(self) -> str:
        """What the ledger and the guarantee call it."""
        return full_name(type(self))


class Monitors:
    """The monitors that a session was given.

    Raises `InvalidArgumentError` for what is no monitor.
    """

    def __init__(self, monitors: Sequence[Monitor]) -> None:
        if not isinstance(monitors, (list, tuple)):
            raise InvalidArgumentError(
                f"must be a list, got {type(monitors).__name__}", where="monitors", cure="Pass [monitor]"
            )
        for monitor in monitors:
            if not isinstance(monitor, Monitor):
                came = f"the class {monitor.__name__}" if isinstance(monitor, type) else type(monitor).__name__
                raise InvalidArgumentError(
                    f"a monitor must be a hushgrad.Monitor, got {came}", cure="Pass instances of a subclass"
                )
            name: object = monitor.name
            if not (isinstance(name, str) and name and name.isprintable()):
                raise InvalidArgumentError(
                    f"the name of the monitor {type(monitor).__name__} must be one printable line of text",
                    cure="Return such a name, or leave `name` out",
                )
        self._monitors = tuple(monitors)

    @property
    def conditions(self) -> list[Condition]:
        """What is on trust: that a monitor looks at nothing else than what it is given."""
        return [third_party("monitor", monitor.name) for monitor in self._monitors]

    def see(
        self,
        number: int,
        mechanism: Mechanism,
        parameters: Mapping[str, nn.Parameter],
        noise_std: Mapping[str, float],
    ) -> None:
        """Show each monitor a copy of the update that was written to `p.grad`.

        Raises:
            ContractChangedError: a monitor wrote to it.
            Exception: whatever a monitor raises.
        """
        if not self._monitors:
            return
        gradients = {name: p.grad.detach() for name, p in parameters.items() if p.grad is not None}
        written = [parameter.grad for parameter in parameters.values()]
        before = [version(gradient) for gradient in gradients.values()]
        for monitor in self._monitors:
            # A copy for each: a write through `.data` or NumPy counts no version, and then reaches nobody else.
            shown = {name: gradient.clone() for name, gradient in gradients.items()}
            untouched = [version(gradient) for gradient in shown.values()]
            monitor.see(NoisedUpdate(number, mechanism, MappingProxyType(shown), MappingProxyType(dict(noise_std))))
            is_held = all(
                parameter.grad is given for parameter, given in zip(parameters.values(), written, strict=True)
            )
            is_held &= [version(gradient) for gradient in gradients.values()] == before
            if not is_held or [version(gradient) for gradient in shown.values()] != untouched:
                raise ContractChangedError(
                    "this monitor changed the update that it was shown, so the model would not be updated by what "
                    "was noised",
                    where=monitor.name,
                    cure="Work on a copy: gradient.clone()",
                )

    def reports(self) -> list[tuple[str, Report]]:
        """Return what the ledger should say, each under the name of its monitor."""
        found = []
        for monitor in self._monitors:
            report = _report_of(monitor)
            if report is not None:
                found.append((f"monitor {monitor.name}", report))
        return found


def _report_of(monitor: Monitor) -> Report | None:
    """Return the report of a monitor. That it has none that can be kept is said, and ends nothing."""
    try:
        report = monitor.report()
    except Exception as error:
        return {"failed": type(error).__name__}
    if report is None:
        return None
    if not isinstance(report, Mapping) or not all(map(_can_be_kept, report.items())):
        return {"failed": "the report is no mapping of names to finite numbers and texts"}
    return dict(report)


def _can_be_kept(item: tuple[object, object]) -> bool:
    name, value = item
    return isinstance(name, str) and (
        type(value) in (str, int) or (isinstance(value, float) and type(value) is float and math.isfinite(value))
    )
