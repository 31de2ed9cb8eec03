from __future__ import annotations

import math
from types import SimpleNamespace
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text
from nnunetv2.training.logging.nnunet_logger import LocalLogger

from nnunetv2_mapo.method.loss import STEP_KEYS
from nnunetv2_mapo.method.progress import (
    METRIC,
    METRIC_EMA,
    MINING_KEYS,
    VALIDATION_KEYS,
    best_by_metric,
    estimate_left,
    log_metric,
    plot_progress,
    register_keys,
    round_values,
    step_means,
)
from nnunetv2_mapo.method.schedule import Stage
from nnunetv2_mapo.method.summary import RoundSummary

KEYS = (*STEP_KEYS, *MINING_KEYS, *VALIDATION_KEYS)
SUMMARY = RoundSummary(
    tau=0.1,
    num_samples=5,
    num_pairs=3,
    num_parts=0,
    num_preferred=0,
    dice_plain=0.6,
    dice_chosen=0.7,
    dice_rejected=0.4,
    disagreement=0.02,
    gaps=[0.1],
)


def test_registered_keys_are_padded_with_nan_for_the_epochs_before():
    logged = {"train_losses": [1.0, 0.9]}
    register_keys(logged, 2)
    assert set(logged) == {"train_losses", *KEYS}
    for key in KEYS:
        assert len(logged[key]) == 2
        assert all(math.isnan(value) for value in logged[key])
    assert logged["train_losses"] == [1.0, 0.9]


def test_registering_again_keeps_values_and_fills_only_the_gap():
    logged = {"loss/dpo": [0.5]}
    register_keys(logged, 1)
    register_keys(logged, 3)
    assert logged["loss/dpo"][0] == 0.5
    assert [math.isnan(value) for value in logged["loss/dpo"]] == [False, True, True]
    assert len(logged["mining/pairs"]) == 3


def test_means_are_over_the_steps_that_define_a_value():
    nan = math.nan
    steps = [(1.0, nan), (2.0, 0.25), (math.inf, 0.75)]  # supervised and DPO loss
    outputs = [{**dict.fromkeys(STEP_KEYS, nan), "loss/supervised": a, "loss/dpo": b}
               for a, b in steps]  # fmt: skip
    means = step_means(outputs)
    assert means["loss/supervised"] == 1.5
    assert means["loss/dpo"] == 0.5
    assert math.isnan(means["rewards/margins"])


def test_registered_keys_can_be_logged_by_nnunets_logger():
    logger = LocalLogger()
    register_keys(logger.my_fantastic_logging, 0)
    for epoch in range(2):
        for key in KEYS:
            logger.log(key, 0.1 * epoch, epoch)
    assert all(logger.my_fantastic_logging[key] == [0.0, 0.1] for key in KEYS)


def test_values_of_a_round_have_the_mining_keys():
    assert round_values(SUMMARY) == {
        "mining/pairs": 3.0,
        "mining/samples": 5.0,
        "mining/dice_plain": 0.6,
        "mining/dice_chosen": 0.7,
        "mining/dice_rejected": 0.4,
        "mining/disagreement": 0.02,
    }


def test_values_of_the_warm_up_are_nan():
    values = round_values(None)
    assert set(values) == set(MINING_KEYS)
    assert all(math.isnan(value) for value in values.values())


def three_epochs(**given: list[float]) -> dict[str, list[float]]:
    logged = {key: [math.nan] * 3 for key in KEYS}
    return {**logged, "mean_fg_dice": [0.3, 0.4, 0.5], **given}


# pytest turns each warning, of an empty plot for example, into an error
@pytest.mark.parametrize(
    "logged",
    [
        three_epochs(),
        three_epochs(
            **{
                "loss/supervised": [0.9, 0.8, 0.7],
                "loss/dpo": [math.nan, 0.69, 0.5],
                "rewards/margins": [math.nan, 0.1, -0.2],
                "mining/pairs": [math.nan, 7.0, 0.0],
            }
        ),
    ],
    ids=["all NaN", "warm-up and two rounds"],
)
def test_progress_of_three_epochs_is_drawn_without_warnings(tmp_path, logged):
    stages = [Stage(0, 0, 1), Stage(1, 1, 2), Stage(2, 2, 3)]
    plot_progress(tmp_path, logged, stages)
    assert [file.name for file in tmp_path.iterdir()] == ["progress_mapo.png"]
    picture = imread(tmp_path / "progress_mapo.png")
    assert picture.shape[:2] == (12 * 90, 10 * 90)
    assert np.unique(picture[..., :3].reshape(-1, 3), axis=0).shape[0] > 20


def test_values_that_are_logged_show_in_the_picture(tmp_path):
    stages = [Stage(0, 0, 1), Stage(1, 1, 3)]
    pictures = []
    for logged in (three_epochs(), three_epochs(**{"loss/dpo": [math.nan, 0.6, 0.5]})):
        plot_progress(tmp_path, logged, stages)
        pictures.append(imread(tmp_path / "progress_mapo.png"))
    assert not np.array_equal(*pictures)


