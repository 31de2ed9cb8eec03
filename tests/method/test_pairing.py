"""Pairs of candidates that are made up: no network is asked."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import whole_case
from torch import Tensor

from nnunetv2_mapo.method import pairing
from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.method.pairing import PairFinder, make_finder
from nnunetv2_mapo.method.ranking import Ranking
from nnunetv2_mapo.method.windows import find_units

CLASSES = Labels(3)
REGIONS = Labels(2, regions=((1, 2), (2,)))


def finder_of(patch_size, labels=CLASSES, **given) -> PairFinder:
    # what no test says otherwise: pairs of two candidates from windows side by side
    usual = {"pair": "case", "agree": False, "tau": 1e-6, "tile_step_size": 1.0}
    config = MAPOConfig(**{**usual, "reference": "none", **given})
    return PairFinder(labels, config, patch_size)


def some_case(shape, labels=CLASSES, seed=0, share=0.1) -> tuple[Tensor, Tensor]:
    """Candidates and ground truth; three of them are the plain one with a share drawn anew."""
    rng = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, (labels.ignore_label or 2) + 1, shape, generator=rng).short()
    num_values = labels.num_heads if labels.regions is None else 2**labels.num_heads

    def redraw(label_map: Tensor, share: float) -> Tensor:
        values = torch.randint(num_values, shape, generator=rng, dtype=labels.dtype)
        return torch.where(torch.rand(shape, generator=rng) < share, values, label_map)

    plain = redraw(labels.target_map(truth).to(labels.dtype), 0.9)
    return torch.stack([plain, *(redraw(plain, share) for _ in range(3))]), truth


# Two candidates -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_a_3d_case_gives_one_pair_of_best_and_worst_candidate(seed):
    candidates, truth = some_case((10, 9, 12), seed=seed)
    found = finder_of((8, 8, 8)).find_pairs(candidates, truth)
    dice = [whole_case.class_dice(candidate.numpy(), truth.numpy()) for candidate in candidates]
    (record,) = found.records
    assert record.dice == pytest.approx(dice, abs=1e-6)
    assert record.chosen == int(np.argmax(dice))
    assert record.rejected == int(np.argmin(dice))
    assert np.array_equal(found.preferences[0], candidates[record.chosen])
    assert np.array_equal(found.preferences[1], candidates[record.rejected])
    assert record.num_disagreeing == int((found.preferences[0] != found.preferences[1]).sum()) > 0
    assert record.num_voxels == 10 * 9 * 12
    assert found.preferences[0].dtype == found.preferences[1].dtype == np.int16


def test_a_2d_case_gives_one_record_and_one_pair_a_slice():
    candidates, truth = some_case((12, 12, 9))
    found = finder_of((8, 8)).find_pairs(candidates, truth)
    assert found.preferences[0].shape == (12, 12, 9)
    assert len(found.records) == 12
    for plane, record in enumerate(found.records):
        dice = [whole_case.class_dice(c[plane].numpy(), truth[plane].numpy()) for c in candidates]
        assert record.dice == pytest.approx(dice, abs=1e-6)
        assert np.array_equal(found.preferences[0][plane], candidates[np.argmax(dice), plane])
        assert np.array_equal(found.preferences[1][plane], candidates[np.argmin(dice), plane])
        assert record.num_voxels == 12 * 9
    assert len({record.chosen for record in found.records}) > 1  # slices choose for themselves


def test_without_a_gap_of_tau_chosen_equals_rejected():
    found = finder_of((8, 8, 8), tau=1.0).find_pairs(*some_case((8, 8, 8)))
    (record,) = found.records
    assert record.rejected is None
    assert record.num_disagreeing == 0
    assert np.array_equal(found.preferences[0], found.preferences[1])
    assert max(record.dice) - min(record.dice) > 0  # there was something to choose


def test_a_gap_above_tau_max_makes_no_pair():
    case = some_case((8, 8, 8))
    (record,) = finder_of((8, 8, 8)).find_pairs(*case).records
    gaps = sorted(max(record.dice) - dice for dice in record.dice)
    banded_finder = finder_of((8, 8, 8), tau_max=(gaps[-1] + gaps[-2]) / 2)
    (banded,) = banded_finder.find_pairs(*case).records
    assert banded.dice[banded.chosen] - banded.dice[banded.rejected] == pytest.approx(gaps[-2])


@pytest.mark.parametrize("patch_size", [(8, 8), (8, 8, 8)], ids=["2D", "3D"])
def test_ignored_voxels_neither_disagree_nor_count(patch_size):
    candidates, annotated = some_case((8, 8, 8))
    ignored = torch.zeros(8, 8, 8, dtype=torch.bool)
    ignored[:, 3:, ::2] = True
    truth = torch.where(ignored, 3, annotated).short()
    found = finder_of(patch_size, Labels(3, ignore_label=3)).find_pairs(candidates, truth)
    differs = torch.from_numpy(found.preferences[0] != found.preferences[1])
    assert not differs[ignored].any()
    assert differs[~ignored].any()
    for sample, record in enumerate(found.records):
        part = ... if len(patch_size) == 3 else sample
        counted = ~ignored[part]
        dice = [
            whole_case.class_dice(c[part][counted].numpy(), annotated[part][counted].numpy())
            for c in candidates
        ]
        assert record.dice == pytest.approx(dice, abs=1e-6)


def test_voxels_outside_the_image_are_background_of_the_target():
    candidates, truth = some_case((8, 8, 8))
    outside, background = truth.clone(), truth.clone()
    outside[0], background[0] = -1, 0
    finder = finder_of((8, 8, 8))
    expected = finder.find_pairs(candidates, background).records
    assert finder.find_pairs(candidates, outside).records == expected
    assert finder.find_pairs(candidates, truth).records != expected


@pytest.mark.parametrize("patch_size", [(8, 8), (8, 8, 8)], ids=["2D", "3D"])
@pytest.mark.parametrize("unit", ["case", "slice", "window"])
def test_each_unit_chooses_its_own_pair(patch_size, unit):
    candidates, truth = some_case((12, 12, 9), share=0.5)
    finder = finder_of(patch_size, selection_unit_2d=unit, selection_unit_3d=unit)
    mined = finder.find_pairs(candidates, truth)
    units = find_units((12, 12, 9), patch_size, unit, 1.0)
    assert len(mined.records) == len(units)
    for place, record in zip(units, mined.records, strict=True):
        found = candidates[(slice(None), *place)].numpy()
        dice = [whole_case.class_dice(candidate, truth[place].numpy()) for candidate in found]
        assert record.dice == pytest.approx(dice, abs=1e-6)
        assert np.array_equal(mined.preferences[0][place], found[np.argmax(dice)])
        assert np.array_equal(mined.preferences[1][place], found[np.argmin(dice)])
        assert record.num_voxels == found[0].size
    if unit != "case":
        assert len({record.chosen for record in mined.records}) > 1


# Regions of candidates ----------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [CLASSES, REGIONS], ids=["classes", "regions"])
@pytest.mark.parametrize("patch_size", [(8, 8), (8, 8, 8)], ids=["2D", "3D"])
def test_region_pairs_are_put_together_of_each_sample_s_candidates(patch_size, labels):
    case = some_case((4, 12, 12), labels)
    finder = finder_of(patch_size, labels, tau=0.01, pair="region")
    samples, found = list(finder.find_samples(*case)), finder.find_pairs(*case)
    assert found.preferences.shape == (3, 4, 12, 12)
    assert len(found.records) == len(samples) == (4 if len(patch_size) == 2 else 1)
    for sample, record in zip(samples, found.records, strict=True):
        chosen, rejected, weight = found.preferences[(slice(None), *sample.place)]
        (slab,) = sample.read_slabs()
        plain = slab.candidates[0]
        differs = chosen != rejected
        assert record.num_disagreeing == differs.sum() > 0
        assert np.array_equal(weight > 0, differs)
        assert weight.max() <= 100
        # the plain prediction is always one of the two
        assert ((chosen == plain) | (rejected == plain))[differs].all()
        assert record.has_pair
        if labels is CLASSES:
            truth = slab.target
            expected = [
                whole_case.class_dice(chosen, truth),
                whole_case.class_dice(rejected, truth),
            ]
            assert record.pair_dice == pytest.approx(expected, abs=1e-6)
        assert 0 <= record.num_preferred <= record.num_parts > 0


def test_with_agree_chosen_is_right_in_every_disagreement_voxel():
    candidates, truth = some_case((4, 12, 12))
    for pair in ("case", "region"):
        found = {}
        for agree in (False, True):
            finder = finder_of((8, 8, 8), tau=0.001, pair=pair, agree=agree)
            found[agree] = finder.find_pairs(candidates, truth)
        all_of_it, right = found[False], found[True]
        differs = all_of_it.preferences[0] != all_of_it.preferences[1]
        is_right = all_of_it.preferences[0] == truth.numpy()
        assert 0 < (differs & is_right).sum() < differs.sum()
        assert np.array_equal(right.preferences[0] != right.preferences[1], differs & is_right)


@pytest.mark.parametrize("labels", [CLASSES, Labels(3, ignore_label=3), REGIONS], ids=str)
@pytest.mark.parametrize(
    ("shape", "patch_size"),
    [((19, 10, 9), (8, 8, 8)), ((5, 20, 7), (8, 8, 8)), ((3, 6, 17), (8, 8))],
    ids=["slabs", "smaller than the patch", "slices"],
)
@pytest.mark.parametrize("most_voxels", [1, 300])  # of a slab: planes one by one, or a few
def test_in_slabs_pairs_are_those_of_the_case_in_one_piece(
    monkeypatch, labels, shape, patch_size, most_voxels
):
    monkeypatch.setattr(pairing, "SLAB", most_voxels)
    candidates, segmentation = some_case(shape, labels)
    finder = finder_of(patch_size, labels, pair="region", tau=0.01, tile_step_size=0.5)
    mined = finder.find_pairs(candidates, segmentation)
    for place in find_units(shape, patch_size, "case" if len(patch_size) == 3 else "slice", 0.5):
        truth, found = segmentation[place], candidates[(slice(None), *place)]
        expected = whole_case.pair_regions(
            found.numpy(), labels.target_map(truth).numpy(), labels, 0.01,
            ~labels.is_ignored(truth).numpy(),
        )  # fmt: skip
        assert expected.any()
        assert np.array_equal(mined.preferences[(slice(None), *place)], expected)


def test_in_slabs_a_case_without_a_pair_is_empty(monkeypatch):
    monkeypatch.setattr(pairing, "SLAB", 100)
    candidates = torch.ones(4, 9, 8, 8, dtype=torch.uint8)
    candidates[1:, 2:7, 3] = 0  # in which neither is right
    finder = finder_of((8, 8, 8), pair="region", agree=True)
    found = finder.find_pairs(candidates, torch.full((9, 8, 8), 2))
    assert not np.asarray(found.preferences[:]).any()
    assert not found.records[0].has_pair


def test_each_part_pulls_alike_where_that_is_asked_for():
    case, weights = some_case((8, 8, 8)), {}
    for part_weight in ("voxel", "part"):
        finder = finder_of((8, 8, 8), pair="region", tau=1e-6, part_weight=part_weight)
        weights[part_weight] = finder.find_pairs(*case).preferences[2]
    assert set(np.unique(weights["voxel"])) == {0, 100}  # hundredths
    assert len(np.unique(weights["part"])) > 2
    assert weights["part"].max() > 100
    assert np.array_equal(weights["part"] > 0, weights["voxel"] > 0)


# Another metric than Dice -------------------------------------------------------------------------


def test_pairs_of_a_configuration_are_ranked_by_its_metric():
    plan = SimpleNamespace(patch_size=(8, 8), spacing=[0.5, 2.0])
    for metric in ("dice", "nsd", {"dice": 1, "hd95": 2}):
        finder = make_finder(MAPOConfig(metric=metric), CLASSES, plan)
        assert (finder.ranking is None) == (metric == "dice")
        assert finder.spacing_mm == (1.0, 0.5, 2.0)


class Recorded:
    """A user's metric that remembers what it was asked, the share of voxels that are right."""

    def __init__(self) -> None:
        self.asked = []

    def __call__(self, prediction, target, spacing_mm):
        self.asked.append((prediction.shape, spacing_mm))
        return float((prediction == target).mean())


