import json

import numpy as np
import pytest
import SimpleITK

from nnunetv2_mapo.tools.demo.phantom import (
    LABELS,
    make_case,
    smooth_noise,
    write_dataset,
)


def read_volume(path):
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))


@pytest.mark.parametrize("shape", [(64, 64), (32, 32, 32), (24, 40)])
def test_image_and_segmentation_have_the_asked_shape_and_every_class(shape):
    rng = np.random.default_rng(1)
    for _ in range(20):
        case = make_case(rng, shape)
        assert case.image.shape == case.segmentation.shape == shape
        assert case.image.dtype == np.float32
        assert case.segmentation.dtype == np.uint8
        assert set(np.unique(case.segmentation)) == set(LABELS.values())


def test_same_seed_gives_the_same_phantom_and_another_seed_another_one():
    first, again, other = (make_case(np.random.default_rng(s), (64, 64)) for s in (3, 3, 4))
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.segmentation, again.segmentation)
    assert not np.array_equal(first.segmentation, other.segmentation)


def test_images_are_positive_so_that_nnunet_crops_nothing():
    rng = np.random.default_rng(0)
    assert min(make_case(rng, (64, 64)).image.min() for _ in range(50)) > 0


def test_organ_is_brighter_than_the_background_and_the_lesion_brighter_still():
    rng = np.random.default_rng(0)
    cases = [make_case(rng, (64, 64)) for _ in range(50)]
    image = np.stack([case.image for case in cases])
    segmentation = np.stack([case.segmentation for case in cases])
    background, organ, lesion = (image[segmentation == label].mean() for label in range(3))
    assert background < organ < lesion


def test_intensity_alone_cannot_tell_the_organ_from_its_look_alike():
    # The brightest smoothed voxels lie in organ or look-alike; were the look-alike missing or
    # darker, nearly all of them would be organ.
    rng = np.random.default_rng(0)
    cases = [make_case(rng, (64, 64)) for _ in range(50)]
    in_organ = [c.segmentation[c.image > np.quantile(c.image, 0.95)] > 0 for c in cases]
    assert 0.3 < np.mean(np.concatenate(in_organ)) < 0.75


def test_smooth_noise_has_mean_zero_and_deviation_one():
    noise = smooth_noise(np.random.default_rng(0), (32, 32), 2.0)
    assert noise.mean() == pytest.approx(0, abs=1e-6)
    assert noise.std() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("shape", [(24, 32), (24, 28, 32)])
def test_data_set_is_in_the_raw_format_of_nnunet(tmp_path, shape):
    folder = tmp_path / "Dataset001_Phantom"
    write_dataset(folder, shape, num_known=2, num_test=1)
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {
        "dataset.json",
        *(f"imagesTr/case_{n:03d}_0000.nii.gz" for n in range(2)),
        *(f"labelsTr/case_{n:03d}.nii.gz" for n in range(2)),
        "imagesTs/test_000_0000.nii.gz",
        "labelsTs/test_000.nii.gz",
    }
    content = json.loads((folder / "dataset.json").read_text())
    assert content["numTraining"] == 2
    assert content["file_ending"] == ".nii.gz"
    first = make_case(np.random.default_rng(0), shape)
    volume = (1, *shape)[-3:]
    segmentation = read_volume(folder / "labelsTr" / "case_000.nii.gz")
    assert np.array_equal(segmentation, first.segmentation.reshape(volume))
    image = read_volume(folder / "imagesTr" / "case_000_0000.nii.gz")
    assert np.array_equal(image, first.image.reshape(volume))
