"""`make_private_ready`: exchanges in place what cannot be trained privately for what can, and reports each edit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from hushgrad.capture.operators.lookup_options import ALLOWED, TABLES, reason, refused_options
from hushgrad.errors import UnsupportedModelError
from hushgrad.guards.compatibility import require_module, require_no_session
from hushgrad.torch_internals import CONTAINERS, BatchNorm, InstanceNorm, buffers_of, children_of, hook_counts

MOST_GROUPS = 32
CHANNELS_PER_GROUP = 4
"""A group needs several values to be normalised by: of one nothing is left, of two only which is larger."""

FEWEST_FEATURES = 3

STATISTICS = frozenset({"running_mean", "running_var", "num_batches_tracked"})

PLAIN_FORWARDS = frozenset(kind.forward for kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm))


@dataclass(frozen=True)
class Edit:
    """One change of a model.

    Attributes:
        places: the dotted names of the module; several where it is shared.
        before, after: what it was and is.
        why: what the change is for, and what else it means.
    """

    places: tuple[str, ...]
    before: str
    after: str
    why: str

    def __str__(self) -> str:
        return f"{', '.join(self.places)}: {self.before} → {self.after} ({self.why})"


@dataclass(frozen=True, eq=False)
class _Planned:
    edit: Edit
    carry_out: Callable[[], None]


def make_private_ready(model: nn.Module, *, dry_run: bool = False) -> list[Edit]:
    """Change a model in place so that it can be made private, and return the edits.

    BatchNorm becomes GroupNorm with the same parameters: the same objects, so that an optimizer that holds them stays
    valid. It gets as many groups as divide its channels, at most 32 and with at least 4 channels each; BatchNorm1d
    becomes one group, which on inputs `[B, C]` is LayerNorm. InstanceNorm no longer tracks statistics. Embeddings lose
    `sparse`, `max_norm` and `scale_grad_by_freq`. Layers put into eval() on purpose, in a model in train(), are left.

    Call it on a model that is not trained yet: scale and shift learned with BatchNorm's statistics fit no other norm.
    Statistics leave the `state_dict`.

    Args:
        model: an ordinary model.
        dry_run: return the edits and change nothing.

    Guarantee: an optimizer that was made before stays valid, since parameters are the same objects as before.
    Guarantee: a model that is refused is not changed.

    Raises:
        UnsupportedModelError: naming every module whose change would alter what the model means, or break it.
        ProtocolError: the model belongs to an open session.
    """
    require_module(model, "model")
    require_no_session(model)
    places: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        places.setdefault(module, []).append(name)
    planned: list[_Planned] = []
    reasons: list[str] = []
    exchanged: set[nn.Module] = set()
    for module, names in places.items():
        if isinstance(module, BatchNorm) and _is_active(module, model):
            if reason := _reason_against(module, names):
                reasons.append(f"{_called(names)}: {reason}")
            else:
                planned.append(_group_norm(model, module, tuple(names)))
                exchanged.add(module)
        elif isinstance(module, InstanceNorm) and module.track_running_stats and _is_active(module, model):
            planned.append(_untracked(module, tuple(names)))
        elif isinstance(module, TABLES):
            planned += list(_allowed(module, tuple(names)))
    reasons += _readers(places) if planned else []
    reasons += _holders(places, exchanged)
    if reasons:
        raise UnsupportedModelError(
            f"these cannot be changed without changing what they mean: {'; '.join(reasons)}",
            cure="Follow the advice after each, then call this again",
        )
    if not dry_run:
        for plan in planned:
            plan.carry_out()
    return [plan.edit for plan in planned]


def _is_active(module: BatchNorm | InstanceNorm, model: nn.Module) -> bool:
    """Whether the layer will use or write statistics of a batch; one in eval() inside a training model will not."""
    return module.training or not model.training or module.running_mean is None


def _called(names: list[str]) -> str:
    return ", ".join(name or "the model itself" for name in names)


# BatchNorm -----------------------------------------------------------------------------------------------------------


def _reason_against(module: BatchNorm, names: list[str]) -> str | None:
    """Return why a BatchNorm cannot become a GroupNorm, with the cure; None if it can."""
    channels = module.num_features
    if "" in names:
        return "it is the whole model, so there is nothing to put another one into. Wrap it in nn.Sequential"
    if any(isinstance(parameter, nn.UninitializedParameter) for parameter in module.parameters()) or channels == 0:
        return "its channels are not known yet. Run the lazy model once, then call this again"
    if type(module).forward not in PLAIN_FORWARDS:
        return f"{type(module).__name__} has a forward of its own, which GroupNorm would not do. Exchange it by hand"
    if is_parametrized(module):
        return "its parameters are parametrized. Remove the parametrization first"
    if any(hook_counts([module])):
        return "it has hooks, which would be lost. Remove them first"
    if isinstance(module, nn.BatchNorm1d) and channels < FEWEST_FEATURES:
        left = "nothing of it would be left" if channels == 1 else "only which of the two is larger would be left"
        return (
            f"normalised within one example, its {channels} feature{'s' if channels > 1 else ''} would lose their "
            f"values: {left}. Scale columns by constants that are public, and take the layer out"
        )
    return None


def _group_norm(model: nn.Module, old: BatchNorm, names: tuple[str, ...]) -> _Planned:
    groups = groups_for(old)
    new = nn.GroupNorm(groups, old.num_features, eps=old.eps, affine=False)
    new.affine = old.affine
    # The very same parameters: an optimizer goes on with them. A frozen one stays frozen.
    new.register_parameter("weight", old.weight)
    new.register_parameter("bias", old.bias)
    new.train(old.training)

    def carry_out() -> None:
        for name in names:
            home, _, key = name.rpartition(".")
            children_of(model.get_submodule(home))[key] = new

    why = "BatchNorm mixes the examples of a batch"
    if isinstance(old, nn.BatchNorm1d):
        why += "; on inputs [B, C] this is LayerNorm over the C features, which should be of one kind"
    if old.num_batches_tracked is not None and bool(old.num_batches_tracked > 0):
        why += "; its statistics were learned already, and scale and shift fit them: train anew, or keep it in eval()"
    return _Planned(Edit(names, _shown(old), f"GroupNorm({groups}, {old.num_features})", why), carry_out)


def groups_for(layer: BatchNorm) -> int:
    """Return the number of groups of the GroupNorm that takes the place of a BatchNorm: a divisor of its channels."""
    if isinstance(layer, nn.BatchNorm1d):
        return 1  # a row [B, C] has no values but its channels
    most = max(1, min(MOST_GROUPS, layer.num_features // CHANNELS_PER_GROUP))
    return next(count for count in range(most, 0, -1) if layer.num_features % count == 0)


def _shown(layer: nn.Module) -> str:
    kind = type(layer).__name__
    return f"{kind}({layer.num_features})" if isinstance(layer, (BatchNorm, InstanceNorm)) else kind


# The others ----------------------------------------------------------------------------------------------------------


def _untracked(module: InstanceNorm, names: tuple[str, ...]) -> _Planned:
    def carry_out() -> None:
        module.track_running_stats = False
        for name in STATISTICS & buffers_of(module).keys():
            buffers_of(module)[name] = None

    edit = Edit(
        names,
        f"{_shown(module)} with track_running_stats=True",
        "track_running_stats=False",
        "statistics of the data would be written into buffers without noise; in eval() it now uses each example's own",
    )
    return _Planned(edit, carry_out)


def _allowed(module: nn.Module, names: tuple[str, ...]) -> Iterator[_Planned]:
    for option in refused_options(vars(module)):
        before = f"{_shown(module)} with {option}={vars(module)[option]}"
        edit = Edit(names, before, f"{option}={ALLOWED[option]}", reason(option))
        yield _Planned(edit, _setting(vars(module), option, ALLOWED[option]))


def _setting(own: dict[str, Any], flag: str, wanted: Any) -> Callable[[], None]:
    def carry_out() -> None:
        own[flag] = wanted

    return carry_out


# What would break ----------------------------------------------------------------------------------------------------


def _readers(places: Mapping[nn.Module, list[str]]) -> list[str]:
    """Name the modules whose own forward reads running statistics of a layer, which would no longer be there."""
    found = []
    for module, names in places.items():
        if type(module).__module__.startswith("torch."):
            continue
        read = sorted(_names_read(type(module), "forward", set()) & STATISTICS)
        if read and not isinstance(module, (BatchNorm, InstanceNorm)):
            found.append(f"{_called(names)}: its forward reads {', '.join(read)}. Normalise without statistics there")
    return found


def _names_read(kind: type, method: str, seen: set[str]) -> set[str]:
    """Return the attribute names in the code of a method, and of the class's own methods that it names."""
    seen.add(method)
    bases = [base for base in kind.__mro__ if not base.__module__.startswith("torch.") and base is not object]
    functions = [vars(base)[method] for base in bases if method in vars(base)]  # super() may reach all of them
    names = {
        name for function in functions if isinstance(function, FunctionType) for name in _names_in(function.__code__)
    }
    for other in {name for base in bases for name in vars(base)} & names - seen:
        names = names | _names_read(kind, other, seen)
    return names


def _names_in(code: CodeType) -> set[str]:
    names = {*code.co_names, *(constant for constant in code.co_consts if isinstance(constant, str))}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names_in(constant)
    return names


def _holders(places: Mapping[nn.Module, list[str]], exchanged: set[nn.Module]) -> list[str]:
    """Name the plain lists and the like that hold a layer as well: there the old one would go on being used."""
    found = []
    for module, names in places.items():
        for key, value in vars(module).items():
            if key not in CONTAINERS and _holds(value, exchanged, 3):
                found.append(
                    f"{_called(names)}: its attribute {key!r} holds a layer to be exchanged outside of its submodules. "
                    f"Use nn.ModuleList or nn.ModuleDict"
                )
    return found


def _holds(value: Any, wanted: set[nn.Module], depth: int) -> bool:
    if isinstance(value, nn.Module):
        return value in wanted
    if depth and isinstance(value, Mapping):
        return any(_holds(part, wanted, depth - 1) for part in value.values())
    return depth > 0 and isinstance(value, (list, tuple, set)) and any(_holds(v, wanted, depth - 1) for v in value)
