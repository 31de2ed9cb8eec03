from __future__ import annotations

import json
import math

import pytest

from nnunetv2_mapo.tools.uncertainty.records import Records, read_cases
from nnunetv2_mapo.tools.uncertainty.scores import Scores
from nnunetv2_mapo.tools.uncertainty.uncertainty import MapSummary

SETTINGS = {"num_samples": 20, "rate": 0.1}


def scores(dice):
    return Scores(dice, 0.1, math.nan, 0.02, 0.2, 0.01)


def test_what_is_written_is_read(tmp_path):
    records = Records(tmp_path, SETTINGS, {"folder": "model"})
    records.add("b", MapSummary(0.2, 0.6, 0.1, 9), scores(0.8))
    records.add("a", MapSummary(0.4, 0.5, 0.2, 9), scores(0.5))
    cases = read_cases(tmp_path, SETTINGS)
    assert set(cases) == {"a", "b"}
    assert cases["a"]["dice"] == 0.5
    assert math.isnan(cases["a"]["ece_foreground"])
    content = json.loads((tmp_path / "uncertainty.json").read_text())
    assert content["mean"]["mean_entropy"] == pytest.approx(0.3)
    assert "ece_foreground" not in content["mean"]
    lines = (tmp_path / "uncertainty.csv").read_text().splitlines()
    assert lines[0].startswith("case,mean_entropy,max_entropy,mean_variance,num_segmented,dice,ece")
    assert [line.split(",")[0] for line in lines[1:]] == ["a", "b"]


def test_cases_are_ordered_by_their_mean_entropy(tmp_path):
    records = Records(tmp_path, SETTINGS, {})
    # By entropy the risks are 0.1, 0.5, 0.3; of what has entered: 0.1, 0.3, 0.3.
    for name, entropy, dice in (("a", 0.1, 0.9), ("b", 0.2, 0.5), ("c", 0.3, 0.7)):
        records.add(name, MapSummary(entropy, 1, 0, 9), scores(dice))
    assert records.order() == pytest.approx((0.7 / 3, 0.9 / 3, (0.1 + 0.2 + 0.3) / 3))


def test_where_nothing_is_segmented_a_case_is_the_most_uncertain_one(tmp_path):
    records = Records(tmp_path, SETTINGS, {})
    for name, entropy, dice, num_segmented in (
        ("a", 0.1, 0.9, 9), ("b", 0.01, 0.0, 0), ("c", 0.3, 0.7, 9), ("d", 0.02, 1.0, 0),
    ):  # fmt: skip
        records.add(name, MapSummary(entropy, 1, 0, num_segmented), scores(dice))
    assert set(records.rank()[:2]) == {"b", "d"}
    assert records.rank()[2:] == ["c", "a"]
    # The risks are 0.1, 0.3 and, together, 1 and 0; of what has entered: 0.1, 0.2, 0.35, 0.35.
    assert records.order().aurc == pytest.approx(1 / 4)


def test_a_case_without_dice_has_no_place_in_the_order(tmp_path):
    records = Records(tmp_path, SETTINGS, {})
    records.add("ignored", MapSummary(0.2, 1, 0, 9), scores(math.nan))
    assert all(math.isnan(area) for area in records.order())
    records.add("a", MapSummary(0.1, 1, 0, 9), scores(0.9))
    assert records.order() == pytest.approx((0.1, 0.1, 0.1))


def test_without_ground_truth_there_are_no_scores(tmp_path):
    records = Records(tmp_path, SETTINGS, {})
    records.add("a", MapSummary(0.4, 0.5, 0.2, 9), None)
    assert not records.has_scores
    assert json.loads((tmp_path / "uncertainty.json").read_text())["order_of_cases"] is None
    assert "dice" not in (tmp_path / "uncertainty.csv").read_text()


def test_maps_of_other_settings_are_not_continued(tmp_path):
    Records(tmp_path, SETTINGS, {}).write()
    with pytest.raises(ValueError, match=r"rate: 0\.1 then, 0\.2 now"):
        read_cases(tmp_path, {**SETTINGS, "rate": 0.2})


def test_a_damaged_file_is_named_and_a_missing_one_holds_no_case(tmp_path):
    assert read_cases(tmp_path, SETTINGS) == {}
    (tmp_path / "uncertainty.json").write_text("{")
    with pytest.raises(ValueError, match=r"uncertainty\.json is damaged"):
        read_cases(tmp_path, SETTINGS)
