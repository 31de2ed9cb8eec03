from __future__ import annotations

import numpy as np

from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.tools.pair_pictures import (
    LONGEST_SIDE,
    enlarge,
    name_colours,
    paint_classes,
    paint_image,
    to_classes,
)

ORANGE = np.array([0xE6, 0x9F, 0x00])  # second colour of Okabe and Ito


def test_classes_are_painted_as_they_are():
    label_map = np.array([0, 1, 3])
    assert to_classes(label_map, Labels(4)).tolist() == [0, 1, 3]


def test_of_nested_regions_the_innermost_is_painted():
    # Bit masks: none, region 0, regions 0 and 1, regions 0 to 2, region 2 alone.
    labels = Labels(3, regions=((1, 2, 3), (2, 3), (3,)))
    assert to_classes(np.array([0, 1, 3, 7, 4]), labels).tolist() == [0, 1, 2, 3, 3]


def test_a_slice_has_its_true_proportions():
    # 10 x 20 voxels of 3 x 1 mm are 30 x 20 mm.
    assert enlarge(np.zeros((10, 20)), (3.0, 1.0)).shape == (LONGEST_SIDE, LONGEST_SIDE * 2 // 3)


def test_enlarging_keeps_every_voxel_in_its_place():
    enlarged = enlarge(np.array([[1, 2], [3, 4]]), (1.0, 1.0))
    half = LONGEST_SIDE // 2
    assert (enlarged[:half, :half] == 1).all()
    assert (enlarged[:half, half:] == 2).all()
    assert (enlarged[half:, :half] == 3).all()
    assert (enlarged[half:, half:] == 4).all()


def test_grey_image_spans_black_to_white():
    pixels = paint_image(np.linspace(-3, 5, 400).reshape(1, 20, 20))
    assert pixels.shape == (20, 20, 3)
    assert (pixels[0, 0] == 0).all()
    assert (pixels[-1, -1] == 255).all()
    assert (pixels[..., 0] == pixels[..., 2]).all()


def test_three_channels_become_three_colours():
    channels = np.zeros((3, 4, 4))
    channels[1, :, 2:] = 1
    assert paint_image(channels)[0, -1].tolist() == [0, 255, 0]


def test_constant_image_is_black_without_a_warning():
    assert (paint_image(np.full((1, 4, 4), 7.0)) == 0).all()


def test_classes_are_opaque_at_their_border_and_mixed_inside():
    classes = np.zeros((8, 8), np.int16)
    classes[2:6, 2:6] = 2
    pixels = paint_classes(np.zeros((8, 8, 3), np.uint8), classes)
    assert pixels[3, 3].tolist() == (0.35 * ORANGE).round().tolist()
    assert pixels[2, 2].tolist() == pixels[5, 3].tolist() == ORANGE.tolist()
    assert pixels[0, 0].tolist() == [0, 0, 0]


def test_the_border_between_two_classes_has_both_colours():
    classes = np.repeat([[2, 9]], 8, axis=1).reshape(1, 16).repeat(3, axis=0)  # 9 is 2 again
    pixels = paint_classes(np.zeros((3, 16, 3), np.uint8), classes)
    assert pixels[1, 7].tolist() == pixels[1, 8].tolist() == ORANGE.tolist()
    assert pixels[1, 6].tolist() == (0.35 * ORANGE).round().tolist()


def test_colours_are_named_in_the_order_of_the_heads():
    labels = {"background": 0, "vein": 2, "artery": 1, "ignore": 3}
    assert name_colours(labels) == [("artery", "#56b4e9"), ("vein", "#e69f00")]
    labels = {"background": 0, "whole": [1, 2], "core": 2}
    assert name_colours(labels) == [("whole", "#56b4e9"), ("core", "#e69f00")]
