"""`nnUNetv2_mapo uncertainty` on networks of real trainers, against nnU-Net's own commands."""

import json
import multiprocessing
import shutil
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.inference.export_prediction import (
    convert_predicted_logits_to_segmentation_with_correct_shape,
)
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor, predict_entry_point
from prepare import draw_boxes, prepare, write_dataset

from nnunetv2_mapo.cli import main
from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.support.errors import CommandError
from nnunetv2_mapo.tools.uncertainty.maps import SCALE, make_maps, make_sampler
from nnunetv2_mapo.tools.uncertainty.measures import vote_variance
from nnunetv2_mapo.tools.uncertainty.run import find_cases

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),  # nnU-Net's pools
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # open files
]
MakeTrainer = Callable[..., Any]
STOCK, MAPO = "nnUNetTrainerTiny", "nnUNetTrainerTiny_MAPO_tiny"
DATASET = "Dataset990_Boxes"
SPACING, ORIGIN = (1.3, 0.9, 1.1), (5.0, -7.5, 30.0)
DIRECTION = (0, -1, 0, 0, 0, -1, 1, 0, 0)


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing, "cpu_count", lambda: 1)


def save_model(
    make_trainer: MakeTrainer,
    name: str = MAPO,
    configuration: str = "3d_fullres",
    dataset: str = DATASET,
    folds: Sequence[int] = (0,),
) -> Path:
    """Model folder with the random weights of each fold."""
    for fold in folds:
        trainer = make_trainer(name, configuration, dataset=dataset, fold=fold)
        trainer.initialize()
        with torch.no_grad():
            for weight in trainer.network.parameters():
                weight += 0.1 * torch.randn(weight.shape)
                weight += fold * 0.1 * torch.randn(weight.shape)
        trainer.inference_allowed_mirroring_axes = (0, 1)
        trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
        folder = Path(trainer.output_folder_base)
        (folder / "dataset.json").write_text(json.dumps(trainer.dataset_json))
        (folder / "plans.json").write_text(json.dumps(trainer.plans_manager.plans))
    return folder


def write_images(root: Path, folder: Path, dataset: str = DATASET, number: int = 2) -> Path:
    """Images of the data set, turned, and not of its spacing, and their ground truth."""
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for case in range(number):
        for source, target in (
            (f"imagesTr/case_{case}_0000", f"images/case_{case}_0000"),
            (f"labelsTr/case_{case}", f"labels/case_{case}"),
        ):
            image = sitk.ReadImage(root / "raw" / dataset / f"{source}.nii.gz")
            image.SetSpacing(SPACING)
            image.SetOrigin(ORIGIN)
            image.SetDirection(DIRECTION)
            sitk.WriteImage(image, folder / f"{target}.nii.gz")
    return folder / "images"


def run(images: Path, output: Path, *options: Any, model: Path | None = None) -> int:
    arguments = ["uncertainty", "-i", images, "-o", output, "-device", "cpu", "-npp", 1, "-nps", 1]
    if model is not None:
        arguments += [model, "-f", 0]
    return main([*map(str, arguments), *map(str, options)])


def read(path: Path) -> np.ndarray:
    array: np.ndarray = sitk.GetArrayFromImage(sitk.ReadImage(path))
    return array


def read_maps(output: Path, case: str = "case_0") -> tuple[np.ndarray, np.ndarray]:
    folder = output / "uncertainty"
    return tuple(read(folder / f"{case}_{name}.nii.gz") for name in ("entropy", "variance"))


