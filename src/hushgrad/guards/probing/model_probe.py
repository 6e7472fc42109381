"""The examination of a call: of a whole batch, or of a few of its examples among themselves.

The call is run from the state before it, and the state that it left is put back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from hushgrad.errors import HushgradError, PrivateBufferError, UnsupportedModelError, where_raised
from hushgrad.guards.probing.base_run import Left
from hushgrad.guards.probing.calls import Call, Runner, devices_of
from hushgrad.guards.probing.contents import extremes
from hushgrad.guards.probing.examination import FEW, Among, Examination
from hushgrad.guards.probing.layout import require_known_layout
from hushgrad.guards.probing.probed import Probed
from hushgrad.guards.probing.rows import (
    Batch,
    batch_axes,
    fits,
)
from hushgrad.guards.probing.state import State
from hushgrad.guards.probing.state_probe import refusal
from hushgrad.guards.probing.trees import tensors_at
from hushgrad.guards.probing.uncounted_writes import LEFT_IN_INPUTS, written
from hushgrad.guards.probing.widths import OwnWidth
from hushgrad.torch_internals import version

HUNG_ON_INPUTS = "attributes that hang on a tensor that the model is given: they are the same in all runs"


def examine(probed: Probed, call: Call, size: int) -> bool:
    """Probe one call on a batch of `size` examples; return whether there was enough that is finite to tell.

    Raises:
        CrossSampleLeakError: an example's output or gradient depends on another example.
        PrivateBufferError: something that the model keeps depends on the data.
        PrivacyUnitError: the forward wrote into its inputs, and torch did not count it.
    """
    return _examine(probed, call, size, None, None, 1.0)


def look(probed: Probed, call: Call, size: int, order: Sequence[int]) -> None:
    """Examine a few examples of a call on a batch of `size`; they must give what they gave in the batch, too.

    Args:
        call: one that has returned.
        size: B, at least 2.
        order: all examples, those to be preferred first.

    Raises what `examine` raises.
    """
    roles = probed.roles(call)
    call.lift(size, roles)
    axes = probed.axes.get(call.module, {})
    if not fits(axes, call.inputs, size):
        axes = next(iter(batch_axes(call.inputs, size, roles)), {})
    if not axes:
        return
    batch = Batch(call.inputs, axes, size)
    widths = probed.widths(call, batch)
    preferred = [*(width.row for width in widths), *extremes(batch), batch.largest(), *order]
    rows = sorted({*[*dict.fromkeys(preferred)][:FEW], *(probed.recorded_rows or ())})
    here = [replace(width, row=rows.index(width.row)) for width in widths]
    few = replace(call, inputs=batch.only(rows), axes=axes, missing=None)
    is_unchanged = call.versions == [version(tensor) for _, tensor in tensors_at(call.output)]
    among = Among(call.output, rows, size) if is_unchanged else None
    _examine(probed, few, len(rows), among, here, len(rows) / size)


def _examine(
    probed: Probed, call: Call, size: int, among: Among | None, widths: list[OwnWidth] | None, unit: float
) -> bool:
    if call.written is not None:
        raise written(call.written, probed.name_of(call.module))
    if call.has_left_more:
        probed.skipped.append(LEFT_IN_INPUTS)
    if any(tensor.__dict__ for _, tensor in tensors_at(call.inputs)):
        probed.skipped.append(HUNG_ON_INPUTS)
    if probed.drawn is not None:
        require_known_layout(probed.drawn.item, probed.drawn.roles, call.inputs, probed.roles(call))
    now = State(probed.model, parameters=False)
    changed = call.state.changed_parameters()
    if trained := [name for name in changed if name in probed.parameters]:
        raise PrivateBufferError(
            "a forward writes new values into this trained parameter, outside of the optimizer",
            where=trained[0],
            cure="Initialise and project parameters before or after training steps, and from no value that was "
            "computed from data",
        )
    if spoiled := call.state.spoiled_parameters() if changed else []:
        raise refusal(("parameter", spoiled[0]))  # all that a forward makes of it from now on looks alike
    call.state.hold(changed)
    left = Left(now, call.state.other_structure(), bool(changed))
    call.lift(size, probed.roles(call))
    call.state.restore()
    runner = Runner(call, call.state, probed.scope, devices_of(probed.model, call.inputs), unit=unit)
    try:
        return Examination(probed, runner, size, left, None if changed else among, widths).run()
    except (HushgradError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise UnsupportedModelError(
            f"the model runs on the batch and fails ({where_raised(error)}) when it is run again on the same "
            f"examples or on altered ones, so it cannot be examined",
            cure="Let the forward use up nothing that a second run needs, and accept examples of any values, in "
            "any order and number",
        ) from None
    finally:
        now.restore()
        probed.skipped.extend(call.state.unread)
        probed.forwards += runner.forwards
