"""What the figures were measured on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from hushgrad.noise.compiled import CompiledBackend
from hushgrad.noise.gaussian import backend

# Above this load per core at the start, other programs take a visible part of the time.
QUIET_LOAD = 0.3


@dataclass(frozen=True)
class Machine:
    """The machine and the versions that decide how fast a step is; numba's where it draws the noise."""

    processor: str
    architecture: str
    vector_instructions: str
    cores: int
    threads: int
    load_per_core: float
    versions: dict[str, str]

    @property
    def is_quiet(self) -> bool:
        """Whether little else was running when the measurement began."""
        return self.load_per_core <= QUIET_LOAD

    def __str__(self) -> str:
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return (
            f"{self.cores} cores ({self.processor}, {self.vector_instructions}), "
            f"{self.threads} {'thread' if self.threads == 1 else 'threads'}, {versions}, float32"
        )


def this_machine(packages: Mapping[str, str]) -> Machine:
    """Return what can be said about this machine before measuring on it; `packages` are the versions to name."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    versions = {"Python": platform.python_version(), **packages}
    if backend() is CompiledBackend:
        versions["numba"] = importlib.metadata.version("numba")
    return Machine(
        processor=_processor(),
        architecture=platform.machine(),
        vector_instructions=torch.backends.cpu.get_cpu_capability(),
        cores=cores,
        threads=torch.get_num_threads(),
        load_per_core=round(os.getloadavg()[0] / cores, 2),
        versions=versions,
    )


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
