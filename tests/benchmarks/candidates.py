"""How near mining's plain candidate is to nnU-Net's prediction, by the distance of its windows.

Mean Dice of the validation cases of fold 0, each segmented by the same network: as mining segments
it at each tile_step_size, and as nnU-Net does (half-overlapping windows, weighted by a Gaussian,
without mirroring). The cost is in forward passes, of which mining takes as many for each rate.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.run_training import get_trainer_from_args
from tiny_dataset import quiet

from nnunetv2_mapo.method.cases import load_case
from nnunetv2_mapo.method.mining import Miner, make_miner
from nnunetv2_mapo.method.rates import with_rates
from nnunetv2_mapo.method.selection import candidate_dice
from nnunetv2_mapo.method.windows import find_windows

STEP_SIZES = (1.0, 0.75, 0.5, 0.25)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", help="name or number")
    parser.add_argument("configuration", help="such as 3d_fullres")
    parser.add_argument("checkpoint", type=Path, help="of a training with these plans")
    parser.add_argument("-p", dest="plans", default="nnUNetPlans", help="plans (nnUNetPlans)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with quiet():
        trainer = make_trainer(arguments)
        _, validation = trainer.get_tr_and_val_datasets()
    trainer.set_deep_supervision_enabled(False)
    network = trainer.network.eval()
    config = replace(trainer.mapo, selection_unit_2d="case", selection_unit_3d="case")
    miner = make_miner(
        config, network, trainer.sampler, trainer.labels, trainer.configuration_manager,
        trainer.device,
    )  # fmt: skip
    miner = with_rates(miner, (0.0,))
    predictor = make_predictor(trainer)
    cases = [load_case(validation, trainer.label_manager, name) for name in validation.identifiers]
    print("| windows | forward passes of a case | Dice | difference to nnU-Net |")
    print("|---|---:|---:|---:|")
    predicted = np.array([dice_of(predictor, miner, *case) for case in cases])
    passes = np.mean([count_passes(miner, case, 0.5) for case in cases])
    print(f"| nnU-Net, half-overlapping | {passes:.1f} | {predicted.mean():.4f} | |")
    for step in STEP_SIZES:
        finder = replace(miner.finder, config=replace(config, tile_step_size=step))
        stepped = replace(miner, finder=finder)
        mined = np.array([mined_dice(stepped, *case) for case in cases])
        passes = np.mean([count_passes(miner, case, step) for case in cases])
        difference = (mined - predicted).mean()
        print(f"| {step:g} | {passes:.1f} | {mined.mean():.4f} | {difference:+.4f} |", flush=True)


def make_trainer(arguments: argparse.Namespace) -> Any:
    trainer = get_trainer_from_args(
        arguments.dataset, arguments.configuration, 0, "nnUNetTrainer_MAPO", arguments.plans,
        device=torch.device("cpu"),
    )  # fmt: skip
    trainer.initialize()
    content = torch.load(arguments.checkpoint, map_location="cpu", weights_only=False)
    trainer.network.load_state_dict(content["network_weights"])
    return trainer


def make_predictor(trainer: Any) -> nnUNetPredictor:
    predictor = nnUNetPredictor(
        tile_step_size=0.5, use_gaussian=True, use_mirroring=False,
        perform_everything_on_device=False, device=trainer.device, allow_tqdm=False,
    )  # fmt: skip
    predictor.manual_initialization(
        trainer.network, trainer.plans_manager, trainer.configuration_manager, None,
        trainer.dataset_json, type(trainer).__name__, trainer.inference_allowed_mirroring_axes,
    )  # fmt: skip
    return predictor


def dice_of(predictor: Any, miner: Miner, image: torch.Tensor, segmentation: Any) -> float:
    """Dice of nnU-Net's prediction of a case."""
    logits = predictor.predict_sliding_window_return_logits(image)
    target = miner.labels.target_map(torch.from_numpy(segmentation[0]))
    label_map = miner.labels.label_map(logits[None].float())
    return candidate_dice(label_map, target, miner.labels).item()


def mined_dice(miner: Miner, image: torch.Tensor, segmentation: Any) -> float:
    """Dice of the plain candidate of a case."""
    truth = torch.from_numpy(segmentation[0])
    (sample,) = miner.finder.find_samples(miner.find_candidates(image), truth)
    return sample.dice[0]


def count_passes(miner: Miner, case: Any, step: float) -> int:
    shape = [max(size, least) for size, least in zip(case[0].shape[1:], full(miner), strict=True)]
    return len(find_windows(shape, miner.patch_size, step))


def full(miner: Miner) -> list[int]:
    """Patch in three axes."""
    return [1, *miner.patch_size] if len(miner.patch_size) == 2 else list(miner.patch_size)


if __name__ == "__main__":
    main()
