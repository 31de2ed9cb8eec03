"""Mining: one case against its bare forward passes, and against K runs of nnU-Net's predictor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from alternate import Ratios, Row, parse_repeats, print_table, time_ratios
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from tiny_dataset import Shape, TinyDataset, quiet, tiny_dataset
from torch import Tensor

from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.method.dropout import StochasticDropout
from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.method.mining import Miner, make_miner
from nnunetv2_mapo.method.sampling import make_sampler
from nnunetv2_mapo.method.windows import find_windows

SHAPES = {
    "2D": Shape(case=(1, 96, 96), patch=(64, 64), batch_size=12, num_stages=5),
    "3D": Shape(case=(32, 32, 48), patch=(32, 32, 32), batch_size=2, num_stages=4),
}
REPEATS_PREDICTOR = 1  # it is many times slower: a pair of runs says enough
BAR = 1.10


def main() -> None:
    print_table(_rows(parse_repeats(__doc__, default=5)))


def _rows(repeats: int) -> Iterator[Row]:
    for name, shape in SHAPES.items():
        with tiny_dataset(shape) as dataset:
            yield from _compare(name, dataset, repeats)


def _compare(name: str, dataset: TinyDataset, repeats: int) -> Iterator[Row]:
    trainer = dataset.make_trainer(nnUNetTrainer)
    trainer.set_deep_supervision_enabled(False)
    trainer.network.eval()
    with quiet():
        cases, _ = trainer.get_tr_and_val_datasets()
        predictor = _make_predictor(trainer)
    miner = _make_miner(trainer)
    data, segmentation, _, _ = cases.load_case(cases.identifiers[0])
    image, segmentation = torch.from_numpy(data[:]), torch.from_numpy(segmentation[0])
    yield Row(
        f"{name}, mining / K plain forward passes",
        time_ratios(
            lambda: miner.mine(image, segmentation), lambda: _only_forward(miner, image), repeats
        ),
        BAR,
    )
    yield Row(
        f"{name}, mining / the forward passes of its candidates, with dropout",
        time_ratios(
            lambda: miner.mine(image, segmentation), lambda: _with_dropout(miner, image), repeats
        ),
        BAR,
    )
    with quiet():
        ratios = time_ratios(
            lambda: predictor.predict_sliding_window_return_logits(image),
            lambda: miner.mine(image, segmentation),
            REPEATS_PREDICTOR,
        )
    num_candidates = len(miner.sampler.values)
    yield Row(
        f"{name}, K = {num_candidates} times one prediction by nnU-Net / mining",
        Ratios(*(num_candidates * ratio for ratio in ratios)),
    )


def _make_miner(trainer: Any) -> Miner:
    """Miner as MAPO's trainer makes it."""
    plan, num_heads = trainer.configuration_manager, trainer.label_manager.num_segmentation_heads
    dropout = StochasticDropout(trainer.network, num_heads)
    sampler = make_sampler(MAPOConfig(), len(plan.patch_size), dropout, num_image_channels=1)
    labels = Labels(num_heads)
    return make_miner(MAPOConfig(), trainer.network, sampler, labels, plan, trainer.device)


def _make_predictor(trainer: Any) -> nnUNetPredictor:
    """nnU-Net's predictor with its defaults: half-overlapping windows, Gaussian, mirroring."""
    trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()  # sets the mirror axes
    predictor = nnUNetPredictor(device=trainer.device, allow_tqdm=False)
    predictor.manual_initialization(
        trainer.network,
        trainer.plans_manager,
        trainer.configuration_manager,
        None,
        trainer.dataset_json,
        type(trainer).__name__,
        trainer.inference_allowed_mirroring_axes,
    )
    return predictor


@torch.inference_mode()
def _only_forward(miner: Miner, image: Tensor) -> None:
    """The network's work in `Miner.mine` and nothing else, in the same batches."""
    for windows in _batches(miner, image):
        images = windows.repeat_interleave(miner.sampler.num_passes, 0)
        for batch in images.split(miner.images_per_forward):
            miner.network(batch)


@torch.inference_mode()
def _with_dropout(miner: Miner, image: Tensor) -> None:
    """The same, with the dropout that makes the candidates, and their label maps."""
    for windows in _batches(miner, image):
        miner.sampler.segment(miner.network, windows, miner.labels, miner.images_per_forward)


def _batches(miner: Miner, image: Tensor) -> Iterator[Tensor]:
    padded = pad_nd_image(image, miner.patch_size, "constant", {"value": 0})
    places = find_windows(padded.shape[1:], miner.patch_size, miner.config.tile_step_size)
    size = max(1, miner.images_per_forward // miner.sampler.num_passes)
    for start in range(0, len(places), size):
        batch = places[start : start + size]
        yield torch.stack([padded[(slice(None), *window.place)] for window in batch])


if __name__ == "__main__":
    main()
