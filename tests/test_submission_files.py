"""The files of examples/challenge-submission: names of inputs, choice of the model, Dockerfile."""

import importlib.util
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples/challenge-submission"
PAGE = ROOT / "docs/how-to/use-the-model.md"
HADOLINT = shutil.which("hadolint", path=sysconfig.get_path("scripts"))
ENDINGS = [".nii.gz", ".mha"]


@pytest.fixture(scope="module")
def predict() -> ModuleType:
    spec = importlib.util.spec_from_file_location("submission", EXAMPLE / "predict.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def cases(
    predict: ModuleType, folders: Sequence[Path], num_channels: int = 1
) -> dict[str, list[str]]:
    found = predict.find_cases(list(folders), ENDINGS, num_channels)
    return {name: ["/".join(file.parts[-2:]) for file in files] for name, files in found.items()}


def test_names_of_nnunet_lose_their_channel(predict, tmp_path):
    folder = touch(tmp_path / "in", "b_0000.mha", "a_0000.nii.gz", "notes.txt")
    assert cases(predict, [folder]) == {
        "a.nii.gz": ["in/a_0000.nii.gz"],
        "b.mha": ["in/b_0000.mha"],
    }


def test_other_names_stay_as_they_are(predict, tmp_path):
    folder = touch(tmp_path / "in", "a.mha", "b.NII.GZ")
    assert cases(predict, [folder]) == {"a.mha": ["in/a.mha"], "b.NII.GZ": ["in/b.NII.GZ"]}


def test_numbers_that_are_no_channels_stay_in_the_name(predict, tmp_path):
    # A model of one channel has no channel 1: these are cases 0 and 1.
    folder = touch(tmp_path / "in", "case_0000.mha", "case_0001.mha")
    assert list(cases(predict, [folder])) == ["case_0000.mha", "case_0001.mha"]


def test_channels_of_a_case_are_in_their_order(predict, tmp_path):
    folder = touch(tmp_path / "in", "a_0001.mha", "a_0000.mha", "b_0000.mha", "b_0001.mha")
    assert cases(predict, [folder], num_channels=2) == {
        "a.mha": ["in/a_0000.mha", "in/a_0001.mha"],
        "b.mha": ["in/b_0000.mha", "in/b_0001.mha"],
    }


def test_folders_with_one_file_each_are_the_channels_of_one_case(predict, tmp_path):
    folders = [touch(tmp_path / "t1", "5f.mha"), touch(tmp_path / "flair", "0c.mha")]
    assert cases(predict, folders, num_channels=2) == {"5f.mha": ["t1/5f.mha", "flair/0c.mha"]}


def test_files_of_the_same_name_in_each_folder_are_the_channels(predict, tmp_path):
    folders = [touch(tmp_path / "t1", "a.mha"), touch(tmp_path / "flair", "a.mha", "b.mha")]
    assert cases(predict, folders, num_channels=2) == {
        "a.mha": ["t1/a.mha", "flair/a.mha"],
        "b.mha": ["t1/b.mha", "flair/b.mha"],  # the reader names the file that is missing
    }


def test_files_whose_name_begins_with_a_dot_are_no_images(predict, tmp_path):
    folder = touch(tmp_path / "in", "a_0000.mha", "._a_0000.mha", ".hidden.mha")
    assert cases(predict, [folder]) == {"a.mha": ["in/a_0000.mha"]}


def test_an_output_folder_that_may_not_be_made_is_said(predict, tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise PermissionError

    output = str(tmp_path / "output/images")
    monkeypatch.setattr("sys.argv", ["predict.py", "--output", output])
    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    with pytest.raises(SystemExit, match=rf"^user \d+ may not write to {output}: chmod 777 it$"):
        predict.main()


def test_a_folder_without_images_names_the_endings_and_what_is_there(predict, tmp_path):
    folder = touch(tmp_path / "in", "images/ct/a.mha")
    with pytest.raises(SystemExit, match=r"no image \(\.nii\.gz, \.mha\)\..*in/images/ct/a\.mha"):
        cases(predict, [folder])


def test_the_only_model_is_chosen(predict, tmp_path):
    results = touch(tmp_path / "results", "Dataset1/A__p__2d/plans.json")
    assert predict.find_model(results, "") == results / "Dataset1/A__p__2d"


def test_several_models_need_a_choice_and_the_message_lists_them(predict, tmp_path):
    names = ["Dataset1/A__p__2d", "Dataset1/A__p__3d_fullres"]
    results = touch(tmp_path / "results", *(f"{name}/plans.json" for name in names))
    assert predict.find_model(results, names[1]) == results / names[1]
    for wanted, shown in (("", r"\(not set\)"), ("A__p__2d", "A__p__2d")):
        with pytest.raises(SystemExit, match=rf"^MODEL={shown} must be one of .*{names[1]}$"):
            predict.find_model(results, wanted)


def test_no_model_is_said(predict, tmp_path):
    with pytest.raises(SystemExit, match=r"none, unpack your model\.zip there"):
        predict.find_model(tmp_path, "")


def test_a_model_without_a_final_checkpoint_is_said(predict, tmp_path):
    with pytest.raises(SystemExit, match=r"has no fold_X/checkpoint_final\.pth"):
        predict.load_predictor(tmp_path, "0")


def test_a_switch_that_is_neither_on_nor_off_is_refused(predict, tmp_path):
    with pytest.raises(SystemExit, match="DISABLE_TTA=yes must be 0 or 1"):
        predict.load_predictor(tmp_path, "yes")


def test_the_page_shows_the_dockerfile_as_it_is():
    blocks = re.findall(r"^```\w*\n(.*?)^```", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    assert (EXAMPLE / "Dockerfile").read_text("utf-8") in blocks


def test_the_image_holds_what_the_build_context_lets_in():
    context = re.findall(r"^!(.+)$", (EXAMPLE / ".dockerignore").read_text("utf-8"), re.MULTILINE)
    dockerfile = (EXAMPLE / "Dockerfile").read_text("utf-8")
    used = re.findall(r"(?:source=|^COPY )([\w.]+)", dockerfile, re.MULTILINE)
    assert sorted(context) == sorted(used)


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed")
def test_hadolint_finds_nothing_in_the_dockerfile():
    assert HADOLINT is not None
    process = subprocess.run(
        [HADOLINT, EXAMPLE / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")
