from __future__ import annotations

import math

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from skimage import io
from torch import nn

from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.support.device import OutOfMemoryError
from nnunetv2_mapo.tools.uncertainty.maps import (
    SCALE,
    DropoutStatistics,
    sum_samples,
    write_map,
    write_picture,
)
from nnunetv2_mapo.tools.uncertainty.measures import measure_undecided, vote_variance

CLASSES, REGIONS = Labels(3), Labels(3, regions=((1, 2, 3), (2,), (3,)))
# Axes of the file: to the head, to the left, to the front.
DIRECTION = (0, -1, 0, 0, 0, -1, 1, 0, 0)
READERS = [SimpleITKIO, SimpleITKIOWithReorient, NibabelIO, NibabelIOWithReorient]


def window(num_dimensions):
    return torch.randn(1, 1, *[16] * num_dimensions, generator=torch.Generator().manual_seed(1))


def statistics(network, num_samples, rate, samples_per_forward=8, labels=CLASSES):
    rates = torch.full((num_samples,), rate)
    return DropoutStatistics(network, labels, {}, rates, samples_per_forward)


@pytest.mark.parametrize("num_dimensions", [2, 3])
@torch.no_grad()
def test_rate_0_is_the_plain_networks_softmax_and_arg_max(make_network, num_dimensions):
    network, image = make_network(num_dimensions), window(num_dimensions)
    plain = network(image)[0].softmax(0)
    means = statistics(network, 1, 0.0)(image)[0] / SCALE
    assert torch.equal(means[:3], plain)
    assert torch.equal(means[3:].argmax(0), plain.argmax(0))
    assert set(means[3:].unique().tolist()) <= {0, 1}


@torch.no_grad()
def test_rate_0_of_regions_is_the_sigmoid(make_network):
    network, image = make_network(), window(2)
    plain = network(image)[0].sigmoid()
    means = statistics(network, 1, 0.0, labels=REGIONS)(image)[0] / SCALE
    assert torch.equal(means[:3], plain)
    assert torch.equal(means[3:] == 1, plain > 0.5)


@torch.no_grad()
def test_means_are_those_of_samples_drawn_one_by_one(make_network):
    network, image = make_network(), window(2)
    sampler = statistics(network, 5, 0.3, samples_per_forward=1)
    torch.manual_seed(0)
    means = sampler(image)[0] / SCALE
    torch.manual_seed(0)
    logits = []
    for _ in range(5):
        with sampler.dropout.at(torch.tensor([0.3])):
            logits.append(network(image)[0])
    samples = torch.stack(logits)
    assert torch.allclose(means[:3], samples.softmax(1).mean(0))
    shares = torch.stack([(samples.argmax(1) == c).float().mean(0) for c in range(3)])
    assert torch.allclose(means[3:], shares)


@pytest.mark.parametrize("samples_per_forward", [1, 3, 8])
@torch.no_grad()
def test_as_many_samples_as_wanted_are_drawn(make_network, samples_per_forward):
    network, seen = make_network(), []
    network.register_forward_hook(lambda _, images, __: seen.append(len(images[0])))
    means = statistics(network, 8, 0.3, samples_per_forward)(window(2))[0] / SCALE
    assert sum(seen) == 8
    assert max(seen) == samples_per_forward
    assert torch.allclose(means[3:].sum(0), torch.ones(16, 16))


@torch.no_grad()
def test_a_higher_rate_has_a_higher_variance(make_network):
    variances = []
    for rate in (0.05, 0.3):
        torch.manual_seed(0)
        means = statistics(make_network(), 40, rate)(window(2))[0] / SCALE
        variances.append(vote_variance(means[3:].numpy()).mean())
    assert 0 < variances[0] < variances[1]


def test_sums_are_those_of_the_samples_by_hand():
    # Two samples of one voxel: probabilities (3/4, 1/4) and (1/2, 1/2); the first of a tie wins.
    logits = torch.tensor([[3.0, 1.0], [1.0, 1.0]]).log()[..., None]
    assert sum_samples(logits, CLASSES).flatten().tolist() == pytest.approx([1.25, 0.75, 2, 0])
    # Sigmoids 3/4, 1/2 and 1/2, 1/2: only what is above 1/2 is a vote.
    assert sum_samples(logits, REGIONS).flatten().tolist() == pytest.approx([1.25, 1, 1, 0])


@torch.no_grad()
def test_fewer_samples_are_in_a_forward_pass_once_memory_runs_out(make_network):
    network = make_network()

    def refuse_many(module, images):
        if len(images[0]) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")  # noqa: EM101

    network.register_forward_pre_hook(refuse_many)
    sampler = statistics(network, 8, 0.3, samples_per_forward=8)
    assert sampler(window(2)).shape == (1, 6, 16, 16)
    assert sampler.samples_per_forward == 2


@torch.no_grad()
def test_too_little_memory_for_a_single_sample_is_named(make_network):
    network = make_network()

    def refuse(module, images):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")  # noqa: EM101

    network.register_forward_pre_hook(refuse)
    with pytest.raises(OutOfMemoryError, match="too little memory even for one sample"):
        statistics(network, 8, 0.3)(window(2))


@torch.no_grad()
def test_other_errors_are_not_taken_for_a_lack_of_memory(make_network):
    with pytest.raises(RuntimeError, match="channels"):
        statistics(make_network(), 8, 0.3)(torch.zeros(1, 2, 16, 16))


def test_weights_go_to_the_network_itself(make_network):
    network, other = make_network(), make_network()
    nn.init.zeros_(next(other.parameters()))
    statistics(network, 2, 0.1).load_state_dict(other.state_dict())
    assert not next(network.parameters()).any()


def test_scaled_probabilities_stay_within_half_precision():
    # Windows of 80 voxels at a step of 20, twice as dense as nnU-Net's; their weights on an axis.
    places = torch.arange(-40, 41)
    weights = sum(
        torch.exp(-((places - centre) ** 2) / 200) * (abs(places - centre) <= 40)
        for centre in range(-800, 801, 20)
    )
    assert 10 * weights.max() ** 3 * SCALE < torch.finfo(torch.half).max


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


def test_a_picture_is_black_where_all_is_certain_and_white_where_nothing_is(tmp_path):
    white = measure_undecided(Labels(3))
    assert white == {"entropy": pytest.approx(math.log(3)), "variance": pytest.approx(1 / 3)}
    regions = measure_undecided(Labels(2, regions=((1, 2), (2,))))
    assert regions == {"entropy": pytest.approx(2 * math.log(2)), "variance": 0.5}
    volume = np.array([[[0.0, math.log(3) / 2, math.log(3)]]], np.float32)
    write_picture(volume, tmp_path / "map.png", white["entropy"])
    pixels = sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "map.png"))
    assert pixels.tolist() == [[0, 128, 255]]