def with_spacing(image: sitk.Image) -> sitk.Image:
    image.SetSpacing((1.3, 0.9, 2.2))
    return image


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_segmentations_are_nnunets_own_and_maps_lie_on_the_images(
    make_trainer: MakeTrainer,
    boxes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    configuration: str,
) -> None:
    save_model(make_trainer, configuration=configuration, folds=(0, 1))
    images = write_images(boxes, tmp_path / "in")
    model = ["-d", "990", "-c", configuration, "-tr", MAPO, "-f", "0", "1"]
    assert run(images, tmp_path / "ours", *model, "--samples", 3) == 0
    theirs = ["-i", str(images), "-o", str(tmp_path / "theirs"), "-device", "cpu"]
    monkeypatch.setattr("sys.argv", ["nnUNetv2_predict", *theirs, *model])
    predict_entry_point()
    names = sorted(path.name for path in (tmp_path / "theirs").iterdir())
    assert sorted(p.name for p in (tmp_path / "ours").iterdir()) == [*names, "uncertainty"]
    for case in ("case_0", "case_1"):
        ours, other = (tmp_path / who / f"{case}.nii.gz" for who in ("ours", "theirs"))
        assert ours.read_bytes() == other.read_bytes()
        image = sitk.ReadImage(images / f"{case}_0000.nii.gz")
        for name in ("entropy", "variance"):
            path = tmp_path / "ours/uncertainty" / f"{case}_{name}.nii.gz"
            written = sitk.ReadImage(path)
            assert written.GetPixelID() == sitk.sitkFloat32
            assert written.GetSize() == image.GetSize()
            assert written.GetSpacing() == pytest.approx(SPACING)
            assert written.GetOrigin() == pytest.approx(ORIGIN)
            assert written.GetDirection() == pytest.approx(DIRECTION, abs=1e-6)
        entropy, variance = read_maps(tmp_path / "ours", case)
        assert 0 <= entropy.min() < entropy.max() <= np.log(3) + 1e-3
        assert 0 <= variance.min() < variance.max() <= 1 / 3 + 1e-3


def test_maps_are_the_same_again_whatever_other_cases_there_are(
    make_trainer: MakeTrainer, boxes: Path, tmp_path: Path
) -> None:
    model = save_model(make_trainer)
    images = write_images(boxes, tmp_path / "in")
    run(images, tmp_path / "both", "--samples", 3, model=model)
    (images / "case_0_0000.nii.gz").unlink()
    run(images, tmp_path / "one", "--samples", 3, model=model)
    for first, second in zip(
        *(read_maps(tmp_path / o, "case_1") for o in ("both", "one")), strict=True
    ):
        assert np.array_equal(first, second)


def test_a_higher_rate_has_a_higher_variance_and_rate_0_none_but_between_windows(
    make_trainer: MakeTrainer, boxes: Path, tmp_path: Path
) -> None:
    model = save_model(make_trainer)
    images = write_images(boxes, tmp_path / "in", number=1)
    means = []
    for rate in (0, 0.05, 0.4):
        run(images, tmp_path / f"{rate}", "--samples", 20, "--rate", rate, model=model)
        means.append(read_maps(tmp_path / f"{rate}")[1].mean())
    assert means[0] < means[1] < means[2]


@pytest.mark.parametrize(
    ("name", "rate", "said"),
    [
        (STOCK, 0.1, "trained with dropout at rates up to 0.0. At rate 0.1"),
        (MAPO, 0.6, "trained with dropout at rates up to 0.5. At rate 0.6"),
        (MAPO, 0.5, ""),
        (STOCK, 0, ""),
        (STOCK, None, "Rate 0: this network was trained without dropout"),
        (MAPO, None, ""),
    ],
)
def test_a_network_that_does_not_know_such_dropout_is_named(
    make_trainer: MakeTrainer, boxes: Path, tmp_path: Path, capsys: Any, name: str,
    rate: float | None, said: str,
) -> None:  # fmt: skip
    images = write_images(boxes, tmp_path / "in", number=1)
    model = save_model(make_trainer, name)
    given = [] if rate is None else ["--rate", rate]
    run(images, tmp_path / "out", "--samples", 2, *given, model=model)
    output = capsys.readouterr().out
    assert said in output
    assert ("NOTE" in output) == said.startswith("trained")


@pytest.fixture(scope="module")
def regions(nnunet_folder: Path) -> str:
    name, labels = "Dataset997_UnsureRegions", {"background": 0, "whole": [1, 2], "small": [2]}
    rng = np.random.default_rng(0)
    segmentations = [draw_boxes(rng) for _ in range(6)]
    write_dataset(nnunet_folder, name, labels, segmentations, regions_class_order=[1, 2])
    prepare(nnunet_folder, name, {"2d": (16, 16)}, num_training=4)
    return name


def test_regions_are_mapped_and_scored(
    make_trainer: MakeTrainer, boxes: Path, regions: str, tmp_path: Path
) -> None:
    model = save_model(make_trainer, configuration="2d", dataset=regions)
    images = write_images(boxes, tmp_path / "in", regions)
    labels = tmp_path / "in/labels"
    assert run(images, tmp_path / "out", "--samples", 4, "--labels", labels, model=model) == 0
    entropy, variance = read_maps(tmp_path / "out")
    assert np.log(2) < entropy.max() <= 2 * np.log(2) + 1e-3  # two regions
    assert 0 < variance.max() <= 0.5
    table = pd.read_csv(tmp_path / "out/uncertainty/uncertainty.csv", index_col="case")
    assert set(table.index) == {"case_0", "case_1"}
    assert table["ece"].between(0, 1, inclusive="neither").all()


