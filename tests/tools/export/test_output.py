from pathlib import Path

import pytest

from nnunetv2_mapo.tools.export.export import ModelExport
from nnunetv2_mapo.tools.export.output import Output, explain_use
from nnunetv2_mapo.tools.export.plain_trainer import PlainTrainer


def make_export(is_shipped):
    plain = PlainTrainer("Own", is_shipped)
    final = "checkpoint_final.pth"
    return ModelExport(Path("m"), "Own_MAPO", plain, "D", "P", "2d", (0,), final, is_cascade=False)


def test_a_zip_file_and_a_folder_of_the_same_name_have_records_of_their_own(tmp_path):
    assert Output(tmp_path / "model").record == tmp_path / "model.json"
    assert Output(tmp_path / "model.zip").record == tmp_path / "model.zip.json"


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("my model", "export nnUNet_results='{}/my model'"),
        ("my model.zip", "nnUNetv2_install_pretrained_model_from_zip '{}/my model.zip'"),
    ],
)
def test_printed_commands_work_with_paths_that_have_spaces(name, command, tmp_path):
    lines = list(explain_use(Output(tmp_path / name), [make_export(is_shipped=True)]))
    assert f"  {command.format(tmp_path)}" in lines


@pytest.mark.parametrize(
    ("is_shipped", "said"),
    [(True, None), (False, "does not come with nnU-Net"), (None, "could not be checked")],
)
def test_what_is_known_of_the_trainer_is_said(is_shipped, said, tmp_path):
    *_, last = explain_use(Output(tmp_path / "model"), [make_export(is_shipped)])
    if said is None:
        assert "Own builds the network" not in last
    else:
        assert "Own builds the network of D/Own__P__2d" in last
        assert said in last
