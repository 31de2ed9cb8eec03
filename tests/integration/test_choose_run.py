"""`nnUNetv2_mapo choose` with real tiny networks: the simulated expert, and people at the page."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from test_uncertainty_run import STOCK, save_model

from nnunetv2_mapo.cli import main
from nnunetv2_mapo.method.choices import pair_of, read_answers

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # open files
]
MakeTrainer = Callable[..., Any]


def write_unlabelled(boxes: Path, folder: Path, number: int = 4) -> Path:
    """Images like those of the data set, but none of them, and their ground truth."""
    rng = np.random.default_rng(5)
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for case in range(number):
        label = sitk.ReadImage(boxes / f"raw/Dataset990_Boxes/labelsTr/case_{case % 6}.nii.gz")
        image = sitk.GetArrayFromImage(label) + rng.normal(0, 0.3, label.GetSize()[::-1])
        written = sitk.GetImageFromArray(image.astype(np.float32))
        written.CopyInformation(label)
        sitk.WriteImage(written, folder / f"images/new_{case}_0000.nii.gz")
        sitk.WriteImage(label, folder / f"labels/new_{case}.nii.gz")
    return folder


def choose(model: Path, folder: Path, *options: Any) -> int:
    arguments = [
        "choose", model, "-i", folder / "images", "-o", folder / "choices", "-device", "cpu"
    ]  # fmt: skip
    return main([*map(str, arguments), *map(str, options)])


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
@pytest.mark.parametrize("mode", [[], ["--regions"]])
def test_the_simulated_expert_answers_every_question_through_the_page_s_server(
    make_trainer: MakeTrainer, boxes: Path, tmp_path: Path, configuration: str, mode: list[str],
) -> None:  # fmt: skip
    model = save_model(make_trainer, STOCK, configuration)
    folder = write_unlabelled(boxes, tmp_path / "new")
    assert choose(model, folder, "--truth", folder / "labels", *mode) == 0
    answers = read_answers(folder / "choices").values()
    images = folder / "choices/images"
    dataset = infer_dataset_class(str(images))(str(images))
    assert {each.image for each in answers} == {*dataset.identifiers}
    assert dataset.identifiers
    content = json.loads((folder / "choices/model.json").read_text())
    assert content["trainer"] == STOCK
    for name in dataset.identifiers:
        data, candidates, _, _ = dataset.load_case(name)
        assert data.shape[1:] == candidates.shape[1:]
        assert 2 <= len(candidates) <= 6
        mine = [each for each in answers if each.image == name]
        pair = pair_of(candidates[:], mine)
        if any(each.verdict == "choice" for each in mine):
            assert pair is not None
