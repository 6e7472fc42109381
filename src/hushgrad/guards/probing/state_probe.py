"""Does what a model keeps follow the data? Runs on altered batches must leave the same behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from hushgrad.errors import PrivateBufferError
from hushgrad.guards.probing.calls import Outcome, Runner
from hushgrad.guards.probing.kept import Key
from hushgrad.guards.probing.rows import Batch, all_agree, grown_axes, others_differ, split_examples
from hushgrad.guards.probing.state import SAMPLES, State, describe, following, is_buffer
from hushgrad.guards.probing.state_values import agree, differs_by_itself


class StateProbe:
    """Compares what runs of one call on a batch and on altered ones leave behind."""

    def __init__(self, model: nn.Module, runner: Runner, size: int) -> None:
        self._model = model
        self._runner = runner
        self._size = size

    def grown(self, base: Outcome, fewer: Outcome) -> dict[Key, int]:
        """Return the axis of the examples in the tensors that are kept of each example, by place."""
        kept = {key: value for key, value in base.moved.items() if isinstance(value, Tensor)}
        less = {key: value for key, value in fewer.moved.items() if isinstance(value, Tensor)}
        return {path[0]: axis for path, axis in grown_axes(kept, less, self._size).items()}

    def require_still(
        self, batch: Batch, base: Outcome, changed: Outcome, axes: dict[Key, int] | None, others: Sequence[int]
    ) -> None:
        """Refuse state that follows the data; a cache of each example's own values may, if nothing reads it later.

        Args:
            batch: the batch itself.
            base, changed: the runs on it, and on an altered one.
            axes: as `grown` returns them; None of a run on NaN, which reaches caches that were looked at before.
            others: the examples that were not altered.

        Raises:
            PrivateBufferError: naming the place.
        """
        keys = following(base.moved, changed.moved)
        size = (self._size, self._size)
        cached, moving = [], []
        for key in keys:
            one, two = base.moved.get(key), changed.moved.get(key)
            own = axes is not None and key in axes and not is_buffer(key)
            if own and not others_differ(one, two, {(): axes[key]}, (others, others), size):  # type: ignore[index]
                cached.append(key)
            elif axes is None and not is_buffer(key) and isinstance(one, Tensor) and one.ndim:
                continue  # looked at with the exchanged example
            else:
                moving.append(key)
        if moving:
            self._require_unsteady(batch, changed, moving)
        if cached:
            self._require_overwritten(batch, base, cached[0])

    def require_still_backward(
        self,
        seen: Outcome,
        base: Outcome,
        changed: Outcome,
        run: Callable[[int, int], Outcome],
        examples: tuple[int, int],
    ) -> None:
        """Refuse state that follows the data where gradients are recorded, or that a backward writes.

        Args:
            seen: a run with a backward, of some examples.
            base, changed: the runs without gradients on the batch and on an altered one.
            run: runs one example alone, forward and backward; in another turn by other gradients of its outputs.
            examples: two of them.

        Raises:
            PrivateBufferError: naming the place.
        """
        if all(key in base.moved and agree(value, base.moved[key]) for key, value in seen.moved.items()):
            return
        first, second = examples
        one, two = run(first, 0), run(second, 1)
        known = following(base.moved, changed.moved)  # and may
        keys = [key for key in following(one.moved, two.moved) if key not in known]
        if not keys or one.unknown is not None or two.unknown is not None:
            return
        cached = [key for key in keys if not is_buffer(key) and _has_own_rows(seen.moved.get(key), one.moved.get(key))]
        start, again = self._runner.state, [run(first, 0) for _ in range(SAMPLES + 1)]
        for key in (key for key in keys if key not in cached):
            *same, other = [found.moved.get(key, start.saved(key)) for found in (*again, two)]
            if is_buffer(key) or not differs_by_itself(same, other):
                raise refusal(key, start.place(key), by="a forward with gradients, or its backward,")
        after = self._second_of(lambda: run(second, 1), lambda: run(first, 0)) if cached else one
        read = [key for key in cached if not agree(after.moved.get(key), one.moved.get(key))]
        if read or (cached and not all_agree(one.output, after.output)):
            key = (read or cached)[0]
            raise refusal(key, start.place(key), by="a forward with gradients, or its backward,")

    def require_nothing_handed_on(self, batch: Batch, name: str) -> None:
        """Refuse parts or hooks that a forward has made of its batch: the next call must not notice which it was.

        Raises:
            PrivateBufferError: it does.
        """
        same = self._run_after(batch.same(), batch)
        other = self._run_after(batch.exchanged(split_examples(self._size)[0], away=False), batch)
        if not all_agree(same.output, other.output):
            raise PrivateBufferError(
                "leaves modules or hooks on the model that hold values of its batch: a later forward gives other "
                "outputs after another batch",
                where=name,
                cure="Build modules and hooks from constants only, or before training",
            )

    def _require_unsteady(self, batch: Batch, changed: Outcome, keys: Sequence[Key]) -> None:
        """Refuse what does not differ from run to run of one batch as well, and as far: clocks and addresses do."""
        held = []  # so that what is made in the next run gets other addresses
        samples = []  # not the base run, which may be the loop's own: its clocks and addresses lie elsewhere
        for _ in range(SAMPLES + 1):
            inputs = batch.same()
            again = self._runner.run(inputs, quiet=False, parameters=True)
            held.append((inputs, again))
            samples.append(again.moved)
        start = self._runner.state
        for key in keys:
            *same, other = [moved.get(key, start.saved(key)) for moved in (*samples, changed.moved)]
            if not start.is_unsteady(key, samples) and (is_buffer(key) or not differs_by_itself(same, other)):
                raise refusal(key, start.place(key))

    def _require_overwritten(self, batch: Batch, base: Outcome, key: Key) -> None:
        after = self._run_after(batch.exchanged(split_examples(self._size)[0], away=False), batch)
        if not all_agree(base.output, after.output) or not agree(after.moved.get(key), base.moved.get(key)):
            raise refusal(key, self._runner.state.place(key))

    def _run_after(self, earlier: Any, batch: Batch) -> Outcome:
        """Run a batch from what a run on an earlier one left behind."""
        return self._second_of(
            lambda: self._runner.run(earlier, quiet=False), lambda: self._runner.run(batch.same(), quiet=False)
        )

    def _second_of(self, first: Callable[[], Outcome], second: Callable[[], Outcome]) -> Outcome:
        """Run two, the second from what the first left behind, and return what the second gave."""
        runner = self._runner
        state, runner.state = runner.state, _After(self._model)
        try:
            first()
            return second()
        finally:
            runner.state = state
            state.restore()


class _After(State):
    def restore(self) -> None:
        """Leave what the earlier run left behind."""


def _has_own_rows(of_some: Any, of_one: Any) -> bool:
    """Whether what is kept of some examples, and of one, is a tensor with more rows for more examples."""
    if not (isinstance(of_some, Tensor) and isinstance(of_one, Tensor)) or of_some.ndim != of_one.ndim:
        return False
    return of_some.shape != of_one.shape and 1 in of_one.shape


def refusal(key: Key, place: str = "", *, by: str = "a forward") -> PrivateBufferError:
    """Return the refusal of state that follows the data, naming its place."""
    kinds = {"buffer": "buffer of the model", "parameter": "parameter of the model", "variable": "variable"}
    return PrivateBufferError(
        f"this {kinds.get(key[0], 'attribute of the model')} follows the data: {by} writes into it, without "
        f"noise, what depends on the examples of the batch",
        where=place or describe(key),
        cure="Freeze it, put its module into eval(), or compute it in every forward without keeping it",
    )
