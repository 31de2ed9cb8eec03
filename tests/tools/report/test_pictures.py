from __future__ import annotations

import numpy as np
import pytest

from nnunetv2_mapo.tools.report.pictures import (
    COLOURS,
    LONGEST_SIDE,
    candidate_variance,
    find_slice,
    hex_to_rgb,
    paint_classes,
    paint_heat,
    paint_image,
    resize,
)


def test_variance_of_a_binary_vote_is_p_times_one_minus_p():
    # One, two and all of four candidates vote for 1: 1/4 * 3/4, 1/2 * 1/2, 1 * 0.
    candidates = np.array([[1, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 1]])
    assert candidate_variance(candidates).tolist() == [3 / 16, 1 / 4, 0]


def test_variance_of_three_classes_is_half_the_chance_that_two_candidates_differ():
    # Shares 1/3 each: two drawn with replacement differ with 2/3.
    assert candidate_variance(np.array([[0], [1], [2]]))[0] == pytest.approx(1 / 3)


def test_the_slice_with_most_is_shown():
    volume = np.zeros((4, 3, 3))
    volume[2, 0, 0] = 1
    assert find_slice(volume) == 2


def test_without_a_difference_the_middle_slice_is_shown():
    assert find_slice(np.zeros((5, 3, 3))) == 2
    assert find_slice(np.ones((1, 3, 3), dtype=bool)) == 0


def test_a_slice_has_its_true_proportions():
    # 10 x 20 voxels of 3 x 1 mm are 30 x 20 mm.
    resized = resize(np.zeros((10, 20)), (3.0, 1.0))
    assert resized.shape == (LONGEST_SIDE, LONGEST_SIDE * 2 // 3)


def test_enlarging_keeps_every_voxel_in_its_place():
    resized = resize(np.array([[1, 2], [3, 4]]), (1.0, 1.0))
    half = LONGEST_SIDE // 2
    assert (resized[:half, :half] == 1).all()
    assert (resized[:half, half:] == 2).all()
    assert (resized[half:, :half] == 3).all()
    assert (resized[half:, half:] == 4).all()


def test_grey_image_spans_black_to_white():
    ramp = np.linspace(-3, 5, 400).reshape(1, 20, 20)
    pixels = paint_image(ramp, (1.0, 1.0))
    assert pixels.shape == (LONGEST_SIDE, LONGEST_SIDE, 3)
    assert (pixels[0, 0] == 0).all()
    assert (pixels[-1, -1] == 255).all()
    assert (pixels[..., 0] == pixels[..., 2]).all()


def test_three_channels_become_three_colours():
    channels = np.zeros((3, 4, 4))
    channels[1, :, 2:] = 1
    pixels = paint_image(channels, (1.0, 1.0))
    assert pixels[0, -1].tolist() == [0, 255, 0]


def test_constant_image_is_black_without_a_warning():
    assert (paint_image(np.full((1, 4, 4), 7.0), (1.0, 1.0)) == 0).all()


def test_classes_are_opaque_at_their_border_and_mixed_inside():
    image = np.zeros((LONGEST_SIDE, LONGEST_SIDE, 3), np.uint8)
    classes = np.zeros((8, 8), np.uint8)
    classes[2:6, 2:6] = 2
    pixels = paint_classes(image, classes, (1.0, 1.0))
    colour = hex_to_rgb(COLOURS[1])
    middle, corner = LONGEST_SIDE // 2, LONGEST_SIDE // 4
    assert pixels[middle, middle].tolist() == (0.35 * colour).round().tolist()
    assert pixels[corner, corner].tolist() == colour.tolist()
    assert pixels[0, 0].tolist() == [0, 0, 0]


def test_heat_goes_from_black_to_bright():
    pixels = paint_heat(np.array([[0.0, 0.25]]), 0.25, (1.0, 1.0)).astype(int)
    assert pixels[0, 0].sum() < 10
    assert pixels[0, -1].sum() > 600
