from __future__ import annotations

import pytest
import torch

from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.support.errors import InputError

CLASSES = Labels(num_heads=3)
# BraTS-like: whole tumour, core, enhancing
REGIONS = Labels(num_heads=3, regions=((1, 2, 3), (2, 3), (3,)))


def one_voxel_logits(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(1, -1, 1, 1)


def test_label_map_of_classes_is_the_strongest_head():
    logits = torch.tensor([[[0.1, 5.0, -1.0]], [[0.2, 4.0, -3.0]], [[0.0, 6.0, -2.0]]])
    label_map = CLASSES.label_map(logits[None])
    assert label_map.tolist() == [[[1, 2, 0]]]
    assert label_map.dtype == torch.uint8


@pytest.mark.parametrize(
    ("logits", "bits"),
    [
        ((-1.0, -1.0, -1.0), 0b000),
        ((1.0, -1.0, -1.0), 0b001),
        ((1.0, 1.0, -1.0), 0b011),
        ((-1.0, -1.0, 0.1), 0b100),
        ((2.0, 2.0, 2.0), 0b111),
        ((0.0, 0.0, 0.0), 0b000),  # sigmoid 0.5 is off, as in nnU-Net
    ],
)
def test_label_map_of_regions_is_a_bit_mask(logits, bits):
    assert REGIONS.label_map(one_voxel_logits(*logits)).item() == bits


def test_label_map_works_in_3d():
    logits = torch.zeros(2, 3, 2, 3, 4)
    logits[1, 2, 0, 1, 2] = 1
    label_map = CLASSES.label_map(logits)
    assert label_map.shape == (2, 2, 3, 4)
    assert label_map.nonzero().tolist() == [[1, 0, 1, 2]]
    assert label_map[1, 0, 1, 2] == 2


def test_fifteen_regions_use_all_bits_of_int16():
    labels = Labels(15, regions=tuple((r,) for r in range(1, 16)))
    assert labels.dtype == torch.int16
    label_map = labels.label_map(torch.ones(1, 15, 1, 1))
    assert label_map.item() == 2**15 - 1
    assert label_map.dtype == torch.int16
    assert labels.target_map(torch.tensor([15], dtype=torch.int16)).item() == 2**14


def test_eight_regions_still_fit_a_byte():
    labels = Labels(8, regions=tuple((r,) for r in range(1, 9)))
    assert labels.dtype == torch.uint8
    assert labels.label_map(torch.ones(1, 8, 1, 1)).item() == 255


def test_sixteen_regions_are_refused_with_what_to_do():
    with pytest.raises(InputError) as error:
        Labels(16, regions=tuple((r,) for r in range(1, 17)))
    message = str(error.value)
    assert message.startswith("16 regions, but at most 15 are valid")
    assert 'leave in "labels", and in "regions_class_order", at most 15 regions' in message
    assert "plain classes, of which there may be 32,767" in message


def test_as_many_plain_classes_as_the_message_says_fit_a_label_map():
    labels = Labels(num_heads=1 + 32767)
    assert labels.target_map(torch.tensor([32767], dtype=torch.int16)).item() == 32767


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.float32])
def test_labels_that_the_type_of_a_file_cannot_hold_are_not_in_it(dtype):
    # 300 is 44 in eight bits, 255 is -1, the padding; nnU-Net writes int8 where a case has no
    # label above 127
    segmentation = torch.tensor([0, 44, 100], dtype=dtype)
    labels = Labels(2, regions=((300,), (44,)), ignore_label=356)  # 356 is 100
    assert labels.target_map(segmentation).tolist() == [0, 0b10, 0]
    assert labels.is_ignored(segmentation).tolist() == [False] * 3
    if dtype != torch.uint8:
        padding = torch.tensor([-1], dtype=dtype)
        assert not Labels(255, ignore_label=255).is_ignored(padding).item()


def test_many_classes_need_int16():
    assert Labels(256).dtype == torch.uint8
    assert Labels(257).dtype == torch.int16


def test_target_map_of_classes_drops_padding_and_ignored_voxels():
    labels = Labels(3, ignore_label=3)
    segmentation = torch.tensor([-1, 0, 1, 2, 3], dtype=torch.int16)
    target = labels.target_map(segmentation)
    assert target.tolist() == [0, 0, 1, 2, 0]
    assert target.dtype == torch.uint8
    assert segmentation.tolist() == [-1, 0, 1, 2, 3]  # the input is not changed


def test_target_map_of_regions_is_a_bit_mask_without_padding_and_ignored_voxels():
    labels = Labels(3, regions=((1, 2, 3), (2, 3), (3,)), ignore_label=4)
    target = labels.target_map(torch.tensor([[-1, 0, 1], [2, 3, 4]], dtype=torch.int16))
    assert target.tolist() == [[0, 0, 0b001], [0b011, 0b111, 0]]


def test_regions_may_leave_labels_out():
    labels = Labels(1, regions=((2,),))
    assert labels.target_map(torch.tensor([0, 1, 2])).tolist() == [0, 0, 1]


def test_only_the_ignore_label_is_ignored():
    segmentation = torch.tensor([-1, 0, 1, 3])
    assert Labels(3, ignore_label=3).is_ignored(segmentation).tolist() == [False] * 3 + [True]
    assert Labels(3).is_ignored(segmentation).tolist() == [False] * 4


def test_head_difference_of_classes_is_plus_one_for_chosen_and_minus_one_for_rejected():
    chosen = torch.tensor([[0, 1, 2, 2]], dtype=torch.int16)
    rejected = torch.tensor([[0, 2, 1, 0]], dtype=torch.int16)
    expected = [[0, 0, 0, -1], [0, 1, -1, 0], [0, -1, 1, 1]]
    difference = CLASSES.head_difference(chosen, rejected)
    assert difference.tolist() == [expected]
    assert difference.dtype == torch.int8


def test_head_difference_of_regions_compares_bit_by_bit():
    chosen = torch.tensor([[0b111, 0b001, 0b000, 0b101]], dtype=torch.int16)
    rejected = torch.tensor([[0b001, 0b011, 0b000, 0b010]], dtype=torch.int16)
    expected = [[0, 0, 0, 1], [1, -1, 0, -1], [1, 0, 0, 1]]
    assert REGIONS.head_difference(chosen, rejected).tolist() == [expected]


def test_head_difference_keeps_the_samples_apart():
    chosen = torch.tensor([[1], [0]])
    rejected = torch.tensor([[0], [2]])
    assert CLASSES.head_difference(chosen, rejected).tolist() == [
        [[-1], [1], [0]],
        [[1], [0], [-1]],
    ]


def test_maps_of_many_regions_do_not_depend_on_the_type_of_the_file():
    # bit 7 of eight regions is 128, which int8 has not; nnU-Net before 2.6 wrote labels as int8
    labels = Labels(9, regions=tuple((label,) for label in range(1, 10)))
    segmentation = torch.arange(-1, 10)
    expected = [0, 0, *(2**bit for bit in range(9))]
    for dtype in (torch.int8, torch.uint8, torch.int16, torch.float32):
        used = segmentation.clamp(min=0) if dtype == torch.uint8 else segmentation
        assert labels.target_map(used.to(dtype)).tolist() == expected
