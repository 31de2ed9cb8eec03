"""Pictures of validation cases: image, ground truth, and what each method made of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets
from numpy.typing import NDArray

from nnunetv2_mapo.method.cases import labels_of
from nnunetv2_mapo.tools.compare import Method
from nnunetv2_mapo.tools.pair_pictures import (
    PairPictures,
    enlarge,
    paint_classes,
    paint_image,
    to_classes,
)


def choose_cases(scores: pd.Series) -> dict[str, str]:
    """Best, median and worst case in this order, with that word; fewer of fewer cases.

    Args:
        scores: Of each case, higher is better; NaN does not count.
    """
    ordered = scores.dropna().sort_values(ascending=False).index
    chosen: dict[str, str] = {}
    if len(ordered):
        for words, place in (("best", 0), ("worst", -1), ("median", (len(ordered) - 1) // 2)):
            chosen.setdefault(ordered[place], words)
    return {case: chosen[case] for case in ordered if case in chosen}


def paint_cases(methods: Sequence[Method], scores: pd.DataFrame, metric: str) -> list[PairPictures]:
    """Pictures of the best, the median and the worst case, by the first method's gain or score.

    Args:
        methods: Of model folders of one data set: one, or the method and its control.
        scores: A row for each case, a column for each of their names.
        metric: Name of the scores.

    Raises:
        OSError: Images, ground truth or segmentations are missing.
        RuntimeError: One of them cannot be read.
    """
    names = [method.name for method in methods]
    values = scores[names[0]] - (scores[names[1]] if len(names) > 1 else 0)
    chosen = choose_cases(values)
    folder = methods[0].folder
    plans = PlansManager(str(folder / "plans.json"))
    dataset_json = json.loads((folder / "dataset.json").read_bytes())
    raw = Path(nnUNet_raw.require(), plans.dataset_name)
    images = get_filenames_of_train_images_and_targets(str(raw), dataset_json)
    truths = Path(nnUNet_preprocessed.require(), plans.dataset_name, "gt_segmentations")
    reader, ending = plans.image_reader_writer_class(), dataset_json["file_ending"]
    labels = labels_of(plans.get_label_manager(dataset_json))
    painted = []
    for case, words in chosen.items():
        files = {"ground truth": truths / f"{case}{ending}"}
        for method in reversed(methods):
            title = f"{method.name}, {metric} {scores.loc[case, method.name]:.3f}"
            files[title] = _find_folder(method, case) / f"{case}{ending}"
        read = {title: reader.read_seg(str(path)) for title, path in files.items()}
        spacing = read["ground truth"][1]["spacing"][-2:]
        segmentations = {title: each[0] for title, (each, _) in read.items()}
        image, _ = reader.read_images(images[case]["images"])
        plane = _find_slice([*segmentations.values()])
        is_colour = len(image) == 3 and plans.image_reader_writer_class is NaturalImage2DIO
        grey = enlarge(paint_image(image[: 3 if is_colour else 1, plane]), spacing)
        pictures = [("image", grey)]
        for title, each in segmentations.items():
            target = labels.target_map(torch.from_numpy(each[plane].astype(np.int16))).numpy()
            classes = enlarge(to_classes(target, labels), spacing)
            pictures.append((title, paint_classes(grey, classes)))
        of = f", slice {plane + 1} of {len(image[0])}" if len(image[0]) > 1 else ""
        painted.append(PairPictures(f"{words.capitalize()} case: {case}{of}", pictures))
    return painted


def _find_folder(method: Method, case: str) -> Path:
    """Where nnU-Net's validation left a case."""
    folds = method.evaluation.values.xs(case, level="case").index.unique("fold")
    return method.folder / f"fold_{folds[0]}" / "validation"


def _find_slice(segmentations: Sequence[NDArray[Any]]) -> int:
    """Slice with the most voxels that are wrong in one of them, or else the most foreground.

    Args:
        segmentations: The ground truth first, shape `(z, y, x)`.
    """
    truth, *others = segmentations
    wrong = np.logical_or.reduce([each != truth for each in others]).sum((1, 2))
    return int((wrong if wrong.any() else (truth > 0).sum((1, 2))).argmax())
