"""The page of `nnUNetv2_mapo report`, of real trainings, looked at in a browser."""

import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import SIZES, find_faults, needs_chromium, opened
from test_training import stop_in_epoch

from nnunetv2_mapo.cli import main
from nnunetv2_mapo.method.mining import Miner
from nnunetv2_mapo.method.reference import read_reference
from nnunetv2_mapo.method.selection import candidate_dice
from nnunetv2_mapo.method.store import read_rounds
from nnunetv2_mapo.tools.evaluate import read_evaluation
from nnunetv2_mapo.tools.models import open_cases, open_model
from nnunetv2_mapo.tools.report.pair_pictures import PairPainter, read_stack
from nnunetv2_mapo.tools.report.warmup_validation import predict_validation

# nnU-Net divides 0 by 0 where a validation batch has no foreground.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
MakeTrainer = Callable[..., Any]
STOCK, MAPO = "nnUNetTrainerTiny", "nnUNetTrainerTiny_MAPO_tiny"
CPU = torch.device("cpu")


def train(make_trainer: MakeTrainer, name: str, configuration: str = "3d_fullres") -> Path:
    """Train and validate fold 0; the model's folder."""
    trainer = make_trainer(name, configuration)
    trainer.run_training()
    trainer.perform_actual_validation()
    return Path(trainer.output_folder_base)


def report(folder: Path, *arguments: str) -> str:
    """Content of the page."""
    assert main(["report", str(folder), "-device", "cpu", *arguments]) == 0
    return (folder / "report.html").read_text()


def find_pictures(page: str) -> list[str]:
    """Descriptions of the pictures of pairs."""
    return re.findall(r'<img src="data:image/png;base64,[^"]+" alt="([^"]+)">', page)


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_report_shows_curves_rounds_and_pairs(
    make_trainer: MakeTrainer, configuration: str
) -> None:
    folder = train(make_trainer, MAPO, configuration)
    page = report(folder)
    rounds = read_rounds(folder / "fold_0")
    assert len(rounds) == 2
    for number, mined in enumerate(rounds, 1):
        assert f"<h3>Round {number}</h3>" in page
        samples = [record for records in mined.cases.values() for record in records]
        num_pairs = sum(record.has_pair for record in samples)
        assert f"<b>{num_pairs} of {len(samples)}</b>" in page
    assert page.count("<svg") >= 6 + 2 * 2  # curves, then at least two figures a round
    pictures = find_pictures(page)
    for caption in ("image", "ground truth", "chosen, Dice", "rejected, Dice", "disagreement"):
        assert any(f": {caption}" in name for name in pictures)
    assert any("variance of the 3 candidates" in name for name in pictures)
    assert [path.name for path in folder.rglob("*.unfinished")] == []


def test_candidates_behind_the_variance_are_those_that_were_mined(
    make_trainer: MakeTrainer,
) -> None:
    folder = train(make_trainer, MAPO)
    model = open_model(folder, 0, "checkpoint_final.pth", CPU)
    cases = open_cases(model).training
    first, second = read_rounds(folder / "fold_0")
    painter = PairPainter(model, cases, CPU)
    compared = 0
    with painter._remine(first) as remining:
        assert remining is not None
        for identifier, [record] in first.cases.items():
            image, segmentation, *_ = cases.load_case(identifier)
            work = partial(Miner.segment, image=torch.from_numpy(np.asarray(image[:])))
            candidates = remining.do(work, identifier)
            target = model.labels.target_map(torch.from_numpy(np.asarray(segmentation[0])))
            dice = candidate_dice(candidates, target, model.labels).tolist()
            assert record.dice == pytest.approx(dice, abs=1e-6)
            assert len(set(dice)) > 1
            stack = read_stack(first, identifier)
            differs = stack[1] != stack[2]
            plain = candidates[0].numpy()
            assert ((stack[1] == plain) | (stack[2] == plain))[differs].all()
            compared += differs.any()
    assert compared
    with painter._remine(second) as remining:
        assert remining is None  # its policy was not kept


@needs_chromium
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_its_window_and_loads_nothing_else(
    finished_report: Path, size: str, scheme: str
) -> None:
    with opened(finished_report, size, scheme) as page:
        assert find_faults(page) == []
        ground, text = page.evaluate(
            "[getComputedStyle(document.body).backgroundColor, "
            "getComputedStyle(document.querySelector('svg text')).fill]"
        )
    assert (ground, text) == {
        "light": ("rgb(255, 255, 255)", "rgb(27, 31, 36)"),
        "dark": ("rgb(21, 24, 28)", "rgb(230, 233, 236)"),
    }[scheme]


@needs_chromium
def test_page_is_printed_black_on_white_without_navigation(finished_report: Path) -> None:
    with opened(finished_report, scheme="dark") as page:
        page.emulate_media(media="print")
        assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
        assert not page.locator("nav").is_visible()
        assert page.locator(".panels img").first.is_visible()


@pytest.fixture(scope="session")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reports")


@pytest.fixture
def finished_report(reports: Path, make_trainer: MakeTrainer) -> Path:
    """Page of a finished training, made once."""
    path = reports / "report.html"
    if not path.is_file():
        path.write_text(report(train(make_trainer, MAPO)))
    return path


