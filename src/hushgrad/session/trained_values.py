"""Values that private training gave to parameters: they are known again in a copy of the model.

A copy (`copy.deepcopy`, `load_state_dict`, a checkpoint that is read again) carries what was spent on the original, and
nothing else does. A few values of one parameter are noted after each step, of all watched ones when the session closes.
What was averaged, or trained on without privacy since, is not known again; nor is what another process trained.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from weakref import ref

import torch
from torch import Tensor, nn

from hushgrad.torch_sharding import local_part

WATCHED = 8
"""So many parameters of a model are watched, the largest ones."""

VALUES = 16
"""So many values are compared, of smaller parameters all."""

FEWEST = 4
"""A parameter with fewer values is not watched."""

KEPT = 256
"""So many noted samples are kept of each parameter, the latest."""


class TrainedValues:
    """What one session gave to its parameters."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        usable = sorted(filter(_is_usable, parameters), key=lambda parameter: -parameter.numel())[:WATCHED]
        self._watched = [ref(parameter) for parameter in usable]
        self._shapes = [local_part(parameter).shape for parameter in usable]
        self._initial = [_sample(parameter) for parameter in usable]
        self._noted: list[deque[tuple[int, Tensor]]] = [deque(maxlen=KEPT) for _ in usable]
        self._turn = 0

    def note(self, steps: int) -> None:
        """A step ended, the `steps`-th of its account; one parameter is noted, each in its turn."""
        if self._watched:
            self._turn = (self._turn + 1) % len(self._watched)
            self._note(self._turn, steps)

    def note_all(self, steps: int) -> None:
        """The session ends, or a copy may be at hand: note every watched parameter."""
        for place in range(len(self._watched)):
            self._note(place, steps)

    def _note(self, place: int, steps: int) -> None:
        parameter = self._watched[place]()
        if parameter is not None and _is_usable(parameter):
            self._noted[place].append((steps, _sample(parameter)))

    def steps_behind(self, parameters: Iterable[nn.Parameter]) -> int:
        """Return after how many steps of this account a parameter had the values that one of these has; 0 for none.

        Values of before the account are not counted: models may begin with the same public ones.
        """
        found = 0
        usable = [parameter for parameter in parameters if _is_usable(parameter)]
        for place, shape in enumerate(self._shapes):
            noted = self._noted[place]
            alike = [parameter for parameter in usable if local_part(parameter).shape == shape]
            if not noted or not alike:
                continue
            initial = self._initial[place].cpu()
            samples = torch.stack([sample.cpu() for _, sample in noted])
            for parameter in alike:
                sample = _sample(parameter).cpu()
                if not torch.equal(sample, initial) and bool((sample != sample[0]).any()):
                    equal = (samples == sample).all(1).tolist()
                    found = max([found, *(steps for (steps, _), same in zip(noted, equal, strict=True) if same)])
        return found


def _is_usable(parameter: nn.Parameter) -> bool:
    own = local_part(parameter)
    return (
        type(own.data) is Tensor
        and parameter.layout == torch.strided
        and parameter.is_floating_point()
        and parameter.device.type != "meta"
        and own.is_contiguous()
        and own.numel() >= FEWEST
    )


def _sample(parameter: nn.Parameter) -> Tensor:
    """Return at most `VALUES` values from all over a parameter, in memory of their own."""
    flat = local_part(parameter).detach().view(-1)
    return flat[:: max(1, flat.numel() // VALUES)][:VALUES].to(torch.float32, copy=True)
