"""`nnUNetv2_mapo compare` on folders as nnU-Net and `nnUNetv2_mapo evaluate` leave them."""

from __future__ import annotations

import io
import json
import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pytest
from metric_files import HIGHER, RISING, Dice, write_metrics, write_training

from nnunetv2_mapo.cli import main
from nnunetv2_mapo.tools.compare import name_methods
from nnunetv2_mapo.tools.compare.statistics import score_cases
from nnunetv2_mapo.tools.evaluate import read_evaluation, tabulate_values
from nnunetv2_mapo.tools.metrics import METRICS


def write_summary(folder: Path, dice: Dice, label: str = "1") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    entries = [
        {
            "metrics": {label: {"Dice": value, "IoU": value / 2, "TP": 1}},
            "prediction_file": f"/elsewhere/{case}.nii.gz",
            "reference_file": f"/elsewhere/{case}.nii.gz",
        }
        for case, value in dice.items()
    ]
    (folder / "summary.json").write_text(json.dumps({"metric_per_case": entries}))


def make_model(tmp_path: Path, trainer: str, folds: Mapping[int | str, Dice]) -> str:
    model = tmp_path / f"{trainer}__nnUNetPlans__2d"
    for fold, dice in folds.items():
        write_summary(model / f"fold_{fold}" / "validation", dice)
    return str(model)


def read_row(printed: str, metric: str) -> dict[str, str]:
    """Cells of the row of the first printed details by the head of their column."""
    details = printed.split("\n\n")[3]
    head, _, *rows = details.splitlines()[1:]
    [row] = [row for row in rows if row.startswith(metric)]
    cells, heads = (re.split(r"\s{2,}", line.strip()) for line in (row, head))
    return dict(zip(heads, cells, strict=True))


def test_models_are_compared_by_nnunets_summary_and_the_better_command_is_named(tmp_path, capsys):
    models = [make_model(tmp_path, "A", {0: RISING}), make_model(tmp_path, "B", {0: HIGHER})]
    assert main(["compare", *models, "--details"]) == 0
    printed = capsys.readouterr().out
    assert "A hint, of few cases: B is better than A: of 8 cases, 8 gain" in printed
    # Eight of eight are better: p = 2 / 2**8; IoU is the only other test.
    for metric in ("Dice", "IoU"):
        row = read_row(printed, metric)
        assert (row["p"], row["corrected p"]) == ("0.0078", "0.0078")
        assert (row["wins"], row["ties"], row["losses"]) == ("8", "0", "0")
    assert read_row(printed, "Dice")["mean"].startswith("+0.05")
    assert "Final validation of fold 0." in printed
    assert "for all metrics, run nnUNetv2_mapo evaluate" in printed


def test_metrics_json_is_preferred_and_all_its_metrics_are_compared(tmp_path, capsys):
    for name, dice in {"A": RISING, "B": HIGHER}.items():
        write_metrics(tmp_path / name, dice)
    assert main(["compare", str(tmp_path / "A"), str(tmp_path / "B"), "--details"]) == 0
    printed = capsys.readouterr().out
    for metric in ("Dice", "IoU", "ASD [mm]", "HD95 [mm]", "NSD", "absolute volume_error [ml]"):
        assert f"Scores, {metric} " in printed
    assert "MONAI 1.5; NSD within 1 mm" in printed
    assert "nnUNetv2_mapo evaluate" not in printed


def test_one_folder_without_metrics_json_makes_it_nnunets_metrics(tmp_path, capsys):
    write_metrics(tmp_path / "A", RISING)
    write_summary(tmp_path / "A", RISING)
    write_summary(tmp_path / "B", HIGHER)
    assert main(["compare", str(tmp_path / "A"), str(tmp_path / "B"), "--details"]) == 0
    printed = capsys.readouterr().out
    assert "ASD" not in printed
    assert "for all metrics, run nnUNetv2_mapo evaluate" in printed


