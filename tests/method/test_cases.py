from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_mapo.method.cases import labels_of, load_case
from nnunetv2_mapo.method.labels import Labels

CLASSES = LabelManager({"background": 0, "a": 1, "b": 2}, None)


@pytest.mark.parametrize(
    ("label_manager", "labels"),
    [
        (CLASSES, Labels(3)),
        (
            LabelManager({"background": 0, "a": 1, "ignore": 2}, None),
            Labels(2, ignore_label=2),
        ),
        (
            LabelManager({"background": 0, "whole": [1, 2], "core": 2}, [1, 2]),
            Labels(2, regions=((1, 2), (2,))),
        ),
    ],
    ids=["classes", "ignore", "regions"],
)
def test_labels_of_nnunets_label_manager(label_manager, labels):
    assert labels_of(label_manager) == labels


@pytest.mark.parametrize("has_previous_stage", [False, True])
def test_case_has_the_previous_stage_as_one_hot_channels_behind_the_image(has_previous_stage):
    image = np.array([[[[0.5, 1.5, 2.5]]]], np.float16)
    segmentation = np.array([[[[0, 1, 2]]]], np.int8)
    previous = np.array([[[1, 2, 0]]], np.int8) if has_previous_stage else None
    dataset = SimpleNamespace(load_case=lambda _: (image, segmentation, previous, {}))
    loaded, truth = load_case(dataset, CLASSES, "case")
    expected = [[[[0.5, 1.5, 2.5]]], [[[1, 0, 0]]], [[[0, 1, 0]]]]
    assert loaded.tolist() == expected[: 3 if has_previous_stage else 1]
    assert loaded.dtype == torch.float32
    assert np.array_equal(truth, segmentation)


def test_a_box_may_reach_beyond_the_case():
    image = np.arange(12, dtype=np.float32).reshape(1, 1, 3, 4)
    segmentation, previous = np.ones((1, 1, 3, 4), np.int8), np.ones((1, 3, 4), np.int8)
    dataset = SimpleNamespace(load_case=lambda _: (image, segmentation, previous, {}))
    loaded, truth = load_case(dataset, CLASSES, "case", [[0, 1], [1, 4], [-1, 2]])
    assert loaded[0].tolist() == [[[0, 4, 5], [0, 8, 9], [0, 0, 0]]]
    assert truth.tolist() == [[[[-1, 1, 1], [-1, 1, 1], [-1, -1, -1]]]]
    assert loaded[1].tolist() == [[[0, 1, 1], [0, 1, 1], [0, 0, 0]]]
