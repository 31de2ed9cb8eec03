"""What a training would run on: GPUs, compiling, processor, memory."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from nnunetv2_mapo.tools.doctor.finding import (
    NOTE,
    OK,
    PROBLEM,
    Finding,
    last_line,
    say_export,
    say_pip,
    say_unset,
)
from nnunetv2_mapo.tools.doctor.folders import format_bytes
from nnunetv2_mapo.tools.doctor.requirements import find_requirement

WORKERS = "nnUNet_n_proc_DA"  # processes that augment
_NUM_WORKERS = 12  # nnU-Net's default
_LEAST_SHARED = 1e9  # bytes; Docker gives 64 MB, which a few batches fill


@dataclass(frozen=True)
class GPU:
    """A graphics processor that PyTorch can use.

    Attributes:
        name: Its maker's.
        num_bytes: Its memory.
        num_free: Bytes of it that nobody uses.
    """

    name: str
    num_bytes: int
    num_free: int


@dataclass(frozen=True)
class Accelerators:
    """What PyTorch says of the GPUs.

    Attributes:
        built_for: Version of CUDA that PyTorch was built for, `"ROCm …"`, or empty.
        gpus: The GPUs that it can use.
        error: Why it can use none although it was built for them.
        driver: Version of CUDA that NVIDIA's driver supports; empty without a driver.
        has_mps: Whether Apple's GPU can be used.
    """

    built_for: str = ""
    gpus: list[GPU] = field(default_factory=list)
    error: str = ""
    driver: str = ""
    has_mps: bool = False

    @property
    def device(self) -> str:
        """What `-device` of `nnUNetv2_train` should be."""
        return "cuda" if self.gpus else "mps" if self.has_mps else "cpu"


def read_accelerators() -> Accelerators:
    """Ask PyTorch and NVIDIA's driver."""
    import torch

    gpus, error = [], ""
    hip = getattr(torch.version, "hip", None)
    built_for = torch.version.cuda or (f"ROCm {hip}" if hip else "")
    try:
        if built_for:
            torch.cuda.init()  # type: ignore[no-untyped-call]  # torch's
        for index in range(torch.cuda.device_count() if built_for else 0):
            torch.ones(1, device=f"cuda:{index}").sum().item()  # is it built for this GPU?
            free, total = torch.cuda.mem_get_info(index)
            gpus.append(GPU(torch.cuda.get_device_name(index), total, free))
    except (RuntimeError, AssertionError) as raised:
        error = last_line(raised)
    has_mps = torch.backends.mps.is_available()
    return Accelerators(built_for, gpus, error, read_driver(), has_mps)


