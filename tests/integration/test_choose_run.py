"""`nnUNetv2_mapo choose` with real tiny networks: the simulated expert, and people at the page."""

import itertools
import json
import os
import queue
import shutil
import webbrowser
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from browser import CHROMIUM, OPTIONS, SIZES, find_faults, needs_chromium
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from playwright.sync_api import sync_playwright
from prepare import draw_boxes, prepare, write_dataset
from test_uncertainty_run import STOCK, save_model

from nnunetv2_mapo.cli import main
from nnunetv2_mapo.method.choices import disputed_regions, pair_of, read_answers
from nnunetv2_mapo.support.files import hash_array
from nnunetv2_mapo.tools.choose import run
from nnunetv2_mapo.tools.choose.server import ChooseServer

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # open files
]
MakeTrainer = Callable[..., Any]


def write_unlabelled(boxes: Path, folder: Path, number: int = 4) -> Path:
    """Images like those of the data set, but none of them, and their ground truth."""
    rng = np.random.default_rng(5)
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for case in range(number):
        label = sitk.ReadImage(boxes / f"raw/Dataset990_Boxes/labelsTr/case_{case % 6}.nii.gz")
        image = sitk.GetArrayFromImage(label) + rng.normal(0, 0.3, label.GetSize()[::-1])
        written = sitk.GetImageFromArray(image.astype(np.float32))
        written.CopyInformation(label)
        sitk.WriteImage(written, folder / f"images/new_{case}_0000.nii.gz")
        sitk.WriteImage(label, folder / f"labels/new_{case}.nii.gz")
    return folder


def choose(model: Path, folder: Path, *options: Any) -> int:
    arguments = [
        "choose", model, "-i", folder / "images", "-o", folder / "choices", "-device", "cpu"
    ]  # fmt: skip
    return main([*map(str, arguments), *map(str, options)])


def read_images(folder: Path) -> Any:
    images = str(folder / "choices/images")
    return infer_dataset_class(images)(images)


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_the_simulated_expert_names_best_and_worst_by_the_hidden_ground_truth(
    make_trainer: MakeTrainer, boxes: Path, tmp_path: Path, configuration: str
) -> None:
    model = save_model(make_trainer, STOCK, configuration)
    folder = write_unlabelled(boxes, tmp_path)
    assert choose(model, folder, "--truth", folder / "labels", "--repeat", 0) == 0
    answers = {each.image: each for each in read_answers(folder / "choices").values()}
    dataset = read_images(folder)
    assert answers.keys() == {*dataset.identifiers} != set()
    for name, answer in answers.items():
        image, candidates, _, _ = dataset.load_case(name)
        assert image.shape[1:] == candidates.shape[1:]
        assert answer.image_sha256 == hash_array(image[:])
        assert answer.candidates_sha256 == hash_array(candidates[:])
        assert answer.rater == "simulated"
        # spacing 1 and no empty border: the file's voxels are the preprocessed ones
        truth = sitk.GetArrayFromImage(sitk.ReadImage(folder / f"labels/{name}.nii.gz"))
        dice = [mean_dice(candidate, truth) for candidate in candidates[:]]
        assert len(dice) == len(answer.shown) in range(2, 7)
        assert dice[answer.best] == pytest.approx(max(dice))
        assert dice[answer.worst] == pytest.approx(min(dice))
    content = json.loads((folder / "choices/model.json").read_text())
    assert (content["trainer"], content["configuration"]) == (STOCK, configuration)
    assert content["rates"][0] == 0 < content["rates"][-1] <= 0.5


def mean_dice(segmentation: np.ndarray, truth: np.ndarray) -> float:
    pairs = [(segmentation == label, truth == label) for label in (1, 2)]
    return float(np.mean([2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in pairs]))


