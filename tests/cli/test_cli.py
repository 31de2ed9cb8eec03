import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from command_line_page import PAGE, make_page

from nnunetv2_mapo import __version__
from nnunetv2_mapo.cli import main
from nnunetv2_mapo.support.errors import CommandError
from nnunetv2_mapo.tools.demo import DATASET, Demo
from nnunetv2_mapo.tools.nnunet import NNUNet, find_command, shorten

NAMES = (
    "demo", "doctor", "preview", "evaluate", "compare", "report", "export", "uncertainty",
    "choose",
)  # fmt: skip
COMMANDS = [[], *([name] for name in NAMES)]


def print_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command, "-h"])
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_the_page_of_the_command_line_is_what_help_prints(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    is_fresh = PAGE.read_text("utf-8") == make_page()
    assert is_fresh, f"{PAGE} is out of date: run python tests/cli/command_line_page.py"


def test_help_lists_every_sub_command(capsys):
    listed = print_help([], capsys).split("sub-commands:")[1].split("\n\n")[0].splitlines()
    names = {line.split()[0] for line in listed if line.startswith("    ") and line[4] != " "}
    assert names == {command[0] for command in COMMANDS if command}


def test_no_arguments_print_the_help(capsys):
    assert main([]) == 0
    assert capsys.readouterr().out == print_help([], capsys)


def test_version_is_the_package_s(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.split() == ["nnunetv2-mapo", __version__]


@pytest.mark.parametrize("arguments", ["", *(" ".join([*command, "-h"]) for command in COMMANDS)])
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys\nfrom nnunetv2_mapo.cli import main\n"
        f"try: main({arguments.split()})\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'nnunetv2', 'monai', 'matplotlib', 'numpy', 'scipy', 'SimpleITK'}\n"
        "heavy |= {'pandas'}\n"
        "heavy &= set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage: nnUNetv2_mapo" in done.stdout


def test_wrong_paths_are_named_before_anything_heavy_is_imported(tmp_path):
    code = (
        "import sys\nfrom nnunetv2_mapo.cli import main\n"
        "for words in (['preview', 'none'], ['report', 'none'], ['evaluate', 'none'],\n"
        "    ['report', '-d', '4', '-c', '2d'], ['report', '-d', '.', '-c', '2d'],\n"
        "    ['report', '-d', '/nowhere', '-c', '2d'], ['export', 'none', '-o', 'x.zip'],\n"
        "    ['uncertainty', 'none', '-i', 'none', '-o', 'x'], ['compare', 'none', 'neither'],\n"
        "    ['choose', 'none', '-i', 'none', '-o', 'x']):\n"
        "    assert main(words) == 1, words\n"
        "heavy = {'torch', 'nnunetv2', 'pandas', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "nnUNet_results": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Importing" not in done.stderr
    assert "-d 4 is not one data set in" in done.stderr


def test_folds_and_checkpoints_are_looked_for_before_anything_heavy_is_imported(tmp_path, capsys):
    (tmp_path / "fold_0").mkdir()
    (tmp_path / "fold_0" / "checkpoint_final.pth").touch()
    model, output = str(tmp_path), str(tmp_path / "out")
    paths = ["-i", model, "-o", output]
    for words, said in (
        (["uncertainty", model, *paths], "There is: fold_0. Name the fold with -f."),
        (["export", model, "-o", output, "-f", "1"], "Fold 1 is not in"),
        (["preview", model, "-f", "all"], "Fold all is not in"),
        (["choose", model, *paths, "-chk", "x.pth"], "There is: checkpoint_final.pth. Name anoth"),
    ):
        assert main(words) == 1
        error = capsys.readouterr().err
        assert said in error
        assert "Importing" not in error
    assert not Path(output).exists()


def test_warnings_of_others_about_their_future_are_not_shown(monkeypatch, tmp_path):
    def warn(_):
        warnings.warn("in ten years", FutureWarning, stacklevel=1)

    monkeypatch.setattr("nnunetv2_mapo.tools.doctor.run_doctor", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(["doctor"]) == 0


def test_unknown_configuration_is_refused_with_the_known_ones(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["demo", "-c", "3d_lowres"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "2d" in error
    assert "3d_fullres" in error


def test_folder_with_files_of_others_is_refused_even_with_overwrite(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("years of work")
    for arguments in ([], ["--overwrite"]):
        assert main(["demo", "-o", str(tmp_path), *arguments]) == 1
        assert "is not empty. Name another folder with -o" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_earlier_demo_is_kept_without_overwrite(tmp_path, capsys):
    Demo(tmp_path, "2d").prepare(overwrite=False)
    (tmp_path / "logs" / "1.log").touch()
    assert main(["demo", "--output", str(tmp_path)]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "logs" / "1.log").exists()


def test_overwrite_deletes_what_demos_made_and_nothing_else(tmp_path):
    folders = [Demo(tmp_path, configuration) for configuration in ("2d", "3d_fullres")]
    folders[0].prepare(overwrite=False)
    results = tmp_path / "nnUNet_results" / DATASET
    made = [folder.fold / "checkpoint_final.pth" for folder in folders]
    made += [folders[0].raw / "dataset.json", folders[0].preprocessed / "nnUNetPlans.json"]
    made += [folders[0].trainers, folders[0].logs / "1.log", folders[0].control / "plans.json"]
    kept = [results / "nnUNetTrainer__nnUNetPlans__2d" / "mine", tmp_path / "notes.txt"]
    kept += [tmp_path / "nnUNet_raw" / "Dataset001_Mine" / "dataset.json"]
    kept += [tmp_path / "trainers" / "mine.py"]
    for path in made + kept:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    folders[1].prepare(overwrite=True)
    assert not any(path.exists() for path in made)
    assert all(path.exists() for path in kept)


def test_output_that_is_a_file_is_refused(tmp_path, capsys):
    path = tmp_path / "file"
    path.touch()
    assert main(["demo", "--output", str(path)]) == 1
    assert f"Cannot write to {path}" in capsys.readouterr().err


def test_folder_that_cannot_be_made_is_refused(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["demo", "--output", str(tmp_path / "file" / "demo")]) == 1
    assert "Name another folder with -o" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model", "-f", "five"], "argument -f: 'five' is not valid: 0, 1, 2 ... or all"),
        (["model", "--cases", "0"], "argument --cases: '0' is not valid"),
        (["model", "-device", "tpu"], "invalid choice: 'tpu'"),
    ],
)
def test_preview_refuses_what_it_does_not_know(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["preview", *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_preview_refuses_rates_that_mapo_would_refuse(tmp_path, capsys):
    for rates in (["0"], ["0", "1"], ["0.1", "0.2"], ["0", "0.2", "0.1"]):
        assert main(["preview", str(tmp_path), "--rates", *rates]) == 1
        assert "increasing rates from 0 to below 1 are needed" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["preview", "report"])
@pytest.mark.parametrize(
    "arguments",
    [[], ["-d", "4"], ["-c", "2d"], ["model", "-d", "4"], ["model", "-d", "4", "-c", "2d"]],
)
def test_a_model_is_named_once_and_not_by_halves(command, arguments, capsys):
    assert main([command, *arguments]) == 1
    assert "either by its MODEL_FOLDER, or with -d and -c" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model"], "the following arguments are required: -o"),
        (["model", "-o", "model.zip", "-f", "five"], "argument -f: 'five' is not valid: 0, 1, 2"),
    ],
)
def test_export_refuses_what_it_does_not_know(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["export", *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_missing_command_is_named(monkeypatch):
    with pytest.raises(CommandError, match="nnUNetv2_dance is not installed"):
        find_command("nnUNetv2_dance")


def test_failed_command_shows_its_last_lines_and_its_log(tmp_path, capsys):
    folder = Demo(tmp_path, "2d")
    folder.prepare(overwrite=False)
    with pytest.raises(CommandError, match=r"(?s)failed with exit code 2.*unrecognized.*logs"):
        NNUNet(tmp_path).run("nnUNetv2_mapo", "demo", "--unknown")
    assert "$ nnUNetv2_mapo demo --unknown" in capsys.readouterr().out


def test_user_s_own_trainer_folders_stay_known(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path / "mine"))
    folders = NNUNet(tmp_path).paths["nnUNet_extTrainer"].split(os.pathsep)
    assert folders[0] == str(tmp_path / "trainers")
    assert folders[-1] == str(tmp_path / "mine")


def test_output_of_training_becomes_one_line_for_each_epoch():
    lines = [
        "2025-01-01 10:00:00.000001: Using torch.compile...\n",
        "2025-01-01 10:00:00.000001: MAPO: round 1: 3 pairs / 4 samples\n",
        "2025-01-01 10:00:00.000001: Epoch 4 \n",
        "2025-01-01 10:00:00.000001: Current learning rate: 0.01 \n",
        "2025-01-01 10:00:02.00001: MAPO: loss/supervised 0, loss/dpo 0.6, rewards/accuracies 1\n",
        "2025-01-01 10:00:02.000001: Pseudo dice [np.float64(0.75), nan] \n",
        "2025-01-01 10:00:02.000001: Epoch time: 2.0 s \n",
    ]
    assert list(shorten(lines)) == [
        "MAPO: round 1: 3 pairs / 4 samples",
        "epoch 4: loss/dpo 0.6, rewards/accuracies 1; pseudo Dice 0.75 nan (2.0 s)",
    ]
