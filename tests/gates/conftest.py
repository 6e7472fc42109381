"""The benchmarks are a package beside `src` that is not installed; its folder is put on the path here."""

import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[2])
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)
