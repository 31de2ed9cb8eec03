"""The page of `nnUNetv2_mapo report`, of real trainings, looked at in a browser."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browser import SIZES, find_faults, needs_chromium, opened
from test_training import stop_in_epoch

from nnunetv2_mapo.cli import main
from nnunetv2_mapo.method.store import StoreError, read_rounds
from nnunetv2_mapo.tools import report as report_module

# nnU-Net divides 0 by 0 where a validation batch has no foreground.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
MakeTrainer = Callable[..., Any]
STOCK, MAPO = "nnUNetTrainerTiny", "nnUNetTrainerTiny_MAPO_tiny"


def train(make_trainer: MakeTrainer, name: str, configuration: str = "3d_fullres") -> Path:
    """Train and validate fold 0; the model's folder."""
    trainer = make_trainer(name, configuration)
    trainer.run_training()
    trainer.perform_actual_validation()
    return Path(trainer.output_folder_base)


def report(folder: Path, *arguments: str) -> str:
    """Content of the page."""
    assert main(["report", str(folder), *arguments]) == 0
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
    assert page.count("<svg") == 6 + 2  # curves, then one figure a round
    pictures = find_pictures(page)
    for caption in (
        "image",
        "ground truth",
        MAPO,
        "chosen, Dice",
        "rejected, Dice",
        "disagreement",
    ):
        assert any(f": {caption}" in name for name in pictures)
    assert [path.name for path in folder.rglob("*unfinished")] == []


@needs_chromium
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_its_window_and_loads_nothing_else(
    finished_report: Path, size: str, scheme: str
) -> None:
    with opened(finished_report, size, scheme) as page:
        height = page.evaluate("document.documentElement.scrollHeight")
        assert size == "phone" or height <= 4 * SIZES[size][1]
        for summary in page.locator("details:not([open]) > summary").element_handles():
            summary.click()
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
def test_page_is_printed_black_on_white(finished_report: Path) -> None:
    with opened(finished_report, scheme="dark") as page:
        page.emulate_media(media="print")
        assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
        assert page.locator(".panels img").first.is_visible()


@pytest.fixture(scope="session")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reports")


@pytest.fixture
def finished_report(reports: Path, make_trainer: MakeTrainer) -> Path:
    """Page of a finished training, made once."""
    path = reports / "report.html"
    if not path.is_file():
        control = train(make_trainer, STOCK)
        path.write_text(report(train(make_trainer, MAPO), "--compare", str(control)))
    return path


def test_a_stock_training_has_curves_and_no_rounds(make_trainer: MakeTrainer) -> None:
    page = report(train(make_trainer, STOCK))
    assert ">moving average</text>" in page
    assert ">margin</text>" not in page
    assert "<h3>Round" not in page
    assert "knows nothing of MAPO" in page


def test_a_training_without_pairs_is_a_control_in_its_log_and_its_page(
    make_trainer: MakeTrainer,
) -> None:
    folder = train(make_trainer, "nnUNetTrainerTiny_MAPO_nopairs")
    [log] = (folder / "fold_0").glob("training_log*.txt")
    assert "so this training is a CONTROL" in log.read_text().splitlines()[-1]
    preview = "nnUNetv2_mapo preview -d Dataset990_Boxes -c 3d_fullres -f 0 -tr nnUNetTrainerTiny_M"
    assert preview in log.read_text().splitlines()[-1]
    assert '<p class="alarm">Fold 0: No round had a pair' in report(folder)
    other = train(make_trainer, MAPO)
    [log] = (other / "fold_0").glob("training_log*.txt")
    assert "CONTROL" not in log.read_text()
    compare = f"nnUNetv2_mapo compare {other.with_name(other.name.replace(MAPO, STOCK))} {other}"
    assert log.read_text().rstrip().endswith(compare)
    assert 'class="alarm"' not in report(other)


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
    assert ">margin</text>" in page  # logged, not stored with the pairs


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
    assert "fold_1 is left out" in capsys.readouterr().out


def test_only_what_is_missing_costs_the_pictures(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = train(make_trainer, MAPO)

    def fail_with(error: Exception) -> None:
        def fail(*_: Any) -> None:
            raise error

        monkeypatch.setattr(report_module, "paint_pairs", fail)

    for error in (StoreError("a pair"), FileNotFoundError("a case")):
        fail_with(error)
        assert f"There are no pictures of pairs: {error}" in report(folder)
    fail_with(RuntimeError("a mistake of ours"))
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        report(folder)


def test_what_is_no_model_folder_is_refused(
    make_trainer: MakeTrainer, tmp_path: Path, capsys: Any
) -> None:
    def explain(*arguments: str) -> str:
        assert main(["report", *arguments]) == 1
        error: str = capsys.readouterr().err
        return error

    assert "is not the folder of a model" in explain(str(tmp_path))
    folder = train(make_trainer, STOCK)
    assert "fold_3 has no checkpoint" in explain(str(folder), "-f", "3")
    assert "There is no trained model" in explain(str(folder.parent / "A__B__C"))
    (folder / "fold_0/checkpoint_final.pth").write_bytes(b"")
    assert "checkpoint_final.pth is damaged" in explain(str(folder))
    assert not (folder / "report.html").exists()


def test_results_are_compared_with_another_training_and_the_model_may_be_named(
    make_trainer: MakeTrainer, capsys: Any
) -> None:
    stock, folder = train(make_trainer, STOCK), train(make_trainer, MAPO)
    model = ["-d", "990", "-c", "3d_fullres", "-tr", MAPO]
    assert main(["report", *model, "-f", "0", "--compare", str(stock)]) == 0
    said, page = capsys.readouterr().out, (folder / "report.html").read_text()
    assert re.search(rf"^Dice, {MAPO} minus {STOCK}: [+-]0\.\d\d\d, not shown$", said, re.M)
    assert "Dice and IoU only" in page
    titles = re.findall(r"<p><b>(\w+) case: case_\d, slice \d+ of 12</b></p>", page)
    assert titles == ["Best", "Worst"]  # of two cases
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page[page.index("Best case") :])[:4]
    assert captions[:2] == ["image", "ground truth"]
    assert [each.split(", Dice ")[0] for each in captions[2:]] == [STOCK, MAPO]
    assert page.index('"tiles"') < page.index("pairs per round") < page.index("How it went")
    assert "1 large" in page  # the class's name, which summary.json does not hold
    assert "This mixes preferences with dropout in training" in page
    assert f"<summary>{MAPO} minus {STOCK}, figures</summary>" in page
