"""Peak memory of a contestant's step, in a process of its own.

Measured is the resident memory of the process as the kernel counts it, so everything is in it: torch's tensors, scratch
memory of its libraries, buffers of NumPy and the cipher. The kernel's high-water mark (VmHWM) is reset when the model,
the optimizer and the batch are there; the peak of the following steps is given above that point. A step on two records
with a throw-away model comes first, so that code and libraries which load on first use don't count.

glibc gives freed memory back at once only above a threshold that it moves while the program runs; the child fixes the
threshold, so that resident memory follows what is in use. Linux only.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from benchmarks.contestants import CONTESTANTS
from benchmarks.workloads import WORKLOADS, Workload

LATER_STEPS = 3
FIXED_THRESHOLD = {"MALLOC_MMAP_THRESHOLD_": str(1 << 17), "MALLOC_TRIM_THRESHOLD_": str(1 << 17)}
STATUS = Path("/proc/self/status")
RESET = Path("/proc/self/clear_refs")


def status_bytes(status: str, field: str) -> int:
    """Return a field such as "VmHWM" of the text of /proc/PID/status in bytes."""
    for line in status.splitlines():
        name, _, value = line.partition(":")
        if name == field:
            number, unit = value.split()
            if unit != "kB":
                raise ValueError(f"{field} is in {unit}, expected kB")
            return int(number) * 1024
    raise ValueError(f"no field {field} in the process status")


def resident_bytes() -> int:
    """Return the memory of this process that is resident now."""
    gc.collect()
    return status_bytes(STATUS.read_text(), "VmRSS")


def peak_bytes(action: Callable[[], None]) -> int:
    """Return by how much resident memory rose above its present level while `action` ran."""
    gc.collect()
    RESET.write_text("5")  # proc(5): resets the high-water mark to what is resident now
    before = status_bytes(STATUS.read_text(), "VmHWM")
    action()
    return status_bytes(STATUS.read_text(), "VmHWM") - before


@dataclass(frozen=True)
class Peak:
    """Peak bytes above model, optimizer and batch.

    Attributes:
        first_step: of the first step, in which a private contestant may examine the model.
        later_steps: of the steps after it; what the first one left is part of it.
    """

    first_step: int
    later_steps: int


def peak_of(workload: Workload, contestant: str) -> Peak:
    """Return the peaks of a contestant's steps in this process."""
    build = CONTESTANTS[contestant].build
    throw_away = build(replace(workload, batch_size=2), 1.0)
    throw_away.step(throw_away.prepare())
    del throw_away
    runner = build(workload, 1.0)

    def steps(count: int) -> None:
        for _ in range(count):
            runner.step(runner.prepare())

    start = resident_bytes()
    first = peak_bytes(lambda: steps(1))
    left = resident_bytes() - start
    return Peak(first, left + peak_bytes(lambda: steps(LATER_STEPS)))


def peak_in_own_process(workload: str, contestant: str, threads: int) -> Peak:
    """Return `peak_of` the named workload and contestant, measured in a child process."""
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", workload, contestant, str(threads)],
        env={**os.environ, **FIXED_THRESHOLD},
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode:
        raise RuntimeError(f"measuring the memory of {contestant} on {workload} failed:\n{child.stderr}")
    return Peak(**json.loads(child.stdout.splitlines()[-1]))


def is_supported() -> bool:
    """Return whether the system lets a process reset and read its high-water mark."""
    return STATUS.exists() and RESET.exists()


def main(arguments: list[str]) -> None:
    """Measure one contestant in this process and print the result as JSON."""
    workload, contestant, threads = arguments
    torch.set_num_threads(int(threads))
    print(json.dumps(asdict(peak_of(WORKLOADS[workload], contestant))))


if __name__ == "__main__":
    main(sys.argv[1:])
