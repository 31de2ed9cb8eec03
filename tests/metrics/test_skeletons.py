from __future__ import annotations

import numpy as np
import pytest
from skimage.morphology import skeletonize

from nnunetv2_mapo.metrics.skeletons import Skeletons, cl_dice, skeleton


def measure(prediction, target):
    return cl_dice(Skeletons(prediction, target, (1.0,) * target.ndim).counts)


def line(length, *, shape=(9, 30)):
    mask = np.zeros(shape, bool)
    mask[4, 2 : 2 + length] = True
    return mask


def test_half_of_a_line_has_all_precision_and_half_the_sensitivity():
    # The skeleton of a line is the line: 10 of 10 pixels lie in the truth, 10 of its 20 are found.
    assert measure(line(10), line(20)) == pytest.approx(2 * 1 * 0.5 / 1.5)
    assert measure(line(20), line(20)) == 1


def test_a_thicker_tube_with_the_same_centre_is_perfect():
    thin, thick = np.zeros((2, 9, 9, 30), bool)
    thin[3:6, 3:6, 5:25], thick[2:7, 2:7, 5:25] = True, True
    assert measure(thick, thin) == measure(thin, thick) == 1


def test_an_empty_mask_and_masks_that_do_not_meet_have_nothing():
    empty, other = np.zeros((9, 30), bool), np.roll(line(20), 3, axis=0)
    assert measure(empty, line(20)) == measure(line(20), empty) == measure(other, line(20)) == 0


@pytest.mark.parametrize("shape", [(40, 50), (20, 24, 22)], ids=["2D", "3D"])
def test_background_around_a_mask_does_not_change_its_skeleton(shape):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(6, -5) for _ in shape)] = True
    assert np.array_equal(skeleton(mask), skeletonize(mask))
    assert not skeleton(np.zeros(shape, bool)).any()


def test_blocks_that_thinning_makes_vanish_are_their_own_centreline():
    for size in (2, 4):
        block = np.zeros((12, 12, 12), bool)
        block[3 : 3 + size, 4 : 4 + size, 5 : 5 + size] = True
        assert measure(block, block) == 1
        assert measure(np.zeros_like(block), block) == 0