def test_files_hold_every_case_a_figure_and_the_numbers(tmp_path):
    models = [
        make_model(tmp_path, name, {0: {**dice, "nothing": math.nan}})
        for name, dice in {"A": RISING, "B": HIGHER, "C": RISING}.items()
    ]
    assert main(["compare", *models, "-o", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert page.count("<svg") == 4  # two metrics, two methods
    assert "C minus A, each case" in page
    assert "hint: better" in page
    assert re.search(r"nothing</td>\s*<td[^>]*>–</td><td[^>]*>–</td>", page)
    assert "better in 8" in page
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert content["meaning"].startswith("Too few to conclude anything: 0 of 8 cases differ")
    assert [(row["method"], row["is_primary"]) for row in content["answer"]] == [
        ("C", True), ("B", False)
    ]  # fmt: skip
    [dice] = [
        row for row in content["differences"] if (row["metric"], row["method"]) == ("Dice", "B")
    ]
    assert (dice["verdict"], dice["wins"]) == ("better", 8)
    assert [row["cases"] for row in content["scores"]] == [8] * 6
    nothing = [row for row in content["cases"] if row["case"] == "nothing"]
    assert nothing[0] == {"metric": "Dice", "case": "nothing", "A": None, "B": None, "C": None}
    assert content["costs"][0] == {
        "method": "A", "fold": "0", "epochs": None, "training_s": None, "mining_s": None
    }  # fmt: skip


def test_costs_are_those_of_all_folds(tmp_path, capsys):
    models = [
        make_model(tmp_path, name, {0: {"a": 0.5}, 1: {"b": 0.6}}) for name in ("A", "B_MAPO")
    ]
    for fold in (0, 1):
        write_training(Path(models[0]) / f"fold_{fold}")
    assert main(["compare", *models, "--details"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^A +12 +8.0 min +0 s$", printed, re.MULTILINE)  # 6 of 40 s in each fold
    assert re.search(r"^B_MAPO +unknown +unknown +unknown$", printed, re.MULTILINE)


def test_copies_are_equal_in_every_case(tmp_path, capsys):
    models = [make_model(tmp_path, name, {0: RISING}) for name in ("A", "B")]
    assert main(["compare", *models, "--details"]) == 0
    row = read_row(capsys.readouterr().out, "Dice")
    assert row["verdict"] == "not shown"
    assert (row["mean"], row["ties"]) == ("+0.0000", "8")


def test_one_case_concludes_nothing(tmp_path, capsys):
    models = [make_model(tmp_path, name, {0: {"a": 0.5}}) for name in ("A", "B")]
    assert main(["compare", *models, "-o", str(tmp_path / "out")]) == 0
    assert "Too few to conclude anything: 0 of 1 case differ" in capsys.readouterr().out
    json.loads((tmp_path / "out" / "comparison.json").read_text())


def test_other_folds_are_refused_with_the_common_ones(tmp_path, capsys):
    first = make_model(tmp_path, "A", {0: RISING, 1: {"x": 0.5}})
    second = make_model(tmp_path, "B", {0: HIGHER})
    assert main(["compare", first, second]) == 1
    assert f"{first}: 0, 1; {second}: 0. Compare with -f 0." in capsys.readouterr().err
    assert main(["compare", first, second, "-f", "0", "1"]) == 1
    message = f"Fold 1 of {second} has no finished validation; finished: 0."
    assert message in capsys.readouterr().err
    assert main(["compare", first, second, "-f", "0"]) == 0


def test_fold_all_is_compared_only_by_those_who_ask_for_it(tmp_path, capsys):
    models = [make_model(tmp_path, name, {0: RISING, "all": {"x": 0.5}}) for name in ("A", "B")]
    assert main(["compare", *models, "--details"]) == 0
    assert "Final validation of fold 0." in capsys.readouterr().out
    assert main(["compare", *models, "-f", "all", "--details"]) == 0
    assert "Final validation of fold all." in capsys.readouterr().out


def test_other_cases_are_refused_with_the_list(tmp_path, capsys):
    write_summary(tmp_path / "A", RISING)
    write_summary(tmp_path / "B", {**RISING, "case_9": 1.0})
    assert main(["compare", str(tmp_path / "A"), str(tmp_path / "B")]) == 1
    assert "do not have the same cases: A lacks case_9" in capsys.readouterr().err


def test_other_classes_are_refused(tmp_path, capsys):
    write_summary(tmp_path / "A", RISING)
    write_summary(tmp_path / "B", RISING, label="2")
    assert main(["compare", str(tmp_path / "A"), str(tmp_path / "B")]) == 1
    assert "do not have the same classes: A lacks 2; B lacks 1" in capsys.readouterr().err


def test_other_tolerances_are_refused(tmp_path, capsys):
    write_metrics(tmp_path / "A", RISING)
    write_metrics(tmp_path / "B", HIGHER, tolerance="2 mm")
    assert main(["compare", str(tmp_path / "A"), str(tmp_path / "B")]) == 1
    error = capsys.readouterr().err
    assert "were not evaluated in the same way" in error
    assert re.search(r"tolerance +1 mm +2 mm", error)


def test_folds_that_were_evaluated_in_different_ways_are_refused(tmp_path, capsys):
    for name in ("A", "B"):
        write_metrics(tmp_path / name / "fold_0" / "validation", {"a": 0.5})
        write_metrics(tmp_path / name / "fold_1" / "validation", {"b": 0.5}, tolerance="2 mm")
    assert main(["compare", str(tmp_path / "A"), str(tmp_path / "B")]) == 1
    assert re.search(r"fold 0 +fold 1\ntolerance +1 mm +2 mm", capsys.readouterr().err)


def test_metrics_that_lack_a_case_of_the_summary_are_refused(tmp_path, capsys):
    for name in ("A", "B"):
        write_metrics(tmp_path / name, RISING)
    write_summary(tmp_path / "B", {**RISING, "case_8": 1.0})
    assert main(["compare", str(tmp_path / "A"), str(tmp_path / "B")]) == 1
    assert "Dice of case_8 is nan, but 1.0000 there" in capsys.readouterr().err


def test_metrics_that_were_written_elsewhere_are_found(tmp_path, capsys):
    for name, dice in {"A": RISING, "B": HIGHER}.items():
        write_metrics(tmp_path / name, dice)
        write_metrics(tmp_path / name / "fold_0", dice)
    assert main(["compare", str(tmp_path / "A"), str(tmp_path / "B"), "--details"]) == 0
    printed = capsys.readouterr().out
    assert "Final validation of fold 0." in printed
    assert read_row(printed, "Dice")["wins"] == "8"


def test_without_a_common_file_the_command_that_makes_it_is_named(tmp_path, capsys):
    write_metrics(tmp_path / "A", RISING)
    second = make_model(tmp_path, "B", {0: HIGHER})
    assert main(["compare", str(tmp_path / "A"), second]) == 1
    error = capsys.readouterr().err
    assert f"{tmp_path / 'A'} has only metrics.json" in error
    assert error.endswith(f"nnUNetv2_mapo evaluate for {second}/fold_0/validation.\n")


def test_other_versions_of_packages_do_not_matter(tmp_path):
    write_metrics(tmp_path / "A", RISING, versions="numpy 1.26")
    write_metrics(tmp_path / "B", HIGHER, versions="numpy 2.0")
    assert main(["compare", str(tmp_path / "A"), str(tmp_path / "B")]) == 0


def test_metrics_of_segmentations_that_were_made_anew_are_refused(tmp_path, capsys):
    for name in ("A", "B"):
        write_metrics(tmp_path / name, RISING)
    write_summary(tmp_path / "B", HIGHER)
    assert main(["compare", str(tmp_path / "A"), str(tmp_path / "B")]) == 1
    error = capsys.readouterr().err
    assert (
        "metrics.json is not of the segmentations that summary.json is of: Dice of case_" in error
    )
    assert "evaluate again" in error


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["A"], "needs two folders or more"),
        (["A", "nowhere"], "There is no folder"),
        (["A", "A"], "A folder is given twice"),
        (["A", "empty/../A"], "A folder is given twice"),
        (["A", "nothing"], "It has no case"),
        (["A", "mixed"], "its cases do not have the same classes"),
        (["A", "empty"], "has neither metrics.json nor summary.json"),
        (["A", "damaged"], "cannot be read as an evaluation"),
    ],
)
def test_folders_that_cannot_be_compared_are_explained(tmp_path, capsys, names, expected):
    write_summary(tmp_path / "A", RISING)
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    write_summary(tmp_path / "nothing", {})
    write_summary(tmp_path / "mixed", {"a": 0.5})
    content = json.loads((tmp_path / "mixed" / "summary.json").read_text())
    other = {"prediction_file": "b.png", "metrics": {"2": {"Dice": 1, "IoU": 1}}}
    content["metric_per_case"].append(other)
    (tmp_path / "mixed" / "summary.json").write_text(json.dumps(content))
    (tmp_path / "damaged" / "summary.json").write_text('{"metric_per_case": [1]}')
    assert main(["compare", *(str(tmp_path / name) for name in names)]) == 1
    assert expected in capsys.readouterr().err


def test_output_in_an_old_code_page_has_no_arrows(tmp_path, monkeypatch):
    for name in ("A", "B"):
        write_summary(tmp_path / name, RISING)
    stream = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(["compare", str(tmp_path / "A"), str(tmp_path / "B")]) == 0
    stream.flush()
    assert "Dice ?" in stream.buffer.getvalue().decode("cp1252")


def test_files_are_written_even_if_nobody_reads_what_is_printed(tmp_path, monkeypatch):
    class ClosedPipe(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    for name in ("A", "B"):
        write_summary(tmp_path / name, RISING)
    monkeypatch.setattr(sys, "stdout", ClosedPipe())
    with pytest.raises(BrokenPipeError):
        main(["compare", str(tmp_path / "A"), str(tmp_path / "B"), "-o", str(tmp_path / "out")])
    assert (tmp_path / "out" / "comparison.json").is_file()


def test_output_that_cannot_be_written_is_explained(tmp_path, capsys):
    for name in ("A", "B"):
        write_summary(tmp_path / name, RISING)
    output = tmp_path / "A" / "summary.json"
    assert main(["compare", str(tmp_path / "A"), str(tmp_path / "B"), "-o", str(output)]) == 1
    assert "Name another place" in capsys.readouterr().err


def test_names_are_as_short_as_tells_the_methods_apart():
    same = ["r/D1/T__p__2d", "r/D1/T__p__3d_fullres"]
    assert name_methods([Path("T__p__2d"), Path("S__p__2d")]) == ["T", "S"]
    assert name_methods([Path("T__p__2d/fold_0/.."), Path("S__p__2d")]) == ["T", "S"]
    assert name_methods([Path(path) for path in same]) == ["T__p__2d", "T__p__3d_fullres"]
    paths = [Path("/r/D1/T__p__2d"), Path("/r/D2/T__p__2d")]
    assert name_methods(paths) == [str(path) for path in paths]


def score_methods(**cases: dict[str, dict[str, dict[str, float]]]) -> pd.DataFrame:
    tables = {name: tabulate_values(its_cases) for name, its_cases in cases.items()}
    return score_cases(pd.concat(tables, names=["method"]))


def test_a_case_has_the_mean_of_its_classes_and_the_size_of_signed_metrics():
    def measure(dice: float, error: float) -> dict[str, float]:
        return {"Dice": dice, "volume_error": error}

    values = {
        "a": {"1": measure(0.5, -2.0), "2": measure(1.0, 1.0)},
        "b": {"1": measure(math.nan, math.nan), "2": measure(0.25, 0.0)},
        "c": {"1": measure(math.nan, 0.0), "2": measure(math.nan, 0.0)},
    }
    scores = score_methods(A=values, B=values)
    for method in ("A", "B"):
        dice = scores.loc["Dice", method]
        assert dice.to_dict() == pytest.approx({"a": 0.75, "b": 0.25, "c": math.nan}, nan_ok=True)
        assert scores.loc["volume_error", method].to_dict() == {"a": 1.5, "b": 0.0, "c": 0.0}


def test_a_class_that_only_one_method_leaves_empty_counts_as_right_for_it():
    # Class 1 is not in the reference; B finds some of it. Class 2 is 0.5 or 3 mm off in both.
    empty = dict.fromkeys(METRICS, math.nan)
    false_positive = {**empty, "Dice": 0.0, "ASD": 9.0, "volume_error": 2.0}
    other = {**empty, "Dice": 0.5, "ASD": 3.0, "volume_error": -1.0, "relative_volume_error": -0.2}
    scores = score_methods(
        A={"a": {"1": empty, "2": other}}, B={"a": {"1": false_positive, "2": other}}
    )

    def average(metric: str) -> list[float]:
        return scores.loc[metric, "a"].to_list()

    assert average("Dice") == [(1 + 0.5) / 2, (0 + 0.5) / 2]
    assert average("ASD") == [(0 + 3) / 2, (9 + 3) / 2]
    assert average("volume_error") == [(0 + 1) / 2, (2 + 1) / 2]
    assert average("relative_volume_error") == [0.2, 0.2]  # not defined without a reference


def test_a_false_positive_in_a_case_without_reference_is_a_loss(tmp_path):
    write_summary(tmp_path / "A", {**RISING, "empty": math.nan})
    write_summary(tmp_path / "B", {**RISING, "empty": 0.0})
    folders = [str(tmp_path / name) for name in ("A", "B")]
    assert main(["compare", *folders, "-o", str(tmp_path / "out")]) == 0
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert content["differences"][0]["losses"] == 1
    assert {"metric": "Dice", "case": "empty", "A": 1, "B": 0} in content["cases"]


@pytest.mark.parametrize(
    ("file", "case"),
    [("/x/a.1.nii.gz", "a.1"), ("C:\\x\\a.nrrd", "a"), ("kvasir_041.png", "kvasir_041")],
)
def test_cases_have_the_names_of_their_files(tmp_path, file, case):
    entry = {"prediction_file": file, "metrics": {"1": {"Dice": 1, "IoU": 1}}}
    (tmp_path / "summary.json").write_text(json.dumps({"metric_per_case": [entry]}))
    assert read_evaluation(tmp_path / "summary.json").cases == [case]
