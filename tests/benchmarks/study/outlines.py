"""What an expert's outlines of some images would give, in the form of choices."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import blosc2
import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunetv2_mapo.method.choices import (
    CHOICE,
    IMAGES,
    MODEL,
    append_answer,
    read_answers,
)
from nnunetv2_mapo.support.files import hash_array

PLAIN, OUTLINE = 0, 1


def draw_outlines(choices: Path, outlined: Path, folder: Path, number: int, seed: int) -> None:
    """Copy a folder of choices, its answers replaced by the outlines of some of its images.

    Args:
        choices: Folder of choices about whole images.
        outlined: nnU-Net's preprocessed cases with the ground truth, of the same names.
        folder: New one, in which the outline is a candidate that is named best.
        number: Images that are outlined.
        seed: Decides which.
    """
    (folder / IMAGES).mkdir(parents=True)
    shutil.copy(choices / MODEL, folder)
    said = {answer.image: answer for answer in read_answers(choices).values()}
    names = np.random.default_rng(seed).permutation(sorted(said))[:number].tolist()
    truths = nnUNetDatasetBlosc2(str(outlined), names)
    candidates = nnUNetDatasetBlosc2(str(choices / IMAGES), names)
    for name in names:
        image, segmentations, _, properties = candidates.load_case(name)
        truth = truths.load_case(name)[1][:].clip(0)
        both = np.concatenate([segmentations[:1], truth]).astype(np.int16)
        blosc2.set_nthreads(1)
        path = str(folder / IMAGES / name)
        chunks = {"chunks": image.chunks, "blocks": image.blocks}
        nnUNetDatasetBlosc2.save_case(image[:], both, properties, path, **chunks)
        answer = replace(
            said[name], candidates_sha256=hash_array(both), shown=(PLAIN, OUTLINE), region=None,
            verdict=CHOICE, best=OUTLINE, worst=PLAIN, rater="outline",
        )  # fmt: skip
        append_answer(folder, answer)
