from __future__ import annotations

import csv
import json
import math
import multiprocessing
import multiprocessing.dummy
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder, load_summary_json
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from scipy.ndimage import label as find_components
from skimage import io

from nnunetv2_mapo.cli import main
from nnunetv2_mapo.tools.evaluate import (
    Evaluation,
    merge_evaluations,
    read_evaluation,
    run,
    tabulate_values,
    write_evaluation,
)
from nnunetv2_mapo.tools.evaluate.case_metrics import (
    EvaluationError,
    Segmentation,
    Task,
    find_grid,
)
from nnunetv2_mapo.tools.evaluate.run import evaluate_folder
from nnunetv2_mapo.tools.metrics import BASIC, METRICS

CLASSES = {
    "file_ending": ".nii.gz",
    "labels": {"background": 0, "organ": 1, "lesion": 2, "ignore": 3},
}
REGIONS = {
    "file_ending": ".nii.gz",
    "labels": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3},
    "regions_class_order": [1, 2],
}
OVERLAP = ("Dice", "IoU")


def write_volume(path, labels, spacing=(3.0, 1.0, 0.5)):
    image = SimpleITK.GetImageFromArray(labels.astype(np.uint8))
    image.SetSpacing(spacing[::-1][: labels.ndim] if labels.ndim == 3 else spacing[:0:-1])
    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(image, str(path))


def write_cases(folder, num_cases=3, first=0):
    """Random ground truth in `gt`, random predictions beside it in `predictions`."""
    for number in range(first, first + num_cases):
        rng = np.random.default_rng(number)
        for part, num_labels in (("gt", 4), ("predictions", 3)):
            labels = rng.integers(0, num_labels, (4, 6, 5))
            labels[rng.random(labels.shape) < 0.5] = 0
            write_volume(folder / part / f"case_{number}.nii.gz", labels)
    return folder / "predictions", folder / "gt"


def evaluate(predictions, references, dataset_json=CLASSES, **settings):
    settings = {"tolerance_mm": 1.0, "num_processes": 1, **settings}
    return evaluate_folder(predictions, references, dataset_json, **settings)


def as_text(values):
    return json.dumps(values)  # NaN is not equal to itself, but its text is


def value_of(evaluation, case, metric, key="1"):
    return evaluation.values.loc[(case, key), metric]


def make_evaluation(**dice_of_case):
    values = {
        case: {"1": {**dict.fromkeys(METRICS, 0.0), "Dice": dice}}
        for case, dice in dice_of_case.items()
    }
    return Evaluation(tabulate_values(values), {"unit": "mm", "volume_unit": "ml"})


# Against nnU-Net ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset_json", "classes"),
    [(CLASSES, [1, 2]), (REGIONS, [(1, 2), 2])],
    ids=["labels", "regions"],
)
def test_overlap_and_its_means_are_nnunets_to_the_last_bit(
    dataset_json, classes, tmp_path, monkeypatch
):
    predictions, references = write_cases(tmp_path)
    write_volume(predictions / "case_9.nii.gz", np.zeros((4, 6, 5)))  # both empty
    write_volume(references / "case_9.nii.gz", np.zeros((4, 6, 5)))
    found = evaluate(predictions, references, dataset_json)
    write_evaluation(found, tmp_path)
    # Threads: each of nnU-Net's processes would import everything anew.
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: multiprocessing.dummy)
    compute_metrics_on_folder(
        str(references), str(predictions), str(tmp_path / "summary.json"), SimpleITKIO(),
        ".nii.gz", classes, ignore_label=3, num_processes=1,
    )  # fmt: skip
    theirs, ours = (load_summary_json(str(tmp_path / f"{n}.json")) for n in ("summary", "metrics"))
    assert len(ours["metric_per_case"]) == 4
    for their, our in zip(theirs["metric_per_case"], ours["metric_per_case"], strict=True):
        assert their["prediction_file"].endswith(f"{our['case']}.nii.gz")
        assert list(our["metrics"]) == list(their["metrics"]) == classes
        for label in classes:
            for name in OVERLAP:
                assert as_text(our["metrics"][label][name]) == as_text(
                    their["metrics"][label][name]
                )
    for name in OVERLAP:
        assert ours["foreground_mean"][name] == theirs["foreground_mean"][name]
        for label in classes:
            assert ours["mean"][label][name] == theirs["mean"][label][name]