@pytest.fixture
def recorded(monkeypatch):
    metric = Recorded()
    monkeypatch.setattr("nnunetv2_mapo.metrics.scores.import_function", lambda _: metric)
    return metric


def rank_by_share(finder: PairFinder) -> PairFinder:
    ranking = Ranking.by("some.module:share", 1.0, CLASSES)
    return replace(finder, ranking=ranking, spacing_mm=(3.0, 0.5, 2.0))


def share_of_right_voxels(prediction, target) -> float:
    """Mean over the classes 1 and 2, both present."""
    return np.mean([((prediction == c) == (target == c)).mean() for c in (1, 2)])


@pytest.mark.usefixtures("recorded")
def test_two_candidates_are_chosen_by_the_metric():
    candidates, truth = some_case((10, 9, 12))
    (record,) = rank_by_share(finder_of((8, 8, 8))).find_pairs(candidates, truth).records
    values = [share_of_right_voxels(each.numpy(), truth.numpy()) for each in candidates]
    assert record.scores == pytest.approx(values, abs=1e-6)
    assert (record.chosen, record.rejected) == (np.argmax(values), np.argmin(values))
    assert record.gap == pytest.approx(max(values) - min(values), abs=2e-6)
    assert record.ranked == [record.scores[n] for n in (0, record.chosen, record.rejected)]


@pytest.mark.usefixtures("recorded")
def test_parts_are_ranked_by_the_metric():
    candidates, truth = some_case((10, 9, 12))
    found = rank_by_share(finder_of((8, 8, 8), pair="region")).find_pairs(candidates, truth)
    (record,) = found.records
    plain, chosen, rejected = record.scores
    assert record.ranked == record.scores
    assert chosen > plain >= rejected
    expected = share_of_right_voxels(found.preferences[0], truth.numpy())
    assert chosen == pytest.approx(expected, abs=1e-6)
    assert record.gap == pytest.approx(max(record.dice) - min(record.dice))


@pytest.mark.parametrize(
    ("patch_size", "spacing_mm"), [((8, 8), (0.5, 2.0)), ((8, 8, 8), (3.0, 0.5, 2.0))]
)
def test_a_metric_has_the_axes_of_the_sample(recorded, patch_size, spacing_mm):
    rank_by_share(finder_of(patch_size)).find_pairs(*some_case((8, 16, 16)))
    shape = (8, 16, 16)[-len(patch_size) :]
    assert {*recorded.asked} == {(shape, spacing_mm)}
