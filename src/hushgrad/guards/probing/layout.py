"""On which axis, or in which form, does a model get the records? The loader's item tells, of which it is given parts.

Where there are as many positions as records (T = B), a tensor `[T, B, ...]` fits as well as `[B, T, ...]`, and neither
shapes nor a mean over both axes tell which it is. The same holds for a list of as many images as these have channels,
and for whole numbers in order, which may be labels or say where each record's rows begin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor

from hushgrad.capture.axes.layout import MARKS, Layout, Path, Role, layout_of
from hushgrad.errors import PrivacyUnitError
from hushgrad.guards.probing.trees import tensors_at

TURNED = {Role.FIRST: Role.SECOND, Role.SECOND: Role.FIRST}


def layout_in_item(
    item: Any, size: int, axes: Mapping[Path, int], lists: Set[Path], roles: Mapping[Path, Role]
) -> Layout:
    """Return how an item holds the records.

    Args:
        item: what the loader handed out.
        size: B.
        axes: of its tensors, the axis of the records, where it is known.
        lists: the paths of lists with an entry for each record.
        roles: what parts hold, as the collate function was seen to make them.
    """
    known = {path: Role.SECOND if axis else Role.FIRST for path, axis in axes.items()}
    tensors = [(path, part) for path, part in tensors_at(item) if part.ndim and not _is_within(path, lists)]
    return layout_of(tensors, size, {**roles, **known})


def _is_within(path: Path, lists: Set[Path]) -> bool:
    return any(path[:length] in lists for length in range(len(path) + 1))


def roles_of_inputs(item: Any, roles: Mapping[Path, Role], inputs: Any) -> dict[Path, Role]:
    """Return what a model's inputs hold, as far as they are parts of the item.

    Args:
        item: what the loader handed out.
        roles: of its parts.
        inputs: what the model is called with.
    """
    parts = [(tensor, roles[path]) for path, tensor in tensors_at(item) if path in roles]
    found: dict[Path, Role] = {}
    for path, given in tensors_at(inputs):
        fitting = {role for part, own in parts if (role := _role_as(given, part, own)) is not None}
        if len(fitting) == 1:
            found[path] = fitting.pop()
    lists = [_shapes(_entries(item, path)) for path, role in roles.items() if role is Role.ENTRIES]
    return {**found, **_lists_given(inputs, lists)} if lists else found


def _entries(item: Any, path: Path) -> list[Any]:
    for key in path:
        item = item[key] if isinstance(item, (Mapping, list, tuple)) else getattr(item, key)
    return list(item)


def _shapes(entries: Sequence[Any]) -> list[Any]:
    return [entry.shape if isinstance(entry, Tensor) else type(entry) for entry in entries]


def _lists_given(value: Any, lists: Sequence[list[Any]], path: Path = ()) -> dict[Path, Role]:
    """Return the lists among inputs that hold the entries of one in the item, moved or copied one by one or not."""
    if isinstance(value, Mapping):
        return {
            key: role for name, part in value.items() for key, role in _lists_given(part, lists, (*path, name)).items()
        }
    if type(value) not in (tuple, list):
        return {}
    if len(path) > 1 and _shapes(value) in lists:
        return {path: Role.ENTRIES}
    return {key: role for n, part in enumerate(value) for key, role in _lists_given(part, lists, (*path, n)).items()}


def _role_as(given: Tensor, part: Tensor, role: Role) -> Role | None:
    """Return the role of an input that is a part of the item, or that part turned or shifted; None if it is not."""
    if role not in TURNED:
        return role if _equal(given, part) else None
    if given.ndim != part.ndim or not given.ndim:
        return None
    axis = 1 if role is Role.SECOND else 0
    is_same = any(_equal(given, other) for other in (part, *_shifted(part, 1 - axis)))
    if part.ndim < 2:
        return role if is_same else None
    turned = part.transpose(0, 1)
    is_turned = any(_equal(given, other) for other in (turned, *_shifted(turned, axis)))
    if is_same == is_turned:
        return None
    return role if is_same else TURNED[role]


def _shifted(part: Tensor, axis: int) -> list[Tensor]:
    """Return a sequence without its last position, and without its first."""
    if axis >= part.ndim or part.shape[axis] < 2:
        return []
    return [part.narrow(axis, start, part.shape[axis] - 1) for start in (0, 1)]


def require_known_layout(item: Any, roles: Mapping[Path, Role], inputs: Any, taken: Mapping[Path, Role]) -> None:
    """Refuse inputs that hold the records of an item otherwise than they were taken for.

    Args:
        item: what the loader handed out.
        roles: of its parts.
        inputs: what the model was given.
        taken: what capture took them for.

    Raises:
        PrivacyUnitError: with the cure.
    """
    found = roles_of_inputs(item, roles, inputs)
    for path, given in tensors_at(inputs):
        own = taken.get(path, Role.FIRST)
        if path in found and found[path] in TURNED and own in TURNED and found[path] is not own:
            raise PrivacyUnitError(
                f"the model was given a tensor of shape {list(given.shape)} with the examples on its "
                f"{'second' if own is Role.FIRST else 'first'} axis: the other, which is as long, was taken for them",
                cure="Give the model the examples on the first axis, and transpose inside its forward",
            )
        if own in (*MARKS, Role.LINKS) and found.get(path) is not own:
            raise PrivacyUnitError(
                f"the model was given a tensor of shape {list(given.shape)} that says which rows belong to which "
                f"example, and that is no part of the loader's item",
                cure="Put examples end to end in collate_fn, and give the model what it returned",
            )


def _equal(given: Tensor, tensor: Tensor) -> bool:
    if given.shape != tensor.shape:
        return False
    return torch.equal(given.detach(), tensor.detach().to(given.device, given.dtype))
