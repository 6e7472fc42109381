"""The modules and the optimizer of a session, and what was spent on them, or on what they are copies of, in others.

Known for the whole process: nothing is put on objects that are somebody else's.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer
from torch.utils.weak import WeakIdKeyDictionary

from hushgrad.accounting.ledger.file import ledger_path
from hushgrad.errors import NotEstablishedError
from hushgrad.guards.in_use import claim, release
from hushgrad.joined_optimizer import with_parts
from hushgrad.session.trained_values import TrainedValues

SESSIONS = 64
"""The values of so many sessions are kept in mind, the latest."""


@dataclass(eq=False)
class _Account:
    """What one session has spent: in its ledger, and on its model in others'; and whether all that is established."""

    ledger: str | None
    values: TrainedValues
    steps: int = 0
    elsewhere: int = 0
    is_established: bool = True

    def uncounted_by(self, ledger: str | None, steps: int) -> int:
        """Return how many of `steps` steps of this account, and of those before it, another ledger does not hold."""
        return self.elsewhere + (0 if ledger is not None and ledger == self.ledger else steps)


_left_by_earlier = WeakIdKeyDictionary()
"""The accounts of closed sessions, for their modules and optimizers."""

_accounts: deque[_Account] = deque(maxlen=SESSIONS)
"""Those of sessions that took a step, open or closed, for copies of their models."""


class Members:
    """The modules and the optimizer of one session."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, ledger: str | os.PathLike[str] | None) -> None:
        self._objects: Sequence[object] = [*with_parts(optimizer), *model.modules()]
        self._parameters = [*model.parameters()]  # frozen ones, too, may have been trained before
        path = None if ledger is None else os.path.realpath(ledger_path(ledger))
        self._account = _Account(path, TrainedValues(p for p in self._parameters if p.requires_grad))

    def join(self, session: object) -> None:
        """The session is open: no other one may take them."""
        claim(self._objects, session)

    def steps_elsewhere(self) -> int:
        """Return how many steps they, or what they are copies of, took in sessions whose ledger is another one.

        Raises:
            NotEstablishedError: after a finding.
        """
        own = [_left_by_earlier[part] for part in self._objects if part in _left_by_earlier]
        behind = [(account, account.steps) for account in dict.fromkeys(own)]
        for account in _accounts:
            if account is not self._account and account not in own:
                account.values.note_all(account.steps)
                behind.append((account, account.values.steps_behind(self._parameters)))
        behind = [(account, steps) for account, steps in behind if steps or account in own]
        if not all(account.is_established for account, _ in behind):
            raise NotEstablishedError(
                "this model, or one that it is a copy of, was trained in a session in which it was found that earlier "
                "steps may have leaked",
                cure="Begin with values of before that training, or with a new model",
            )
        return max((account.uncounted_by(self._account.ledger, steps) for account, steps in behind), default=0)

    def leave(self) -> None:
        """The session is closed."""
        release(self._objects)

    def step_taken(self, steps: int, elsewhere: int) -> None:
        """An update was made: `steps` are in this session's ledger by now, and `elsewhere` on them not in it."""
        account = self._account
        account.steps, account.elsewhere = steps, elsewhere
        if account not in _accounts:
            _accounts.append(account)
        account.values.note(steps)

    def not_established(self) -> None:
        """Keep in mind that what was spent on them is not established."""
        self._account.is_established = False

    def remember(self, steps: int, elsewhere: int) -> None:
        """Keep in mind what was spent on them: `steps` in this session's ledger, and `elsewhere` not in it."""
        account = self._account
        account.steps, account.elsewhere = steps, elsewhere
        account.values.note_all(steps)
        _left_by_earlier.update(dict.fromkeys(self._objects, account))
