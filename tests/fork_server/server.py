"""A Python that has imported torch and hushgrad already: programs run in forks of it, which costs no import.

    server.py SOCKET PROGRAM

It writes PROGRAM, an executable that stands in for `sys.executable`: what `python` takes as -m, -c or a file, with
arguments, input, output, environment and working folder, runs in a child of this server. A signal that PROGRAM gets,
the child gets; a PROGRAM that is killed takes its child with it; the exit status is the child's.

A fork is safe here because the server has one thread, which is looked at before each: it imports, and computes nothing.
What Python and its libraries read from the environment when they start cannot be changed for a child; a program that
asks for that is refused. It ends when its own input does.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import gc
import importlib
import json
import os
import random
import runpy
import selectors
import signal
import socket
import struct
import sys
import threading
import traceback
from typing import Any

ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
READ_AT_THE_START = ("OMP_THREAD_LIMIT", "LD_PRELOAD", "NUMBA_DISABLE_JIT", "TRITON_INTERPRET", "PYTHONPATH")
IMPORTED = (
    "torch",
    "torch._dynamo",  # every optimizer imports it
    "hushgrad.engine",
    "hushgrad.accounting.saddle_point.accountant",
    "hushgrad.accounting.risk",
    "hushgrad.noise.loops",  # numba, and its compiled code
    "hushgrad.cli.main",
    "hushgrad.study.sweep.worker",
    "safetensors.torch",
    "sklearn.datasets",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
)
REFUSED = 97

PROGRAM = """#!{python} -SE
import array, json, os, signal, socket, struct, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    asked = json.dumps({{"arguments": sys.argv[1:], "environment": dict(os.environ), "folder": os.getcwd()}}).encode()
    descriptors = array.array("i", [0, 1, 2])
    server.sendmsg([struct.pack("<I", len(asked))], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
    server.sendall(asked)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, lambda number, frame: server.send(bytes([number])))
    status = struct.unpack("<i", server.recv(4, socket.MSG_WAITALL) or struct.pack("<i", -9))[0]
if status < 0:
    signal.signal(-status, signal.SIG_DFL) if -status not in (9, 19) else None
    os.kill(os.getpid(), -status)
os._exit(status)
"""


def serve(address: str) -> None:
    """Run what is asked for until the standard input ends."""
    chooser = selectors.DefaultSelector()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        chooser.register(listener, selectors.EVENT_READ, None)
        chooser.register(sys.stdin.fileno(), selectors.EVENT_READ, None)
        print("ready", flush=True)
        children: dict[int, tuple[int, socket.socket]] = {}  # of the child's pidfd: its number and its client
        while True:
            for key, _ in chooser.select():
                if key.fileobj is listener:
                    child, client = _start(listener)
                    ended = os.pidfd_open(child)
                    children[ended] = (child, client)
                    chooser.register(ended, selectors.EVENT_READ, "ended")
                    chooser.register(client, selectors.EVENT_READ, child)
                elif key.data == "ended":
                    child, client = children.pop(key.fd)
                    chooser.unregister(key.fd)
                    os.close(key.fd)
                    with contextlib.suppress(KeyError):
                        chooser.unregister(client)
                    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                    with client, contextlib.suppress(OSError):
                        client.sendall(struct.pack("<i", status))
                elif isinstance(key.data, int):
                    told = _received(key.fileobj)
                    for number in told or [signal.SIGKILL]:  # the end of the client is the end of its child
                        os.kill(key.data, number)
                    if not told:
                        chooser.unregister(key.fileobj)
                else:  # the tests are over
                    for child, _ in children.values():
                        os.kill(child, signal.SIGKILL)
                    return


def _received(client: Any) -> bytes:
    try:
        return bytes(client.recv(16))
    except OSError:
        return b""


def _start(listener: socket.socket) -> tuple[int, socket.socket]:
    """Fork a child for the next client; return its number and the client's connection."""
    client, _ = listener.accept()
    room = socket.CMSG_SPACE(3 * array.array("i").itemsize)
    length, ancillary, _, _ = client.recvmsg(4, room)
    asked = b""
    size = struct.unpack("<I", length)[0]
    while len(asked) < size:
        asked += client.recv(size - len(asked))
    descriptors = array.array("i", ancillary[0][2])
    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"the server has {threads} threads and cannot be forked"
    child = os.fork()
    if child == 0:
        _run(json.loads(asked), descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    return child, client


def _run(asked: dict[str, Any], descriptors: array.array[int]) -> None:
    """Be the program that was asked for, to its end."""
    status = 1
    try:
        os.setsid()
        for place, descriptor in enumerate(descriptors):
            os.dup2(descriptor, place)
        os.closerange(3, 4096)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        refused = _refused(asked["environment"])
        if refused:
            print(f"a fork of a running Python cannot have {', '.join(refused)}", file=sys.stderr)
            os._exit(REFUSED)
        os.environ.clear()
        os.environ.update(asked["environment"])
        os.chdir(asked["folder"])
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - the server's own may have read ahead
        sys.stdout.reconfigure(line_buffering="PYTHONUNBUFFERED" in os.environ)
        random.seed()
        importlib.import_module("numpy").random.seed()
        status = _execute(asked["arguments"])
    except KeyboardInterrupt:
        traceback.print_exc()
        sys.stdout.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            threading._shutdown()
            atexit._run_exitfuncs()
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _refused(environment: dict[str, str]) -> list[str]:
    many = [name for name in ONE_THREAD if environment.get(name, "1") != "1"]
    return many + [name for name in READ_AT_THE_START if environment.get(name) != os.environ.get(name)]


def _execute(arguments: list[str]) -> int:
    """Run [-u] -m MODULE, -c CODE or FILE with its arguments as the main program; return its exit status."""
    if arguments[0] == "-u":  # as torchrun starts its workers
        sys.stdout.reconfigure(write_through=True)
        arguments = arguments[1:]
    first = arguments[0]
    try:
        if first == "-m":
            sys.argv, sys.path[0] = arguments[1:], os.getcwd()
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        elif first == "-c":
            sys.argv, sys.path[0] = ["-c", *arguments[2:]], ""
            exec(compile(arguments[1], "<string>", "exec"), sys.modules["__main__"].__dict__)
        else:
            sys.argv, sys.path[0] = arguments, os.path.dirname(os.path.abspath(first))
            runpy.run_path(first, run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    return 0


def main(address: str, program: str) -> None:
    """Import, write the program, serve."""
    os.environ["JE_ARROW_MALLOC_CONF"] = "background_thread:false"  # pyarrow's allocator, which scikit-learn brings
    for module in IMPORTED:
        with contextlib.suppress(ImportError):  # one that is missing, or a numba that does not fit NumPy
            importlib.import_module(module)
    with open(os.open(program, os.O_WRONLY | os.O_CREAT, 0o700), "w", encoding="utf-8") as file:
        file.write(PROGRAM.format(python=sys.executable, address=address))
    os.fsync = os.fstat  # type: ignore[assignment]  # as in tests/conftest.py
    gc.collect()
    gc.freeze()  # no child goes through what is imported, or copies its pages, when it collects garbage
    sys.executable = program  # a child that starts a Python starts a fork, too
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests, whose end is this one's
    serve(address)
    os._exit(0)  # nothing is left to write, and torch takes seconds to end


if __name__ == "__main__":
    main(*sys.argv[1:])