def read_driver() -> str:
    """Version of CUDA that NVIDIA's driver supports, by `nvidia-smi`; empty without a driver."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return ""
    try:
        done = subprocess.run([command], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    version = re.search(r"CUDA Version: *(\d+\.\d+)", done.stdout)
    return version[1] if done.returncode == 0 and version else ""


def check_accelerators(seen: Accelerators, asked: str | None = None) -> list[Finding]:
    """Say what a training would compute on, and why not on a GPU.

    Args:
        seen: What there is.
        asked: Device that the user wants; None: what there is.
    """
    findings = _describe_all(seen)
    if asked is None:
        return findings
    if not {"cpu": True, "cuda": bool(seen.gpus), "mps": seen.has_mps}[asked]:
        return [finding._replace(level=PROBLEM) for finding in findings]
    return [f._replace(level=NOTE) if f.level == PROBLEM else f for f in findings]


def _describe_all(seen: Accelerators) -> list[Finding]:
    if seen.gpus:
        return [_describe(index, gpu) for index, gpu in enumerate(seen.gpus)]
    if seen.has_mps:
        return [Finding(NOTE, "Apple's GPU: with -device mps, which MAPO was never tested on")]
    slow = "training works on the CPU with -device cpu, slowly"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if seen.driver and hidden is not None and hidden.strip() in ("", "-1"):
        what = f"CUDA_VISIBLE_DEVICES={hidden} hides every GPU; {slow}"
        return [Finding(NOTE, what, say_unset("CUDA_VISIBLE_DEVICES"))]
    if seen.driver and not seen.built_for:
        what = f"there is an NVIDIA GPU (CUDA {seen.driver}), but PyTorch was built without CUDA"
        return [Finding(PROBLEM, what, _say_torch_for(seen.driver))]
    if seen.driver:
        what = (
            f"PyTorch, built for CUDA {seen.built_for}, cannot use the GPU of this driver (CUDA "
            f"{seen.driver}): {seen.error or 'it sees none'}"
        )
        return [Finding(PROBLEM, what, _say_torch_for(seen.driver))]
    return [Finding(NOTE, f"no GPU: {slow}")]


def _describe(index: int, gpu: GPU) -> Finding:
    memory = f"{format_bytes(gpu.num_bytes)}, {format_bytes(gpu.num_free)} free"
    what = f"GPU {index}: {gpu.name}, {memory}"
    if gpu.num_free < gpu.num_bytes / 2:
        other = "another GPU: export CUDA_VISIBLE_DEVICES=…, or stop what uses it (nvidia-smi)"
        return Finding(NOTE, f"{what}: more than half is in use", other)
    return Finding(OK, what)


def _say_torch_for(driver: str) -> str:
    major = int(driver.split(".")[0])
    if major < 11:
        return "a newer driver: https://www.nvidia.com/drivers"
    # PyTorch's wheels run on every driver of the same major version.
    index = {11: "cu118", 12: "cu126"}.get(major, "cu130")
    torch = ("--force-reinstall", find_requirement("torch"), "torchvision")
    address = f"https://download.pytorch.org/whl/{index}"
    return f"{say_pip('install', *torch, '--index-url', address)}  (or a newer driver)"


def check_compiling(device: str) -> list[Finding]:
    """Whether `torch.compile`, which nnU-Net uses on CUDA unless told not to, has what it needs."""
    if device != "cuda" or os.name == "nt":
        return [Finding(OK, f"torch.compile is not used by nnU-Net on {device}")]
    wanted = os.environ.get("nnUNet_compile", "t").lower()  # noqa: SIM112  # nnU-Net's own name
    if wanted not in ("true", "1", "t"):
        return [Finding(OK, f"torch.compile is off (nnUNet_compile={wanted})")]
    header = Path(sysconfig.get_path("include"), "Python.h")
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    has = {"triton": find_spec("triton"), "a C compiler": compiler, str(header): header.is_file()}
    missing = [name for name, is_there in has.items() if not is_there]
    if not missing:
        return [Finding(OK, "torch.compile is on and has triton and a C compiler")]
    what = f"torch.compile, which nnU-Net uses on CUDA, needs {' and '.join(missing)}"
    return [Finding(PROBLEM, what, say_export("nnUNet_compile", "f"))]


def check_processor() -> list[Finding]:
    """Cores and memory, and whether the processes that augment fit them."""
    cores = _count_cores()
    memory = _read_memory()
    what = f"{cores} processor cores" + (f", {format_bytes(memory)} memory" if memory else "")
    findings = [Finding(OK, what)]
    # with 0 processes nnU-Net augments in the training's own, but cannot export its predictions
    for variable, valid in ((WORKERS, r" *\d+ *"), ("nnUNet_def_n_proc", r" *0*[1-9]\d* *")):
        value = os.environ.get(variable)
        if value is not None and not re.fullmatch(valid, value):
            least = "a number" if variable == WORKERS else "a number of at least 1"
            what = f"{variable}={value} is not {least}, which nnU-Net needs it to be"
            findings.append(Finding(PROBLEM, what, say_export(variable, str(cores))))
    if not findings[1:]:
        findings += _check_workers(cores)
    return findings


def _check_workers(cores: int) -> list[Finding]:
    value = os.environ.get(WORKERS)
    workers = min(_NUM_WORKERS if value is None else int(value), os.cpu_count() or 1)
    said = f"{workers} processes augment" + ("" if value is None else f" ({WORKERS}={value})")
    if workers == 0:
        return [
            Finding(NOTE, f"{said}: the training waits for it in every step", say_unset(WORKERS))
        ]
    if workers > cores:
        what = f"{said} on {cores} cores"
        return [Finding(NOTE, what, say_export(WORKERS, str(cores)))]
    shared = Path("/dev/shm")
    if sys.platform == "linux" and shared.is_dir():
        num_bytes = shutil.disk_usage(shared).total
        if num_bytes < _LEAST_SHARED:
            what = f"{said} through /dev/shm, which has {format_bytes(num_bytes)} only"
            mend = f"{say_export(WORKERS, '0')}  (or, of a container: docker run --shm-size=8g …)"
            return [Finding(NOTE, what, mend)]
    return [Finding(OK, said)]


def _count_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _read_memory() -> int:
    """Bytes of memory; 0 where Python cannot tell."""
    with contextlib.suppress(AttributeError, ValueError, OSError):  # Windows has no sysconf
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 0
