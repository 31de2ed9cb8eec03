"""Peak memory and time of mining cases that are far too large to be in memory as a whole.

The cases are nnU-Net's preprocessed files of a noisy image with 20 classes, the network is one
convolution of a single voxel, and its candidates are seven thresholds, so that next to all of the
memory, and of the time, is mining's own. Each step runs in a process of its own; its peak resident
memory is what the operating system reports (`ru_maxrss`), with the pages of files that are mapped.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

NUM_CLASSES = 20
THRESHOLDS = (0.5, 0.35, 0.4, 0.45, 0.55, 0.6, 0.65)
NOISE = 0.2  # standard deviation, as a share of the distance of two classes
BAR_GB = 4.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--shape", type=int, nargs=3, default=(1000, 512, 512), help="default: %(default)s")
    add("--patch", type=int, nargs=3, default=(128, 128, 128), help="default: %(default)s")
    add("--cases", type=int, default=2, help="the next one is read meanwhile; default: %(default)s")
    add("--step", type=float, default=0.5, help="distance of windows; default: %(default)s")
    add("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        step, folder = arguments.child
        {"make": make, "mine": mine}[step](Path(folder), arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        for step in ("make", "mine"):  # this process stays small: a child's peak begins with it
            command = [sys.executable, *sys.argv, "--child", step, folder]
            print(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def make(folder: Path, arguments: Any) -> None:
    """Write a case as nnU-Net preprocesses it, and links to it for the others."""
    import numpy as np
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
    from scipy.ndimage import zoom

    shape, rng = tuple(arguments.shape), np.random.default_rng(0)
    coarse = rng.normal(size=[max(2, size // 40) for size in shape]).astype(np.float32)
    field = zoom(coarse, [n / m for n, m in zip(shape, coarse.shape, strict=True)], order=1)
    field *= NUM_CLASSES / 3  # a third of it is foreground
    truth = np.clip(np.rint(field), 0, NUM_CLASSES - 1).astype(np.int8)
    for planes in field:  # in place, for the memory
        planes += NOISE * rng.standard_normal(planes.shape, dtype=np.float32)
    blocks, chunks = comp_blosc2_params((1, *shape), arguments.patch, 4)
    blocks_seg, chunks_seg = comp_blosc2_params((1, *shape), arguments.patch, 1)
    nnUNetDatasetBlosc2.save_case(
        field[None], truth[None], {}, str(folder / "case_0"),
        chunks, blocks, chunks_seg, blocks_seg, clevel=1,
    )  # fmt: skip
    for number in range(1, arguments.cases):
        for end in (".b2nd", "_seg.b2nd", ".pkl"):
            (folder / f"case_{number}{end}").hardlink_to(folder / f"case_0{end}")


def mine(folder: Path, arguments: Any) -> None:
    """Mine a round of these cases; print what it took."""
    import torch
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
    from torch import nn

    from nnunetv2_mapo.method.cases import open_case
    from nnunetv2_mapo.method.config import MAPOConfig
    from nnunetv2_mapo.method.labels import Labels
    from nnunetv2_mapo.method.mining import Miner
    from nnunetv2_mapo.method.pairing import PairFinder
    from nnunetv2_mapo.method.rounds import mine_round
    from nnunetv2_mapo.method.sampling import ThresholdSampler
    from nnunetv2_mapo.method.store import Round

    torch.set_num_threads(1)
    network = nn.Conv3d(1, NUM_CLASSES, 1)
    labels = torch.arange(NUM_CLASSES).float()  # argmax is the nearest: -(x - c)² + x²
    network.weight.data = 2 * labels.view(-1, 1, 1, 1, 1)
    network.bias.data = -(labels**2)
    config = MAPOConfig(sampler="threshold", thresholds=THRESHOLDS, tile_step_size=arguments.step)
    finder = PairFinder(Labels(NUM_CLASSES), config, arguments.patch)
    miner = Miner(network, ThresholdSampler(THRESHOLDS), finder, 1, torch.device("cpu"))
    dataset, before = nnUNetDatasetBlosc2(str(folder)), _peak_gb()
    mined = Round(folder / "round_01", {"round": 1})
    started, used = time.monotonic(), time.process_time()
    summary = mine_round(
        miner, lambda name: open_case(dataset, None, name), sorted(dataset.identifiers), mined,
        lambda text: print(text, file=sys.stderr),
    )  # fmt: skip
    seconds, used = time.monotonic() - started, time.process_time() - used
    stored = sum(path.stat().st_size for path in mined.folder.glob("*.b2nd"))
    preprocessed = sum(path.stat().st_size for path in folder.glob("*.b2nd"))
    peak = _peak_gb()
    print(
        f"peak_gb {peak:.3f} imports_gb {before:.3f} bar_gb {BAR_GB} met {peak <= BAR_GB} "
        f"wall_s {seconds:.1f} cpu_s {used:.1f} pairs {summary.num_pairs} "
        f"parts {summary.num_parts} disagreement {summary.disagreement:.4f} "
        f"store_share {stored / preprocessed:.4f}"
    )


def _peak_gb() -> float:
    """Peak resident memory of this process, in 10⁹ bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
