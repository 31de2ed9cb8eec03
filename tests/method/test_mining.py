from __future__ import annotations

import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import whole_case
from miners import CLASSES, CPU, RATES, REGIONS, fail_above, segment, some_case, with_settings
from sklearn.metrics import f1_score
from torch import Tensor

from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.method.mining import Miner
from nnunetv2_mapo.method.mining import make_miner as make_miner_by_settings
from nnunetv2_mapo.method.pairing import MinedCase
from nnunetv2_mapo.method.windows import find_windows

# One case -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("images_per_forward", [1, 4, 12, 400])
def test_the_first_candidate_is_the_plain_prediction_window_by_window(
    make_miner, images_per_forward
):
    for shape, patch_size in (((8, 16, 16), (8, 8, 8)), ((3, 16, 8), (8, 8))):
        miner = make_miner(patch_size, images_per_forward=images_per_forward)
        image, _ = some_case(shape)
        expected = np.zeros(shape)
        axes = range(3) if len(patch_size) == 3 else (1, 2)
        for corner in itertools.product(
            *(range(0, shape[axis], 8 if axis in axes else 1) for axis in range(3))
        ):
            place = tuple(
                slice(low, low + 8) if axis in axes else low for axis, low in enumerate(corner)
            )
            with torch.no_grad():
                logits = miner.network(image[(slice(None), *place)][None])
            expected[place] = logits[0].argmax(0)
        candidates = segment(miner, image)
        assert candidates.shape == (len(RATES), *shape)
        assert candidates.dtype == torch.uint8
        assert np.array_equal(candidates[0], expected)
        assert all((candidates[0] != other).any() for other in candidates[1:])