def test_regions_are_judged_by_their_right_voxels(
    make_trainer: MakeTrainer, boxes: Path, tmp_path: Path
) -> None:
    model = save_model(make_trainer, STOCK, "2d")
    folder = write_unlabelled(boxes, tmp_path)
    assert choose(model, folder, "--truth", folder / "labels", "--regions", "--repeat", 0) == 0
    answers = read_answers(folder / "choices").values()
    dataset = read_images(folder)
    for answer in answers:
        candidates = dataset.load_case(answer.image)[1][:]
        first, second = (candidates[each] for each in answer.shown)
        mask = disputed_regions(first, second)[answer.region]
        truth = sitk.GetArrayFromImage(sitk.ReadImage(folder / f"labels/{answer.image}.nii.gz"))
        right = [int((each == truth)[mask].sum()) for each in (first, second)]
        if answer.verdict == "equal":
            assert right[0] == right[1]
        else:
            assert answer.best == answer.shown[int(right[1] > right[0])]
    for name in dataset.identifiers:
        mine = [each for each in answers if each.image == name]
        assert 1 <= len(mine) <= 3
        if any(each.verdict == "choice" for each in mine):
            assert pair_of(dataset.load_case(name)[1][:], mine) is not None


def test_an_expert_in_error_answers_the_other_way_round_and_again_the_same(
    make_trainer: MakeTrainer, boxes: Path, tmp_path: Path
) -> None:
    model = save_model(make_trainer, STOCK, "2d")
    records = []
    for number, error in enumerate((0, 1, 1)):
        folder = write_unlabelled(boxes, tmp_path / str(number), 2)
        choose(model, folder, "--truth", folder / "labels", "--error", error, "--repeat", 1)
        answers = read_answers(folder / "choices").values()
        records.append([replace(each, time="") for each in answers])
    right, wrong, again = records
    assert wrong == again
    assert [(each.worst, each.best) for each in wrong] == [(e.best, e.worst) for e in right]
    assert sum(each.repeat for each in right) == len(right) / 2


@pytest.fixture(scope="module")
def region_dataset(nnunet_folder: Path) -> str:
    name, labels = "Dataset996_ChosenRegions", {"background": 0, "whole": [1, 2], "small": [2]}
    rng = np.random.default_rng(0)
    segmentations = [draw_boxes(rng) for _ in range(6)]
    write_dataset(nnunet_folder, name, labels, segmentations, regions_class_order=[1, 2])
    prepare(nnunet_folder, name, {"2d": (16, 16)}, num_training=4)
    return name


def test_overlapping_regions_are_judged_and_exported_as_labels(
    make_trainer: MakeTrainer, boxes: Path, region_dataset: str, tmp_path: Path
) -> None:
    model = save_model(make_trainer, STOCK, "2d", dataset=region_dataset)
    folder = write_unlabelled(boxes, tmp_path, 2)
    assert choose(model, folder, "--truth", folder / "labels") == 0
    assert choose(model, folder, "--export", folder / "out") == 0
    dataset = read_images(folder)
    for name in dataset.identifiers:
        candidates = dataset.load_case(name)[1][:]
        assert {*np.unique(candidates)} <= {0, 1, 2}
        for place, candidate in enumerate(candidates):
            written = sitk.ReadImage(folder / f"out/{name}_candidate_{place}.nii.gz")
            assert np.array_equal(sitk.GetArrayFromImage(written), candidate)
    assert {each.image for each in read_answers(folder / "choices").values()} != set()


def test_another_sitting_adds_and_another_model_is_refused(
    make_trainer: MakeTrainer, boxes: Path, tmp_path: Path, capsys: Any
) -> None:
    model = save_model(make_trainer, STOCK, "2d", folds=(0, 1))
    folder = write_unlabelled(boxes, tmp_path, 2)
    choose(model, folder, "--truth", folder / "labels", "--repeat", 0)
    number = len(read_answers(folder / "choices"))
    choose(model, folder, "--truth", folder / "labels", "--repeat", 0)  # nothing is left
    assert len(read_answers(folder / "choices")) == number > 0
    choose(model, folder, "--truth", folder / "labels", "--repeat", 0, "--regions")
    assert len(read_answers(folder / "choices")) > number
    assert choose(model, folder, "--summary") == 0
    output = capsys.readouterr().out
    assert "Cohen's kappa of the candidate named best, whole images:" in output
    assert "Cohen's kappa of the candidate named best, regions:" in output
    assert choose(model, folder, "--truth", folder / "labels", "-f", 1) == 1
    assert f"-o {folder / 'choices_2'}" in capsys.readouterr().err


