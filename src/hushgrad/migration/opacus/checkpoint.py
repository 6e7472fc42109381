"""A checkpoint of Opacus as a value: its weights under torch's names, its optimizer's state, its account in a ledger.

::

    found = read_checkpoint("opacus.pt", poisson_sampling=True, batch_size=256, population=60_000,
                            max_grad_norm=1.0, clipping="flat")
    model.load_state_dict(found.weights_for(model))
    optimizer.load_state_dict(found.optimizer_for(model))
    found.write_ledger("ledger.jsonl")
    engine = PrivacyEngine(ledger="ledger.jsonl")
    engine.make_private(..., phase="after Opacus")
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hushgrad.accounting.accountants import epsilon as epsilon_of
from hushgrad.accounting.events.event import Event
from hushgrad.errors import LedgerError
from hushgrad.migration.opacus.charges import Steps, charges, least_passes
from hushgrad.migration.opacus.file import Stored, read_file
from hushgrad.migration.opacus.imported_ledger import write_ledger
from hushgrad.migration.opacus.optimizer_state import optimizer_state
from hushgrad.migration.opacus.questions import Declared, declared
from hushgrad.migration.opacus.weights import weights_for


@dataclass(frozen=True, eq=False)
class OpacusCheckpoint:
    """What a checkpoint of Opacus holds, and what was said of the run that wrote it.

    Nothing of it is vouched for: hushgrad saw neither its noise, nor its clipping, nor its sampling.
    """

    stored: Stored
    said: Declared

    @property
    def history(self) -> tuple[Steps, ...]:
        """The steps as Opacus wrote them down."""
        return self.stored.history

    @property
    def steps(self) -> int:
        """The number of steps that Opacus charged."""
        return sum(steps.count for steps in self.stored.history)

    def events(self) -> list[tuple[Event, int]]:
        """Return what those steps are charged here, in order, as `(event, count)`."""
        return charges(self.stored.history, self.said)

    def epsilon(self, delta: float) -> float:
        """Return ε at `delta` of those steps, by hushgrad's accountant."""
        return epsilon_of(self.events(), delta)

    def weights_for(self, model: nn.Module, *, attention_as_torch: bool = False) -> dict[str, Tensor]:
        """Return the weights under the names of `model`, an ordinary module, for its `load_state_dict`.

        `DPLSTM`, `DPGRU` and `DPRNN` become `nn.LSTM`, `nn.GRU` and `nn.RNN`, `DPMultiheadAttention` becomes
        `nn.MultiheadAttention`.

        Args:
            model: the model as it is written with torch's own layers.
            attention_as_torch: True takes the weights of a `DPMultiheadAttention(batch_first=True)` for a
                `nn.MultiheadAttention`, which computes something else with them (see `OpacusAttention`).

        Raises:
            CheckpointError: names or shapes are those of another model.
            UnsupportedModelError: attention with batch_first=True, without `attention_as_torch`.
        """
        return weights_for(self.stored, model, attention_as_torch=attention_as_torch)

    def optimizer_for(self, model: nn.Module) -> dict[str, Any]:
        """Return the optimizer's state, for `load_state_dict` of one that was made of `model.parameters()`.

        Opacus' recurrent and attention layers have their parameters in another order, or in other pieces, than torch's;
        the state is put in the order of `model`.

        Raises `CheckpointError` where there is none, or where it cannot be told which parameter it belongs to.
        """
        return optimizer_state(self.stored, model)

    def write_ledger(self, path: str | os.PathLike[str]) -> None:
        """Begin a ledger with these steps, in a phase called "Opacus"; return when it is on disk.

        What goes on from it is a phase of its own: `make_private(..., phase="after Opacus")`.

        Guarantee: every guarantee of that ledger says that the noise of these steps was not observed.
        Guarantee: the file is there with all steps or not at all, and never replaces another one.

        Raises `LedgerError` where something lies at the path already, or it cannot be written.
        """
        if not self.stored.history:
            raise LedgerError(
                "Opacus had charged no step yet, so there is nothing to go on from",
                where="the ledger",
                cure="Load the weights, and begin a new ledger",
            )
        write_ledger(path, self.events(), self.said, self.stored)

    def explanation(self) -> str:
        """Return in plain words how these steps are charged here, and why Opacus' own ε is another one."""
        return " ".join(_explained(self))


def read_checkpoint(
    path: str | os.PathLike[str],
    *,
    poisson_sampling: bool | None = None,
    batch_size: float | None = None,
    population: int | None = None,
    max_grad_norm: float | Sequence[float] | None = None,
    clipping: str | None = None,
    passes: int | None = None,
    loss_reduction: str = "mean",
) -> OpacusCheckpoint:
    """Read what `opacus.PrivacyEngine.save_checkpoint` wrote (versions 1.4 to 1.6), with torch's safe loader.

    The file does not say how that run was set up, so it must be said: what is left out is asked for in one error.

    Args:
        path: the file.
        poisson_sampling: True where Opacus drew Poisson samples (its default), False where it kept shuffled batches.
        batch_size: B of the loader that Opacus was given, in records.
        population: N, its number of records.
        max_grad_norm: C, in units of the gradient; a list with `clipping="per_layer"`.
        clipping: "flat" or "per_layer", as Opacus was given it.
        passes: with shuffled batches, how often the loop began to go through the loader.
        loss_reduction: "mean" (Opacus' default) or "sum".

    Raises:
        CheckpointError: the file is missing, damaged, something else, or holds more than tensors and plain values.
        InvalidArgumentError: a question is open, or an answer does not fit the file.
    """
    stored = read_file(path)
    found = OpacusCheckpoint(
        stored,
        declared(
            poisson_sampling=poisson_sampling,
            batch_size=batch_size,
            population=population,
            max_grad_norm=max_grad_norm,
            clipping=clipping,
            passes=passes,
            loss_reduction=loss_reduction,
            least_passes=least_passes(stored.history),
        ),
    )
    found.events()  # refuses answers that do not fit the file
    return found


def _explained(found: OpacusCheckpoint) -> list[str]:
    stored, said = found.stored, found.said
    told = [f"{found.steps} steps of Opacus are charged; their noise, clipping and sampling were not observed."]
    if said.poisson_sampling:
        told.append(
            "They are charged as the Poisson steps that Opacus charged, with its own sampling rate (1 / the number of "
            "batches): epsilon differs by the accountant alone."
        )
    else:
        told.append(
            f"They are charged as {said.passes} passes over disjoint batches, without amplification, under zero-out "
            "neighbours: Opacus charges poisson_sampling=False as if records had been drawn by Poisson sampling, which "
            "they were not, so its epsilon was too small and the true one is larger. Go on with "
            "poisson_sampling=False: under other neighbours no total can be told."
        )
    if stored.accountant == "gdp":
        told.append("Opacus' accountant was 'gdp', an approximation that can state an epsilon that is too small.")
    if "noise" in stored.schedules:
        told.append(
            "The noise followed a schedule: each step is charged with the noise multiplier that Opacus wrote down for "
            "it. The schedule itself is not taken over."
        )
    if "clip norm" in stored.schedules:
        told.append(
            "The clip norm followed a schedule: the ledger states the norm that was declared. Epsilon does not depend "
            "on it, as Opacus' noise follows the norm. The schedule itself is not taken over."
        )
    return told
