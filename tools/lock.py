"""The locked versions: `make lock` writes them; `--compare` lists an environment's versions beside them.

The lock is `constraints.txt`, which pip takes by `-c`: an exact version for every package that development needs.
What is held back from its newest version, and why, stands in `pyproject.toml` under `[tool.lock]`.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "constraints.txt"
ENVIRONMENT = ROOT / ".venv-lock"
NOT_LOCKED = {"hushgrad", "pip"}  # the project itself, and what Python brings to every environment

HEAD = """\
# Every package of the development environment, at versions with which the whole suite passes.
# Python: {pythons}
#
# Written by `make lock`; not edited by hand. It was resolved by {platform}. Whatever the Makefile sets up is
# installed from it, by pip's -c; another Python gets one line that says so, and the newest versions that pyproject.toml
# allows.
#
# No hashes: a torch of one version is published in several builds (for CPUs, for CUDA), and which one pip takes is the
# machine's own configuration; a hash would fix one. What torch's CUDA builds bring (nvidia-*, cuda-*) is left to torch,
# which names those versions itself; the triton below is the one that they ask for.
"""


def plain(name: str) -> str:
    """The one spelling of a package's name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(text: str) -> dict[str, str]:
    """The versions that the lock's text pins, by name."""
    pins = (line.split("#")[0].strip() for line in text.splitlines())
    return dict(pin.split("==") for pin in pins if pin)


def installed(python: str) -> dict[str, str]:
    """The versions in an interpreter's environment, by name, without the label of a build (`+cpu`)."""
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--disable-pip-version-check", "--format=json"], check=True, capture_output=True
    )
    return {plain(entry["name"]): entry["version"].split("+")[0] for entry in json.loads(listed.stdout)}


def write(pythons: list[str]) -> None:
    """Write the lock from a new environment with the newest versions that work together."""
    here = "{}.{}".format(*sys.version_info)
    if here not in pythons:
        sys.exit(
            f"The lock covers Python {', '.join(pythons)}; this is {here}. Try: make PYTHON=python{pythons[0]} lock"
        )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*project["build-system"]["requires"], "editables", *project["tool"]["lock"]["held"]]
    venv.create(ENVIRONMENT, clear=True, with_pip=True)
    python = str(ENVIRONMENT / "bin" / "python")
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted, "-e", f"{ROOT}[dev,docs]"],
        check=True,
    )
    pins = sorted(f"{name}=={version}" for name, version in installed(python).items() if name not in NOT_LOCKED)
    head = HEAD.format(pythons=", ".join(pythons), platform=f"Python {here} on {sys.platform}")
    LOCK.write_text(head + "\n".join(pins) + "\n")


def compare() -> None:
    """List this environment's packages, one a line, each beside its locked version where that is another."""
    pins = locked(LOCK.read_text())
    for name, version in sorted(installed(sys.executable).items()):
        pinned = pins.get(name)
        beside = "" if pinned == version or name in NOT_LOCKED else f"  (locked: {pinned or 'not at all'})"
        print(f"{name} {version}{beside}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("--write", nargs="+", metavar="PYTHON", help="write the lock, for these minors of Python")
    choice.add_argument(
        "--compare", action="store_true", help="list this environment's versions beside the locked ones"
    )
    given = parser.parse_args()
    compare() if given.compare else write(given.write)
