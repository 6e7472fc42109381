"""What a program that kills others says of it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any


def told_by(python: str, script: str, *arguments: object, timeout: float = 300, **settings: str) -> tuple[Any, str]:
    """Run a program of this folder to its end; return the last line that it printed, as JSON, and its errors."""
    result = subprocess.run(
        [python, str(Path(__file__).with_name(script)), *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **settings},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1]), result.stderr
