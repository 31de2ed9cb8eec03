from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import binary_erosion, distance_transform_edt

from nnunetv2_mapo.tools.metrics import (
    BASIC,
    METRICS,
    Grid,
    MaskMetrics,
    compute_groups,
    compute_metrics,
)

UNIT_2D = Grid((1.0, 1.0), 1.0)
UNIT_3D = Grid((1.0, 1.0, 1.0), 1.0)


def box(shape, *ranges):
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(*each) for each in ranges)] = True
    return mask


def ball(radius_mm, spacing, shape):
    steps = [(np.arange(n) - n // 2) * step for n, step in zip(shape, spacing, strict=True)]
    return sum(axis**2 for axis in np.meshgrid(*steps, indexing="ij")) <= radius_mm**2


def surface_distances(mask, other, spacing):
    """Distance of each edge voxel of `mask` to the nearest one of `other`, by scipy alone."""
    edge, other_edge = (each & ~binary_erosion(each) for each in (mask, other))
    return distance_transform_edt(~other_edge, sampling=spacing)[edge]


two_masks = (
    st.integers(2, 3)
    .flatmap(
        lambda n: st.tuples(
            *[arrays(bool, (6, 5, 7)[:n])] * 2, st.tuples(*[st.sampled_from([0.4, 1.0, 2.5])] * n)
        )
    )
    .filter(lambda drawn: drawn[0].any() and drawn[1].any())
)


def test_two_squares_shifted_by_one_pixel():
    # Each has 8 edge pixels around its centre. Of each, the outer column of 3 is 1 px away, and so
    # is the pixel on the other's centre; the 4 others are shared. Overlap: 6 of 9 pixels.
    first, second = box((8, 8), (2, 5), (2, 5)), box((8, 8), (2, 5), (3, 6))
    found = compute_metrics(first, second, UNIT_2D, tolerance=0.5)
    assert found == MaskMetrics(12 / 18, 6 / 12, 0.5, 1.0, 0.5, 0.0, 0.0)
    assert compute_metrics(first, second, UNIT_2D, tolerance=1.0).nsd == 1


def test_two_voxels_apart_along_each_axis_of_anisotropic_voxels():
    grid = Grid((3.0, 0.8, 0.1), 0.00024)  # 0.8 and 0.1 have no exact 32-bit number
    first = box((4, 4, 4), (1, 2), (1, 2), (1, 2))
    for axis, distance in enumerate(grid.spacing):
        second = np.roll(first, 1, axis)
        found = compute_metrics(first, second, grid, tolerance=distance)
        assert found[:5] == pytest.approx((0, 0, distance, distance, 1))
        assert compute_metrics(first, second, grid, tolerance=distance - 0.01).nsd == 0


def test_distances_of_both_directions_are_pooled_for_asd_but_not_for_hd95():
    # Reference to prediction: 0, 10; prediction to reference: 0. ASD is their mean. The 95th
    # percentiles, interpolated, are 9.5 and 0. (The percentile of all three would be 9, the mean of
    # the directions' means 2.5.)
    reference = box((1, 12), (0, 1), (0, 1)) | box((1, 12), (0, 1), (10, 11))
    prediction = box((1, 12), (0, 1), (0, 1))
    found = compute_metrics(prediction, reference, UNIT_2D, tolerance=1.0)
    assert found.asd == pytest.approx(10 / 3)
    assert found.hd95 == pytest.approx(9.5)
    assert found.nsd == pytest.approx(2 / 3)


def test_the_border_of_the_image_is_a_surface():
    # The full 3 x 3 image has 8 edge pixels around the one of the reference: 4 at 1, 4 at √2.
    full, centre = np.ones((3, 3), dtype=bool), box((3, 3), (1, 2), (1, 2))
    found = compute_metrics(full, centre, UNIT_2D, tolerance=1.0)
    assert found.asd == pytest.approx((1 + 4 + 4 * math.sqrt(2)) / 9)
    assert found.nsd == pytest.approx(5 / 9)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 0.8, 0.8)])
