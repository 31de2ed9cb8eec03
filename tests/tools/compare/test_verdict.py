"""What is said first of a comparison, the same by every command."""

from __future__ import annotations

import json
import os
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from metric_files import RISING, write_metrics, write_training
from test_control import CONTROL, DROPOUT, MAPO, PLAIN, STOCK, TUNED

from nnunetv2_mapo.cli import main
from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.support.table import wrap_commands
from nnunetv2_mapo.tools.compare import read_methods
from nnunetv2_mapo.tools.compare.tables import compare_methods
from nnunetv2_mapo.tools.compare.verdict import Row, explain, tabulate_rows
from nnunetv2_mapo.tools.train_command import name_of

NUM_CASES = 24


def write_model(
    root: Path, trainer: str, gain: float, config: MAPOConfig | None, **training: object
) -> str:
    """A training whose Dice is 0.5 plus the gain, with noise of 0.05 in each case."""
    rng = np.random.default_rng(sum(map(ord, trainer)))
    dice = 0.5 + gain + rng.normal(0, 0.05, NUM_CASES)
    folder = root / "Dataset900_X" / f"{trainer}__nnUNetPlans__2d"
    write_training(folder / "fold_0", config, **training)
    values = {f"case_{number}": float(value) for number, value in enumerate(dice)}
    write_metrics(folder / "fold_0" / "validation", values)
    summary = [
        {"metrics": {"1": {"Dice": value, "IoU": value}}, "prediction_file": f"/x/{case}.nii.gz"}
        for case, value in values.items()
    ]
    content = json.dumps({"metric_per_case": summary})
    (folder / "fold_0" / "validation" / "summary.json").write_text(content)
    return str(folder)


@pytest.fixture
def models(tmp_path) -> dict[str, str]:
    no_rounds = MAPOConfig(num_rounds=0, warmup_dropout=True)
    return {
        STOCK: write_model(tmp_path, STOCK, 0.0, None),
        CONTROL: write_model(tmp_path, CONTROL, 0.01, no_rounds),
        # p = 0.027: any correction for other tests would hide it
        TUNED: write_model(tmp_path, TUNED, 0.05, DROPOUT, pairs=(24, 7)),
    }


def find_row(text: str) -> list[str]:
    """Cells of the primary comparison in a page or in a terminal, without the names."""
    row = re.search(r"<tbody>\s*<tr>(.*?)</tr>", text, re.DOTALL)
    if row:
        return re.findall(r"<td[^>]*>([^<]*)</td>", row[1])[1:]
    lines = text.splitlines()
    first = next(place for place, line in enumerate(lines) if line.startswith("---")) + 1
    numbers = next(line for line in lines[first:] if re.search(r"[+-]0\.\d{3} ", line))
    return re.split(r"\s{2,}", numbers)[1:]


def test_the_verdict_is_the_same_from_every_command_and_whatever_lies_beside(models, capsys):
    stock, control, tuned = models.values()
    folder = Path(tuned).parent
    main(["compare", control, tuned, "-o", str(folder / "out")])
    expected = find_row(capsys.readouterr().out)
    assert expected[2:] == ["better", "24, 7 of 480"]
    assert find_row((folder / "out/comparison.html").read_text()) == expected
    for folders in ([tuned, control], [stock, control, tuned], [control, stock, tuned]):
        main(["compare", *folders])
        assert find_row(capsys.readouterr().out) == expected
    for others in ([control], [stock, control]):
        main(["report", tuned, "--compare", *others])
        page = (Path(tuned) / "report.html").read_text()
        assert find_row(page[page.index("pairs per round") :]) == expected
    for model in models.values():  # Dice and IoU of nnU-Net's summary.json alone
        (Path(model) / "fold_0/validation/metrics.json").unlink()
    main(["compare", control, tuned])
    assert find_row(capsys.readouterr().out.split("\n\n")[0]) == expected


def test_lines_fit_a_terminal_and_details_come_on_demand(models, capsys):
    main(["compare", *models.values()])
    short = capsys.readouterr().out
    assert "HD95" not in short
    main(["compare", *models.values(), "--details"])
    printed = capsys.readouterr().out
    assert "HD95 [mm] ↓" in printed
    assert "one test, without correction" in printed
    too_long = [line for line in printed.splitlines() if len(line) > 100]
    assert [line for line in too_long if "/" not in line] == []  # a path is not broken
    assert short.splitlines()[0].startswith("method ")


def advice_of(*arguments: str) -> list[str]:
    """Commands that a comparison ends with, as a shell takes them."""
    comparison = compare_methods(read_methods([Path(each) for each in arguments]))
    shown = wrap_commands(comparison.answer.advice)
    return [shlex.join(shlex.split(line)) for line in shown.replace("\\\n", " ").splitlines()]