def test_with_a_ground_truth_the_table_says_whether_the_maps_tell_errors(
    make_trainer: MakeTrainer, boxes: Path, tmp_path: Path, capsys: Any
) -> None:
    images = write_images(boxes, tmp_path / "in")
    options = ("--samples", 2, "--labels", tmp_path / "in/labels")
    assert run(images, tmp_path / "out", *options, model=save_model(make_trainer)) == 0
    assert "risk = 1 - Dice" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "out/uncertainty/uncertainty.csv", index_col="case")
    for name, row in table.iterrows():
        segmentation = read(tmp_path / "out" / f"{name}.nii.gz")
        truth = read(tmp_path / "in/labels" / f"{name}.nii.gz")
        entropy, variance = read_maps(tmp_path / "out", str(name))
        place = segmentation > 0 if segmentation.any() else segmentation >= 0
        assert row["num_segmented"] == (segmentation > 0).sum()
        assert row["mean_entropy"] == pytest.approx(entropy[place].mean(), rel=1e-4)
        assert row["mean_variance"] == pytest.approx(variance[place].mean(), rel=1e-4)
        assert row["aurc_random"] == pytest.approx((segmentation != truth).mean())


def sample_plain(predictor: nnUNetPredictor, image: torch.Tensor) -> np.ndarray:
    sampler = make_sampler(predictor, Labels(3), {}, torch.zeros(1))
    statistics: np.ndarray = sampler.predict_logits_from_preprocessed_data(image).float().numpy()
    return statistics / SCALE


@pytest.mark.parametrize("is_compiled", [False, True])
def test_rate_0_is_the_network_itself_up_to_the_corners_of_an_image(
    make_trainer: MakeTrainer, is_compiled: bool
) -> None:
    predictor = nnUNetPredictor(device=torch.device("cpu"))
    predictor.initialize_from_trained_model_folder(str(save_model(make_trainer)), (0,))
    image = torch.randn(1, 8, 16, 16)  # one window, whose corners weigh next to nothing
    with torch.inference_mode():
        plain = predictor.network.eval()(image[None])[0].softmax(0).numpy()
    if is_compiled:
        predictor.network = torch.compile(predictor.network)  # which is bypassed
    statistics = sample_plain(predictor, image)
    assert np.abs(statistics[:3] - plain).max() < 0.002
    assert not vote_variance(statistics[3:]).any()
    assert np.array_equal(statistics[3:].argmax(0), plain.argmax(0))
    assert set(np.unique(statistics[3:])) == {0, 1}


def test_several_folds_are_averaged(make_trainer: MakeTrainer) -> None:
    predictor = nnUNetPredictor(device=torch.device("cpu"))
    folder = save_model(make_trainer, folds=(0, 1))
    predictor.initialize_from_trained_model_folder(str(folder), (0, 1))
    image, plain = torch.randn(1, 8, 16, 16), []  # one window
    for weights in predictor.list_of_parameters:
        predictor.network.load_state_dict(weights)
        with torch.inference_mode():
            plain.append(predictor.network.eval()(image[None])[0].softmax(0).numpy())
    statistics = sample_plain(predictor, image)
    assert np.abs(plain[0] - plain[1]).max() > 0.1
    assert np.abs(statistics[:3] - (plain[0] + plain[1]) / 2).max() < 0.002
    votes = [each.argmax(0) for each in plain]
    shares = [sum(vote == label for vote in votes) / 2 for label in range(3)]
    assert np.allclose(statistics[3:], [np.float64(share) for share in shares], atol=1e-3)