def test_known_images_and_doublets_are_left_out_by_name(
    make_trainer: MakeTrainer, boxes: Path, tmp_path: Path, capsys: Any
) -> None:
    model = save_model(make_trainer, STOCK, "2d")
    folder = write_unlabelled(boxes, tmp_path, 2)
    raw = boxes / "raw/Dataset990_Boxes/imagesTr"
    shutil.copy(raw / "case_5_0000.nii.gz", folder / "images/known_0000.nii.gz")
    shutil.copy(folder / "images/new_0_0000.nii.gz", folder / "images/twice_0000.nii.gz")
    flat = sitk.GetImageFromArray(np.ones((1, 20, 20), np.float32))
    sitk.WriteImage(flat, folder / "images/flat_0000.nii.gz")
    (folder / "images/torn_0000.nii.gz").write_bytes(b"torn")
    for name in ("known", "twice", "flat", "torn"):
        shutil.copy(folder / "labels/new_0.nii.gz", folder / f"labels/{name}.nii.gz")
    assert choose(model, folder, "--truth", folder / "labels") == 0
    output = capsys.readouterr().out
    assert "known is not asked about: it is the case case_5 of Dataset990_Boxes" in output
    assert "twice is not asked about: it is the same as new_0" in output
    assert "is a single slice of 1 x 20 x 20 voxels, the model's training images are v" in output
    assert "torn_0000.nii.gz cannot be read" in output
    assert read_images(folder).identifiers == ["new_0", "new_1"]


def test_what_cannot_be_read_does_not_decide_the_rates_nor_end_the_rest(
    make_trainer: MakeTrainer, boxes: Path, tmp_path: Path, capsys: Any
) -> None:
    model = save_model(make_trainer, STOCK, "2d")
    folder = write_unlabelled(boxes, tmp_path, 2)
    for name in ("a", "b", "c", os.fsdecode(b"d\xfc")):  # the last one is no UTF-8
        (folder / f"images/{name}_0000.nii.gz").write_bytes(b"torn")
        shutil.copy(folder / "labels/new_0.nii.gz", folder / f"labels/{name}.nii.gz")
    assert choose(model, folder, "--truth", folder / "labels") == 0
    output = capsys.readouterr().out
    assert "c is not asked about" in output
    assert "d\\udcfc is not asked about" in output
    assert "segments nothing" not in output
    assert "rates" in json.loads((folder / "choices/model.json").read_text())
    assert read_images(folder).identifiers == ["new_0", "new_1"]


def test_other_images_of_the_same_names_are_refused_and_missing_ones_not_judged(
    make_trainer: MakeTrainer, boxes: Path, tmp_path: Path, capsys: Any
) -> None:
    model = save_model(make_trainer, STOCK, "2d")
    folder = write_unlabelled(boxes, tmp_path, 2)
    assert choose(model, folder, "--truth", folder / "labels", "--repeat", 0) == 0
    (folder / "images/new_0_0000.nii.gz").unlink()
    assert choose(model, folder, "--truth", folder / "labels", "--repeat", 0, "--regions") == 0
    assert "Not asked about, for -i lacks them: new_0" in capsys.readouterr().out
    answers = read_answers(folder / "choices").values()
    assert {each.image for each in answers if each.region is not None} == {"new_1"}
    shutil.copy(
        boxes / "raw/Dataset990_Boxes/imagesTr/case_0_0000.nii.gz",
        folder / "images/new_0_0000.nii.gz",
    )
    assert choose(model, folder, "--truth", folder / "labels") == 1
    assert "new_0_0000.nii.gz is not the file that new_0 in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--error", 0.1], "it needs --truth"),
        (["--truth", "nowhere"], "nowhere is not a folder"),
        (["--candidates", 1], "--candidates 1 is not valid: 2 to 6"),
        (["--repeat", 2], "--repeat 2.0 is not valid"),
        (["--port", 70000], "--port 70000 is not valid"),
    ],
)
def test_what_does_not_go_together_is_refused(
    tmp_path: Path, capsys: Any, options: list[Any], said: str
) -> None:
    for name in ("images", "model"):
        (tmp_path / name).mkdir()
    assert choose(tmp_path / "model", tmp_path, *options) == 1
    assert said in capsys.readouterr().err