def test_a_mixture_of_preferences_and_dropout_is_called_one(tmp_path, capsys):
    stock = write_model(tmp_path, STOCK, 0.0, None)
    tuned = write_model(tmp_path, TUNED, 0.05, DROPOUT, pairs=(24, 7))
    main(["compare", stock, tuned])
    printed = capsys.readouterr().out
    said = printed.replace("\n", " ")
    assert "This mixes preferences with dropout in training: only a control" in said
    assert f"  nnUNetv2_train Dataset900_X 2d 0 -tr {CONTROL}" in printed


def test_a_control_that_is_there_already_is_compared_with(models, capsys):
    stock, control, tuned = models.values()
    assert advice_of(stock, tuned) == [f"nnUNetv2_mapo compare {control} {tuned} -f 0"]
    main(["compare", control, tuned])
    assert "mixes" not in capsys.readouterr().out


def test_the_next_fold_is_one_of_the_split_that_is_not_trained_yet(models, tmp_path, monkeypatch):
    """A finished training would be begun anew, and a fold beyond the split be drawn at random."""
    _, control, tuned = models.values()
    split = tmp_path / "Dataset900_X" / "splits_final.json"
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    split.write_text("[1]")
    last = [f"nnUNetv2_mapo compare {control} {tuned} -o comparison"]
    assert advice_of(control, tuned) == last
    split.write_text("[1, 2]")
    train = "nnUNetv2_train Dataset900_X 2d 1 -tr {}"
    assert advice_of(control, tuned) == [train.format(TUNED), train.format(CONTROL)]
    fold = Path(control) / "fold_1"
    write_training(fold)
    assert advice_of(control, tuned) == [train.format(TUNED), train.format(CONTROL) + " --val"]
    (fold / "checkpoint_final.pth").rename(fold / "checkpoint_latest.pth")
    assert advice_of(control, tuned) == [train.format(TUNED), train.format(CONTROL) + " --c"]


def test_a_training_that_was_begun_anew_is_not_compared_by_its_earlier_validation(models, capsys):
    fold = Path(models[STOCK]) / "fold_0"
    latest = fold / "checkpoint_latest.pth"
    (fold / "checkpoint_final.pth").rename(latest)
    os.utime(latest, (2e9, 2e9))
    assert main(["compare", models[STOCK], models[TUNED]]) == 1
    assert "fold_0 is being trained anew: checkpoint_latest.pth" in capsys.readouterr().err
    for name in (STOCK, TUNED):
        write_training(Path(models[name]) / "fold_1", DROPOUT if name == TUNED else None, (3, 1))
        write_metrics(Path(models[name]) / "fold_1" / "validation", RISING)
    assert main(["compare", models[STOCK], models[TUNED], "-f", "1"]) == 0


def test_a_control_that_was_trained_in_another_way_is_to_be_trained_again(tmp_path):
    tune = replace(DROPOUT, fine_tune=True)
    control = write_model(
        tmp_path, CONTROL, 0.0, replace(tune, num_rounds=0), base={"weights": "a"}
    )
    tuned = write_model(tmp_path, TUNED, 0.1, tune, pairs=(3, 1), base={"weights": "b"})
    assert advice_of(control, tuned) == [f"nnUNetv2_train Dataset900_X 2d 0 -tr {CONTROL}"]


def test_a_base_trainer_s_training_of_another_length_is_not_written_over(tmp_path):
    stock = write_model(tmp_path, STOCK, 0.0, None)
    (Path(stock) / "fold_0" / "debug.json").write_text('{"num_epochs": 9}')
    mapo = write_model(tmp_path, MAPO, 0.1, PLAIN, pairs=(3, 1))
    assert advice_of(stock, mapo) == [f"nnUNetv2_mapo compare {stock} {mapo} -o comparison"]


def test_what_is_not_known_to_be_a_control_is_called_so(tmp_path, capsys):
    stock = write_model(tmp_path, STOCK, 0.0, None)
    (Path(stock) / "fold_0" / "checkpoint_final.pth").unlink()
    tune = replace(PLAIN, fine_tune=True)
    main(["compare", stock, write_model(tmp_path, f"{MAPO}_Tune", 0.1, tune, pairs=(3, 1))])
    assert "nnUNetTrainer is not known to be a control" in capsys.readouterr().out.replace(
        "\n", " "
    )


def test_commands_hold_in_folders_with_spaces_and_in_those_that_were_moved(tmp_path):
    root = tmp_path / "results of a very long study of the year with many words in its name"
    folders = [
        write_model(root, STOCK, 0.0, None),
        write_model(root, MAPO, 0.05, PLAIN, pairs=(24, 7)),
    ]
    command = shlex.join(["nnUNetv2_mapo", "compare", *folders, "-o", "comparison"])
    assert advice_of(*folders) == [command]
    for folder in folders:
        Path(folder, "plans.json").write_text('{"dataset_name": "Dataset004_Y"}')
    assert name_of(Path(folders[0])) == ("Dataset004_Y", STOCK, "nnUNetPlans", "2d")


