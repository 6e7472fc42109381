"""The laws that a forward's random numbers are drawn from: which operator, with which numbers, from which seed.

Other numbers drawn for other examples are no leak, as long as their law does not follow the batch. A dropout rate, a
standard deviation or a seed that was computed from the batch moves every example.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hushgrad.errors import CrossSampleLeakError
from hushgrad.torch_internals import schema_of


class Law(NamedTuple):
    """One draw: the operator, the real numbers it was given, the seed of its generator, and whether a draw is compared.

    Uniform and discrete draws are compared with probabilities, so that only some values of theirs show those.
    """

    operator: str
    numbers: tuple[float, ...]
    seed: int
    is_compared: bool


COMPARED = frozenset({"rand", "rand_like", "uniform_", "bernoulli", "bernoulli_", "multinomial", "randint", "random_"})


def arguments_of(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by name, those that were left out as well."""
    named = schema_of(func).arguments
    defaults = {argument.name: argument.default_value for argument in named if argument.has_default_value()}
    return {**defaults, **{argument.name: value for argument, value in zip(named, args, strict=False)}, **kwargs}


def law_of(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Law:
    """Return the law of one call of a random operator."""
    schema, given = schema_of(func), arguments_of(func, args, kwargs)
    name = schema.name.removeprefix("aten::")
    numbers = tuple(
        float(given[argument.name] or 0.0)
        for argument in schema.arguments
        if "float" in str(argument.type) and not isinstance(given.get(argument.name), Tensor)
    )
    return Law(name, numbers, _seed_of(args, kwargs), name in COMPARED)


def _seed_of(args: Sequence[Any], kwargs: dict[str, Any]) -> int:
    generator = kwargs.get("generator")
    if isinstance(generator, torch.Generator):
        return generator.initial_seed()
    on_gpu = any(isinstance(value, Tensor) and value.is_cuda for value in args)
    return torch.cuda.initial_seed() if on_gpu else torch.default_generator.initial_seed()


def what_follows(base: Sequence[Law], changed: Sequence[Law], altered: Sequence[int], size: int) -> str | None:
    """Return what of the laws follows the batch when the examples `altered` were, in words; None where nothing does.

    A loop over the examples may draw for each of them by a law of its own.
    """
    one_by_one = [law.operator for law in base] == [law.operator for law in changed]
    if one_by_one:
        others = [n for n, (one, two) in enumerate(zip(base, changed, strict=True)) if one != two]
        if _belong_to(others, altered, len(base), size):
            return None
        if any(base[n].numbers != changed[n].numbers for n in others):
            name = next(base[n].operator for n in others if base[n].numbers != changed[n].numbers)
            return f"a number that random values are drawn with (a rate or a scale, in {name})"
    if {law.seed for law in base} != {law.seed for law in changed}:
        return "the seed of a random generator"
    return None


def follows_batch(what: str, where: str) -> CrossSampleLeakError:
    """Return the refusal of random numbers whose law follows the batch."""
    return CrossSampleLeakError(
        f"computes {what} from the batch: the random numbers of each example then depend on the others",
        where=where,
        cure="Seed generators by constants, outside of the forward, and draw with rates and scales that are constants "
        "or that each example decides for itself",
    )


def _belong_to(draws: Sequence[int], examples: Sequence[int], count: int, size: int) -> bool:
    """Whether draws are those of some examples, in a loop over the examples, or in several."""
    if not draws:
        return True
    if count % size:
        return False
    each, chosen = count // size, set(examples)
    return {n // each for n in draws} <= chosen or {n % size for n in draws} <= chosen
