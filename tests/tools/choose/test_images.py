from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from PIL import Image

from nnunetv2_mapo.tools.choose.images import ImageError, check_image, find_colours, preprocess
from nnunetv2_mapo.tools.choose.views import to_bytes


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


def make_photographs_model(normalisation: str, *, masked: bool) -> SimpleNamespace:
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    configuration = {
        "architecture": {}, "preprocessor_name": "DefaultPreprocessor", "spacing": [1.0, 1.0],
        "normalization_schemes": [normalisation] * 3, "use_mask_for_norm": [masked] * 3,
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
    }  # fmt: skip
    content = {
        "dataset_name": "D", "plans_name": "P", "transpose_forward": [0, 2, 1],
        "transpose_backward": [0, 2, 1], "configurations": {"2d": configuration},
        "foreground_intensity_properties_per_channel": {str(channel): {} for channel in range(3)},
        "image_reader_writer": "NaturalImage2DIO", "original_median_shape_after_transp": [1, 9, 9],
    }  # fmt: skip
    plans = PlansManager(content)
    return SimpleNamespace(
        channel_names=["R", "G", "B"], dataset_json={"labels": {"background": 0}},
        plans_manager=plans, configuration_manager=plans.get_configuration("2d"),
    )  # fmt: skip


@pytest.mark.parametrize("ground", [0, 8, 235])  # of 0 most is cropped
@pytest.mark.parametrize(
    ("normalisation", "masked"),
    [
        ("RGBTo01Normalization", False),
        ("ZScoreNormalization", False),
        ("ZScoreNormalization", True),
    ],
)
def test_photographs_on_an_even_ground_keep_their_colours(
    tmp_path: Path, ground: int, normalisation: str, masked: bool
) -> None:
    pixels = np.full((200, 180, 3), ground, np.uint8)
    pixels[80:110, 60:100] = np.random.default_rng(0).integers(60, 200, (30, 40, 3))
    Image.fromarray(pixels).save(tmp_path / "a_0000.png")
    model = make_photographs_model(normalisation, masked=masked)
    assert model.plans_manager.image_reader_writer_class is NaturalImage2DIO
    found = preprocess(model, [str(tmp_path / "a_0000.png")])
    shown = [to_bytes(*each) for each in zip(found.image, found.display, strict=True)]
    expected = pixels[80:110, 60:100] if ground == 0 else pixels
    assert np.abs(np.stack(shown)[:, 0].T - expected.astype(float)).max() <= 1


def test_a_channel_of_one_value_keeps_it():
    [ends] = find_colours(np.full((1, 9), 200.0), np.zeros((1, 9), np.float32))
    assert to_bytes(np.zeros(9, np.float32), ends).tolist() == [200] * 9
