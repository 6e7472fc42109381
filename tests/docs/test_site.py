"""The pages as a site: grouped, each within two clicks of the first, no broken links, no warning left out."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in DOCS.glob("*.md")}
TOCTREE = re.compile(r"^```\{toctree\}\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)


def entries(page: str) -> list[str]:
    """Return the pages that stand below another one in the navigation, in order."""
    lines = [line for tree in TOCTREE.findall(PAGES[page]) for line in tree.splitlines()]
    return [line for line in lines if line and not line.startswith(":")]


def test_every_page_is_two_clicks_from_the_first_in_the_navigation() -> None:
    first = entries("index")
    second = [name for page in first for name in entries(page)]
    assert sorted([*first, *second, "index"]) == sorted(PAGES)  # each once, none missing


def test_the_first_page_has_five_groups_in_the_order_in_which_they_are_read() -> None:
    assert re.findall(r"^:caption: (.*)$", PAGES["index"], flags=re.MULTILINE) == [
        "Start",
        "Tutorials",
        "How-to",
        "Concepts",
        "Reference",
    ]
    assert entries("index")[:2] == ["start-python", "start-command-line"]


def test_the_first_page_takes_what_it_is_from_the_readme() -> None:
    """One text, so that its snippet is the one that tests run."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shared = readme.split("<!-- what:begin -->")[1].split("<!-- what:end -->")[0]
    assert "engine.make_private(" in shared
    assert "](" not in shared  # a relative link would lead elsewhere from there
    assert (
        "```{include} ../README.md\n:start-after: <!-- what:begin -->\n:end-before: <!-- what:end -->" in PAGES["index"]
    )


def test_every_example_is_a_tutorial_or_named_by_one_of_the_pages() -> None:
    pages = "\n".join(PAGES.values())
    for script in (ROOT / "examples").glob("*.py"):
        assert script.name in pages, script.name


def test_a_link_from_page_to_page_leads_to_a_file() -> None:
    for name, text in PAGES.items():
        for target in re.findall(r"\]\(([\w./-]+?)(?:#[^)\s]*)?\)", text):
            if "/" not in target.removeprefix("./") or target.startswith(("images/", "results/", "../")):
                assert (DOCS / target).exists(), f"{name}: {target}"


def test_nothing_is_taken_out_of_what_the_builder_warns_of() -> None:
    """So that `make docs`, which makes an error of every warning, finds a link that leads nowhere."""
    assert "suppress_warnings" not in (DOCS / "conf.py").read_text()
    assert "sphinx -q -W" in (ROOT / "Makefile").read_text()


def test_systems_are_stated_in_the_readme_and_for_installers() -> None:
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    assert [line for line in classifiers if line.startswith("Operating System")] == [
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
    ]
    assert "tested on Linux; macOS is untested, Windows is refused" in (ROOT / "README.md").read_text(encoding="utf-8")
    for system in ("Linux", "macOS", "Windows", "ROCm", "MPS, XPU", "CUDA"):
        assert re.search(rf"^\| {system}.* \| (tested|untested|refused)", PAGES["systems"], flags=re.MULTILINE), system


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_has_the_anchors_that_messages_lead_to(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="the pages are built by sphinx: pip install -e '.[docs]'")
    pytest.importorskip("myst_parser", reason="the pages are built by myst-parser: pip install -e '.[docs]'")
    build = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", str(DOCS), str(tmp_path)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 'id="dp301"' in (tmp_path / "errors.html").read_text(encoding="utf-8")
    assert 'id="hushgrad.PrivacyEngine.make_private"' in (tmp_path / "api-training.html").read_text(encoding="utf-8")
