import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.support.errors import CommandError
from nnunetv2_mapo.tools.choose.expert import Expert, Shown, choose, find_truths, score

TRUTH = np.array([[[1, 1, 0, 0]]])
CANDIDATES = np.array([[[[1, 1, 0, 0]]], [[[1, 0, 0, 0]]], [[[0, 0, 1, 1]]]], np.int16)


def test_whole_images_are_scored_by_their_dice():
    assert score(Shown(CANDIDATES, None), TRUTH, Labels(2)) == pytest.approx([1, 2 / 3, 0])


def test_regions_are_scored_by_their_right_voxels():
    region = np.array([[[False, True, True, False]]])
    assert score(Shown(CANDIDATES, region), TRUTH, Labels(2)) == [2, 1, 0]


def test_ignored_voxels_do_not_count():
    truth = np.array([[[1, 2, 0, 0]]])
    region = np.ones(truth.shape, bool)
    assert score(Shown(CANDIDATES[:2], None), truth, Labels(2, None, 2)) == [1, 1]
    assert score(Shown(CANDIDATES[:2], region), truth, Labels(2, None, 2)) == [3, 3]


def test_an_error_swaps_best_and_worst():
    right = choose([0.5, 0.9, 0.1], is_error=False)
    assert right == {"verdict": "choice", "best": 1, "worst": 2}
    assert choose([0.5, 0.9, 0.1], is_error=True) == {**right, "best": 2, "worst": 1}


def test_the_same_score_is_equal():
    assert choose([0.5, 0.5], is_error=True)["verdict"] == "equal"


def test_a_missing_ground_truth_is_named(tmp_path: Path):
    (tmp_path / "a.nii.gz").touch()
    with pytest.raises(CommandError, match=r"lacks the ground truth of 1 of 2 images: b\.nii\.gz"):
        find_truths(tmp_path, {"a": [], "b": []}, ".nii.gz")


def test_a_truth_that_takes_longer_than_a_connection_is_waited_for(server, monkeypatch):
    def read_slowly(_: str) -> np.ndarray:
        time.sleep(0.6)
        return np.zeros((3, 8, 10), np.int16)

    monkeypatch.setattr(server.RequestHandlerClass, "timeout", 0.2)
    expert = Expert(server.address, SimpleNamespace(labels=Labels(2)), {}, {}, error=0, seed=0)
    monkeypatch.setattr(expert, "_read_truth", read_slowly)
    assert expert.answer_all() == 3
