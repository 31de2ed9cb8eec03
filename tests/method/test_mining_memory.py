from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks/large_case.py"
# 4 GB for 512 x 512 x 1000 voxels; arrays of the whole case took more than 35 bytes each
MOST_BYTES = 4e9 / (512 * 512 * 1000)


def peak_bytes(num_planes: int) -> float:
    """Peak memory of a process that mines one case."""
    shape = ("--shape", str(num_planes), "128", "128", "--patch", "32", "64", "64")
    command = [sys.executable, str(SCRIPT), *shape, "--step", "1", "--cases", "1"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return 1e9 * float(output[output.index("peak_gb") + 1])


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss is that of Linux")
def test_a_case_of_any_size_is_mined_in_little_memory_besides_a_slab():
    short, long = 512, 1280  # two slabs and five
    growth = peak_bytes(long) - peak_bytes(short)
    assert growth / ((long - short) * 128 * 128) < MOST_BYTES
