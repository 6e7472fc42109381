"""The run that others are compared with: of the batch itself, from what the model kept before the call."""

from __future__ import annotations

from dataclasses import dataclass

from hushgrad.errors import CrossSampleLeakError, HushgradError, where_raised
from hushgrad.guards.probing.calls import Outcome, Runner
from hushgrad.guards.probing.finite import count_nan, repairs, spoiled_rows
from hushgrad.guards.probing.rows import Batch
from hushgrad.guards.probing.state import State, Structure


@dataclass(frozen=True)
class Left:
    """What the call left behind.

    Attributes:
        state: all of it.
        structure: that of the model, where the call made or took away parts or hooks.
        has_changed_parameters: whether it wrote into parameters.
    """

    state: State
    structure: Structure | None
    has_changed_parameters: bool


def base_run(runner: Runner, batch: Batch, left: Left, name: str) -> tuple[Batch, Outcome]:
    """Run a batch as the call did, and return it with what came out.

    If examples give NaN, another batch comes back, in which they are replaced, and the run on that.

    Raises:
        CrossSampleLeakError: what is run again fails, or returns more NaN or fewer than the call.
    """
    base = _run_as_it_was(runner, batch, left, name)
    if not base.drew and not left.has_changed_parameters and runner.call.missing not in (None, count_nan(base.output)):
        raise other_outputs(name)  # what is kept out of reach has become NaN: now all runs look alike
    return _finite(runner, batch, base)


def other_outputs(name: str) -> CrossSampleLeakError:
    """Return the refusal of a model that does not repeat itself."""
    return CrossSampleLeakError(
        "gives other outputs when it is run again on the same batch with the same random numbers: it keeps something "
        "from one call to the next, outside of its buffers and attributes",
        where=name,
        cure="Keep no values of a batch between calls, and draw random numbers from torch, NumPy or random only",
    )


def _run_as_it_was(runner: Runner, batch: Batch, left: Left, name: str) -> Outcome:
    """Run the batch from what was there before the call; it must leave behind what the call has left.

    A first call may note somewhere out of reach (a registry of the library) that it has made parts or hooks. Those
    it made are kept then.
    """
    failure: Exception | None = None
    try:
        base = _run(runner, batch)
        if base.structure == left.structure:
            return base
    except HushgradError:
        raise
    except Exception as error:
        failure = error
    runner.state.take_structure(left.state)
    runner.state.restore()
    try:
        return _run(runner, batch)
    except HushgradError:
        raise
    except Exception as error:
        raise CrossSampleLeakError(
            f"fails when it is run again on the same batch ({where_raised(failure or error)}): it keeps something "
            f"from one call to the next, outside of its buffers and attributes",
            where=name,
            cure="Keep no values of a batch between calls; if the first forward creates parts of the model, run one on "
            "inputs of your own making before make_private",
        ) from None


def _finite(runner: Runner, batch: Batch, base: Outcome) -> tuple[Batch, Outcome]:
    spoiled = spoiled_rows(base.output, batch.size)
    for other in [] if spoiled is None else repairs(batch, spoiled):
        try:
            batch, base = other, _run(runner, other)
        except HushgradError:
            raise
        except Exception:  # content that the model cannot take
            continue
        if spoiled_rows(base.output, batch.size) is None:
            break
    return batch, base


def _run(runner: Runner, batch: Batch) -> Outcome:
    return runner.run(batch.same(), quiet=False, parameters=True)
