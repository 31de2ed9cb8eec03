from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from skimage import io

from nnunetv2_mapo.tools.uncertainty.maps import write_map

# Axes of the file: to the head, to the left, to the front.
DIRECTION = (0, -1, 0, 0, 0, -1, 1, 0, 0)
READERS = [SimpleITKIO, SimpleITKIOWithReorient, NibabelIO, NibabelIOWithReorient]


def write_image(path):
    image = sitk.GetImageFromArray(np.random.default_rng(0).random((4, 5, 6), dtype=np.float32))
    image.SetSpacing((0.5, 1.25, 3))
    image.SetOrigin((-10, 20.5, 7))
    image.SetDirection(DIRECTION)
    sitk.WriteImage(image, path)
    return image


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
def test_a_map_lies_where_its_image_lies(tmp_path, reader):
    image = write_image(tmp_path / "image.nii.gz")
    volume, properties = reader().read_images([str(tmp_path / "image.nii.gz")])
    write_map(volume[0], properties, reader, tmp_path / "map.nii.gz")
    written = sitk.ReadImage(tmp_path / "map.nii.gz")
    assert written.GetPixelID() == sitk.sitkFloat32
    assert np.array_equal(sitk.GetArrayFromImage(written), sitk.GetArrayFromImage(image))
    assert written.GetSpacing() == pytest.approx(image.GetSpacing())
    assert written.GetOrigin() == pytest.approx(image.GetOrigin(), abs=1e-5)
    assert written.GetDirection() == pytest.approx(image.GetDirection(), abs=1e-5)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["image.nii.gz", "map.nii.gz"]


def test_the_map_of_a_photograph_is_two_dimensional_with_pixels_of_1(tmp_path):
    photograph = np.arange(12, dtype=np.uint8).reshape(3, 4)
    io.imsave(tmp_path / "image_0000.png", photograph, check_contrast=False)
    volume, properties = NaturalImage2DIO().read_images([str(tmp_path / "image_0000.png")])
    write_map(volume[0], properties, NaturalImage2DIO, tmp_path / "map.nii.gz")
    written = sitk.ReadImage(tmp_path / "map.nii.gz")
    assert written.GetSpacing() == (1, 1)
    assert np.array_equal(sitk.GetArrayFromImage(written), photograph)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_map_of_a_tiff_stack_has_the_spacing_of_the_file_beside_it(tmp_path):
    Tiff3DIO().write_seg(
        np.ones((2, 3, 4), np.uint8), str(tmp_path / "image.tif"), {"spacing": (3, 2, 1)}
    )
    volume, properties = Tiff3DIO().read_seg(str(tmp_path / "image.tif"))
    write_map(volume[0], properties, Tiff3DIO, tmp_path / "map.nii.gz")
    assert sitk.ReadImage(tmp_path / "map.nii.gz").GetSpacing() == (1, 2, 3)
