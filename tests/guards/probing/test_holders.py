"""Whatever holds state gets back the very objects that it had."""

from __future__ import annotations

import functools
import gc
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from hushgrad.guards.probing.holders import (
    Cache,
    OfClass,
    OtherThreads,
    Slots,
    Variables,
    content_of,
    is_same,
    refill,
    slots_of,
)

HOLDERS: list[Callable[[], Any]] = [
    lambda: {"a": 1, "b": 2},
    lambda: OrderedDict(a=1, b=2),
    lambda: [1, 2],
    lambda: deque([1, 2]),
    lambda: {1, 2},
    lambda: type("Class", (), {"a": 1, "b": 2}),
]


def change(holder: Any) -> None:
    if isinstance(holder, type):
        holder.c, holder.a = 3, 4  # type: ignore[attr-defined]
    elif isinstance(holder, dict):
        holder["a"] = holder.pop("a") + 1
        holder["c"] = 3
    elif isinstance(holder, set):
        holder.add(3)
    else:
        holder.append(3)


@pytest.mark.parametrize("make", HOLDERS)
def test_a_holder_is_refilled_with_the_very_objects_that_it_had_in_their_order(make: Callable[[], Any]) -> None:
    holder = make()
    content = content_of(holder)
    assert is_same(holder, content)
    change(holder)
    assert not is_same(holder, content)
    refill(holder, content)
    assert is_same(holder, content)


def test_the_order_of_a_dictionary_counts() -> None:
    holder = {"a": 1, "b": 2}
    content = content_of(holder)
    holder["a"] = holder.pop("a")
    assert not is_same(holder, content)
    refill(holder, content)
    assert list(holder) == ["a", "b"]


def test_variables_around_a_function_and_its_default_arguments_are_put_back() -> None:
    kept = 1.0

    def write(value: float, memory: Any = ("a",), *, named: int = 3) -> None:
        nonlocal kept
        kept = value

    holder = Variables(write)
    content = holder.content()
    assert content == {"memory": ("a",), "named": 3, "kept": 1.0}
    write(2.0)
    write.__defaults__ = (("b",),)
    assert not is_same(holder, content)
    refill(holder, content)
    assert (kept, write.__defaults__) == (1.0, (("a",),))


def test_slots_of_all_classes_of_an_object_are_put_back() -> None:
    class One:
        __slots__ = ("a",)

    class Two(One):
        __slots__ = ("b",)

    value: Any = Two()
    value.a = 1
    holder = Slots(value, slots_of(value))
    content = holder.content()
    assert content == {"a": 1}
    value.a, value.b = 2, 3
    refill(holder, content)
    assert holder.content() == {"a": 1}


@pytest.mark.parametrize("size", [None, 8])
def test_a_cache_is_read_and_emptied_where_it_has_grown(size: int | None) -> None:
    @functools.lru_cache(maxsize=size)
    def square(x: int) -> int:
        return 1000 * x * x

    holder = Cache(square)
    content = holder.content()
    assert [square(x) for x in (2, 3)] == [4000, 9000]
    assert sorted(result for _, result in holder.entries()) == [4000, 9000]
    assert not is_same(holder, content)
    refill(holder, content)
    assert is_same(holder, content)
    assert holder.entries() == []


def test_what_code_names_on_a_class_is_put_back_and_nothing_else_is_looked_at() -> None:
    class Others:
        first, other = 1.0, 2.0

        def code(self) -> None:
            """Says what the class does."""

    holder = OfClass(Others, frozenset({"first", "later", "code", "absent"}))
    content = holder.content()
    assert content == {"first": 1.0}
    Others.first, Others.other, Others.later = 3.0, 4.0, 5.0  # type: ignore[attr-defined]
    assert not is_same(holder, content)
    refill(holder, content)
    assert is_same(holder, content)
    assert (Others.first, Others.other, hasattr(Others, "later")) == (1.0, 4.0, False)


def test_what_other_threads_keep_in_a_local_is_read_and_those_that_kept_nothing_are_emptied() -> None:
    local: Any = threading.local()
    local.mine = 0.0
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        first.submit(setattr, local, "kept", 1.0).result()
        holder = OtherThreads(local)
        content = holder.content()
        assert content == [{"kept": 1.0}]
        second.submit(setattr, local, "kept", 2.0).result()
        assert not is_same(holder, content)
        refill(holder, content)
        assert is_same(holder, content)
        assert first.submit(lambda: vars(local)).result() == {"kept": 1.0}
        assert second.submit(lambda: vars(local)).result() == {}
        assert vars(local) == {"mine": 0.0}


def test_threads_that_keep_the_same_are_told_from_those_that_do_not() -> None:
    local: Any = threading.local()
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second, ThreadPoolExecutor(1) as third:
        for pool, kept in ((first, [1.0]), (second, [2.0]), (third, [1.0])):
            pool.submit(setattr, local, "kept", kept).result()
        assert OtherThreads(local).alike() == [[{"kept": [1.0]}, {"kept": [1.0]}], [{"kept": [2.0]}]]


def test_a_local_that_keeps_its_threads_in_another_way_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    holder = OtherThreads(threading.local())
    assert holder.can_be_read()
    monkeypatch.setattr(gc, "get_referents", lambda *_: [])
    assert not holder.can_be_read()
    assert holder.content() == []
