"""What the operating system must have: locks on files, as POSIX systems give them."""

from __future__ import annotations

import sys

from hushgrad.errors import UnsupportedSystemError

try:
    import fcntl as fcntl
except ModuleNotFoundError as error:
    raise UnsupportedSystemError(
        f"hushgrad does not run on {sys.platform}: two programs could write one ledger there, and ε would be too small",
        cure="Use Linux; on Windows its subsystem for Linux (WSL 2)",
    ) from error