def test_concentric_balls_are_as_far_apart_as_their_radii_differ(spacing):
    shape = tuple(int(26 / step) + 3 for step in spacing)
    large, small = (ball(radius, spacing, shape) for radius in (12, 8))
    found = compute_metrics(large, small, Grid(spacing, math.prod(spacing)), tolerance=1.0)
    assert found.asd == pytest.approx(4, abs=max(spacing) / 2)
    assert found.hd95 == pytest.approx(4, abs=max(spacing))
    assert found.nsd == 0
    volume_mm3 = 4 / 3 * math.pi * (12**3 - 8**3)
    assert found.volume_error == pytest.approx(volume_mm3, rel=0.05)
    assert found.relative_volume_error == pytest.approx((12 / 8) ** 3 - 1, rel=0.05)


@settings(max_examples=60, deadline=None)
@given(drawn=two_masks, tolerance=st.sampled_from([0.0, 0.5, 1.3]))
def test_surface_metrics_are_those_of_scipys_distance_transform(drawn, tolerance):
    first, second, spacing = drawn
    there = surface_distances(first, second, spacing)
    back = surface_distances(second, first, spacing)
    found = compute_metrics(first, second, Grid(spacing, 1.0), tolerance=tolerance)
    both = np.concatenate([there, back])
    assert found.asd == pytest.approx(both.mean(), abs=1e-5)
    expected = max(np.percentile(there, 95), np.percentile(back, 95))
    assert found.hd95 == pytest.approx(expected, abs=1e-5)
    assert found.nsd == pytest.approx((both <= tolerance).mean(), abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(drawn=two_masks)
def test_exchanging_the_masks_changes_only_the_sign_of_volume_errors(drawn):
    first, second, spacing = drawn
    one = compute_metrics(first, second, Grid(spacing, 2.0), tolerance=1.0)
    other = compute_metrics(second, first, Grid(spacing, 2.0), tolerance=1.0)
    assert one[:5] == pytest.approx(other[:5], abs=1e-5)
    assert one.volume_error == -other.volume_error


@settings(max_examples=40, deadline=None)
@given(drawn=two_masks, data=st.data())
def test_the_order_of_the_axes_does_not_matter(drawn, data):
    first, second, spacing = drawn
    order = data.draw(st.permutations(range(len(spacing))))
    turned = Grid(tuple(spacing[axis] for axis in order), 1.0)
    plain = compute_metrics(first, second, Grid(spacing, 1.0), tolerance=1.0)
    found = compute_metrics(first.transpose(order), second.transpose(order), turned, tolerance=1.0)
    assert found == pytest.approx(plain, abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(drawn=two_masks)
def test_background_around_the_masks_changes_nothing(drawn):
    first, second, spacing = drawn
    grid = Grid(spacing, 1.0)
    plain = compute_metrics(first, second, grid, tolerance=1.0)
    wide = [np.pad(mask, ((3, 5),) * mask.ndim) for mask in (first, second)]
    assert compute_metrics(*wide, grid, tolerance=1.0) == plain


def test_two_empty_masks_have_no_metrics():
    empty = np.zeros((3, 4), dtype=bool)
    found = compute_metrics(empty, empty, UNIT_2D, tolerance=1.0)
    assert len(found) == len(BASIC)
    assert np.isnan(found).all()


def test_one_empty_mask_is_as_far_away_as_the_image_is_large():
    # An image of 3 mm x 4 mm x 12 mm has a diagonal of 13 mm.
    grid = Grid((1.0, 2.0, 3.0), 0.006)
    empty, voxels = np.zeros((3, 2, 4), dtype=bool), box((3, 2, 4), (0, 1), (0, 1), (0, 2))
    missed = compute_metrics(empty, voxels, grid, tolerance=1.0)
    assert missed == pytest.approx((0, 0, 13, 13, 0, -0.012, -1))
    invented = compute_metrics(voxels, empty, grid, tolerance=1.0)
    assert invented == pytest.approx((0, 0, 13, 13, 0, 0.012, math.nan), nan_ok=True)


def test_ignored_voxels_count_nowhere():
    reference = box((6, 6, 6), (1, 4), (1, 4), (1, 4))
    ignored = box((6, 6, 6), (4, 6), (0, 6), (0, 6))
    prediction = reference | ignored
    found = compute_metrics(prediction, reference, UNIT_3D, tolerance=0.0, ignored=ignored)
    assert found == MaskMetrics(1, 1, 0, 0, 1, 0, 0)
    assert compute_metrics(prediction, reference, UNIT_3D, tolerance=0.0).dice < 1


def test_the_border_of_ignored_voxels_is_no_surface_of_one_mask_alone():
    # Both reach the ignored column from the left; what the prediction says beyond does not matter.
    reference, ignored = box((5, 9), (1, 4), (1, 4)), box((5, 9), (0, 5), (4, 5))
    for beyond in (np.zeros_like(reference), ignored):
        found = compute_metrics(
            reference | beyond, reference, UNIT_2D, tolerance=0.0, ignored=ignored
        )
        assert found.asd == 0
        assert found.nsd == 1


def test_only_ignored_voxels_are_two_empty_masks():
    mask = box((4, 4), (1, 3), (1, 3))
    assert np.isnan(compute_metrics(mask, mask, UNIT_2D, tolerance=1.0, ignored=mask)).all()


def test_masks_are_not_changed():
    first, second = box((5, 5), (0, 2), (0, 2)), box((5, 5), (1, 3), (1, 3))
    ignored = box((5, 5), (0, 1), (0, 5))
    copies = [mask.copy() for mask in (first, second, ignored)]
    compute_metrics(first, second, UNIT_2D, tolerance=1.0, ignored=ignored)
    assert all(map(np.array_equal, copies, (first, second, ignored)))


def test_importing_the_package_does_not_import_monai():
    code = "import sys, nnunetv2_mapo.tools.evaluate.run; sys.exit('monai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Asked for by their groups ------------------------------------------------------------------------

LESIONS = [name for name, metric in METRICS.items() if metric.group == "lesions"]


def test_lesions_and_centrelines_come_where_they_are_asked_for():
    # truth: 2 x 2 pixels, found by 1 of 2 predicted ones; 3 missed pixels; 1 false one
    reference = box((8, 9), (1, 3), (1, 3)) | box((8, 9), (6, 7), (1, 4))
    prediction = box((8, 9), (2, 3), (2, 4)) | box((8, 9), (1, 2), (7, 8))
    grid = Grid((1.0, 1.0), 0.5)
    found = compute_groups(prediction, reference, grid, ["lesions"])
    expected = [1 / 2, 1 / 2, 1 / 2, (2 * 1 / (4 + 2)) / 3, 1 * 0.5, 3 * 0.5]
    assert found == pytest.approx(dict(zip(LESIONS, expected, strict=True)))
    assert compute_groups(prediction, reference, grid, []) == {}
    line = box((8, 9), (4, 5), (1, 9))
    assert compute_groups(line, line, grid, ["cldice"]) == {"clDice": 1}


def test_lesions_of_empty_masks():
    grid, empty = Grid((1.0, 1.0), 1.0), np.zeros((6, 6), bool)
    some = box((6, 6), (1, 3), (1, 3))
    both = compute_groups(empty, empty, grid, ["lesions", "cldice"])
    assert [*both] == [*LESIONS, "clDice"]
    assert np.isnan([*both.values()]).all()
    missed = compute_groups(empty, some, grid, ["lesions", "cldice"])
    assert [*missed.values()] == [0, 0, 0, 0, 0, 4, 0]
    invented = compute_groups(some, empty, grid, ["lesions", "cldice"])
    expected = [0, 0, math.nan, 0, 4, 0, 0]
    assert [*invented.values()] == pytest.approx(expected, nan_ok=True)


def test_ignored_voxels_are_of_no_lesion():
    reference, ignored = box((6, 6), (1, 3), (1, 3)), box((6, 6), (4, 6), (0, 6))
    found = compute_groups(reference | ignored, reference, UNIT_2D, ["lesions"], ignored)
    assert found["lesion_F1"] == 1
    assert found["false_positive_volume"] == 0
