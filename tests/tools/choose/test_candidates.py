from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.method.selection import candidate_dice
from nnunetv2_mapo.tools.choose import candidates as module
from nnunetv2_mapo.tools.choose.candidates import (
    find_rates,
    find_widest,
    keep_different,
    measure_distances,
    to_nnunet_labels,
)


def test_distances_are_1_minus_dice_by_hand():
    # 4, 3 and 2 voxels inside each other: Dice 2 * 3 / 7, 2 * 2 / 6, 2 * 2 / 5
    candidates = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]])
    distances = measure_distances(candidates[:, None, None], Labels(2))
    assert distances[0, 1] == pytest.approx(1 - 6 / 7)
    assert distances[0, 2] == pytest.approx(1 - 4 / 6)
    assert distances[1, 2] == pytest.approx(1 - 4 / 5)
    assert np.array_equal(distances, distances.T)
    assert not distances.diagonal().any()


@pytest.mark.parametrize("labels", [Labels(4), Labels(3, ((1, 2, 3), (2, 3), (3,)))])
def test_distances_are_those_of_whole_candidates(labels):
    generator = torch.Generator().manual_seed(0)
    candidates = torch.randint(0, 4, (5, 3, 4, 4), generator=generator)
    candidates[:, 0] = 2  # where all agree
    distances = measure_distances(candidates, labels)
    for place, candidate in enumerate(candidates):
        expected = 1 - candidate_dice(candidates, candidate, labels)
        assert np.allclose(distances[place], expected)


def test_the_plain_prediction_is_kept_first_and_then_the_farthest_in_turn():
    points = np.array([0.0, 0.1, 0.9, 0.5, 0.901])
    distances = np.abs(points[:, None] - points)
    assert keep_different(distances, 6) == [0, 4, 3, 1]  # 2 is too near to 4
    assert keep_different(distances, 2) == [0, 4]


def test_equal_candidates_leave_the_plain_prediction_alone():
    assert keep_different(np.zeros((4, 4)), 6) == [0]


def test_disagreement_is_relative_to_the_foreground_of_both():
    candidates = np.array([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]], np.int16)
    # 1 and 2 differ in 3 voxels of 5
    assert find_widest(candidates[:, None, None]) == ((1, 2), pytest.approx(3 / 5))


def test_bits_of_regions_become_labels_of_which_later_ones_lie_above():
    manager = SimpleNamespace(has_regions=True, regions_class_order=[1, 2])
    assert to_nnunet_labels(np.array([0, 1, 2, 3]), manager).tolist() == [0, 1, 2, 2]


def test_classes_are_labels():
    manager = SimpleNamespace(has_regions=False)
    assert to_nnunet_labels(np.array([0, 3], np.uint8), manager).tolist() == [0, 3]


def test_rates_are_found_on_further_images_where_the_first_ones_show_nothing(monkeypatch):
    seen = []

    def segment(_miner, image, rates, _name, _log):
        seen.append(float(image.max()))
        return (image[:1] > rates[0]).int()

    monkeypatch.setattr(module, "segment", segment)
    miner = SimpleNamespace(
        config=SimpleNamespace(rates_dice_fall=0.1), labels=Labels(2),
        sampler=SimpleNamespace(values=(0.0, 0.1, 0.2)),
    )  # fmt: skip
    empty, there = np.zeros((1, 1, 2, 3), np.float32), np.full((1, 1, 2, 3), 0.3, np.float32)
    said = []
    rates = find_rates(miner, iter([empty, empty, there, there]), 2, said.append)
    assert len(rates) == 3
    assert rates[-1] == pytest.approx(0.3, abs=0.05)
    assert seen[:3] == [0, 0, pytest.approx(0.3)]  # and no fourth image
    assert not said
    assert find_rates(miner, [empty], 2, said.append) == ()
    assert len(said) == 1
    assert find_rates(miner, [], 2, said.append) == ()  # none can be read: that says nothing
    assert len(said) == 1
