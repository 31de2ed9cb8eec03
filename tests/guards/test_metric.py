from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from nnunetv2_mapo.guards.metric import check_metric
from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.method.valid import METRICS
from nnunetv2_mapo.support.errors import InputError

SOURCE = """
import time

def share(prediction, target, spacing_mm):
    return (prediction & target).sum() / (prediction | target).sum()

def slow(prediction, target, spacing_mm):
    time.sleep(0.15)
    return share(prediction, target, spacing_mm)

def lower_is_better(prediction, target, spacing_mm):
    return 1 - share(prediction, target, spacing_mm)

def always_one(prediction, target, spacing_mm):
    return 1.0

def undefined(prediction, target, spacing_mm):
    return 0.0 / prediction.sum() if prediction.any() else float("nan")

def share_of_target(prediction, target, spacing_mm):
    return (prediction & target).sum() / target.sum() if target.any() else float("nan")

def other_arguments(prediction, target):
    return 1.0

def none(prediction, target, spacing_mm):
    return None

def axes(prediction, target, spacing_mm):
    assert prediction.ndim == len(spacing_mm) == 2 and spacing_mm == (0.5, 2.0)
    return share(prediction, target, spacing_mm)
"""


@pytest.fixture(autouse=True)
def _own_module(tmp_path, monkeypatch):
    (tmp_path / "own_metrics_here.py").write_text(SOURCE)
    (tmp_path / "broken_metrics_here.py").write_text("1 / 0")
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))


def dataset(*segmentations):
    cases = {f"case_{number}": each for number, each in enumerate(segmentations)}
    return SimpleNamespace(
        identifiers=[*cases], load_case=lambda case: (None, cases[case][None], None, {})
    )


def some_truth():
    truth = np.zeros((6, 12, 12), np.int16)
    truth[2:4, 3:9, 4:7] = 1
    truth[2, 3:9, 7:9] = 2
    return truth


def check(metric, spacing_mm=(3.0, 0.5, 2.0), *segmentations):
    cases = dataset(*(segmentations or [some_truth()]))
    return check_metric(MAPOConfig(metric=metric), Labels(3), spacing_mm, cases)


@pytest.mark.parametrize("metric", [*METRICS, {"nsd": 1, "dice": 2}, "own_metrics_here:share"])
@pytest.mark.parametrize("spacing_mm", [(3.0, 0.5, 2.0), (0.5, 2.0)], ids=["3D", "2D"])
def test_what_keeps_the_contract_passes_without_a_word(metric, spacing_mm):
    assert check(metric, spacing_mm) == []


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("no_such_module:share", "cannot be imported (ModuleNotFoundError"),
        ("own_metrics_here:shar", "cannot be imported (AttributeError"),
        ("broken_metrics_here:share", "cannot be imported (ZeroDivisionError"),
        ("own_metrics_here:lower_is_better", "0 of a perfect prediction and 1 of an empty one"),
        ("own_metrics_here:always_one", "1 of a perfect prediction and 1 of an empty one"),
        ("own_metrics_here:undefined", "is nan for 0 voxels where"),
        ("own_metrics_here:share_of_target", "voxels where 0 are right: a metric must be finite"),
        ("own_metrics_here:other_arguments", "fails on a training case (TypeError"),
        ("own_metrics_here:none", "fails on a training case (TypeError"),
        ({"dice": 1, "own_metrics_here:undefined": 1}, "is nan for 0 voxels where"),
    ],
)
def test_what_breaks_the_contract_is_refused(metric, message):
    with pytest.raises(InputError) as error:
        check(metric)
    assert str(error.value).startswith(f"metric={metric!r} ")
    assert message in str(error.value)


def test_a_slow_function_is_a_notice_with_its_seconds():
    [notice] = check("own_metrics_here:slow")
    assert notice.startswith("NOTICE: metric='own_metrics_here:slow' takes 0.3")  # two classes
    assert "minutes a case in each round" in notice


def test_a_2d_configuration_shows_a_slice():
    assert check("own_metrics_here:axes", (0.5, 2.0)) == []


def test_cases_without_foreground_are_passed_over():
    nothing = np.zeros((6, 12, 12), np.int16)
    assert check("own_metrics_here:share", (1.0, 1.0, 1.0), nothing, some_truth()) == []
    assert check("own_metrics_here:share", (1.0, 1.0, 1.0), nothing) == []
