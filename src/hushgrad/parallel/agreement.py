"""What all processes of a world have to agree on, at set-up and before each release."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from hushgrad.accounting.conditions import Condition, from_note
from hushgrad.errors import DesyncError
from hushgrad.parallel.messages import digest_of, exchanged, tell_failure
from hushgrad.parallel.replicas import digest
from hushgrad.parallel.world import World
from hushgrad.torch_sharding import is_distributed, local_part, part_that_others_have


def require_agreement(world: World, facts: Mapping[str, Any]) -> None:
    """Refuse to begin where processes differ in any of the facts, which are JSON. All have to call it.

    Raises:
        DesyncError: naming the facts that differ, and the ranks that differ from the first one in each.
        PeerFailedError: a process did not come.
    """
    if world.is_alone:
        return
    everybody = [message for _, message in exchanged(world, "set-up", dict(facts))]
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
    world: World, call: str, facts: Mapping[str, Any], *, more_of: Callable[[Exception], dict[str, Any]] | None = None
) -> Iterator[None]:
    """Run something that all processes run; go on only where it went well in all of them, and they agree on the facts.

    An error in one is raised in that one, and in the others an error that names its rank. An interrupt is not waited
    for: the others see that the process is gone. Blocks are not nested, and hold no exchange of their own.

    Args:
        world: with one process this does nothing.
        call: what it is called in messages.
        facts: JSON, as they are before it runs; a function of what all have in common.
        more_of: what the others should know of an error of this process's, besides what it says.

    Raises:
        PeerFailedError: it failed in another process, or one is gone.
        DesyncError: the facts differ, or another process came to another call.
    """
    if world.is_alone:
        yield
        return
    try:
        yield
    except Exception as error:
        tell_failure(world, error, **({} if more_of is None else more_of(error)))
        raise
    known = {"call": call, **facts}
    digest = digest_of(json.dumps(known, sort_keys=True))
    if len({number for number, _ in exchanged(world, call, None, digest)}) > 1:
        raise _differing(world, call, known)


def require_equal_copies(world: World, parameters: Iterable[Tensor]) -> None:
    """Refuse to go on where processes that have the same part of split parameters have other values of it.

    All have to call it. Raises `DesyncError`.
    """
    parts: dict[str, list[Tensor]] = {}
    for parameter in parameters:
        if is_distributed(parameter) and (name := part_that_others_have(parameter)):
            parts.setdefault(name, []).append(local_part(parameter))
    if not parts:
        return
    own = {name: digest(tensors) for name, tensors in parts.items()}
    first: dict[str, str] = {}
    for rank, (_, found) in enumerate(exchanged(world, "copies", own)):
        for name, value in found.items():
            if first.setdefault(name, value) != value:
                raise DesyncError(
                    f"the copies of a split model have other weights: {name} in rank {rank} than in one before it",
                    cure="Build the model from one seed in every process, and split it then",
                )


def conditions_of_all(world: World, own: Sequence[Condition], number: int = 0) -> tuple[list[Condition], bool]:
    """Return the conditions that any process found, in the order of ranks, each once; all have to call it.

    Also whether all gave the same `number`, at most 2**56.
    """
    if world.is_alone:
        return list(own), True
    everybody = exchanged(world, "conditions", [condition.as_note() for condition in own] or None, number)
    found = (from_note(note) for _, notes in everybody for note in notes or ())
    conditions = list(dict.fromkeys(condition for condition in found if condition is not None))
    return conditions, len({number for number, _ in everybody}) == 1


def _differing(world: World, call: str, known: Mapping[str, Any]) -> DesyncError:
    everybody = [facts for _, facts in exchanged(world, f"facts of the {call}", dict(known))]
    ranks = [rank for rank, facts in enumerate(everybody) if facts != everybody[0]]
    names = sorted({name for facts in everybody for name in facts if facts.get(name) != everybody[0].get(name)})
    return DesyncError(
        f"rank {_listed(ranks)} came to the {call} with another {', '.join(names)} than rank 0",
        cure="Make the same calls in every process: freeze, discard, change options of the optimizer and end items in "
        "all of them alike",
    )


def _listed(ranks: list[int]) -> str:
    return ", ".join(map(str, ranks))
