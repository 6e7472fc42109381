"""Where files cannot be locked, hushgrad says so in one sentence, however it is started."""

from __future__ import annotations

import subprocess
import sys

import pytest

WITHOUT_LOCKS = "import sys; sys.modules['fcntl'] = None; "
SENTENCE = "DP106 hushgrad does not run on linux: two programs could write one ledger there"


def started(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", WITHOUT_LOCKS + code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "names", ["from hushgrad import PrivacyEngine", "import hushgrad.accounting", "import hushgrad.process"]
)
def test_an_import_says_what_the_system_lacks(names: str) -> None:
    done = started(f"{names}")
    assert done.returncode == 1
    assert SENTENCE in done.stderr.splitlines()[-1]


def test_a_command_says_so_in_one_line() -> None:
    plan = ["epsilon", "--noise-multiplier", "1", "--sampling-rate", "0.1", "--steps", "2", "--delta", "1e-5"]
    done = started(f"from hushgrad.cli.main import main; main({plan})")
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: {SENTENCE}")
    assert len(done.stderr.splitlines()) == 1