def test_progress_is_drawn_before_the_first_round_begins(tmp_path):
    logged = {key: values[:1] for key, values in three_epochs().items()}
    plot_progress(tmp_path, logged, [Stage(0, 0, 2), Stage(1, 2, 4)])
    assert (tmp_path / "progress_mapo.png").stat().st_size > 0


class Logger:
    """nnU-Net's logger with the calls that are made of it."""

    def __init__(self) -> None:
        self.logged = {"ema_fg_dice": [0.7], METRIC: [], METRIC_EMA: []}

    def log(self, key, value, epoch):
        assert len(self.logged[key]) == epoch
        self.logged[key].append(value)

    def get_value(self, key, step):
        return self.logged[key] if step is None else self.logged[key][step]


def test_the_average_of_the_metric_is_nnunets():
    logger = Logger()
    for epoch, value in enumerate((math.nan, 0.5, 0.7)):
        log_metric(logger, value, epoch)
    assert logger.logged[METRIC_EMA][1:] == pytest.approx([0.5, 0.9 * 0.5 + 0.1 * 0.7])
    assert math.isnan(logger.logged[METRIC_EMA][0])


def test_the_best_is_asked_of_the_metric_for_a_while():
    logger, trainer = Logger(), SimpleNamespace(_best_ema=0.9)
    trainer.logger = logger
    log_metric(logger, 0.2, 0)
    with best_by_metric(trainer):
        assert trainer._best_ema is None  # 0.9 was of the pseudo Dice
        assert logger.get_value("ema_fg_dice", step=-1) == 0.2
        assert logger.get_value(METRIC, step=-1) == 0.2
        trainer._best_ema = 0.2
    assert logger.get_value("ema_fg_dice", step=-1) == 0.7
    log_metric(logger, 0.3, 1)
    with best_by_metric(trainer):
        assert trainer._best_ema == 0.2


def test_after_nnunets_own_plot_every_text_is_small_and_on_the_canvas(tmp_path, monkeypatch):
    logger = LocalLogger()
    stages = [Stage(0, 0, 5), Stage(1, 5, 8), Stage(2, 8, 10)]
    register_keys(logger.my_fantastic_logging, 0)
    for epoch in range(10):
        for key in logger.my_fantastic_logging:
            logger.log(key, 1000.0 if "pairs" in key else 0.1 * epoch, epoch)
    with mpl.rc_context():  # nnU-Net sets seaborn's for the whole process
        logger.plot_progress_png(str(tmp_path))
        assert mpl.rcParams["font.size"] > 20
        found = record_texts(monkeypatch)
        plot_progress(tmp_path, logger.my_fantastic_logging, stages)
        assert mpl.rcParams["font.size"] > 20  # its next picture is as before
    assert {"preference loss", "margin", "round 2\n1000 pairs", "warm-up"} <= {*found.names}
    assert found.outside == found.large == []
    assert found.on_curves == []


class FoundTexts(NamedTuple):
    names: list[str]
    outside: list[str]
    large: list[str]
    on_curves: list[str]


def record_texts(monkeypatch) -> FoundTexts:
    """What is wrong with the texts of the next figure that is saved, as they lie then."""
    found = FoundTexts([], [], [], [])
    save = Figure.savefig

    def look_and_save(figure: Figure, *arguments, **options):
        figure.draw_without_rendering()
        width, height = figure.bbox.size
        for text in figure.findobj(Text):
            words, box = text.get_text(), text.get_window_extent()
            if not any(map(str.isalpha, words)):
                continue  # numbers of ticks, of which those beyond the limits are not drawn
            found.names.append(words)
            if box.x0 < 0 or box.y0 < 0 or box.x1 > width or box.y1 > height:
                found.outside.append(words)
            if text.get_fontsize() > 12:
                found.large.append(words)
            if any(axis.bbox.overlaps(box) for axis in figure.axes):
                found.on_curves.append(words)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", look_and_save)
    return found


def test_time_left_is_that_of_the_latest_epochs_and_of_the_rounds_to_come():
    stages = [Stage(0, 0, 4), Stage(1, 4, 7), Stage(2, 7, 10)]
    durations = [100.0, 10.0, 10.0, 10.0, 30.0, 30.0, 30.0]
    starts = [1000.0 * epoch for epoch in range(8)]  # the next epoch has begun
    ends = [start + length for start, length in zip(starts, durations, strict=False)]
    logged = {"epoch_start_timestamps": starts, "epoch_end_timestamps": ends}
    # The latest five take 10, 10, 30, 30, 30 s; three epochs and round 2 are to come.
    assert estimate_left(logged, stages, 50.0) == 3 * 30 + 50
    early = {"epoch_start_timestamps": starts[:2], "epoch_end_timestamps": ends[:1]}
    assert estimate_left(early, stages, 0.0) == 9 * 100
