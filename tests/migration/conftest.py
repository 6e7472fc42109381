"""What the tests of migrations share: helper modules beside them are found by their bare names."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