@pytest.mark.parametrize("name", ["case", "metric"])
def test_a_method_may_be_called_like_a_column(tmp_path, capsys, name):
    folders = [tmp_path / name, tmp_path / "other"]
    for folder in folders:
        write_metrics(folder, RISING)
    assert main(["compare", *map(str, folders), "-o", str(tmp_path / "out")]) == 0


def test_the_fold_of_all_cases_and_a_folder_of_segmentations_are_compared(tmp_path):
    model, folder = tmp_path / f"{STOCK}__nnUNetPlans__2d", tmp_path / "segmentations"
    for each in (model / "fold_all" / "validation", folder):
        write_metrics(each, RISING)
    assert main(["compare", str(model), str(folder)]) == 0


def test_a_training_without_pairs_is_a_control_and_preview_is_next(tmp_path, capsys):
    stock = write_model(tmp_path, STOCK, 0.0, None)
    mapo = write_model(tmp_path, MAPO, 0.1, PLAIN, pairs=(0, 0))
    main(["compare", stock, mapo, "-o", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "no pairs: a control" in printed
    assert "had no pair in any round: it is a control itself" in printed.replace("\n", " ")
    assert "nnUNetv2_mapo preview -d Dataset900_X -c 2d -f 0 -tr nnUNetTrainer_MAPO -p " in printed
    assert '<p class="alarm">nnUNetTrainer_MAPO had no' in (
        (tmp_path / "out/comparison.html").read_text()
    )


def test_a_training_by_choices_says_how_many_answers(tmp_path, capsys):
    choices = {"num_answers": 40, "num_images": 9, "folder": "c", "use": "preferences"}
    stock = write_model(tmp_path, STOCK, 0.0, None)
    mapo = write_model(tmp_path, MAPO, 0.1, PLAIN, choices=choices)
    main(["compare", stock, mapo])
    printed = capsys.readouterr().out
    assert find_row(printed)[-1] == "learnt from 40 answers"
    assert "is a control" not in printed


def test_the_table_is_written_as_csv_and_latex(models, tmp_path, capsys):
    main(["compare", *models.values(), "--table", str(tmp_path / "t.csv")])
    table = pd.read_csv(tmp_path / "t.csv")
    assert table["is_primary"].tolist() == [True, False, False]
    shown = find_row(capsys.readouterr().out)[0]
    assert f"{table['difference'][0]:+.3f}" == shown
    assert table["pairs"][0] == "24, 7 of 480"
    main(["compare", *models.values(), "--table", str(tmp_path / "t.tex")])
    latex = (tmp_path / "t.tex").read_text()
    assert r"Dice $\uparrow$ & 95 \% interval & verdict & pairs per round \\" in latex
    assert main(["compare", *models.values(), "--table", str(tmp_path / "t.txt")]) == 1
    assert "must end in .csv or .tex" in capsys.readouterr().err


def make_row(verdict: str = "not shown") -> Row:
    return Row("B", "A", "HD95 [mm]", -1.0, -2.0, 0.5, 0.01, verdict, True, "3 of 4")


@pytest.mark.parametrize(
    ("verdict", "wins", "ties", "expected"),
    [
        # 2 / 2**5 = 0.0625 is not below 0.05, 2 / 2**6 = 0.031 is.
        ("not shown", 1, 0, "Too few to conclude anything: 1 of 1 case differ"),
        ("not shown", 5, 0, "5 of 5 cases differ, so p cannot fall below 0.062;"),
        ("not shown", 4, 26, "4 of 30 cases differ"),
        ("not shown", 6, 0, "6 cases show no difference; in others like them it may be anything"),
        ("better", 19, 11, "A hint, of few cases: B is better than A: of 30 cases, 19 gain"),
        ("worse", 20, 10, "B is worse than A: of 30 cases, 20 gain"),
    ],
)
def test_the_meaning_depends_on_the_cases_that_differ(verdict, wins, ties, expected):
    found = pd.Series({"verdict": verdict, "wins": wins, "ties": ties, "losses": 0})
    said = explain(make_row(verdict), found)
    assert expected in said
    assert said.startswith(("Too few", "A hint", "B is", "6 cases"))


def test_the_direction_of_a_metric_with_a_unit_is_shown():
    [row] = tabulate_rows([make_row()]).to_dict("records")
    assert row["HD95 [mm] ↓"] == "-1.000"
    assert row["95 % interval"] == "-2.000 to +0.500"