def test_regions_overlap_and_have_names(tmp_path):
    # Reference: 2 voxels of 1 and 2 of 2; prediction: only the 2 of 2.
    reference = np.array([0, 1, 1, 2, 2, 0, 0, 0]).reshape(2, 2, 2)
    write_volume(tmp_path / "gt" / "a.nii.gz", reference)
    write_volume(tmp_path / "predictions" / "a.nii.gz", np.where(reference == 1, 0, reference))
    found = evaluate(tmp_path / "predictions", tmp_path / "gt", REGIONS)
    assert found.class_names == {"(1, 2)": "whole", "2": "core"}
    assert value_of(found, "a", "Dice", "(1, 2)") == pytest.approx(2 * 2 / (2 + 4))
    assert value_of(found, "a", "Dice", "2") == 1


# Geometry -----------------------------------------------------------------------------------------


def test_distances_are_in_mm_and_volumes_in_ml_of_the_files_spacing(tmp_path):
    reference, prediction = np.zeros((2, 5, 6, 7))
    reference[1, 1, 1] = prediction[2, 1, 1] = prediction[2, 1, 2] = 1
    write_volume(tmp_path / "gt" / "a.nii.gz", reference)
    write_volume(tmp_path / "predictions" / "a.nii.gz", prediction)
    found = evaluate(tmp_path / "predictions", tmp_path / "gt", num_processes=1)
    metrics = found.values.loc[("a", "1")]
    # z step 3 mm, x step 0.5 mm; one voxel has 3 * 1 * 0.5 mm³.
    assert metrics["ASD"] == pytest.approx((3 + 3 + math.hypot(3, 0.5)) / 3)
    assert metrics["volume_error"] == pytest.approx(0.0015)
    assert metrics["relative_volume_error"] == 1
    assert found.provenance["unit"] == "mm"
    assert found.provenance["volume_unit"] == "ml"


def test_images_without_spacing_are_measured_in_pixels(tmp_path):
    reference, prediction = np.zeros((2, 6, 6), dtype=np.uint8)
    reference[1, 1] = prediction[1, 3] = prediction[1, 4] = 1
    for part, labels in (("gt", reference), ("predictions", prediction)):
        (tmp_path / part).mkdir()
        io.imsave(tmp_path / part / "a.png", labels, check_contrast=False)
    found = evaluate(tmp_path / "predictions", tmp_path / "gt", {**CLASSES, "file_ending": ".png"})
    metrics = found.values.loc[("a", "1")]
    assert metrics["ASD"] == pytest.approx((2 + 2 + 3) / 3)
    assert metrics["volume_error"] == 1
    assert found.provenance["unit"] == found.provenance["volume_unit"] == "px"
    assert found.provenance["tolerance"] == "1.0 px"


def test_a_2d_file_has_its_spacing_and_counts_as_1_mm_thick(tmp_path):
    reference, prediction = np.zeros((2, 6, 6))
    reference[1, 1] = prediction[2, 1] = prediction[2, 2] = 1
    for part, labels in (("gt", reference), ("predictions", prediction)):
        write_volume(tmp_path / part / "a.nii.gz", labels, spacing=(0, 2.0, 1.5))
    metrics = evaluate(tmp_path / "predictions", tmp_path / "gt").values.loc[("a", "1")]
    assert metrics["HD95"] == pytest.approx(2 + 0.95 * 0.5)  # of distances 2 and 2.5
    assert metrics["volume_error"] == pytest.approx(2.0 * 1.5 * 1.0 / 1000)


