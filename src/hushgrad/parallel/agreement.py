"""What all processes of a world have to agree on, at set-up and before each release."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from hushgrad.accounting.conditions import Condition, from_note
from hushgrad.errors import DesyncError, PeerFailedError
from hushgrad.parallel.messages import LOST, described, numbers_of_all, told_by_all
from hushgrad.parallel.world import World

_OK, _FAILED = 1, 0


def require_agreement(world: World, facts: Mapping[str, Any]) -> None:
    """Refuse to begin where processes differ in any of the facts, which are JSON. All have to call it.

    Raises:
        DesyncError: naming the facts that differ, and the ranks that differ from the first one in each.
        PeerFailedError: a process did not come.
    """
    if world.is_alone:
        return
    everybody = told_by_all(world, dict(facts))
    first = everybody[0]
    different: dict[str, list[int]] = {}
    for rank, others in enumerate(everybody):
        for name in sorted({*first, *others}):
            if first.get(name) != others.get(name):
                different.setdefault(name, []).append(rank)
    if different:
        named = "; ".join(f"{name}: rank {_listed(ranks)}" for name, ranks in different.items())
        raise DesyncError(
            f"the processes do not train the same thing; different from rank 0 in {named}",
            cure="Build model, optimizer, data and mechanism from the same values in every process (one seed for the "
            "weights, or DistributedDataParallel, which sends those of rank 0), and make the same calls in all",
        )


@contextmanager
def together(
    world: World, what: str, facts: Mapping[str, Any], *, is_finding: Callable[[Exception], bool] = lambda _: False
) -> Iterator[None]:
    """Run something that all processes run; go on only where it went well in all of them, and they agree on the facts.

    An error in one is raised in that one, and in the others an error that names its rank. An interrupt is not waited
    for: the others see that the process is gone.

    Args:
        world: with one process this does nothing.
        what: what it is called in messages.
        facts: JSON, as they are before it runs; a function of what all have in common.
        is_finding: whether an error of this process's says that earlier steps may have leaked.

    Raises:
        PeerFailedError: it failed in another process, or one is gone.
        DesyncError: the facts differ.
    """
    if world.is_alone:
        yield
        return
    try:
        yield
    except PeerFailedError:
        raise  # nobody is left to tell
    except Exception as error:
        _vote(world, what, facts, {**described(error), "is_finding": is_finding(error)})
        raise
    _vote(world, what, facts, None)


def _vote(world: World, what: str, facts: Mapping[str, Any], error: dict[str, Any] | None) -> None:
    """Tell the others how it went here; raise where it did not go well in another one."""
    text = json.dumps([what, dict(facts)], sort_keys=True)
    digest = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
    votes = numbers_of_all(world, [_OK if error is None else _FAILED, digest])
    if all(vote == [_OK, votes[0][1]] for vote in votes):
        return
    everybody = told_by_all(world, {"facts": {"call": what, **facts}, "error": error})
    if error is not None:
        return  # the caller raises its own
    for rank, told in enumerate(everybody):
        if told["error"] is not None:
            raise _failed(rank, told["error"])
    all_facts = [told["facts"] for told in everybody]
    different = [rank for rank, facts in enumerate(all_facts) if facts != all_facts[0]]
    names = {name for rank in different for name in {*all_facts[0], *all_facts[rank]}}
    differing = sorted(name for name in names if any(f.get(name) != all_facts[0].get(name) for f in all_facts))
    raise DesyncError(
        f"rank {_listed(different)} came to the {what} with another {', '.join(differing)} than rank 0",
        cure="Make the same calls in every process: freeze, discard, change options of the optimizer and end items in "
        "all of them alike",
    )


def _failed(rank: int, error: Mapping[str, Any]) -> PeerFailedError:
    where = f"{error['where']}: " if error.get("where") else ""
    said = f": {where}{error['what']}" if error.get("what") else ""
    failure = PeerFailedError(
        f"it raised {error['kind']}{said}", where=f"the process of rank {rank}", cure=error.get("cure") or LOST
    )
    failure.is_finding = bool(error["is_finding"])
    return failure


def _listed(ranks: list[int]) -> str:
    return ", ".join(map(str, ranks))


def conditions_of_all(world: World, own: Sequence[Condition]) -> list[Condition]:
    """Return the conditions that any process found, in the order of ranks, each once; all have to call it."""
    if world.is_alone:
        return list(own)
    if not any(count for [count] in numbers_of_all(world, [len(own)])):
        return []
    everybody = told_by_all(world, [condition.as_note() for condition in own])
    found = (from_note(note) for notes in everybody for note in notes)
    return list(dict.fromkeys(condition for condition in found if condition is not None))
