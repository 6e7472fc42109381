"""What a loop sets for what makes its items: attributes of `collate_fn` and of the dataset, and what their code reads.

A mean of the batch that is written there after its step enters later items, and so do labels that are made anew at the
end of an epoch. Nobody but the loop has a reason to write there outside of a draw.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

from torch import nn

from hushgrad.guards.probing.kept import Key, kept_by
from hushgrad.guards.probing.settings import MOST_PLACES, Settings, changed, told
from hushgrad.guards.probing.user_code import names_in
from hushgrad.torch_internals import unseen


class ItemSettings:
    """Compares what makes the items of one session: after the draw of one that is looked at with before the next draw.

    So with before or after the draw of the next one that is looked at, however many items later. What changes in a draw
    that is looked at is no setting of the loop's: counters, caches and buffers of their own.

    Args:
        model: is not looked at here, wherever it is met.

    Attributes:
        have_changed: whether the loop has changed something.
    """

    def __init__(self, model: nn.Module | None) -> None:
        self._model = model
        self._before: Settings | None = None  # the draw that comes or runs, where that was looked at
        self._last: Settings | None = None  # after the draw of the last item that was looked at
        self._is_last = False  # whether none was drawn since
        self._of_draws: set[Key] = set()
        self.have_changed = False

    def before_draw(self, collate_fn: Callable[..., Any] | None, dataset: Any, *, is_wanted: bool) -> None:
        """The next item is going to be drawn; `is_wanted`: it will be looked at."""
        is_last, self._is_last, self._before = self._is_last, False, None
        if is_last or is_wanted:
            self._before = self._of(collate_fn, dataset)
            self._compare(self._before)

    def drawn(self, collate_fn: Callable[..., Any] | None, dataset: Any) -> None:
        """An item that is looked at was drawn."""
        now = self._of(collate_fn, dataset)
        if self._before is None:
            self._compare(now)
        else:
            self._of_draws |= changed(self._before, now)
        self._last, self._is_last = now, True

    def _compare(self, now: Settings) -> None:
        if self._last is not None:
            self.have_changed = self.have_changed or bool(changed(self._last, now) - self._of_draws)

    def _of(self, collate_fn: Callable[..., Any] | None, dataset: Any) -> Settings:
        found: dict[Key, Any] = {}
        with unseen():
            for name, root, aside in (("collate_fn", collate_fn, dataset), ("dataset", dataset, None)):
                cells = kept_by(root, aside, self._model, places=MOST_PLACES).cells
                named = _named_by(root) if isinstance(root, MethodType) else None
                found.update(
                    ((name, *key), told(value))
                    for key, value in cells
                    if named is None or key[1:2] != ("self",) or key[2:3] == () or key[2] in named
                )
        return found


def _named_by(method: MethodType) -> set[str]:
    """Return the attributes that a method names, or one that it calls by name: an object does much else."""
    names: set[str] = set()
    waiting: list[Any] = [method.__func__]
    while waiting:
        function = waiting.pop()
        if not isinstance(function, FunctionType):
            continue
        new = names_in(function.__code__)[1] - names
        names |= new
        waiting += [getattr(type(method.__self__), name, None) for name in new]
    return names
