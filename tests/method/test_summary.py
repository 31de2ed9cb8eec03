from __future__ import annotations

import math

import pytest

from nnunetv2_mapo.method.config import Candidates, MAPOConfig
from nnunetv2_mapo.method.store import SampleRecord
from nnunetv2_mapo.method.summary import (
    explain_no_pairs,
    quantile_tau,
    summarize,
    tabulate_round,
)

RECORDS = {
    "a": [
        SampleRecord([0.75, 1.0, 0.5], chosen=1, rejected=2, num_disagreeing=10, num_voxels=100),
        SampleRecord(
            [0.25, 0.25, 0.25], chosen=0, rejected=None, num_disagreeing=0, num_voxels=100
        ),
    ],
    "b": [SampleRecord([0.5, 0.0, 0.25], chosen=0, rejected=1, num_disagreeing=3, num_voxels=10)],
}


def test_summary_by_hand():
    summary = summarize(RECORDS, MAPOConfig(tau=0.5))
    assert summary.num_samples == 3
    assert summary.num_pairs == 2
    assert summary.dice_plain == pytest.approx((0.75 + 0.25 + 0.5) / 3)
    assert summary.dice_chosen == pytest.approx((1.0 + 0.5) / 2)
    assert summary.dice_rejected == pytest.approx((0.5 + 0.0) / 2)
    assert summary.disagreement == pytest.approx((0.1 + 0.3) / 2)
    assert summary.gaps == [0.5, 0.0, 0.5]
    assert str(summary) == (
        "2 pairs / 3 samples, Dice plain 0.5000, of the pairs chosen 0.7500, rejected 0.2500, "
        "disagreement 20.00% of the voxels"
    )


def test_table_of_a_round_has_a_line_for_each_rate():
    # Dice of the three samples, sorted: 0.25 0.5 0.75; 0 0.25 1; 0.25 0.25 0.5. With three values
    # the quartiles lie halfway between the middle one and its neighbours.
    table = tabulate_round(RECORDS, Candidates("rate", "rates_2d", (0.0, 0.125, 0.25)))
    assert table.splitlines() == [
        " rate  mean Dice    25%  median    75%  chosen  rejected",
        "    0     0.5000 0.3750  0.5000 0.6250       1         0",
        "0.125     0.4167 0.1250  0.2500 0.6250       1         1",
        " 0.25     0.3333 0.2500  0.2500 0.3750       0         1",
    ]
    assert summarize(RECORDS, MAPOConfig(tau=0.5)).describe_gaps() == (
        "Dice gap of a sample's best and worst candidate: median 0.5000; 2 of 3 samples have a "
        "pair (66.7%, tau = 0.5)"
    )


def test_region_pairs_are_summarised_by_their_parts():
    samples = [
        SampleRecord(
            [0.5, 0.25], 0, None, num_disagreeing=5, num_voxels=100, num_parts=3, num_preferred=1,
            pair_dice=[0.75, 0.25],
        ),
        SampleRecord(
            [1.0, 0.25], 0, None, num_disagreeing=15, num_voxels=100, num_parts=1, num_preferred=0,
            pair_dice=[1.0, 0.5],
        ),
        SampleRecord([0.5, 0.5], 0, None, num_disagreeing=0, num_voxels=100),
    ]  # fmt: skip
    summary = summarize({"a": samples}, MAPOConfig(tau=0.05))
    assert (summary.num_pairs, summary.num_samples) == (2, 3)
    assert (summary.num_parts, summary.num_preferred) == (4, 1)
    assert summary.dice_chosen == pytest.approx((0.75 + 1.0) / 2)
    assert summary.dice_rejected == pytest.approx((0.25 + 0.5) / 2)
    assert "4 parts of which 25.0% are preferred" in str(summary)
    table = tabulate_round({"a": samples}, Candidates("rate", "rates_2d", (0.0, 0.125)))
    assert table.splitlines()[0].split() == ["rate", "mean", "Dice", "25%", "median", "75%"]


def test_table_of_a_round_without_pairs_has_zeros():
    candidates = Candidates("rate", "rates_2d", (0.0, 0.1, 0.2))
    table = tabulate_round({"a": RECORDS["a"][1:]}, candidates)
    assert [line.split()[-2:] for line in table.splitlines()[1:]] == [["0", "0"]] * 3


def test_summary_without_pairs_has_nan_for_what_only_pairs_have():
    summary = summarize({"a": RECORDS["a"][1:]}, MAPOConfig(tau=0.1))
    assert summary.num_pairs == 0
    assert summary.dice_plain == 0.25
    for value in (summary.dice_chosen, summary.dice_rejected, summary.disagreement):
        assert math.isnan(value)
    assert str(summary) == "0 pairs / 1 samples, Dice plain 0.2500"


