from __future__ import annotations

import numpy as np
import pytest

from nnunetv2_mapo.method.valid import METRICS
from nnunetv2_mapo.metrics.change import Change
from nnunetv2_mapo.metrics.scores import find_score, named_scores


def test_every_metric_of_the_settings_has_a_score():
    assert tuple(named_scores(tolerance_mm=1.0)) == METRICS


def score(name, prediction, target, spacing_mm=(1.0, 1.0), tolerance_mm=1.0):
    found = find_score(name, tolerance_mm)
    return found.score(found.measure(prediction, target, spacing_mm).counts)


@pytest.mark.parametrize("name", METRICS)
def test_a_perfect_prediction_has_1_and_an_empty_one_less(name):
    target = np.zeros((20, 30), bool)
    target[5:9, 3:20] = True
    assert score(name, target, target) == 1
    empty = score(name, np.zeros_like(target), target)
    assert empty == (1 / 1.068 if name == "false_volume" else 0)  # 68 mm³ are missed


def test_distances_and_volumes_have_a_half_at_their_scale():
    first, second = np.zeros((2, 9, 30), bool)
    first[4, 4], second[4, 14] = True, True
    assert score("hd95", first, second) == pytest.approx(0.5)  # 10 mm
    assert score("asd", first, second, (1.0, 0.2)) == pytest.approx(0.5)  # 2 mm
    assert score("false_volume", first, second, (5.0, 100.0)) == pytest.approx(0.5)  # 2 x 0.5 ml


def test_nsd_has_the_tolerance_that_is_asked_for():
    first, second = np.zeros((2, 9, 30), bool)
    first[4, 4], second[4, 7] = True, True
    assert score("nsd", first, second, tolerance_mm=3.0) == 1
    assert score("nsd", first, second, tolerance_mm=2.9) == 0
    assert score("nsd", first, second, (1.0, 0.1), tolerance_mm=0.3) == 1  # 3 x 0.1 > 0.3


def test_an_own_function_is_asked_about_the_whole_masks(tmp_path, monkeypatch):
    source = (
        "def volume(prediction, target, spacing_mm):\n"
        "    assert prediction.shape == target.shape == (3, 4) and spacing_mm == (2.0, 5.0)\n"
        "    return prediction.sum() * spacing_mm[0] * spacing_mm[1]\n"
    )
    (tmp_path / "metrics_of_a_user.py").write_text(source)
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    full = np.ones((3, 4), bool)
    assert score("metrics_of_a_user:volume", full, full, (2.0, 5.0)) == 120
    with pytest.raises(AttributeError):
        find_score("metrics_of_a_user:area", 1.0)
    with pytest.raises(ModuleNotFoundError):
        find_score("no_such_module:area", 1.0)


def test_an_own_function_is_never_asked_about_two_empty_masks(tmp_path, monkeypatch):
    """A class that only a candidate has is in neither the plain prediction nor the truth."""
    (tmp_path / "plain_dice.py").write_text(
        "def dice(p, t, _): return 2 * int((p & t).sum()) / (int(p.sum()) + int(t.sum()))"
    )
    monkeypatch.syspath_prepend(tmp_path)
    nothing, some = np.zeros((3, 3), bool), np.ones((1, 1), bool)
    measured = find_score("plain_dice:dice", 1.0).measure(nothing, nothing, (1.0, 1.0))
    assert measured.counts_with(Change((slice(1), slice(1)), some)) == 0


def test_an_own_function_cannot_change_what_it_is_asked_about(tmp_path, monkeypatch):
    (tmp_path / "changing.py").write_text("def score(p, t, _): p &= t; return p.sum()")
    monkeypatch.syspath_prepend(tmp_path)
    masks = np.ones((3, 3), bool), np.ones((3, 3), bool)
    with pytest.raises(ValueError, match="read-only"):
        _ = find_score("changing:score", 1.0).measure(*masks, (1.0, 1.0)).counts
    assert masks[0].flags.writeable
