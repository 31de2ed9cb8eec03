import gzip

import numpy as np
import pytest

from nnunetv2_mapo.tools.choose.views import make_view, to_bytes


def test_a_slice_holds_channels_and_candidates_in_the_order_shown(folder):
    kept = folder.read_image("image_0")
    view = make_view(kept, None)
    planes = np.frombuffer(gzip.decompress(view.slice(1, (2, 0, 1))), np.uint8).reshape(4, 8, 10)
    assert np.array_equal(planes[0], view.image[0, 1])
    assert np.array_equal(planes[1:], kept.candidates[[2, 0, 1], 1])
    assert view.values == [0, 1]


def test_labels_are_sent_by_their_place(folder):
    kept = folder.read_image("image_0")
    view = make_view(kept._replace(candidates=kept.candidates * 300), None)
    assert view.values == [0, 300]
    assert view.candidates.max() == 1


def test_what_differs_is_counted_in_each_slice_and_framed(folder):
    # candidates end at column 7, 8 and 9, all in rows 2 to 5 of slice 1
    view = make_view(folder.read_image("image_0"), None)
    assert view.disputed == [0, 8, 0]
    assert view.box == [2, 5, 8, 9]


def test_a_region_is_one_plane_more(folder):
    view = make_view(folder.read_image("image_0"), (2, 0, 0))
    planes = np.frombuffer(gzip.decompress(view.slice(1, (2, 0))), np.uint8).reshape(4, 8, 10)
    assert planes[3].sum() == sum(view.disputed) == 8


def test_intensities_are_spread_from_0_to_255():
    channel = np.linspace(-2, 3, 5000, dtype=np.float32)
    assert (to_bytes(channel).min(), to_bytes(channel).max()) == (0, 255)
    assert not to_bytes(np.ones((3, 3), np.float32)).any()


def test_a_few_voxels_on_an_even_ground_keep_their_shades():
    channel = np.zeros(100_000, np.float32)
    channel[:3] = 1, 2, 4
    assert to_bytes(channel)[:4].tolist() == [63, 127, 255, 0]


def test_photographs_keep_their_colours():
    assert to_bytes(np.array([-1, 0, 1], np.float32), (-1, 1)).tolist() == [0, 127, 255]
    assert to_bytes(np.array([9], np.float32), (-1, 1)) == pytest.approx(255)
