"""Squares of which every Dice is counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import label

from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.method.parts import Slab, find_parts
from nnunetv2_mapo.method.parts import find_effects as find_effects_in_slabs
from nnunetv2_mapo.method.region_pairs import (
    LARGEST_FACTOR,
    RegionPair,
    even_out,
    pair_regions,
    pair_regions_by,
)
from nnunetv2_mapo.method.selection import Overlap, candidate_dice, count_candidates

TWO, THREE = Labels(2), Labels(3)
REGIONS = Labels(2, regions=((1, 2), (2,)))


def empty(shape=(8, 8)):
    return np.zeros(shape, np.uint8)


def overlap_of(plain, truth, labels, valid=None):
    valid = None if valid is None else torch.from_numpy(valid)
    counts = count_candidates(torch.from_numpy(plain)[None], torch.from_numpy(truth), labels, valid)
    return Overlap(*(each[0] for each in counts))


def find_effects(plain, candidate, truth, labels, valid=None):
    """Number of the part of each voxel, and the effect of each part."""
    slab = Slab(np.stack((plain, candidate)), truth, valid)
    [found] = find_effects_in_slabs([slab], labels, overlap_of(plain, truth, labels, valid))
    return find_parts(plain, candidate, valid), found.effects


def pair_whole(candidates, truth, labels, tau, valid=None, slab_planes=None):
    """Pair of a sample, looked at in one slab or in several."""
    starts = range(0, len(truth), slab_planes or len(truth))
    places = [slice(start, start + (slab_planes or len(truth))) for start in starts]
    slabs = [Slab(candidates[:, p], truth[p], None if valid is None else valid[p]) for p in places]
    pairs = pair_regions(slabs, labels, tau, overlap_of(candidates[0], truth, labels, valid))
    return pairs, join(pairs, slabs)


def join(pairs, slabs):
    """What is put together of all slabs."""
    each = [pairs.put_together(number, slab) for number, slab in enumerate(slabs)]
    return RegionPair(*(np.concatenate(arrays) for arrays in zip(*each, strict=True)))


def square_case():
    """Truth: 4 x 4 voxels. Plain: its left half, 8 voxels, and 4 wrong voxels elsewhere.

    Dice of plain: 2 * 8 / (16 + 12) = 4/7. The candidate has the right half as well, lacks the
    wrong voxels, and has 2 new wrong ones.
    """
    truth, plain = empty(), empty()
    truth[0:4, 0:4] = 1
    plain[0:4, 0:2] = 1
    plain[6:8, 6:8] = 1
    candidate = empty()
    candidate[0:4, 0:4] = 1
    candidate[6, 0:2] = 1
    return truth, plain, candidate


def test_each_part_has_the_effect_that_it_alone_has():
    truth, plain, candidate = square_case()
    parts, effects = find_effects(plain, candidate, truth, TWO)
    right_half, wrong_removed, wrong_added = (
        effects[parts[place]] for place in ((0, 3), (7, 7), (6, 0))
    )
    assert right_half == pytest.approx(2 * 16 / (16 + 20) - 4 / 7)
    assert wrong_removed == pytest.approx(2 * 8 / (16 + 8) - 4 / 7)
    assert wrong_added == pytest.approx(2 * 8 / (16 + 14) - 4 / 7)
    assert effects[0] == 0
    assert len(effects) == 4


def test_chosen_takes_the_better_parts_and_rejected_the_others():
    truth, plain, candidate = square_case()
    pairs, pair = pair_whole(np.stack((plain, candidate)), truth, TWO, tau=1.0)
    chosen, rejected = plain.copy(), plain.copy()
    chosen[0:4, 2:4], chosen[6:8, 6:8] = 1, 0  # the candidate is better there
    rejected[6, 0:2] = 1  # and worse here
    assert np.array_equal(pair.chosen, chosen)
    assert np.array_equal(pair.rejected, rejected)
    assert (pairs.num_parts, pairs.num_preferred) == (3, 2)
    assert pair.weight[0, 3] == pytest.approx(8 / 9 - 4 / 7)  # |ΔDice| / τ
    assert np.array_equal(pair.weight > 0, chosen != rejected)


def test_the_weight_is_proportional_to_the_effect_up_to_tau():
    truth, plain, candidate = square_case()
    effect = abs(16 / 30 - 4 / 7)  # of the two new wrong voxels
    for tau, expected in ((effect / 2, 1.0), (effect, 1.0), (4 * effect, 0.25)):
        _pairs, pair = pair_whole(np.stack((plain, candidate)), truth, TWO, tau)
        assert pair.weight[6, 0] == pytest.approx(expected, rel=1e-5)


def test_where_parts_overlap_the_larger_effect_counts():
    truth, plain = empty(), empty()
    truth[0:4, 0:4] = 1
    plain[0:4, 0:2] = 1
    small, large = plain.copy(), plain.copy()
    small[0, 2:6] = 1  # two right and two wrong voxels: a loss and a gain in one part
    large[0:4, 2:4] = 1
    for order in ((small, large), (large, small)):
        _pairs, pair = pair_whole(np.stack((plain, *order)), truth, TWO, tau=1.0)
        assert pair.chosen[0, 2] == 1
        assert pair.weight[0, 2] == pytest.approx(1 - 2 / 3)  # 2 * 8 / 24 before, 1 after
        assert 0 < pair.weight[0, 4] < 0.1


def test_a_voxel_alone_and_a_part_without_effect_are_no_preference():
    truth, plain = empty(), empty()
    truth[0:2, 0:2] = 1
    plain[4:6, 4:6] = 2  # Dice 0, and 0 without it too: class 1 is still missing
    candidate = plain.copy()
    candidate[4:6, 4:6] = 0
    candidate[0, 0] = 1
    pairs, pair = pair_whole(np.stack((plain, candidate)), truth, THREE, tau=0.1)
    assert pairs.num_parts == 0
    assert not pair.weight.any()
    assert np.array_equal(pair.chosen, pair.rejected)


def test_removing_all_of_a_false_class_is_a_gain():
    # plain: class 1 right, class 2 wrong: mean of 1 and 0; without class 2 it is 1 of one class
    truth, plain = empty(), empty()
    truth[0:2, 0:2] = plain[0:2, 0:2] = 1
    plain[4:6, 4:6] = 2
    parts, effects = find_effects(plain, truth, truth, THREE)
    assert effects[parts[4, 4]] == pytest.approx(0.5)


def test_a_false_part_in_an_empty_image_costs_the_whole_dice():
    truth = plain = empty()
    candidate = empty()
    candidate[2:4, 2:4] = 1
    pairs, pair = pair_whole(np.stack((plain, candidate)), truth, TWO, tau=0.05)
    assert pairs.num_preferred == 0
    assert np.array_equal(pair.chosen, plain)
    assert np.array_equal(pair.rejected, candidate)
    assert np.array_equal(pair.weight, candidate.astype(np.float32))


def test_ignored_voxels_belong_to_no_part_and_count_nowhere():
    truth, plain, candidate = square_case()
    valid = np.ones((8, 8), bool)
    valid[:, 3] = valid[6:, 6:] = False
    parts, effects = find_effects(plain, candidate, truth, TWO, valid)
    assert not parts[~valid].any()
    # left of column 3: truth 12, plain 8, all right; with column 2 it is all of it
    assert effects[parts[0, 2]] == pytest.approx(1 - 2 * 8 / 20)
    assert effects[parts[6, 0]] == pytest.approx(2 * 8 / 22 - 2 * 8 / 20)


def flip(plain, candidate, mask):
    return np.where(mask, candidate, plain)


@pytest.mark.parametrize("labels", [THREE, REGIONS], ids=["classes", "regions"])
@pytest.mark.parametrize("shape", [(12, 14), (6, 7, 8)], ids=["2D", "3D"])
def test_effects_equal_those_counted_on_the_whole_case(labels, shape):
    rng = np.random.default_rng(len(shape))
    num_values = 4 if labels.regions else 3
    truth, plain, other = rng.integers(0, num_values, (3, *shape)).astype(np.uint8)
    candidate = np.where(rng.random(shape) < 0.15, other, plain)
    parts, effects = find_effects(plain, candidate, truth, labels)

    def dice(label_map):
        maps = torch.from_numpy(label_map)[None]
        return candidate_dice(maps, torch.from_numpy(truth), labels).item()

    sizes = np.bincount(parts.ravel())
    assert len(effects) == parts.max() + 1 > 5
    for part in range(1, len(effects)):
        expected = dice(flip(plain, candidate, parts == part)) - dice(plain)
        assert effects[part] == pytest.approx(expected if sizes[part] > 1 else 0, abs=1e-6)


@pytest.mark.parametrize("num_dimensions", [2, 3])
def test_parts_are_the_connected_sets_of_differing_voxels(num_dimensions):
    rng = np.random.default_rng(0)
    for _ in range(400):
        shape = tuple(rng.integers(2, 12, num_dimensions))
        differs = rng.random(shape) < rng.random()
        parts, effects = find_effects(empty(shape), differs.astype(np.uint8), empty(shape), TWO)
        expected, num_parts = label(differs, np.ones((3,) * num_dimensions))  # all neighbours
        assert np.array_equal(parts > 0, differs)
        assert parts.max() == num_parts == len(effects) - 1
        pairs = np.unique(np.stack((expected[differs], parts[differs])), axis=1)
        assert pairs.shape[1] == num_parts  # each part is one connected set


def test_effects_on_another_metric_take_the_place_of_dice():
    truth, plain, candidate = square_case()
    parts = find_parts(plain, candidate)
    right_half = parts[0, 3]

    def find_others(map_of_candidate, map_of_parts, num_parts):
        assert np.array_equal(map_of_candidate, candidate)
        assert np.array_equal(map_of_parts, parts)
        effects = np.full(num_parts + 1, 0.25)
        effects[right_half], effects[0] = -0.5, 0
        return effects

    slab = Slab(np.stack((plain, candidate)), truth)
    pairs = pair_regions_by(slab, 1.0, find_others)
    pair = join(pairs, [slab])
    assert (pairs.num_parts, pairs.num_preferred) == (3, 2)
    assert pair.weight[0, 3] == 0.5
    assert np.array_equal(pair.rejected[0:4, 2:4], candidate[0:4, 2:4])
    assert np.array_equal(pair.chosen[6, 0:2], candidate[6, 0:2])


def test_single_voxels_are_not_asked_about():
    plain = empty()
    candidate = plain.copy()
    candidate[0, 0] = candidate[4, 4:6] = 1
    seen = []

    def note(_, map_of_parts, num_parts):
        seen.append((map_of_parts.copy(), num_parts))
        return np.zeros(num_parts + 1)

    pair_regions_by(Slab(np.stack((plain, candidate)), plain), 1.0, note)
    [(map_of_parts, num_parts)] = seen
    assert num_parts == 2
    assert np.array_equal(map_of_parts > 0, (candidate > 0) & (np.arange(8)[:, None] == 4))


def test_each_voxel_remembers_the_part_that_it_has_its_preference_from():
    truth, plain, candidate = square_case()
    other = plain.copy()
    other[0:4, 2] = 1  # less of the right half
    _pairs, pair = pair_whole(np.stack((plain, other, candidate)), truth, TWO, tau=1.0)
    assert len(np.unique(pair.part[pair.weight > 0])) == 3
    assert len(np.unique(pair.part[0:4, 2:4])) == 1  # the larger part won all of it
    assert not pair.part[pair.weight == 0].any()


def test_parts_of_any_size_pull_by_their_effect_alone():
    part = np.zeros((20, 20), np.int32)
    part[0, 0:4], part[5:9, 0:4] = 1, 2  # 4 and 16 voxels: their geometric mean is 8
    weight = np.where(part == 1, 0.5, np.where(part == 2, 1.0, 0)).astype(np.float32)
    evened = even_out(weight, part, part > 0, np.bincount(part[part > 0]))
    assert evened[0, 0] == pytest.approx(0.5 * 8 / 4)
    assert evened[5, 0] == pytest.approx(1.0 * 8 / 16)
    assert evened[part == 2].sum() == pytest.approx(2 * evened[part == 1].sum())
    assert np.array_equal(evened > 0, part > 0)


def test_only_voxels_that_are_learnt_from_count_for_the_size_of_a_part():
    part = np.zeros((20, 20), np.int32)
    part[0, 0:4], part[5:9, 0:4] = 1, 2
    used = part > 0
    used[6:9] = False  # 4 of each are left
    assert np.array_equal(
        even_out(used.astype(np.float32), part, used, np.bincount(part[used])), used
    )


def test_a_voxel_does_not_pull_without_bounds():
    part = np.zeros((200, 200), np.int32)
    part[0, 0:2], part[5:, :] = 1, 2
    evened = even_out((part > 0).astype(np.float32), part, part > 0, np.bincount(part[part > 0]))
    assert evened[0, 0] == LARGEST_FACTOR
    nothing = np.zeros((3, 3), np.float32)
    no_part = np.zeros((3, 3), np.int32)
    assert not even_out(nothing, no_part, nothing > 0, np.zeros(1, np.int64)).any()


def noisy_case(labels, shape, share, seed):
    rng = np.random.default_rng(seed)
    num_values = 4 if labels.regions else 3
    truth, plain, *others = rng.integers(0, num_values, (6, *shape)).astype(np.uint8)
    candidates = [np.where(rng.random(shape) < share, each, plain) for each in others]
    return np.stack([plain, *candidates]), truth


@pytest.mark.parametrize("labels", [THREE, REGIONS], ids=["classes", "regions"])
@pytest.mark.parametrize("slab_planes", [1, 2, 5])
@pytest.mark.parametrize("share", [0.03, 0.1, 0.2, 0.5])  # from specks to one part of all
def test_parts_that_reach_through_slabs_are_those_of_the_whole_case(labels, slab_planes, share):
    for seed in range(5):
        candidates, truth = noisy_case(labels, (11, 12, 9), share, seed)
        pairs, pair = pair_whole(candidates, truth, labels, 0.01, slab_planes=slab_planes)
        expected_pairs, expected = pair_whole(candidates, truth, labels, 0.01)
        assert pairs.num_parts == expected_pairs.num_parts > 0
        assert pairs.num_preferred == expected_pairs.num_preferred
        for name in ("chosen", "rejected", "weight"):
            assert np.array_equal(getattr(pair, name), getattr(expected, name))
        # pieces of a part have one number, in the order of the parts of the whole case
        ours, theirs = pair.part[expected.part > 0], expected.part[expected.part > 0]
        pieces = np.unique(np.stack((theirs, ours)), axis=1)
        assert pieces.shape[1] == len(np.unique(theirs))
        assert (np.diff(pieces[1]) > 0).all()
        assert not pair.part[expected.part == 0].any()


def test_a_part_that_touches_itself_only_slabs_later_is_one():
    # a U whose arms begin as two parts and meet in the last slab, and a W, seen from its top
    plain = empty((6, 8, 8))
    truth, candidate = plain.copy(), plain.copy()
    truth[:, 0] = 1
    candidate[:, 0, 0] = candidate[:, 0, 4] = candidate[5, 0, 0:5] = 1
    candidate[0:4, 4, 0] = candidate[2:4, 4, 2] = candidate[0:4, 4, 4] = candidate[3, 4, 0:5] = 1
    pairs, pair = pair_whole(np.stack((plain, candidate)), truth, TWO, 1.0, slab_planes=1)
    assert (pairs.num_parts, pairs.num_preferred) == (1, 1)  # the W is without effect on Dice 0
    assert len(np.unique(pair.part[:, 0][candidate[:, 0] > 0])) == 1
    num_right = int(candidate[:, 0].sum())
    assert pair.weight[0, 0, 0] == pytest.approx(2 * num_right / (num_right + 48))