def test_an_empty_folder_is_refused(
    make_trainer: MakeTrainer, boxes: Path, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "images").mkdir()
    assert choose(save_model(make_trainer, STOCK, "2d"), tmp_path) == 1
    assert "has no image CASE_0000.nii.gz" in capsys.readouterr().err


def test_exported_candidates_lie_on_their_images(
    make_trainer: MakeTrainer, boxes: Path, tmp_path: Path
) -> None:
    model = save_model(make_trainer, STOCK, "3d_fullres")
    folder = write_unlabelled(boxes, tmp_path, 1)
    image = sitk.ReadImage(folder / "images/new_0_0000.nii.gz")
    image.SetOrigin((5, -7, 30))
    sitk.WriteImage(image, folder / "images/new_0_0000.nii.gz")
    choose(model, folder, "--truth", folder / "labels")
    assert choose(model, folder, "--export", folder / "out") == 0
    candidates = read_images(folder).load_case("new_0")[1][:]
    names = [f"new_0_candidate_{place}.nii.gz" for place in range(len(candidates))]
    assert sorted(path.name for path in (folder / "out").iterdir()) == names
    for name, candidate in zip(names, candidates, strict=True):
        written = sitk.ReadImage(folder / "out" / name)
        assert written.GetOrigin() == (5, -7, 30)
        assert np.array_equal(sitk.GetArrayFromImage(written), candidate)


# At the page --------------------------------------------------------------------------------------


@contextmanager
def command(model: Path, folder: Path, *options: Any) -> Iterator[str]:
    """The command as it runs in a terminal; it gives the address that a browser is opened with."""
    addresses: queue.Queue[str] = queue.Queue()
    servers: list[ChooseServer] = []

    class Server(ChooseServer):
        def start(self) -> None:
            servers.append(self)
            super().start()

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as pool:
        patch.setattr(webbrowser, "open", addresses.put)
        patch.setattr(run, "ChooseServer", Server)
        running = pool.submit(choose, model, folder, *options)
        try:
            yield addresses.get(timeout=60)
            assert running.result(timeout=20) == 0
        finally:
            for server in servers:  # after a failed test
                server.is_over.set()


