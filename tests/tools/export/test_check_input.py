import pytest

from nnunetv2_mapo.tools.export.check_input import place_window


def starts_and_stops(shape, window, class_locations):
    return [(s.start, s.stop) for s in place_window(shape, window, class_locations)]


def test_the_window_lies_around_foreground():
    # the middle one of three places is (10, 20, 30); half of the window, (2, 4, 8), before it
    places = [(0, 0, 0, 0), (0, 10, 20, 30), (0, 99, 99, 99)]
    window = starts_and_stops((100, 100, 100), (4, 8, 16), {1: [], 2: places})
    assert window == [(8, 12), (16, 24), (22, 38)]


@pytest.mark.parametrize(
    ("place", "expected"), [((0, 0, 0, 0), [(0, 4)] * 3), ((0, 9, 9, 9), [(6, 10)] * 3)]
)
def test_the_window_stays_inside_the_image(place, expected):
    assert starts_and_stops((10, 10, 10), (4, 4, 4), {1: [place]}) == expected


def test_without_foreground_the_window_lies_in_the_middle_and_is_no_longer_than_the_image():
    # (20 - 4) / 2 = 8; an axis of 3 voxels is shorter than the window
    assert starts_and_stops((20, 3, 20), (4, 4, 4), {1: []}) == [(8, 12), (0, 3), (8, 12)]
