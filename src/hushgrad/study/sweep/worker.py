"""One run of a sweep, in a process of its own: `python -m hushgrad.study.sweep.worker`.

The job comes as one line of JSON on the standard input, {"job": …, "out": …, "threads": …}. The input then stays open:
when it closes, the sweep is gone and the worker ends at once, so that no orphan writes where a resumed sweep works.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hushgrad.errors import HushgradError
from hushgrad.study.config_json import config_from_json
from hushgrad.study.resuming import can_go_on, resume
from hushgrad.study.run import run
from hushgrad.study.sweep.trial import run_trial

FAILED = 1
INTERRUPTED = 130
ORPHANED = 3


def work(job: dict[str, Any], out: Path, threads: int) -> str:
    """Run the job into `out`, or go on with the run that lies there, and return the run's status."""
    torch.set_num_threads(threads)
    if "function" in job:
        run_trial(job["function"], job["trial"], out)
        return "completed"
    if can_go_on(out):
        return resume(out, changes={"threads": threads}).outcome.status
    config = replace(config_from_json(job["config"]), threads=threads)
    return run(config, out, fit_batch_size=job.get("fit_batch_size", False)).outcome.status


def _die_with_the_sweep() -> None:
    sys.stdin.read()
    os._exit(ORPHANED)


def main() -> int:
    """Do the job that comes on the standard input; errors end as a last line of {"kind", "message"} JSON."""
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_die_with_the_sweep, daemon=True).start()
    sys.path.insert(0, os.getcwd())
    try:
        status = work(order["job"], Path(order["out"]), order["threads"])
    except Exception as error:
        traceback.print_exc()
        message = str(error) if isinstance(error, HushgradError) else "see the run's log"
        print(json.dumps({"kind": type(error).__name__, "message": message}), flush=True)
        return FAILED
    return 0 if status == "completed" else INTERRUPTED


if __name__ == "__main__":
    # The daemon thread may be reading; leaving without waiting for it is the point.
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
