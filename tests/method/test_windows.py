from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.sliding_window_prediction import compute_gaussian

from nnunetv2_mapo.method.windows import find_units, find_windows, vote

SHAPES = [
    ((8, 8, 8), (8, 8, 8)),
    ((9, 16, 17), (8, 8, 8)),
    ((20, 13, 31), (8, 4, 10)),
    ((3, 8, 8), (8, 8)),
    ((5, 17, 30), (8, 10)),
    ((1, 4, 25), (4, 5)),
]


@pytest.mark.parametrize(("shape", "patch_size"), SHAPES)
def test_windows_cover_every_voxel_with_as_few_as_needed(shape, patch_size):
    covered = np.zeros(shape, int)
    windows = find_windows(shape, patch_size, 1.0)
    for window in windows:
        assert covered[window.place].shape == patch_size
        covered[window.place] += 1
    assert covered.min() == 1
    in_plane = zip(shape[-len(patch_size) :], patch_size, strict=True)
    per_slice = math.prod(math.ceil(size / patch) for size, patch in in_plane)
    num_slices = shape[0] if len(patch_size) == 2 else 1
    assert len(windows) == num_slices * per_slice
    # without a remainder, no voxel is computed twice
    if all(size % patch == 0 for size, patch in zip(shape[::-1], patch_size[::-1], strict=False)):
        assert covered.max() == 1


@pytest.mark.parametrize("tile_step_size", [1.0, 0.5, 0.3])
@pytest.mark.parametrize(("shape", "patch_size"), SHAPES)
def test_cells_are_disjoint_cover_the_case_and_lie_in_their_windows(
    shape, patch_size, tile_step_size
):
    decided = np.zeros(shape, int)
    for window in find_windows(shape, patch_size, tile_step_size):
        decided[window.cell] += 1
        own = np.zeros(shape, bool)
        own[window.place] = True
        assert own[window.cell].all()
    assert decided.min() == decided.max() == 1


@pytest.mark.parametrize("tile_step_size", [1.0, 0.5])
def test_a_voxel_belongs_to_the_window_with_the_nearest_centre(tile_step_size):
    windows = find_windows((23, 8, 30), (8, 8, 12), tile_step_size)
    centres = np.array(
        [[(axis.start + axis.stop - 1) / 2 for axis in window.place] for window in windows]
    )
    for window, centre in zip(windows, centres, strict=True):
        for corner in itertools.product(*((axis.start, axis.stop - 1) for axis in window.cell)):
            along_axes = np.abs(np.array(corner) - centres)
            assert (np.abs(np.array(corner) - centre) <= along_axes.min(0) + 1e-9).all()


def test_cells_of_a_row_by_hand():
    # 10 voxels, windows of 4: nnU-Net's at 0, 3 and 6; overlaps 3 and 6
    windows = find_windows((1, 1, 10), (1, 4), 1.0)
    assert [window.place[2] for window in windows] == [slice(0, 4), slice(3, 7), slice(6, 10)]
    assert [window.cell[2] for window in windows] == [slice(0, 3), slice(3, 6), slice(6, 10)]


# Votes -------------------------------------------------------------------------------------------


def test_of_two_labels_the_one_with_more_weight_wins_whatever_the_order():
    ballots = [(1, 0.25), (0, 0.5), (1, 0.5), (0, 0.125)]  # 1 has 0.75, 0 has 0.625
    for order in itertools.permutations(ballots):
        labels, lead = torch.zeros(1, dtype=torch.uint8), torch.zeros(1)
        for label, weight in order:
            vote(labels, lead, torch.tensor([label], dtype=torch.uint8), torch.tensor([weight]))
        assert labels.tolist() == [1]
        assert lead.tolist() == [0.125]


def test_of_several_labels_a_majority_wins():
    labels, lead = torch.zeros(2, dtype=torch.uint8), torch.zeros(2)
    for ballot in ([1, 2], [2, 3], [3, 3], [3, 1], [3, 3]):  # 3 has three of five votes
        vote(labels, lead, torch.tensor(ballot, dtype=torch.uint8), torch.ones(1))
    assert labels.tolist() == [3, 3]


def test_votes_of_windows_are_those_of_nnunets_weights():
    rng = torch.Generator().manual_seed(0)
    shape, patch_size = (12, 15, 17), (8, 8, 8)
    weight = compute_gaussian(patch_size, dtype=torch.float32, device=torch.device("cpu"))
    labels, lead = torch.zeros(shape, dtype=torch.uint8), torch.zeros(shape)
    sums = torch.zeros(2, *shape)
    for window in find_windows(shape, patch_size, 0.5):
        ballot = torch.randint(0, 2, patch_size, generator=rng, dtype=torch.uint8)
        vote(labels[window.place], lead[window.place], ballot, weight)
        for label in (0, 1):
            sums[(label, *window.place)] += weight * (ballot == label)
    is_clear = (sums[0] - sums[1]).abs() > 1e-5
    assert is_clear.float().mean() > 0.8  # in corners the weights are tiny
    assert torch.equal(labels[is_clear], sums.argmax(0)[is_clear].to(torch.uint8))


# Units -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["case", "slice", "window"])
@pytest.mark.parametrize(
    ("shape", "patch_size"), [*SHAPES, ((5, 6, 11), (8, 8, 8)), ((2, 5, 12), (8, 8))]
)
def test_units_are_disjoint_and_cover_the_case(shape, patch_size, unit):
    covered = np.zeros(shape, int)
    for place in find_units(shape, patch_size, unit, 1.0):
        assert covered[place].size > 0
        covered[place] += 1
    assert covered.min() == covered.max() == 1


def test_number_of_units_by_hand():
    shape = (4, 16, 24)
    for patch_size, unit, number in (
        ((8, 8, 8), "case", 1),
        ((8, 8, 8), "slice", 4),
        ((8, 8, 8), "window", 1 * 2 * 3),
        ((8, 8), "case", 1),
        ((8, 8), "slice", 4),
        ((8, 8), "window", 4 * 2 * 3),
    ):
        assert len(find_units(shape, patch_size, unit, 1.0)) == number


def test_windows_of_a_padded_case_are_where_the_miner_finds_them():
    shape, patch_size = (5, 11, 6), (8, 8, 8)
    number = torch.zeros(1, *shape)
    for index, place in enumerate(find_units(shape, patch_size, "window", 1.0)):
        number[0][place] = index
    padded, inside = pad_nd_image(number, patch_size, "constant", {"value": -1}, True)
    for index, window in enumerate(find_windows(padded.shape[1:], patch_size, 1.0)):
        found = padded[0][window.cell]
        assert set(found.unique().tolist()) - {-1} == {index}
    assert torch.equal(padded[inside], number)
