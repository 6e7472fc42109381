"""Which code is the user's, and what it names: of that, and of nothing else, the variables are looked at."""

from __future__ import annotations

import dataclasses
import math
import sys
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from hushgrad import PrivacyEngine
from hushgrad.guards.probing import user_code
from hushgrad.guards.probing.user_code import (
    Namespace,
    is_own,
    is_users_class,
    is_users_function,
    is_users_module,
    names_in,
    spaces_of,
)

COUNT, OTHER = 0, 1


def names_them(x: Any) -> Any:
    global COUNT
    COUNT += 1
    return (lambda: torch.relu(x) + math.pi)()


def test_code_of_installed_packages_and_of_this_library_is_not_the_users() -> None:
    assert is_users_function(names_them)
    assert is_users_module(sys.modules[__name__])
    assert is_users_class(type("Mine", (), {"__module__": __name__}))
    assert not is_users_function(F.relu)
    assert not is_users_function(dataclasses.replace)
    assert not is_users_function(names_in.__wrapped__)
    assert not any(map(is_users_class, (torch.nn.Linear, dict, np.ndarray, PrivacyEngine)))
    assert not any(map(is_users_module, (torch, math, np, user_code)))
    assert is_own(PrivacyEngine)
    assert not is_own(torch.nn.Linear)


def test_classes_and_data_of_others_modules_are_named_and_their_functions_are_not() -> None:
    def names() -> Any:
        return torch.float32, torch.relu, torch.Tensor, dataclasses.MISSING, user_code.OWN

    found = {name: space.content() for name, space in spaces_of(names)}
    assert found["torch"] == {"float32": torch.float32, "Tensor": torch.Tensor}
    assert found[user_code.__name__] == {"OWN": user_code.OWN}


def test_code_names_what_it_reads_and_writes_with_the_functions_in_it() -> None:
    variables, attributes = names_in(names_them.__code__)
    assert variables == {"COUNT", "torch", "math"}
    assert attributes == {"relu", "pi"}


def test_the_variables_of_a_function_are_those_that_it_names_and_of_others_modules_data_only() -> None:
    found = {name: space.content() for name, space in spaces_of(names_them)}
    assert found[__name__] == {"COUNT": COUNT}
    assert found["math"] == {"pi": math.pi}
    assert set(found["torch"]) <= {"pi"}


def test_a_variable_that_comes_later_is_seen_and_taken_away() -> None:
    values: dict[str, Any] = {"a": 1, "b": 2, "__name__": "x"}
    space = Namespace(values, frozenset({"a", "later"}), lambda value: True)
    content = space.content()
    values.update(a=3, b=4, later=5)
    assert space.content() == {"a": 3, "later": 5}
    space.put(content)
    assert values == {"a": 1, "b": 4, "__name__": "x"}
    assert Namespace(values, None, lambda value: True).content() == {"a": 1, "b": 4}
