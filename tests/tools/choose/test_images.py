from types import SimpleNamespace

import numpy as np
import pytest

from nnunetv2_mapo.tools.choose.images import ImageError, check_image, find_colours


def make_model(channels: list[str], median: list[int]) -> SimpleNamespace:
    plans = SimpleNamespace(plans={"original_median_shape_after_transp": median})
    return SimpleNamespace(channel_names=channels, plans_manager=plans)


VOLUMES, PHOTOGRAPHS = make_model(["T1", "T2"], [9, 9, 9]), make_model(["R"], [1, 64, 64])


def test_images_like_those_of_the_training_pass():
    check_image(np.zeros((2, 5, 6, 7)), "a.nii.gz", VOLUMES)
    check_image(np.zeros((1, 1, 6, 7)), "a.png", PHOTOGRAPHS)


@pytest.mark.parametrize(
    ("model", "shape", "said"),
    [
        (VOLUMES, (1, 5, 6, 7), r"a has 1 channels, the model needs 2 \(T1, T2\)"),
        (VOLUMES, (2, 1, 6, 7), "a is a single slice of 1 x 6 x 7 voxels, .* are volumes"),
        (PHOTOGRAPHS, (1, 5, 6, 7), "a is a volume of 5 x 6 x 7 voxels, .* are slices"),
    ],
)
def test_other_channels_and_dimensions_are_refused(model, shape, said):
    with pytest.raises(ImageError, match=said):
        check_image(np.zeros(shape), "a", model)


def test_nan_is_refused():
    with pytest.raises(ImageError, match="NaN"):
        check_image(np.full((1, 1, 6, 7), np.nan), "a", PHOTOGRAPHS)


def test_normalised_colours_are_found_again():
    rng = np.random.default_rng(0)
    photograph = rng.integers(0, 256, (3, 1, 30, 30)).astype(np.float32)
    means, deviations = np.array([100, 50, 20.0]), np.array([30, 20, 10.0])
    normalised = (photograph.T - means) / deviations
    found = find_colours(photograph, normalised.T.astype(np.float32))
    for (black, full), mean, deviation in zip(found, means, deviations, strict=True):
        assert black == pytest.approx((0 - mean) / deviation, abs=1e-3)
        assert full == pytest.approx((255 - mean) / deviation, abs=1e-3)
