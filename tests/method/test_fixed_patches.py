from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.method.fixed_patches import NUM_PATCHES, choose_patches, fix_patches
from nnunetv2_mapo.method.labels import Labels

MANAGER = LabelManager({"background": 0, "a": 1}, None)
CPU = torch.device("cpu")


class Cases:
    """A validation set as nnU-Net's: one case with foreground in a corner, one without."""

    identifiers = ("with", "without")

    def load_case(self, identifier):
        truth = np.zeros((1, 10, 12, 14), np.int8)
        locations = np.zeros((0, 4), int)
        if identifier == "with":
            truth[:, 7:9, 9:11, 11:13] = 1
            locations = np.argwhere(truth)
        image = truth.astype(np.float32)
        return image, truth, None, {"class_locations": {1: locations}}


class Threshold(torch.nn.Module):
    """Finds the foreground in the image, all of it or none."""

    def __init__(self, cut: float) -> None:
        super().__init__()
        self.cut = cut

    def forward(self, images):
        return torch.cat((torch.zeros_like(images), images - self.cut), 1)


def fix(metric="dice", patch_size=(4, 4, 4), spacing=(1.0, 1.0, 1.0)):
    plan = SimpleNamespace(patch_size=patch_size, spacing=spacing)
    return fix_patches(MAPOConfig(metric=metric), Labels(2), plan, Cases(), MANAGER)


def test_patches_are_the_same_each_time_and_take_turns():
    first, second = (choose_patches(Cases(), (4, 4, 4), seed=0) for _ in range(2))
    assert first == second
    assert len(first) == NUM_PATCHES
    assert [patch.identifier for patch in first[:4]] == ["with", "without"] * 2
    assert choose_patches(Cases(), (4, 4, 4), seed=1) != first


def test_patches_are_around_foreground_where_there_is_some():
    truth = Cases().load_case("with")[1][0]
    for patch in choose_patches(Cases(), (4, 4, 4), seed=0):
        if patch.identifier == "with":
            assert truth[tuple(low + 2 for low in patch.corner)] == 1
        else:
            assert patch.corner == (3, 4, 5)  # 10 // 2 - 4 // 2 …


@pytest.mark.parametrize(
    ("patch_size", "spacing"), [((4, 4, 4), (3.0, 1.0, 1.0)), ((4, 4), (1.0, 1.0))]
)
@pytest.mark.parametrize("metric", ["dice", "nsd", "lesion_f1", "cldice"])
def test_a_perfect_network_has_1_and_one_that_finds_nothing_half(metric, patch_size, spacing):
    patches = fix(metric, patch_size, spacing)
    assert patches.measure(Threshold(0.5), CPU) == 1
    # half of the patches are of the case without foreground, where nothing is right
    assert patches.measure(Threshold(2.0), CPU) == 0.5


def test_what_is_predicted_outside_the_image_does_not_count():
    # patches reach beyond the corner, where the padded image is 0: below a cut of -1 all is found
    patches = fix("dice", (8, 8, 8))
    everything = patches.measure(Threshold(-1.0), CPU)
    sizes = []
    for patch in patches.patches:
        if patch.identifier == "with":
            shape = (10, 12, 14)
            inside = [min(n, low + 8) - low for n, low in zip(shape, patch.corner, strict=True)]
            sizes.append(2 * 8 / (8 + np.prod(inside)))
    assert min(p.corner[0] for p in patches.patches) >= 0
    assert everything == pytest.approx(sum(sizes) / NUM_PATCHES)
