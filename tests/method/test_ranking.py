"""What one part does to the metric, against the metric of the whole sample by other code."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, gaussian_filter

from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.method.ranking import Ranking
from nnunetv2_mapo.method.region_pairs import find_parts
from nnunetv2_mapo.method.valid import METRICS
from nnunetv2_mapo.tools.metrics import Grid, compute_metrics

TWO, THREE = Labels(2), Labels(3)
REGIONS = Labels(2, regions=((1, 2), (2,)))
SPACINGS = {2: (0.7, 1.3), 3: (2.0, 0.8, 0.5)}
SHAPES = {2: (40, 44), 3: (20, 24, 22)}


def blobs(shape, sigma, threshold, seed):
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma)
    return noise / noise.std() > threshold


def draw(num_dimensions, labels, seed):
    """Truth, plain prediction and candidate with many parts that do not agree."""
    shape, num_values = SHAPES[num_dimensions], 4 if labels.regions else labels.num_heads
    truth = blobs(shape, 2, 0.8, seed).astype(np.uint8)
    if num_values > 2:
        truth += truth * blobs(shape, 3, 0.2, seed + 50)
    maps = [truth]
    for other in (seed + 100, seed + 200):
        wrong = np.random.default_rng(other).integers(0, num_values, shape)
        maps.append(np.where(blobs(shape, 1, 1.6, other), wrong, truth).astype(np.uint8))
    return maps


def tubes(num_dimensions, seed):
    """A network of tubes, which thinning sees in one piece."""
    rng, shape = np.random.default_rng(seed), SHAPES[num_dimensions]
    mask = np.zeros(shape, bool)
    for _ in range(6):
        start, end = rng.random((2, num_dimensions)) * (np.array(shape) - 1)
        for share in np.linspace(0, 1, 60):
            mask[tuple(np.rint(start + share * (end - start)).astype(int))] = True
    return binary_dilation(mask, iterations=int(rng.integers(1, 3)))


def whole_effects(ranking, plain, candidate, parts, *arguments):
    before = ranking.value(plain, *arguments)
    numbers = range(1, int(parts.max()) + 1)
    merged = (np.where(parts == number, candidate, plain) for number in numbers)
    return [0, *(ranking.value(each, *arguments) - before for each in merged)]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("labels", [TWO, THREE, REGIONS], ids=["two", "three", "regions"])
@pytest.mark.parametrize("num_dimensions", [2, 3])
def test_the_effect_of_each_part_is_that_on_the_whole_sample(num_dimensions, labels, metric):
    ranking, spacing = Ranking.by(metric, 1.0, labels), SPACINGS[num_dimensions]
    for seed in range(2):
        truth, plain, candidate = draw(num_dimensions, labels, seed)
        valid = blobs(truth.shape, 3, -1.5, seed) if seed else None
        parts = find_parts(plain, candidate, valid)
        found = ranking.look_at(plain, truth, spacing, valid, others=[candidate])
        effects = found.find_effects(candidate, parts, int(parts.max()))
        expected = whole_effects(ranking, plain, candidate, parts, truth, spacing, valid)
        assert len(effects) > 5
        assert np.abs(effects).max() > 0
        assert effects == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("num_dimensions", [2, 3])
def test_the_effect_on_cldice_is_exact_in_networks_of_tubes(num_dimensions):
    ranking, spacing = Ranking.by("cldice", 1.0, TWO), SPACINGS[num_dimensions]
    for seed in range(12):
        truth = tubes(num_dimensions, seed).astype(np.uint8)
        plain, candidate = (
            np.where(blobs(truth.shape, 1, 1.3, 9 * seed + each), 1 - truth, truth)
            for each in (1, 2)
        )
        parts = find_parts(plain, candidate)
        found = ranking.look_at(plain, truth, spacing, others=[candidate])
        effects = found.find_effects(candidate, parts, int(parts.max()))
        expected = whole_effects(ranking, plain, candidate, parts, truth, spacing)
        assert effects == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("num_dimensions", [2, 3])
def test_values_are_those_of_monai(num_dimensions):
    spacing = SPACINGS[num_dimensions]
    for seed in range(6):
        truth, plain, _ = draw(num_dimensions, TWO, seed)
        monai = compute_metrics(plain > 0, truth > 0, Grid(spacing, 1.0), tolerance=1.0)
        expected = {
            "dice": monai.dice,
            "nsd": monai.nsd,
            "hd95": 10 / (10 + monai.hd95),
            "asd": 2 / (2 + monai.asd),
        }
        for metric, value in expected.items():
            ranking = Ranking.by(metric, 1.0, TWO)
            assert ranking.value(plain, truth, spacing) == pytest.approx(value, abs=1e-6)


def test_weights_make_a_mean():
    truth, plain, _ = draw(2, THREE, 0)
    one, other = (Ranking.by(m, 1.0, THREE).value(plain, truth, (1, 1)) for m in ("dice", "nsd"))
    both = Ranking.by({"dice": 3, "nsd": 1}, 1.0, THREE)
    assert both.value(plain, truth, (1, 1)) == pytest.approx(0.75 * one + 0.25 * other)


def test_classes_that_are_nowhere_do_not_count():
    truth, plain = np.zeros((2, 8, 8), np.uint8)
    truth[1:5, 1:5] = plain[1:5, 1:5] = 1
    ranking = Ranking.by("lesion_f1", 1.0, THREE)
    assert ranking.value(plain, truth, (1, 1)) == 1
    assert ranking.value(np.zeros_like(plain), np.zeros_like(truth), (1, 1)) == 1
    plain[6:8, 6:8] = 2  # one more class, all of it wrong
    assert ranking.value(plain, truth, (1, 1)) == 0.5
    parts = find_parts(plain, truth)
    effects = ranking.look_at(plain, truth, (1, 1), others=[truth]).find_effects(truth, parts, 1)
    assert effects.tolist() == [0, 0.5]


def test_lesions_of_any_size_count_alike():
    truth = np.zeros((30, 30), np.uint8)
    truth[1:4, 1:4] = truth[10:28, 10:28] = 1
    plain = np.zeros_like(truth)
    parts = find_parts(plain, truth)
    by_lesion, by_voxel = (
        Ranking.by(m, 1.0, TWO)
        .look_at(plain, truth, (1, 1), others=[truth])
        .find_effects(truth, parts, 2)
        for m in ("lesion_f1", "dice")
    )
    assert by_lesion[1] == by_lesion[2] == pytest.approx(2 / 3)  # 1 / (1 + 1 / 2)
    assert by_voxel[1] < 0.1 < by_voxel[2]


def test_a_class_that_only_a_candidate_has_anywhere_is_measured():
    truth = plain = np.zeros((9, 9), np.uint8)
    candidate = plain.copy()
    candidate[2:4, 5:8] = 2
    ranking = Ranking.by("nsd", 1.0, THREE)
    found = ranking.look_at(plain, truth, (1, 1), others=[candidate])
    assert found.find_effects(candidate, find_parts(plain, candidate), 1).tolist() == [0, -1]


def test_an_own_function_sees_the_whole_sample(monkeypatch):
    seen = []

    def note(prediction, target, spacing_mm):
        seen.append((prediction.shape, target.shape, spacing_mm))
        return float(prediction.sum())

    monkeypatch.setattr("nnunetv2_mapo.metrics.scores.import_function", lambda _: note)
    truth, plain, candidate = draw(3, TWO, 0)
    ranking = Ranking.by("some.module:note", 1.0, TWO)
    parts = find_parts(plain, candidate)
    found = ranking.look_at(plain, truth, (3, 1, 1), others=[candidate])
    effects = found.find_effects(candidate, parts, int(parts.max()))
    gained = candidate.astype(int) - plain
    assert effects == pytest.approx(np.bincount(parts.ravel(), (gained * (parts > 0)).ravel()))
    assert set(seen) == {(truth.shape, truth.shape, (3, 1, 1))}
