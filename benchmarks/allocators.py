"""The two ways in which memory that a step freed is treated: as users have it, and kept.

Whether glibc gives memory that a step freed back to the system depends on what else lies on the heap, so that in an
interleaved run it is chance which contestant pays for mapping it in again. "steady" keeps it, for all of them. glibc
reads its settings when a process starts. Under "default" a session has it kept from its set-up on
(`hushgrad.freed_memory`), in the whole process and so for the contestants that step in turn with it, too.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path

STEADY_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(1 << 25), "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}

ALLOCATORS = ("default", "steady")


def is_steady(environment: Mapping[str, str]) -> bool:
    """Return whether a process of this environment keeps freed memory."""
    return all(environment.get(name) == value for name, value in STEADY_ALLOCATOR.items())


def environment_of(allocator: str) -> dict[str, str]:
    """Return the environment for a child whose allocator is "default" (no setting of glibc's at all) or "steady"."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    bare.pop("GLIBC_TUNABLES", None)
    return {**bare, **STEADY_ALLOCATOR} if allocator == "steady" else bare


def without_settings() -> str | None:
    """Return why the settings do nothing here, or None: they are glibc's, and another allocator can take its place."""
    if platform.libc_ver()[0] != "glibc":
        return "this system's allocator is not glibc's"
    preloaded = [Path(name).name for name in os.environ.get("LD_PRELOAD", "").replace(":", " ").split()]
    replacing = [name for name in preloaded if any(word in name for word in ("jemalloc", "tcmalloc", "mimalloc"))]
    return f"{', '.join(replacing)} is preloaded in place of glibc's allocator" if replacing else None