@pytest.mark.parametrize(
    ("shape", "patch_size"), [((5, 6, 11), (8, 8, 8)), ((2, 5, 6), (8, 8)), ((2, 5, 12), (8, 8))]
)
def test_a_case_smaller_than_the_patch_is_padded_with_zeros(make_miner, shape, patch_size):
    miner = make_miner(patch_size)
    image, segmentation = some_case(shape)
    mined = miner.mine(image, segmentation)
    assert mined.preferences[0].shape == mined.preferences[1].shape == shape
    padding = [(0, 0)]
    for size, patch in zip(shape, (0, *patch_size)[-3:], strict=True):
        missing = max(patch - size, 0)
        padding.append((missing // 2, missing - missing // 2))
    padded = torch.from_numpy(np.pad(image.numpy(), padding))
    inside = tuple(
        slice(low, low + size) for (low, _), size in zip(padding[1:], shape, strict=True)
    )
    plain = segment(miner, padded)[0][inside]
    samples = [...] if len(patch_size) == 3 else range(shape[0])
    for sample, record in zip(samples, mined.records, strict=True):
        dice = whole_case.class_dice(plain[sample].numpy(), segmentation[sample].numpy())
        assert record.dice[0] == pytest.approx(dice, abs=1e-6)


def test_regions_are_mined_as_bit_masks(make_miner):
    miner = make_miner((8, 8, 8), REGIONS)
    image, segmentation = some_case((8, 8, 8))
    torch.manual_seed(1)
    mined = miner.mine(image, segmentation)
    with torch.no_grad():
        is_on = (miner.network(image[None])[0] > 0).numpy()
    whole, core = (segmentation > 0).numpy(), (segmentation == 2).numpy()
    dice = (
        f1_score(whole.ravel(), is_on[0].ravel()) + f1_score(core.ravel(), is_on[1].ravel())
    ) / 2
    (record,) = mined.records
    assert record.dice[0] == pytest.approx(dice, abs=1e-6)
    assert set(np.unique(mined.preferences[:2])) == {0, 1, 2, 3}


def log_odds(logits: Tensor, chosen: Tensor, rejected: Tensor, labels: Labels) -> Tensor:
    """Of chosen against rejected in each voxel of a patch, written out."""
    if labels.regions is None:
        own = [logits.gather(0, each[None].long())[0] for each in (chosen, rejected)]
        return own[0] - own[1]
    bits = torch.arange(labels.num_heads).view(-1, *[1] * chosen.ndim)
    return (((chosen >> bits & 1) - (rejected >> bits & 1)) * logits).sum(0)


@pytest.mark.parametrize("labels", [CLASSES, REGIONS], ids=["classes", "regions"])
@pytest.mark.parametrize(("shape", "patch_size"), [((3, 12, 9), (8, 8)), ((9, 12, 8), (8, 8, 8))])
@pytest.mark.parametrize("is_policy", [True, False])
def test_a_cached_reference_s_margins_are_those_of_its_logits(
    make_miner, make_network, shape, patch_size, labels, is_policy
):
    image, segmentation = some_case(shape)
    miner = make_miner(patch_size, labels, 2, pair="region", tau=0.01, reference="cached")
    policy = {name: tensor.clone() for name, tensor in miner.network.state_dict().items()}
    network = make_network(len(patch_size), num_heads=labels.num_heads)
    if not is_policy:
        network.load_state_dict({name: 1.5 * tensor for name, tensor in policy.items()})
        miner = replace(miner, reference=network.state_dict())
    torch.manual_seed(0)
    chosen, rejected, _, margins = torch.from_numpy(miner.mine(image, segmentation).preferences[:])
    expected = torch.zeros(shape)
    for place, cell in find_windows(shape, patch_size, 1.0):
        with torch.no_grad():
            logits = network(image[(slice(None), *place)][None])[0]
        whole = torch.zeros(shape)
        whole[place] = log_odds(logits, chosen[place], rejected[place], labels)
        expected[cell] = whole[cell]
    differs = chosen != rejected
    assert margins[differs].any()
    torch.testing.assert_close(margins / 256, expected, atol=1 / 512 + 1e-5, rtol=0)
    for name, tensor in miner.network.state_dict().items():
        assert torch.equal(tensor, policy[name])


def measure(miner: Miner, image: Tensor, chosen: Tensor, rejected: Tensor) -> Tensor:
    preferences = np.zeros((4, *chosen.shape), np.int16)
    preferences[:2] = chosen, rejected
    miner.add_margins(image, MinedCase(preferences, []))
    return torch.from_numpy(preferences[3])


def test_margins_of_a_case_that_is_smaller_than_the_patch_are_inside_the_padding(make_miner):
    image, segmentation = some_case((5, 8, 6))
    miner = make_miner((8, 8, 8), pair="region", tau=0.01, reference="cached")
    chosen, rejected = segmentation, (segmentation + 1) % 3
    padded = torch.zeros(1, 8, 8, 8)
    padded[:, 1:6, :, 1:7] = image  # half of it in front
    with torch.no_grad():
        logits = miner.network(padded[None])[0, :, 1:6, :, 1:7]
    margins = measure(miner, image, chosen, rejected)
    expected = log_odds(logits, chosen, rejected, CLASSES)
    torch.testing.assert_close(margins / 256, expected, atol=1 / 512 + 1e-5, rtol=0)


def test_margins_beyond_the_fixed_point_are_clamped(make_miner):
    image, segmentation = some_case((8, 8, 8))
    miner = make_miner((8, 8, 8), pair="region", tau=0.01, reference="cached")
    weights = {n: 1000 * tensor for n, tensor in miner.network.state_dict().items()}
    torch.manual_seed(0)
    margins = replace(miner, reference=weights).mine(image, segmentation).preferences[3]
    assert {margins.min(), margins.max()} == {-(2**15), 2**15 - 1}


def test_only_windows_with_a_pair_are_asked_for_margins(make_miner):
    image, _ = some_case((8, 16, 16))
    miner = make_miner((8, 8, 8), reference="cached", images_per_forward=1)
    seen = []
    miner.network.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    chosen = torch.zeros(8, 16, 16, dtype=torch.int16)
    rejected = chosen.clone()
    assert not measure(miner, image, chosen, rejected).any()
    assert seen == []
    rejected[0, 3, 12] = 1
    assert measure(miner, image, chosen, rejected).nonzero().tolist() == [[0, 3, 12]]
    assert seen == [1]


@pytest.mark.parametrize("labels", [CLASSES, REGIONS], ids=["classes", "regions"])
@pytest.mark.parametrize(
    ("shape", "patch_size"),
    [((19, 10, 9), (8, 8, 8)), ((5, 20, 7), (8, 8, 8)), ((3, 6, 17), (8, 8))],
    ids=["several windows", "smaller than the patch", "slices"],
)
def test_candidates_are_those_of_votes_that_are_counted_at_the_end(
    make_miner, labels, shape, patch_size
):
    miner = make_miner(patch_size, labels, tile_step_size=0.5)
    image, _ = some_case(shape)
    torch.manual_seed(0)
    candidates = whole_case.segment(miner, image)
    torch.manual_seed(0)
    assert torch.equal(segment(miner, image), candidates)


def test_windows_that_overlap_more_cover_the_case_with_more_passes(make_miner):
    miner = make_miner((8, 8, 8), images_per_forward=4)
    seen = fail_above(miner, 10**6, RuntimeError())
    image, _ = some_case((16, 16, 16))
    whole = segment(miner, image)
    assert len(seen) == 2**3
    half = segment(with_settings(miner, tile_step_size=0.5), image)
    assert len(seen) == 2**3 + 3**3
    assert half.shape == whole.shape
    assert not torch.equal(half[0], whole[0])


def test_a_forward_pass_of_mining_has_a_training_batch(make_miner):
    made, plan = (
        make_miner((8, 8)),
        SimpleNamespace(patch_size=(8, 8), batch_size=2, spacing=[0.5, 2.0]),
    )
    config = MAPOConfig()
    miner = make_miner_by_settings(config, made.network, made.sampler, made.labels, plan, CPU)
    assert miner.config is config
    assert miner.images_per_forward == 2