def test_maps_of_a_transposed_and_resampled_image_lie_where_nnunet_puts_its_own(
    make_trainer: MakeTrainer, boxes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_model(make_trainer)
    plans = json.loads((folder / "plans.json").read_text())
    plans |= {"transpose_forward": [1, 2, 0], "transpose_backward": [2, 0, 1]}
    plans["configurations"]["3d_fullres"]["spacing"] = [1.0, 1.5, 2.0]
    (folder / "plans.json").write_text(json.dumps(plans))
    predictor = nnUNetPredictor(device=torch.device("cpu"))
    predictor.initialize_from_trained_model_folder(str(folder), (0,))
    rng = np.random.default_rng(0)
    image = rng.normal(size=(1, 8, 9, 10)).astype(np.float32)
    image[:, :2] = 0  # nnU-Net crops it off
    data, _, properties = predictor.configuration_manager.preprocessor_class(
        verbose=False
    ).run_case_npy(
        image, None, {"spacing": [3.0, 0.8, 1.2]}, predictor.plans_manager,
        predictor.configuration_manager, predictor.dataset_json,
    )  # fmt: skip
    # 9 * 0.8 / 1, 10 * 1.2 / 1.5, 6 * 3 / 2
    assert data.shape == (1, 7, 8, 9)
    p = rng.dirichlet(np.ones(3), data.shape[1:]).transpose(3, 0, 1, 2).astype(np.float32)
    # Two classes share the votes: their variance, q (1 - q), is resampled like a probability.
    q = rng.random(data.shape[1:], np.float32)
    statistics = torch.from_numpy(np.concatenate([p, [q, 1 - q, 0 * q]]))
    maps = make_maps(statistics * SCALE, properties, predictor)
    monkeypatch.setattr(predictor.label_manager, "apply_inference_nonlin", torch.as_tensor)

    def export(volumes: np.ndarray) -> np.ndarray:
        """As nnU-Net exports probabilities, but of what needs no softmax."""
        _, exported = convert_predicted_logits_to_segmentation_with_correct_shape(
            torch.from_numpy(volumes), predictor.plans_manager, predictor.configuration_manager,
            predictor.label_manager, properties, return_probabilities=True, num_threads_torch=1,
        )  # fmt: skip
        return np.asarray(exported)

    assert maps.probabilities.shape == (3, 8, 9, 10)
    assert np.allclose(maps.probabilities, export(p), atol=1e-6)
    variance = export(np.stack([0 * q, q * (1 - q), 0 * q]))[1]
    assert np.allclose(maps.variance, variance, atol=1e-6)


def test_mean_probabilities_are_brought_back_as_nnunet_exports_its_own(
    make_trainer: MakeTrainer, boxes: Path
) -> None:
    predictor = nnUNetPredictor(device=torch.device("cpu"))
    predictor.initialize_from_trained_model_folder(str(save_model(make_trainer)), (0,))
    rng = np.random.default_rng(0)
    image = rng.normal(size=(1, 8, 9, 10)).astype(np.float32)
    image[:, :2], image[:, :, :, 7:] = 0, 0  # nnU-Net crops them off
    preprocessor = predictor.configuration_manager.preprocessor_class(verbose=False)
    data, _, properties = preprocessor.run_case_npy(
        image, None, {"spacing": [1, 1, 1]}, predictor.plans_manager,
        predictor.configuration_manager, predictor.dataset_json,
    )  # fmt: skip
    assert data.shape == (1, 6, 9, 7)
    p = rng.dirichlet(np.ones(3), data.shape[1:]).transpose(3, 0, 1, 2).astype(np.float32)
    votes = np.zeros_like(p)
    votes[0], votes[1] = 0.75, 0.25
    statistics = torch.from_numpy(np.concatenate([p, votes]))
    maps = make_maps(statistics * SCALE, properties, predictor)
    # The softmax of ln p is p.
    _, exported = convert_predicted_logits_to_segmentation_with_correct_shape(
        torch.from_numpy(np.log(p)), predictor.plans_manager, predictor.configuration_manager,
        predictor.label_manager, properties, return_probabilities=True, num_threads_torch=1,
    )  # fmt: skip
    assert np.allclose(maps.probabilities, exported, atol=1e-6)
    outside = np.ones((8, 9, 10), bool)
    outside[2:, :, :7] = False
    assert not maps.entropy[outside].any()
    assert not maps.variance[outside].any()
    assert np.allclose(maps.variance[~outside], 3 / 16)


def test_what_is_wrong_is_named_before_anything_is_computed(
    make_trainer: MakeTrainer, boxes: Path, tmp_path: Path, capsys: Any
) -> None:
    model = save_model(make_trainer)
    images = write_images(boxes, tmp_path / "in")
    labels, output = tmp_path / "in/labels", tmp_path / "out"
    empty, two_channels, unnamed, partial = (tmp_path / n for n in ("a", "b", "c", "d"))
    for folder in (empty, two_channels, unnamed, partial):
        folder.mkdir()
    source = images / "case_0_0000.nii.gz"
    for name in ("case_0_0000", "case_0_0001"):
        shutil.copy(source, two_channels / f"{name}.nii.gz")
    shutil.copy(source, unnamed / "case_with_a_name.nii.gz")
    shutil.copy(labels / "case_0.nii.gz", partial)
    by_name, halves = ["-d", "990", "-c", "3d_fullres"], "Name the model either by its MODEL_FOLDER"
    for arguments, said in (
        ((images, output, model, "--rate", 1), "--rate 1.0 is not valid"),
        ((images, output, model, "--rate", -0.1), "--rate -0.1 is not valid"),
        ((images, output), halves),
        ((images, output, "-d", 990), halves),
        ((images, output, "-d", 990, model), halves),
        ((tmp_path / "no", output, model), "no is not a folder"),
        ((images, images, model), "it would be overwritten"),
        ((images, labels, model, "--labels", labels), "it would be overwritten"),
        ((images, output, *by_name, "-tr", "Other"), f"There is: {MAPO}__nnUNetPlans__3d_fullres"),
        ((images, output, model), "Fold 1 is not in"),  # nnU-Net's default is all five
        ((images, output, model, "-f", 0, "-chk", "x.pth"), "There is: checkpoint_final.pth"),
        ((empty, output, model, "-f", 0), "has no file that ends in .nii.gz"),
        ((two_channels, output, model, "-f", 0), "2 images of case_0: the model needs one file"),
        ((unnamed, output, model, "-f", 0), "one file for each of its channels (MRI), CASE_0000"),
        ((images, output, model, "-f", 0, "--labels", partial), "There is no case_1.nii.gz in"),
    ):
        assert run(*arguments) == 1
        assert said in capsys.readouterr().err
    assert not [path for path in output.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda truth: truth * 0 + 7, "Unexpected labels found in file"),
        (lambda truth: sitk.Cast(truth, sitk.sitkFloat32) * 0 + 0.9, "Unexpected labels found in"),
        (lambda truth: truth[1:], "Shape mismatch"),
        (with_spacing, "Spacing mismatch"),
    ],
    ids=["label", "fraction", "shape", "spacing"],
)  # fmt: skip
def test_a_ground_truth_that_does_not_fit_is_named_before_anything_is_segmented(
    make_trainer: MakeTrainer,
    boxes: Path,
    tmp_path: Path,
    capsys: Any,
    change: Callable[[sitk.Image], sitk.Image],
    said: str,
) -> None:
    model = save_model(make_trainer)
    images = write_images(boxes, tmp_path / "in")
    path = tmp_path / "in/labels/case_1.nii.gz"
    sitk.WriteImage(change(sitk.ReadImage(path)), path)
    assert run(images, tmp_path / "out", "--labels", path.parent, model=model) == 1
    shown = capsys.readouterr()
    assert said in shown.out
    assert "case_1.nii.gz is no ground truth of" in shown.err
    assert not [file for file in (tmp_path / "out").rglob("*") if file.is_file()]