def test_a_3d_tiff_without_spacing_takes_that_of_its_prediction(tmp_path):
    reference, prediction = np.zeros((2, 5, 6, 7))
    reference[1, 1, 1] = prediction[2, 1, 1] = 1
    for part, labels in (("gt", reference), ("predictions", prediction)):
        (tmp_path / part).mkdir()
        properties = {"spacing": (3.0, 1.0, 0.5)}
        Tiff3DIO().write_seg(labels, str(tmp_path / part / "a.tif"), properties)
    (tmp_path / "gt" / "a.json").unlink()  # as nnU-Net's preprocessing leaves it
    tiff = {**CLASSES, "file_ending": ".tif"}
    found = evaluate(tmp_path / "predictions", tmp_path / "gt", tiff)
    assert value_of(found, "a", "ASD") == 3
    (tmp_path / "predictions" / "a.json").rename(tmp_path / "gt" / "a.json")
    with pytest.raises(EvaluationError, match=r"has the spacing \(1.0, 1.0, 1.0\).* with --labels"):
        evaluate(tmp_path / "predictions", tmp_path / "gt", tiff)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_single_slice_is_2d_but_keeps_its_thickness(axis):
    shape = tuple(1 if each == axis else 4 for each in range(3))
    spacing = (5.0, 1.0, 2.0)
    found, grid = find_grid(Segmentation(np.zeros(shape), spacing), in_pixels=False)
    assert found == (4, 4)
    assert grid.spacing == tuple(step for each, step in enumerate(spacing) if each != axis)
    assert grid.voxel_volume == pytest.approx(0.01)


# Processes ----------------------------------------------------------------------------------------


def test_worker_processes_find_the_same(tmp_path, capfd):
    predictions, references = write_cases(tmp_path)
    alone = evaluate(predictions, references)
    together = evaluate(predictions, references, num_processes=2)
    assert together.values.equals(alone.values)
    assert "3/3" in capfd.readouterr().err


class DyingReader(SimpleITKIO):
    def read_seg(self, seg_fname):
        os._exit(9)


def test_a_worker_that_is_killed_does_not_hang_the_evaluation(tmp_path, monkeypatch):
    predictions, references = write_cases(tmp_path, num_cases=2)
    task = Task(DyingReader, (1,), None, 1.0)
    monkeypatch.setattr(run, "make_task", lambda *_: task)
    with pytest.raises(EvaluationError, match=r"lack of memory: use fewer with -np"):
        evaluate(predictions, references, num_processes=2)


# What does not fit --------------------------------------------------------------------------------


def test_a_prediction_without_ground_truth_is_named(tmp_path):
    predictions, references = write_cases(tmp_path)
    (references / "case_1.nii.gz").unlink()
    with pytest.raises(EvaluationError, match=r"No ground truth in .*gt for case_1 of"):
        evaluate(predictions, references, allow_missing=True)


def test_ground_truth_without_prediction_must_be_allowed(tmp_path):
    predictions, references = write_cases(tmp_path)
    (predictions / "case_1.nii.gz").unlink()
    with pytest.raises(EvaluationError, match=r"No prediction in .* for case_1\..*--chill"):
        evaluate(predictions, references)
    found = evaluate(predictions, references, allow_missing=True)
    assert found.cases == ["case_0", "case_2"]


