"""Kernels are tested in Triton's interpreter, which must be chosen before Triton is imported.

Another test of the same process may have imported it, so `test_in_the_interpreter.py` runs the files in `interpreted/`
in processes of their own; elsewhere they are not collected.
"""

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted/*"]
