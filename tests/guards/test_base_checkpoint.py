from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunetv2_mapo.guards.base_checkpoint import (
    Base,
    BaseError,
    compare_plans,
    find_leak,
    find_new_validation_cases,
    have_same_heads,
    read_base,
    transfer,
)

A, B = "Dataset001_A", "Dataset002_B"


def make_base(fold=0, dataset=A, path=Path("fold_0/checkpoint_final.pth"), base=None, **changes):
    plans = {"dataset_name": dataset, "plans_name": "nnUNetPlans"}
    content = {"file_ending": ".nii.gz", "labels": {"background": 0}}
    origin = {"path": str(path), "dataset": dataset, "fold": fold, "base": base}
    return replace(Base(path, origin, plans, content, {}), **changes)


# Leaks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base_fold", "fold", "leaks"),
    [(0, 0, False), (1, 0, True), ("all", 0, True), (0, "all", False), ("all", "all", False)],
)
def test_a_model_of_another_fold_of_the_same_data_set_leaks(base_fold, fold, leaks):
    assert bool(find_leak(make_base(base_fold), A, fold)) == leaks
    assert find_leak(make_base(base_fold), B, fold) == ""


def test_a_leak_through_another_data_set_is_found():
    first = make_base(fold=1, path=Path("first.pth"))
    second = make_base(fold=0, dataset=B, base=first.origin)
    third = make_base(fold=0, dataset=B, base=second.origin)
    assert find_leak(third, A, 0).startswith("first.pth is of fold 1 of the same data set")
    assert find_leak(third, A, 1) == ""


@pytest.mark.parametrize("folder", ["/results/fold_0/validation/", "C:\\results\\validation\\"])
def test_cases_of_its_validation_are_told_by_the_file_ending_on_any_system(tmp_path, folder):
    cases = ["1.3.6.1.4", "patient_1.5T", "case_2"]
    summary = {"metric_per_case": [{"prediction_file": f"{folder}{c}.nii.gz"} for c in cases]}
    base = make_base(path=tmp_path / "checkpoint_final.pth")
    (tmp_path / "validation").mkdir()
    (tmp_path / "validation/summary.json").write_text(json.dumps(summary))
    assert find_new_validation_cases(base, cases[:2]) == []
    assert find_new_validation_cases(base, [*cases, "patient_3", "patient_2"]) == [
        "patient_2",
        "patient_3",
    ]


@pytest.mark.parametrize("content", [None, "", "[]", '{"metric_per_case": [{}]}'])
def test_without_a_validation_nothing_is_known_of_its_cases(tmp_path, content):
    if content is not None:
        (tmp_path / "validation").mkdir()
        (tmp_path / "validation/summary.json").write_text(content)
    base = make_base(path=tmp_path / "checkpoint_final.pth")
    assert find_new_validation_cases(base, ["case_0"]) is None


# Labels -------------------------------------------------------------------------------------------

CLASSES = {"background": 0, "liver": 1, "tumour": 2}
REGIONS = {"background": 0, "whole": [1, 2], "core": [2]}


@pytest.mark.parametrize(
    ("theirs", "mine", "same"),
    [
        (CLASSES, CLASSES, True),
        (CLASSES, {"tumour": 2, "background": 0, "liver": 1}, True),  # a class is its number
        (CLASSES, {**CLASSES, "ignore": 3}, True),  # has no head
        (CLASSES, {"background": 0, "tumour": 1, "liver": 2}, False),
        (CLASSES, {"background": 0, "liver": 1}, False),
        (REGIONS, REGIONS, True),
        (REGIONS, {"background": 0, "core": [2], "whole": [1, 2]}, False),  # heads in this order
        (REGIONS, {**REGIONS, "core": [1]}, False),
    ],
)
def test_heads_are_the_same_where_they_mean_the_same(theirs, mine, same):
    assert have_same_heads({"labels": theirs}, {"labels": mine}) == same


# Plans --------------------------------------------------------------------------------------------


def make_plans(intensities=None, **changes):
    configuration = {
        "spacing": [1.0, 1.0, 1.0],
        "patch_size": [8, 8, 8],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "architecture": {
            "network_class_name": "some.where.PlainConvUNet",
            "arch_kwargs": {"n_stages": 3},
            "_kw_requires_import": [],
        },
        **changes,
    }
    return PlansManager(
        {
            "transpose_forward": [0, 1, 2],
            "foreground_intensity_properties_per_channel": intensities or {"0": {"mean": 1.0}},
            "configurations": {"3d_fullres": configuration},
        }
    )


def differences(theirs, mine):
    return compare_plans(theirs, mine, ("3d_fullres", "3d_fullres"))


def test_another_patch_size_changes_neither_network_nor_images():
    assert differences(make_plans(patch_size=[16, 16, 16]), make_plans()) == ""


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"spacing": [2, 1, 1]}, "spacing is [2, 1, 1] there, [1.0, 1.0, 1.0] here"),
        ({"use_mask_for_norm": [True]}, "use_mask_for_norm is [True] there, [False] here"),
        (
            {
                "architecture": {
                    "network_class_name": "x.ResEncUNet",
                    "arch_kwargs": {"n_stages": 3, "depth": 2},
                    "_kw_requires_import": [],
                }
            },
            "the network's class is ResEncUNet there, PlainConvUNet here; "
            "the network's depth is 2 there, None here",
        ),
    ],
)
def test_what_changes_network_or_images_is_listed(changes, expected):
    assert differences(make_plans(**changes), make_plans()) == expected


def test_the_data_set_s_intensities_matter_only_where_images_are_normalised_by_them():
    other = {"0": {"mean": 2.0}}
    assert differences(make_plans(other), make_plans()) == ""
    ct = {"normalization_schemes": ["CTNormalization"]}
    assert differences(make_plans(other, **ct), make_plans(**ct)) == (
        "intensities is {'0': {'mean': 2.0}} there, {'0': {'mean': 1.0}} here"
    )


# Weights ------------------------------------------------------------------------------------------


def test_weights_are_taken_over_without_the_named_ones():
    network, donor = nn.Linear(2, 1), nn.Linear(2, 1)
    bias = network.bias.clone()
    transfer(network, make_base(weights=donor.state_dict()), without=["bias"])
    assert torch.equal(network.weight, donor.weight)
    assert torch.equal(network.bias, bias)


def test_a_prefix_of_parallel_training_does_not_count():
    network, donor = nn.Linear(2, 1), nn.Linear(2, 1)
    weights = {f"module.{name}": tensor for name, tensor in donor.state_dict().items()}
    transfer(network, make_base(weights=weights))
    assert torch.equal(network.bias, donor.bias)


def test_weights_of_another_shape_are_refused_and_the_network_stays_as_it_is():
    network = nn.Linear(2, 1)
    before = network.weight.clone()
    with pytest.raises(BaseError, match=r"weight is \(1, 3\) there, \(1, 2\) in the network"):
        transfer(network, make_base(weights=nn.Linear(3, 1).state_dict()))
    assert torch.equal(network.weight, before)


def test_a_missing_file_is_refused_with_what_there_is(tmp_path):
    (tmp_path / "checkpoint_best.pth").touch()
    with pytest.raises(BaseError, match=r"x.pth is no file. .*: checkpoint_best.pth\. Let nnUNet_"):
        read_base(tmp_path / "x.pth")