def test_a_checkpoint_without_the_state_of_the_training_is_enough_and_another_is_named(
    make_trainer: MakeTrainer, boxes: Path, tmp_path: Path, capsys: Any
) -> None:
    model = save_model(make_trainer)
    images = write_images(boxes, tmp_path / "in", number=1)
    final = model / "fold_0/checkpoint_final.pth"
    content = torch.load(final, weights_only=False)
    kept = ("network_weights", "trainer_name", "init_args", "inference_allowed_mirroring_axes")
    torch.save({key: content[key] for key in kept}, final)
    assert run(images, tmp_path / "out", "--samples", 2, model=model) == 0
    torch.save({"network_weights": {}}, final)
    assert run(images, tmp_path / "out", "--samples", 2, model=model) == 1
    error = capsys.readouterr().err
    assert "checkpoint_final.pth is damaged" in error
    assert "Name another checkpoint with -chk." in error
    assert "Delete" not in error


def test_the_second_stage_of_a_cascade_is_refused(
    make_trainer: MakeTrainer, boxes: Path, tmp_path: Path
) -> None:
    images = write_images(boxes, tmp_path / "in", number=1)
    predictor = nnUNetPredictor(device=torch.device("cpu"))
    predictor.initialize_from_trained_model_folder(str(save_model(make_trainer)), (0,))
    predictor.configuration_manager.configuration["previous_stage"] = "3d_lowres"
    with pytest.raises(CommandError, match="Second stages of cascades have no maps"):
        find_cases(Namespace(input=images, labels=None), predictor)