def test_a_folder_without_predictions_names_the_ending(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(EvaluationError, match=r"has no file that ends in .nii.gz"):
        evaluate(tmp_path / "empty", tmp_path / "empty")


def test_different_shapes_and_spacings_name_both_files(tmp_path):
    predictions, references = write_cases(tmp_path, num_cases=1)
    write_volume(predictions / "case_0.nii.gz", np.zeros((4, 6, 7)))
    pattern = r"predictions/case_0.* has the shape \(4, 6, 7\).*gt/case_0.* has \(4, 6, 5\)"
    with pytest.raises(EvaluationError, match=pattern):
        evaluate(predictions, references)
    write_volume(predictions / "case_0.nii.gz", np.zeros((4, 6, 5)), spacing=(1.0, 1.0, 1.0))
    with pytest.raises(EvaluationError, match=r"has the spacing \(1.0, 1.0, 1.0\).*3.0, 1.0, 0.5"):
        evaluate(predictions, references)


@pytest.mark.parametrize("part", ["gt", "predictions"])
def test_an_unreadable_file_is_named(part, tmp_path, capfd):
    predictions, references = write_cases(tmp_path, num_cases=2)
    (tmp_path / part / "case_0.nii.gz").write_bytes(b"damaged")
    with pytest.raises(EvaluationError, match=rf"{part}/case_0.nii.gz cannot be read"):
        evaluate(predictions, references)
    capfd.readouterr()


@pytest.mark.parametrize("tolerance", [-1.0, math.nan, math.inf])
def test_a_tolerance_that_is_no_distance_is_refused(tolerance, tmp_path):
    with pytest.raises(EvaluationError, match="must be a number of mm, 0 or more"):
        evaluate(tmp_path, tmp_path, tolerance_mm=tolerance)


def test_labels_that_nnunet_refuses_are_refused(tmp_path):
    predictions, references = write_cases(tmp_path, num_cases=1)
    with pytest.raises(EvaluationError, match="no usable labels"):
        evaluate(predictions, references, {**CLASSES, "labels": {"organ": 1}})


# Files --------------------------------------------------------------------------------------------


def test_written_metrics_are_read_back(tmp_path):
    predictions, references = write_cases(tmp_path, num_cases=2)
    found = evaluate(predictions, references)
    write_evaluation(found, tmp_path / "new" / "folder")
    for path in (tmp_path / "new" / "folder", tmp_path / "new" / "folder" / "metrics.json"):
        read = read_evaluation(path)
        assert read.values.equals(found.values)
        assert (read.provenance, read.class_names) == (found.provenance, found.class_names)
    assert found.provenance["implementation"].startswith("MONAI ")


def test_csv_has_a_row_for_each_case_and_class(tmp_path):
    predictions, references = write_cases(tmp_path, num_cases=2)
    found = evaluate(predictions, references)
    write_evaluation(found, tmp_path)
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = [(row["case"], row["class"], row["class name"]) for row in rows]
    assert names == [(f"case_{n}", key, name) for n in (0, 1) for key, name in
                     (("1", "organ"), ("2", "lesion"))]  # fmt: skip
    assert float(rows[3]["ASD [mm]"]) == value_of(found, "case_1", "ASD", "2")
    assert float(rows[0]["volume_error [ml]"]) == value_of(found, "case_0", "volume_error")
    assert {row["implementation"] for row in rows} == {found.provenance["implementation"]}
    assert {row["tolerance"] for row in rows} == {"1.0 mm"}


@pytest.mark.parametrize(
    "entries",
    [
        [{}],
        [],
        [{"case": "a", "metrics": {}}],
        [{"case": "a", "metrics": [1]}],
        [{"case": case, "metrics": {label: {"Dice": 1}}} for case, label in ("a1", "b2")],
    ],
)
def test_entries_that_evaluate_does_not_write_are_refused(entries, tmp_path):
    content = {"metric_per_case": entries, "provenance": {}, "class_names": {}}
    (tmp_path / "metrics.json").write_text(json.dumps(content))
    with pytest.raises(
        EvaluationError, match=r"metrics.json cannot be read .* nnUNetv2_mapo evaluate"
    ):
        read_evaluation(tmp_path)


@pytest.mark.parametrize("content", ["", "[]"])
def test_another_json_file_is_refused(content, tmp_path):
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(
        EvaluationError, match=r"metrics.json cannot be read .* nnUNetv2_mapo evaluate"
    ):
        read_evaluation(tmp_path)


def test_folds_are_merged_and_a_case_in_two_is_refused():
    folds = {"fold_0": make_evaluation(b=0.5), "fold_1": make_evaluation(c=1.0, a=0.0)}
    merged = merge_evaluations(folds)
    assert merged.cases == ["b", "c", "a"]
    assert merged.foreground_mean()["Dice"] == 0.5
    with pytest.raises(EvaluationError, match="Case b is in both fold_0 and fold_2"):
        merge_evaluations({**folds, "fold_2": make_evaluation(b=0.1)})


def test_nan_is_left_out_of_means_but_a_class_without_values_is_nan():
    assert make_evaluation(a=math.nan, b=0.5).foreground_mean()["Dice"] == 0.5
    assert math.isnan(make_evaluation(a=math.nan).foreground_mean()["Dice"])


# Command ------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A model folder with two folds of two cases, and the ground truth of all four."""
    folder = tmp_path / "results" / "Dataset001_Test" / "nnUNetTrainer__nnUNetPlans__2d"
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    _, references = write_cases(tmp_path, num_cases=4)
    truth = tmp_path / "preprocessed" / "Dataset001_Test" / "gt_segmentations"
    truth.parent.mkdir(parents=True)
    references.rename(truth)
    for fold in (0, 1):
        validation = folder / f"fold_{fold}" / "validation"
        validation.mkdir(parents=True)
        names = [f"case_{number}.nii.gz" for number in (2 * fold, 2 * fold + 1)]
        metrics = {"1": {"Dice": 0.5, "IoU": 0.4}}
        cases = [{"prediction_file": f"/there/{name}", "metrics": metrics} for name in names]
        (validation / "summary.json").write_text(json.dumps({"metric_per_case": cases}))
        for name in names:
            (tmp_path / "predictions" / name).rename(validation / name)
    (folder / "dataset.json").write_text(json.dumps(CLASSES))
    return folder


def test_a_model_folder_is_evaluated_by_fold_and_as_a_whole(model, capsys):
    assert main(["evaluate", str(model), "-np", "1"]) == 0
    table = capsys.readouterr().out
    assert table.count("Surfaces: MONAI ") == 3  # with each table
    for text in ( "ASD [mm]", "fold_1\n", "fold_0, fold_1\nmean of 4 cases",
                 "1 organ", "2 lesion", "foreground mean"):  # fmt: skip
        assert text in table
    folds = [read_evaluation(model / f"fold_{fold}" / "validation") for fold in (0, 1)]
    overall = read_evaluation(model)
    assert overall.values.equals(pd.concat([fold.values for fold in folds]))
    assert f"{overall.foreground_mean()['HD95']:.4f}" in table


def test_metrics_go_elsewhere_if_asked(model, tmp_path):
    before = set(model.rglob("*"))
    assert main(["evaluate", str(model), "-np", "1", "-o", str(tmp_path / "out")]) == 0
    assert set(model.rglob("*")) == before
    written = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*")}
    assert written == {
        str(Path(place, f"metrics.{kind}"))
        for place in ("", "fold_0/validation", "fold_1/validation")
        for kind in ("json", "csv")
    }


def test_the_fold_of_all_cases_is_evaluated_but_not_part_of_the_whole(model, capsys):
    (model / "fold_1").rename(model / "fold_all")
    assert main(["evaluate", str(model), "-np", "1"]) == 0
    assert "metrics.csv in" in capsys.readouterr().out
    assert read_evaluation(model).cases == ["case_0", "case_1"]
    assert read_evaluation(model / "fold_all" / "validation").cases == ["case_2", "case_3"]


def test_a_fold_without_finished_validation_is_left_out_only_if_asked(model, capsys):
    (model / "fold_1" / "validation" / "summary.json").unlink()
    (model / "fold_1" / "checkpoint_latest.pth").touch()
    assert main(["evaluate", str(model), "-np", "1"]) == 1
    assert "fold_1 of" in (error := capsys.readouterr().err)
    dataset, model_name = model.parent.name, model.name.split("__")
    command = f"  nnUNetv2_train {dataset} {model_name[2]} 1 -tr {model_name[0]}"
    assert f"{command} --c\n" in error  # nnU-Net refuses --val before the training is finished
    (model / "fold_1" / "checkpoint_final.pth").touch()
    (model / "fold_0" / "debug.json").write_text("no JSON")
    (model / "fold_1" / "debug.json").write_text('{"device": "cpu"}')
    assert main(["evaluate", str(model), "-np", "1"]) == 1
    assert f"{command} -device cpu --val\n" in capsys.readouterr().err
    assert main(["evaluate", str(model), "-np", "1", "--chill"]) == 0
    assert capsys.readouterr().out.count("\nSurfaces: ") == 1  # the fold is the whole, too
    assert read_evaluation(model).cases == ["case_0", "case_1"]


def test_a_fold_whose_prediction_is_missing_is_no_mean_over_fewer_cases(model, capsys):
    (model / "fold_1" / "validation" / "case_3.nii.gz").unlink()
    assert main(["evaluate", str(model), "-np", "1"]) == 1
    error = capsys.readouterr().err
    assert "No prediction in" in error
    assert "fold_1/validation for case_3. " in error
    assert not (model / "metrics.json").exists()
    assert main(["evaluate", str(model), "-np", "1", "--chill"]) == 0
    assert read_evaluation(model).cases == ["case_0", "case_1", "case_2"]


def test_the_data_set_of_a_folder_with_dots_is_that_of_the_folder_it_means(model, monkeypatch):
    monkeypatch.chdir(model / "fold_0")
    assert main(["evaluate", "..", "-np", "1"]) == 0
    assert len(read_evaluation(model).cases) == 4


def test_a_folder_of_predictions_takes_the_dataset_json_in_it(tmp_path, capsys):
    predictions, references = write_cases(tmp_path)
    write_volume(predictions / "case_0.nii.gz", np.zeros((4, 6, 5)))
    (predictions / "dataset.json").write_text(json.dumps(CLASSES))
    arguments = ["evaluate", str(predictions), "--labels", str(references), "-np", "1"]
    assert main([*arguments, "--tolerance", "2"]) == 0
    printed = capsys.readouterr().out
    assert "NSD within 2.0 mm" in printed
    assert "One mask is empty and the other is not 2 times" in printed
    assert read_evaluation(predictions).provenance["tolerance"] == "2.0 mm"


def test_what_is_missing_is_named(tmp_path, model, capsys, monkeypatch):
    predictions = model / "fold_0" / "validation"
    for arguments, message in (
        ([str(tmp_path / "nowhere")], "nowhere is not a folder"),
        ([str(predictions)], "Give the folder of the ground truth with --labels"),
        ([str(predictions), "--labels", str(tmp_path / "no")], "no is not a folder"),
        ([str(predictions), "--labels", str(predictions)], "Give the data set's with -djfile"),
        ([str(model), "-np", "1", "--tolerance", "-1"], "must be a number of mm"),
        ([str(model), "-np", "1", "-o", str(model / "dataset.json")], "another folder with -o"),
    ):
        assert main(["evaluate", *arguments]) == 1
        assert message in capsys.readouterr().err
    (tmp_path / "other.json").write_text("{}")
    djfile = ["-djfile", str(tmp_path / "other.json")]
    assert main(["evaluate", str(model), *djfile]) == 1
    assert (
        "is no dataset.json of nnU-Net (it has no labels and file_ending)"
        in capsys.readouterr().err
    )
    monkeypatch.delenv("nnUNet_preprocessed")
    assert main(["evaluate", str(model)]) == 1
    assert "no ground truth in $nnUNet_preprocessed" in capsys.readouterr().err


def test_lesions_and_cldice_come_where_they_are_asked_for(tmp_path, capsys):
    predictions, references = write_cases(tmp_path, num_cases=1)
    (predictions / "dataset.json").write_text(json.dumps(CLASSES))
    command = ["evaluate", str(predictions), "--labels", str(references), "-np", "1"]
    assert main(command) == 0
    assert [*read_evaluation(predictions).values] == BASIC
    assert "clDice" not in read_evaluation(predictions).provenance
    assert main([*command, "--lesions", "--cldice"]) == 0
    found = read_evaluation(predictions)
    assert [*found.values] == list(METRICS)
    assert found.provenance["lesion_F1"] == METRICS["lesion_F1"].definition
    assert "false_positive_volume [ml]" in capsys.readouterr().out
    reference = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(references / "case_0.nii.gz"))
    predicted = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(predictions / "case_0.nii.gz"))
    ours, num_ours = find_components((predicted == 1) & (reference != 3), np.ones((3, 3, 3)))
    false = [n for n in range(1, num_ours + 1) if not (reference[ours == n] == 1).any()]
    volume_ml = np.isin(ours, false).sum() * 3.0 * 1.0 * 0.5 / 1000
    assert value_of(found, "case_0", "false_positive_volume") == pytest.approx(volume_ml)
