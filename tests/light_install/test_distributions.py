"""The wheel and the sdist hold what an installation needs, and install into an environment that holds nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "hushgrad"
BUILD = """
import sys
from hatchling.build import build_sdist, build_wheel
print(build_wheel(sys.argv[1]), build_sdist(sys.argv[1]))
"""


def needed() -> set[str]:
    """Return every file of the package, below `hushgrad/`."""
    files = {path.relative_to(PACKAGE) for path in PACKAGE.rglob("*") if path.is_file()}
    return {f"hushgrad/{path}" for path in files if "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A wheel and an sdist of this tree; nothing is downloaded."""
    pytest.importorskip("hatchling", reason="distributions are built by hatchling: make installs it")
    folder = tmp_path_factory.mktemp("built")
    done = subprocess.run([sys.executable, "-c", BUILD, str(folder)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    wheel, sdist = done.stdout.split()[-2:]
    return folder / wheel, folder / sdist


def test_the_wheel_holds_every_file_of_the_package_and_no_other(built: tuple[Path, Path]) -> None:
    """Templates, the sweep files and py.typed included; no tests."""
    with zipfile.ZipFile(built[0]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == needed()


def test_the_sdist_holds_the_package_and_what_describes_it(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[1]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {f"src/{name}" for name in needed()} <= names
    assert {"pyproject.toml", "README.md", "LICENSE"} <= names


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_a_distribution_installs_into_an_empty_environment_and_trains(
    kind: str, built: tuple[Path, Path], tmp_path: Path
) -> None:
    """Its five dependencies are lent by this environment, one by one, so that no gigabytes are downloaded."""
    place = tmp_path / "empty"
    venv.create(place, with_pip=True, symlinks=True)
    python = str(place / "bin" / "python")
    source = built[0] if kind == "wheel" else built[1]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    lent = [path for path in sys.path if path.endswith("site-packages")]

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([python, *arguments], env={**clean, **more}, cwd=tmp_path, capture_output=True, text=True)

    assert "No module named 'hushgrad'" in run("-c", "import hushgrad").stderr
    # An sdist is built by hatchling, which is lent, too: pip would otherwise fetch it.
    offline = ("--no-deps", "--no-index", "--no-build-isolation")
    done = run("-m", "pip", "install", "--quiet", *offline, str(source), PYTHONPATH=os.pathsep.join(lent))
    assert done.returncode == 0, done.stderr
    (tmp_path / "snippet.py").write_text(_snippet(), encoding="utf-8")
    trained = run("-c", f"import sys; sys.path += {lent!r}; exec(open('snippet.py').read())")
    assert trained.returncode == 0, trained.stderr
    assert "differential privacy" in trained.stdout
    where = run("-c", f"import sys; sys.path += {lent!r}; import hushgrad; print(hushgrad.__file__)").stdout
    assert where.startswith(str(place))
    told = run(str(place / "bin" / "hushgrad"), "--version", PYTHONPATH=os.pathsep.join(lent))
    assert told.stdout.startswith("hushgrad, version"), told.stderr


def _snippet() -> str:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return readme.split("```python\n")[1].split("```")[0]