def test_a_stock_training_has_curves_and_no_rounds(make_trainer: MakeTrainer) -> None:
    page = report(train(make_trainer, STOCK))
    assert ">mean_fg_dice</text>" in page
    assert ">rewards/margins</text>" not in page
    assert "<h3>Round" not in page
    assert "knows nothing of MAPO" in page


def test_an_unfinished_training_says_so(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(MAPO)
    stop_in_epoch(trainer, epoch=4)
    page = report(Path(trainer.output_folder_base))
    assert re.search(r"Only \d of 6 epochs are in checkpoint_latest.pth", page)
    assert "<h3>Round 1</h3>" in page


def test_without_preferences_or_preprocessed_data_the_rest_is_shown(
    make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = train(make_trainer, MAPO)
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "nowhere"))
    page = report(folder)
    assert "There are no pictures of pairs: Dataset990_Boxes is not preprocessed" in page
    assert find_pictures(page) == []
    assert "<h3>Round 2</h3>" in page
    shutil.rmtree(folder / "fold_0/preferences")
    page = report(folder)
    assert "No round is in the folder preferences: not mined yet, or deleted." in page
    assert ">rewards/margins</text>" in page  # logged, not stored with the pairs


def test_a_damaged_pair_and_an_unreadable_fold_do_not_cost_the_page(
    make_trainer: MakeTrainer, capsys: Any
) -> None:
    folder = train(make_trainer, MAPO)
    for path in (folder / "fold_0/preferences/round_01").glob("*.b2nd"):
        path.write_bytes(path.read_bytes()[:-1])
    (folder / "fold_1").mkdir()
    (folder / "fold_0.zip").write_bytes(b"")
    page = report(folder)
    assert re.search(r"There are no pictures of pairs: .*\.b2nd is missing or damaged", page)
    assert "<h3>Round 2</h3>" in page
    assert "Fold 1 is left out" in capsys.readouterr().out


def test_what_is_no_model_folder_is_refused(
    make_trainer: MakeTrainer, tmp_path: Path, capsys: Any
) -> None:
    def explain(*arguments: str) -> str:
        assert main(["report", *arguments, "-device", "cpu"]) == 1
        error: str = capsys.readouterr().err
        return error

    assert "is not the folder of a model" in explain(str(tmp_path))
    folder = train(make_trainer, STOCK)
    assert "has no fold 3. There is: 0." in explain(str(folder), "-f", "3")
    (folder / "fold_0/checkpoint_final.pth").write_bytes(b"")
    assert "checkpoint_final.pth is damaged" in explain(str(folder))
    assert not (folder / "report.html").exists()


def test_results_are_compared_with_another_training_and_with_the_warm_up(
    make_trainer: MakeTrainer, capsys: Any
) -> None:
    stock, folder = train(make_trainer, STOCK), train(make_trainer, MAPO)
    page = report(folder, "--compare", str(stock))
    assert "Dice and IoU only" in page
    assert main(["report", str(folder), "--warmup", "-device", "cpu"]) == 1
    assert f"nnUNetv2_mapo evaluate {folder}" in capsys.readouterr().err
    for model in (stock, folder):
        assert main(["evaluate", str(model), "-np", "1"]) == 0
    page = report(folder, "--compare", str(stock), "--warmup")
    methods = re.findall(r"<h3>(.*) and nnUNetTrainerTiny</h3>", page)
    assert methods == ["after the warm-up", MAPO]
    warmup = folder / "fold_0/validation_warmup"
    assert sorted(path.name for path in warmup.iterdir()) == [
        "case_4.nii.gz", "case_5.nii.gz", "metrics.csv", "metrics.json", "origin.json",
    ]  # fmt: skip
    mean = read_evaluation(warmup).foreground_mean()["Dice"]
    assert f"<td>{mean:.4f}</td>" in page  # one number of a case: the mean over its classes
    before = (warmup / "case_4.nii.gz").stat().st_mtime_ns
    report(folder, "--warmup")
    assert (warmup / "case_4.nii.gz").stat().st_mtime_ns == before
    (folder / "fold_0/reference.pth").unlink()
    capsys.readouterr()
    assert main(["report", str(folder), "--warmup", "-device", "cpu"]) == 1
    assert "reference.pth is missing or damaged" in capsys.readouterr().err


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_validation_of_other_weights_is_nnunets_own(
    make_trainer: MakeTrainer, configuration: str, tmp_path: Path
) -> None:
    folder = train(make_trainer, MAPO, configuration)
    model = open_model(folder, 0, "checkpoint_final.pth", CPU)
    cases = open_cases(model).validation
    final = model.network.state_dict()
    predict_validation(model, final, cases, tmp_path / "again", CPU)
    written = sorted((tmp_path / "again").glob("*.nii.gz"))
    assert [path.name for path in written] == ["case_4.nii.gz", "case_5.nii.gz"]
    for path in written:
        assert path.read_bytes() == (folder / "fold_0/validation" / path.name).read_bytes()
    reference = read_reference(
        folder / "fold_0/reference.pth", read_rounds(folder / "fold_0")[0].origin["policy"], CPU
    )
    assert reference is not None
    before = written[0].read_bytes()
    predict_validation(model, reference, cases, tmp_path / "again", CPU)  # of other weights: anew
    assert written[0].read_bytes() != before
