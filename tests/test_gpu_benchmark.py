"""The benchmark that waits for a GPU has to work the first time that it meets one."""

import os
import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent / "benchmarks" / "gpu.py"
NO_GPU = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *options]
    return subprocess.run(command, capture_output=True, text=True, env=NO_GPU, check=False)


def test_without_a_gpu_the_benchmark_says_so_and_ends_with_code_2():
    done = run()
    assert done.returncode == 2
    assert done.stdout == "There is no GPU here, so nothing was measured.\n"


def test_every_part_of_the_benchmark_runs_on_a_cpu_at_small_sizes():
    done = run("--device", "cpu", "--smoke", "--repeats", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r"^\| (\dD), (.*) \| (yes|no) \| [\d.]+ ", done.stdout, re.MULTILINE)
    names = ["stock", "warm-up"]
    names += [f"preferences, reference {each!r}" for each in ("cached", "network", "none")]
    assert rows == [
        (size, name, compiled) for compiled in ("no", "yes") for size in ("2D", "3D")
        for name in names
    ]  # fmt: skip
    assert "mining of 16 x 16 x 20, 7 rates" in done.stdout
    for check in ("margin torch.float32", "synchronisations", "random numbers", "bit for bit"):
        assert re.search(f"^- holds: .*{check}", done.stdout, re.MULTILINE)
    # the policies' and the reference's, none of which is compiled a second time
    assert re.findall(r"- holds: 3D: (\d+) compiled graphs, 0 more", done.stdout) not in ([], ["0"])
