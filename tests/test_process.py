"""No child has its parent's identity, whoever forks it and whatever its process id is."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

import pytest

from hushgrad import process
from hushgrad.errors import ProtocolError
from hushgrad.process import this_process, this_start
from hushgrad.randomness import Address, KeyStream


def in_child(fork: Callable[[], int], ask: Callable[[], str]) -> str:
    """Return what a forked child answers."""
    read, write = os.pipe()
    if fork() == 0:
        try:
            answer = ask()
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(write, answer.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        answer = stream.read().decode()
    os.wait()
    return answer


def compiled_fork() -> int:
    """Fork without Python's knowledge, as compiled code does."""
    return int(ctypes.PyDLL(None).fork())


FORKS = {"Python": os.fork, "compiled code": compiled_fork}


@pytest.mark.parametrize("fork", FORKS)
def test_a_child_with_its_parents_id_has_another_identity_and_so_has_its_own_child(
    fork: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 1)
    parent = this_process()

    def ask() -> str:
        child = this_process()
        again = in_child(FORKS[fork], lambda: str(this_process() in (child, parent)))
        return f"{child == parent} {child == this_process()} {again}"

    assert in_child(FORKS[fork], ask) == "False True False"
    assert this_process() == parent


@pytest.mark.parametrize("fork", FORKS)
def test_a_child_with_its_parents_id_draws_nothing_from_its_stream(fork: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 1)
    stream = KeyStream.from_operating_system()
    before = stream.read(Address(0), 16)
    for draw in (lambda: stream.read(Address(0), 16), lambda: stream.fork("noise"), lambda: stream.key(Address(4))):
        assert in_child(FORKS[fork], lambda draw=draw: str(draw())).startswith("ProtocolError: DP203 KeyStream")  # type: ignore[misc]
    assert stream.read(Address(0), 16) == before


def test_a_process_that_the_kernel_began_anew_draws_nothing_for_another_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A restored checkpoint has the memory and the id of the original, and another start."""
    stream = KeyStream.from_operating_system()
    stream.read(Address(3), 16)
    started, boot = this_start()
    for other in ((started + b"1", boot), (started, b"another boot")):
        monkeypatch.setattr("hushgrad.randomness.this_start", lambda other=other: other)
        for draw in (lambda: stream.read(Address(4), 16), lambda: stream.fork("noise"), lambda: stream.key(Address(4))):
            with pytest.raises(ProtocolError, match="restored from a checkpoint"):
                draw()


def test_when_the_process_began_is_looked_at_once_for_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, looks = KeyStream.from_operating_system(), []
    monkeypatch.setattr("hushgrad.randomness.this_start", lambda: looks.append(1) or stream._start)
    for step in (1, 2):
        for item in range(3):
            stream.key(Address(step, item))
            stream.read(Address(step, item), 16)
    assert len(looks) == 2


def test_a_start_is_that_of_the_process_and_stays() -> None:
    assert this_start() == this_start()
    assert in_child(os.fork, lambda: str(this_start()[1] == this_start()[1])) == "True"


def test_where_the_system_has_no_such_memory_the_id_and_pythons_forks_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_page", None)
    monkeypatch.setattr(os, "getpid", lambda: 1)
    parent = this_process()
    assert in_child(os.fork, lambda: str(this_process() == parent)) == "False"
