import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class, nnUNetDatasetBlosc2

from nnunetv2_mapo.method.choices import Answer, ChoicesError, append_answer, append_undo
from nnunetv2_mapo.support.errors import MAPOError
from nnunetv2_mapo.support.files import WriteError, hash_array
from nnunetv2_mapo.tools.choose.candidates import Differing
from nnunetv2_mapo.tools.choose.folder import open_folder

ORIGIN = {
    "version": 1, "checkpoint": "A/fold_0/checkpoint_final.pth", "weights": "w",
    "plans": {"plans_name": "p"}, "configuration": "2d", "dataset_json": {},
}  # fmt: skip


def test_nnunets_dataset_reads_images_with_the_plain_prediction_first(folder):
    dataset = infer_dataset_class(str(folder.images))(str(folder.images))
    assert isinstance(dataset, nnUNetDatasetBlosc2)
    assert dataset.identifiers == ["image_0", "image_1", "image_2"]
    image, candidates, _, properties = dataset.load_case("image_1")
    assert image.shape[1:] == candidates.shape[1:] == (3, 8, 10)
    assert candidates[0].sum() == 4 * 4
    assert properties["spacing"] == [1, 1, 1]
    kept = folder.read_kept("image_1")
    assert kept.image_sha256 == hash_array(image[:])
    assert kept.candidates_sha256 == hash_array(candidates[:])
    assert kept.widest == (0, 2)


def test_an_image_whose_writing_fails_leaves_nothing(folder, monkeypatch):
    def fail(*_, **__):
        message = "No space left on device"
        raise OSError(28, message)

    monkeypatch.setattr(nnUNetDatasetBlosc2, "save_case", fail)
    maps = np.zeros((2, 3, 8, 10), np.int16)
    found = Differing(maps, (0.0, 0.1), (0, 1), 0.5, 1)
    image = np.zeros((1, 3, 8, 10), np.float32)
    with pytest.raises(WriteError, match="make space"):
        folder.write_image("image_3", image, found, {}, (3, 8, 10))
    assert folder.find_images() == ["image_0", "image_1", "image_2"]


def test_a_damaged_image_is_named_with_what_to_do(folder):
    (folder.images / "image_0.pkl").write_bytes(b"half")
    with pytest.raises(ChoicesError, match=r"image_0\.pkl is damaged"):
        folder.read_kept("image_0")
    (folder.images / "image_1_seg.b2nd").write_bytes(b"half")
    words = r"cannot be read .* Delete image_1\.b2nd, image_1_seg\.b2nd and image_1\.pkl there"
    with pytest.raises(ChoicesError, match=words):
        folder.read_image("image_1")


def test_a_folder_is_opened_again_by_the_same_model(tmp_path):
    opened = open_folder(tmp_path / "new", ORIGIN)
    opened.write_rates((0.0, 0.1))
    assert open_folder(tmp_path / "new", {**ORIGIN, "checkpoint": "moved"}).path == opened.path
    assert opened.read_rates() == (0.0, 0.1)


@pytest.mark.parametrize(("name", "following"), [("choices", "choices_2"), ("c_2", "c_3")])
def test_a_folder_of_another_model_is_refused_and_a_new_one_named(tmp_path, name, following):
    open_folder(tmp_path / name, ORIGIN)
    with pytest.raises(ChoicesError) as refused:
        open_folder(tmp_path / name, {**ORIGIN, "weights": "other"})
    assert "other weights" in str(refused.value)
    assert f"-o {tmp_path / following}" in str(refused.value)


def test_a_folder_of_a_later_version_is_refused(tmp_path):
    open_folder(tmp_path / "new", ORIGIN)
    (tmp_path / "new/model.json").write_text(json.dumps({**ORIGIN, "version": 2}))
    with pytest.raises(ChoicesError, match="has version 2, this package reads version 1"):
        open_folder(tmp_path / "new", ORIGIN)


def test_a_folder_whose_first_start_was_killed_is_begun_anew(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "model.json.mapo_unfinished").touch()
    assert open_folder(tmp_path, ORIGIN).find_images() == []


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ChoicesError, match="holds something else"):
        open_folder(tmp_path, ORIGIN)


@pytest.mark.parametrize("name", ["images", "mapo.lock"])
def test_a_folder_that_cannot_be_written_to_is_said(tmp_path, name):
    (tmp_path / name).touch()
    if name == "mapo.lock":  # as another account's file, which root could write to
        (tmp_path / name).unlink()
        (tmp_path / name).mkdir()
    with pytest.raises(MAPOError, match=rf"{name} cannot be (made|written) .* another folder"):
        open_folder(tmp_path, ORIGIN)


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is locked there")
def test_a_second_process_is_refused(tmp_path):
    open_folder(tmp_path / "new", ORIGIN)
    code = (
        "from pathlib import Path\n"
        "from nnunetv2_mapo.tools.choose.folder import open_folder\n"
        f"open_folder(Path({str(tmp_path / 'new')!r}), {ORIGIN!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "is open in another nnUNetv2_mapo choose" in done.stderr


def test_a_folder_is_read_without_this_package_as_documented(folder, monkeypatch, capsys):
    answer = Answer("image_0", "sha", "sha", (1, 0, 2), "choice", "Ada", 1.0, "now", best=1)
    append_answer(folder.path, answer)
    append_undo(folder.path, append_answer(folder.path, answer))
    with (folder.path / "choices.jsonl").open("a") as file:
        file.write('{"version": 1, "ima')
    page = Path(__file__).parents[3] / "docs/how-to/choices.md"
    [code] = re.findall(r"```py\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(folder.path.parent)
    exec(code, {})
    assert capsys.readouterr().out == "image_0 choice 1 (3, 3, 8, 10)\n"


def test_every_entry_of_a_folder_is_documented():
    page = Path(__file__).parents[3] / "docs/how-to/choices.md"
    text = page.read_text(encoding="utf-8")
    names = [each.name for each in fields(Answer)] + list(ORIGIN)
    assert not [name for name in names if f"`{name}`" not in text]