@contextmanager
def browser(address: str, problems: list[str]) -> Iterator[Callable[..., Any]]:
    """Makes pages of several people's browsers; what goes wrong in them is collected."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)

        def open_page(size: str = "desktop", scheme: Any = "light") -> Any:
            width, height = SIZES[size]
            viewport: Any = {"width": width, "height": height}
            page = chromium.new_context(viewport=viewport, color_scheme=scheme).new_page()
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.on("request", lambda request: problems.append(request.url)
                    if not request.url.startswith((address, "data:")) else None)  # fmt: skip
            page.goto(address)
            page.wait_for_selector("body[data-screen=start]")
            return page

        yield open_page
        chromium.close()


def press(page: Any, *keys: str) -> None:
    """Press keys that answer, and wait for the next question."""
    before = page.get_attribute("body", "data-question")
    for key in keys:
        page.keyboard.press(key)
    # while the next image is being segmented there is no question
    asking = f"body[data-screen=asking]:not([data-question='{before}'])"
    page.wait_for_selector(f"{asking}, body[data-screen=finished]", timeout=120_000)


def enter(page: Any, name: str = "") -> None:
    if name:
        page.keyboard.type(name)
    page.keyboard.press("Enter")
    page.wait_for_selector("body[data-question][data-screen=asking]", timeout=120_000)


@needs_chromium
def test_people_judge_with_the_keyboard_alone_and_nothing_is_lost(
    make_trainer: MakeTrainer, boxes: Path, tmp_path: Path
) -> None:
    model = save_model(make_trainer, STOCK, "2d")
    folder, problems = write_unlabelled(boxes, tmp_path, 5), list[str]()
    record = folder / "choices"
    with (
        command(model, folder, "--candidates", 3, "--repeat", 0) as address,
        browser(address, problems) as open_page,
    ):
        page = open_page()
        enter(page, "Ada")
        shown = page.locator(".panel").count()
        press(page, "1") if shown == 2 else press(page, "1", "Shift+Digit3")
        [answer] = read_answers(record).values()
        assert (answer.rater, answer.best) == ("Ada", answer.shown[0])
        assert answer.worst == (None if shown == 2 else answer.shown[2])
        press(page, "u")
        assert not read_answers(record)
        press(page, "2") if shown == 2 else press(page, "2", "Enter")  # only the best
        [answer] = read_answers(record).values()
        assert (answer.best, answer.worst) == (answer.shown[1], None)
        press(page, "s")
        press(page, "e")
        verdicts = [each.verdict for each in read_answers(record).values()]
        assert verdicts == ["choice", "skip", "equal"]

        place = page.locator("#place")
        first = place.inner_text()
        page.keyboard.press("ArrowDown")
        assert place.inner_text() != first
        for key in ("d", "Shift+D", "z", "v", "h", "+", "Shift+ArrowLeft", "0", "[", ".", "r", "c"):
            page.keyboard.press(key)
        page.keyboard.press("?")
        assert page.locator("#help").is_visible()
        page.keyboard.press("n")  # answers nothing behind the help
        page.keyboard.press("Escape")
        assert len(read_answers(record)) == 3

        second = open_page()  # which knows the last one's name
        second.keyboard.press("Enter")
        second.wait_for_selector("body[data-screen=elsewhere]")
        enter(second)
        page.keyboard.press("e")
        page.wait_for_selector("body[data-screen=elsewhere]")
        assert len(read_answers(record)) == 3
        press(second, "n")
        second.keyboard.press("1")
        second.close()  # in the middle of an answer

        third = open_page("phone", "dark")
        enter(third)
        assert third.locator("#progress").inner_text().startswith("4 of 5")
        press(third, "e")
        third.wait_for_selector("body[data-screen=finished]")
        assert "Cohen's kappa" in third.locator("#summary").inner_text()
        third.keyboard.press("Enter")
        third.wait_for_selector("body[data-screen=ended]")
    assert not problems
    verdicts = [each.verdict for each in read_answers(record).values()]
    assert verdicts == ["choice", "skip", "equal", "unusable", "equal"]


@needs_chromium
@pytest.mark.parametrize("mode", [[], ["--regions"]])
def test_the_page_fits_phone_and_desktop(
    make_trainer: MakeTrainer, boxes: Path, tmp_path: Path, mode: list[str]
) -> None:
    model = save_model(make_trainer, STOCK, "3d_fullres")
    folder, problems = write_unlabelled(boxes, tmp_path, 2), list[str]()
    with (
        command(model, folder, *mode) as address,
        browser(address, problems) as open_page,
    ):
        for size, scheme in itertools.product(SIZES, ("light", "dark")):
            page = open_page(size, scheme)
            assert find_faults(page) == []
            enter(page, "Ada" if size == "phone" and scheme == "light" else "")
            assert find_faults(page) == []
            page.keyboard.press("?")
            assert find_faults(page) == []
            page.keyboard.press("Escape")
            drawn = page.evaluate(
                "[...document.querySelectorAll('.panel canvas')].map((each) => new Set("
                "each.getContext('2d').getImageData(0, 0, each.width, each.height).data).size)"
            )
            assert len(drawn) >= 2
            assert min(drawn) > 20  # grey values of an image
            page.context.close()
        page = open_page()
        enter(page)
        while page.get_attribute("body", "data-screen") == "asking":
            press(page, "a" if mode else "e")
        page.keyboard.press("Enter")
        page.wait_for_selector("body[data-screen=ended]")
    assert not problems