def test_no_pairs_are_explained_with_gaps_and_tau():
    samples = [
        SampleRecord([0.5, 0.5 + gap], chosen=1, rejected=None, num_disagreeing=0, num_voxels=1)
        for gap in (0.0125, 0.025, 0.05)
    ]
    summary = summarize({"a": samples}, MAPOConfig(tau=0.3))
    candidates = Candidates("dropout rate", "rates_3d", (0.0, 0.125))
    message = explain_no_pairs(summary, candidates, "case")
    assert message.startswith("WARNING: this round has NO preference pair")
    assert "tau = 0.3, and more than 0, between two candidates" in message
    assert "largest gap of any sample is 0.0500, the median 0.0250" in message
    assert "(dropout rate from 0.0 to 0.125, plain Dice 0.5000)" in message
    assert "half of the samples would have a pair at 0.025" in message
    message = explain_no_pairs(summary, candidates, "region")
    assert "A pair needs a candidate with a part that changes the Dice of the sample" in message
    assert "tau" not in message


def test_equal_candidates_are_explained_without_a_tau_that_would_help():
    samples = [SampleRecord([0.5, 0.5], chosen=0, rejected=None, num_disagreeing=0, num_voxels=1)]
    summary = summarize({"a": samples}, MAPOConfig(tau=0.0))
    candidates = Candidates("noise σ", "noise_sigmas", (0.0, 0.05))
    message = explain_no_pairs(summary, candidates, "case")
    assert message.endswith("has a longer warm-up, or candidates that differ more (noise_sigmas).")
    assert "smaller tau" not in message


@pytest.mark.parametrize("pair", ["case", "region"])
@pytest.mark.parametrize("gap", [0.0, 0.001])
def test_without_pairs_a_network_that_has_hardly_learnt_anything_needs_a_longer_warmup(pair, gap):
    samples = [SampleRecord([0.01, 0.01 + gap], 0, None, num_disagreeing=0, num_voxels=1)]
    summary = summarize({"a": samples}, MAPOConfig(tau=0.3))
    message = explain_no_pairs(summary, Candidates("rate", "rates_2d", (0.0, 0.1)), pair)
    assert "has a longer warm-up: the network has hardly learnt anything yet." in message
    assert "another length" not in message
    assert "smaller tau" not in message


def records_of(gaps: list[float], *, has_foreground: bool = True) -> list[SampleRecord]:
    return [SampleRecord([0.0, gap], 1, 0, 1, 9, has_foreground) for gap in gaps]


def test_quantile_tau_by_hand():
    cases = {"a": records_of([0.25, 0.75]), "b": records_of([0.5, 1.0])}
    assert quantile_tau(cases, 0.0) == 0.25
    assert quantile_tau(cases, 0.5) == 0.75  # the upper middle: half of the four have a pair
    assert quantile_tau(cases, 0.9) == 1.0
    assert quantile_tau({}, 0.5) == 0.0


def test_samples_without_foreground_or_gap_do_not_move_the_quantile():
    cases = {
        "a": records_of([0.25, 0.5, 0.75]),
        "b": records_of([1.0] * 9, has_foreground=False),
        "c": records_of([0.0] * 9),
    }
    assert quantile_tau(cases, 0.5) == 0.5
    assert quantile_tau({"c": cases["c"]}, 0.5) == 0.0


def test_summary_of_another_metric_is_of_the_pairs_with_its_name():
    parts = {"num_parts": 2, "num_preferred": 1, "pair_dice": [0.7, 0.5]}
    records = {
        "a": [SampleRecord([0.6, 0.5], 0, None, 4, 10, **parts, scores=[0.5, 0.75, 0.25])],
        "b": [SampleRecord([0.9, 0.9], 0, None, 0, 10, pair_dice=[0.9, 0.9], scores=[1, 1, 1])],
    }
    summary = summarize(records, MAPOConfig(metric="lesion_f1"))
    assert (summary.score_plain, summary.score_chosen, summary.score_rejected) == (0.5, 0.75, 0.25)
    assert str(summary).endswith("; lesion_f1 plain 0.5000, chosen 0.7500, rejected 0.2500")
    assert summary.describe_gaps().startswith("Dice gap")  # of candidates, which parts are not


def test_gaps_of_two_candidates_are_by_the_metric():
    record = SampleRecord([0.6, 0.5, 0.4], 1, 2, 4, 10, scores=[0.25, 0.75, 0.5])
    summary = summarize({"a": [record]}, MAPOConfig(metric="nsd", pair="case"))
    assert summary.gaps == [0.5]
    assert summary.describe_gaps().startswith("nsd gap")
    assert (summary.score_plain, summary.score_chosen, summary.score_rejected) == (0.25, 0.75, 0.5)
