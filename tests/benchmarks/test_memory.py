"""Peak memory is what the process really held, above its start."""

import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.memory import is_supported, status_bytes

MIB = 1 << 20
ROOT = Path(__file__).parents[2]


def test_a_field_of_the_process_status_is_read_in_bytes():
    status = "Name:\tpython\nVmHWM:\t  2048 kB\nVmRSS:\t 1024 kB\n"
    assert status_bytes(status, "VmHWM") == 2 * MIB
    assert status_bytes(status, "VmRSS") == MIB


def test_a_missing_field_is_an_error_and_not_zero():
    with pytest.raises(ValueError, match="VmHWM"):
        status_bytes("VmRSS:\t 1024 kB\n", "VmHWM")


@pytest.mark.skipif(not is_supported(), reason="needs Linux' resettable high-water mark")
def test_memory_that_was_freed_again_counts_for_the_peak_and_an_earlier_peak_does_not():
    # In a process of its own: one that has freed much memory before may hold it still, and rise by nothing.
    program = (
        "from benchmarks.memory import peak_bytes\n"
        "print(peak_bytes(lambda: len(bytes(range(256)) * (4096 * 64))))\n"
        "print(peak_bytes(lambda: len(bytes(range(256)) * 4096)))\n"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    large, small = (int(line) for line in result.stdout.split())
    assert large >= 63 * MIB  # the kernel counts pages in batches, so some hundred kilobytes may be missing
    assert small < 32 * MIB
