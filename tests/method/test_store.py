from __future__ import annotations

import json
import os
import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nnunetv2_mapo.method.store import (
    Round,
    SampleRecord,
    StoreError,
    read_rounds,
    stack_preferences,
)

ORIGIN = {
    "round": 1,
    "labels": {"background": 0, "tumour": [1, 2]},
    "settings": {"tau": 0.1, "rates_2d": [0.0, 0.1]},
    "policy": "abc",
}
VALUES = (0.0, 0.1)
RECORD = SampleRecord([0.9, 0.4], chosen=0, rejected=1, num_disagreeing=7, num_voxels=60)
NO_PAIR = SampleRecord([0.9, 0.9], chosen=0, rejected=None, num_disagreeing=0, num_voxels=60)


@pytest.fixture
def mined(tmp_path) -> Round:
    return Round(tmp_path / "preferences" / "round_01", ORIGIN)


def some_stack(seed: int = 0, shape: tuple[int, ...] = (3, 5, 6, 7)) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1, 4, shape).astype(np.int16)


def test_what_is_written_is_read(mined):
    stack = some_stack()
    mined.write_case("case_1", stack, [RECORD, NO_PAIR], (4, 4, 4))
    opened = mined.open_stack("case_1")
    assert opened.dtype == np.int16
    assert np.array_equal(opened[:], stack)
    assert np.array_equal(opened[1:3, 2:4, :, 1], stack[1:3, 2:4, :, 1])
    assert mined.find_finished(["case_1"]).records == {"case_1": [RECORD, NO_PAIR]}
    assert sorted(file.name for file in mined.folder.iterdir()) == [
        "case_1.b2nd", "case_1.b2nd.json",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "patch_size", "blocks"),
    [
        # as nnU-Net stores a segmentation: one channel, the patch's next power of two
        ((3, 20, 40, 40), (16, 32, 32), (1, 16, 32, 32)),
        ((3, 20, 40, 40), (32, 32), (1, 1, 32, 32)),
    ],
    ids=["3D", "2D"],
)
def test_a_file_has_nnunets_blocks(mined, shape, patch_size, blocks):
    mined.write_case("case", some_stack(shape=shape), [RECORD], patch_size)
    assert mined.open_stack("case").blocks == blocks


def test_a_case_that_is_written_again_is_replaced(mined):
    mined.write_case("case", some_stack(0), [RECORD], (4, 4))
    mined.write_case("case", some_stack(1), [NO_PAIR], (4, 4))
    assert np.array_equal(mined.open_stack("case")[:], some_stack(1))
    assert mined.find_finished(["case"]).records == {"case": [NO_PAIR]}


@pytest.mark.parametrize(("pair", "is_read"), [("case", False), ("region", True)])
def test_pairs_of_before_each_had_a_weight_are_told_apart(tmp_path, pair, is_read):
    origin = {"round": 1, "settings": {"pair": pair}}  # as it was: without `channels`
    Round(tmp_path, origin).write_case("case", some_stack(), [RECORD], (4, 4))
    now = Round(tmp_path, {**origin, "channels": 3})
    assert ("case" in now.find_finished(["case"]).records) == is_read


def test_identifiers_may_contain_dots(mined):
    mined.write_case("case.1_0.5mm", some_stack(), [RECORD], (4, 4))
    assert list(mined.find_finished(["case.1_0.5mm", "case"]).records) == ["case.1_0.5mm"]


@pytest.mark.parametrize(
    "identifier",
    [
        "../outside", "../../etc/x", "/tmp/absolute", "a/b", "..", ".", "", "nul\0l", "é" * 120,

        "x" * 246, "leber 1 (kopie)", "ü-肝臓-🫁", "-rf", "~", "$HOME", "*", "con", "a\nb",
    ],
    ids=repr,
)  # fmt: skip
def test_no_name_leads_out_of_the_store(mined, identifier):
    mined.write_case(identifier, some_stack(), [RECORD], (4, 4))
    mined.write_case("other", some_stack(), [NO_PAIR], (4, 4))
    mined.write_manifest({identifier: [RECORD], "other": [NO_PAIR]}, VALUES)
    found = mined.find_finished([identifier, "other"])
    assert found == ({identifier: [RECORD], "other": [NO_PAIR]}, [])
    assert np.array_equal(mined.open_stack(identifier)[:], some_stack())
    root = mined.folder.parents[1]
    files = {path for path in root.rglob("*") if path.is_file()}
    assert {path.parent for path in files} == {mined.folder}
    assert len(files) == 5


def test_files_have_the_users_permissions(mined):
    before = os.umask(0o027)
    try:
        mined.write_case("case", some_stack(), [RECORD], (4, 4))
        mined.write_manifest({"case": [RECORD]}, VALUES)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in mined.folder.iterdir()} == {0o640}


@pytest.mark.parametrize("target", ["stack", "record", "manifest"])
def test_a_planted_pickle_is_never_run(mined, planted, target):
    mined.write_case("case", some_stack(), [RECORD], (4, 4))
    mined.write_manifest({"case": [RECORD]}, VALUES)
    content = pickle.dumps(planted)
    pickle.loads(content)
    assert planted.trace.exists()  # it would run
    planted.trace.rmdir()
    path = {
        "stack": mined.path("case"),
        "record": mined.record_path("case"),
        "manifest": mined.folder / "manifest.json",
    }[target]
    path.write_bytes(content)
    mined.find_finished(["case"])
    mined.find_foreign()
    if target == "stack":
        with pytest.raises(RuntimeError):
            mined.open_stack("case")
    assert not planted.trace.exists()


def test_nothing_is_found_in_a_folder_that_does_not_exist(mined):
    assert mined.find_finished(["case"]).records == {}
    assert mined.find_foreign() == []


def test_only_the_cases_asked_for_are_found(mined):
    mined.write_case("a", some_stack(), [RECORD], (4, 4))
    mined.write_case("b", some_stack(), [RECORD], (4, 4))
    assert list(mined.find_finished(["b", "c"]).records) == ["b"]


def test_an_interrupted_case_leaves_nothing(mined, monkeypatch):
    def interrupt(*_args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            mined.write_case("case", some_stack(), [RECORD], (4, 4))
    assert not list(mined.folder.iterdir())
    assert mined.find_finished(["case"]) == ({}, [])
    mined.write_case("case", some_stack(), [RECORD], (4, 4))
    assert mined.find_finished(["case"]).records == {"case": [RECORD]}


@pytest.mark.parametrize(
    "other",
    [
        {"round": 2},
        {"policy": "abd"},
        {"labels": {"background": 0, "tumour": [1, 3]}},
        {"settings": {"tau": 0.2, "rates_2d": [0.0, 0.1]}},
        {"added": 1},
    ],
    ids=lambda other: next(iter(other)),
)
def test_cases_of_another_origin_are_not_found(mined, other):
    mined.write_case("case", some_stack(), [RECORD], (4, 4))
    assert replace(mined, origin={**ORIGIN, **other}).find_finished(["case"]) == ({}, [])
    same = replace(mined, origin=json.loads(json.dumps(ORIGIN)))
    assert list(same.find_finished(["case"]).records)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_not_found(mined, share):
    mined.write_case("case", some_stack(shape=(3, 8, 32, 32)), [RECORD], (32, 32))
    content = mined.path("case").read_bytes()
    mined.path("case").write_bytes(content[: int(share * len(content))])
    assert mined.find_finished(["case"]).records == {}


@pytest.mark.parametrize("content", [b"", b"something else", bytes(1000)])
def test_a_file_of_something_else_is_not_found(mined, content):
    mined.folder.mkdir(parents=True)
    mined.path("case").write_bytes(content)
    assert mined.find_finished(["case"]).records == {}


def test_a_stack_without_a_record_is_not_found(mined):
    mined.write_case("case", some_stack(), [RECORD], (4, 4))
    mined.record_path("case").unlink()
    assert mined.find_finished(["case"]) == ({}, [])


def test_a_record_without_its_stack_is_damaged(mined):
    mined.write_case("case", some_stack(), [RECORD], (4, 4))
    mined.path("case").unlink()
    assert mined.find_finished(["case"]) == ({}, ["case"])


def test_a_case_may_be_called_manifest(mined):
    mined.write_case("manifest", some_stack(), [RECORD], (4, 4))
    mined.write_manifest({"manifest": [RECORD]}, VALUES)
    assert mined.find_finished(["manifest"]).records == {"manifest": [RECORD]}


def test_manifest_holds_origin_values_and_records(mined):
    records = {"b": [NO_PAIR], "a": [RECORD, NO_PAIR]}
    for identifier, samples in records.items():
        mined.write_case(identifier, some_stack(), samples, (4, 4))
    mined.write_manifest(records, VALUES)
    manifest = json.loads((mined.folder / "manifest.json").read_text())
    assert manifest["origin"] == ORIGIN
    assert list(manifest["cases"]) == ["a", "b"]
    assert manifest["values"] == [0.0, 0.1]
    assert manifest["cases"]["a"]["samples"] == [
        {
            "dice": [0.9, 0.4], "chosen": 0, "rejected": 1, "num_disagreeing": 7, "num_voxels": 60,
            "has_foreground": True, "num_parts": 0, "num_preferred": 0, "pair_dice": None,
                "scores": None,
        },
        {
            "dice": [0.9, 0.9], "chosen": 0, "rejected": None, "num_disagreeing": 0,
            "num_voxels": 60,
            "has_foreground": True, "num_parts": 0, "num_preferred": 0, "pair_dice": None,
                "scores": None,
        },
    ]  # fmt: skip
    assert sorted(file.name for file in mined.folder.iterdir()) == [
        "a.b2nd", "a.b2nd.json", "b.b2nd", "b.b2nd.json", "manifest.json",
    ]  # fmt: skip


@pytest.mark.parametrize("has_manifest", [True, False])
def test_a_foreign_store_is_described_line_by_line(mined, has_manifest):
    mined.write_case("a", some_stack(), [RECORD], (4, 4))
    mined.write_manifest({"a": [RECORD]}, VALUES)
    assert mined.find_foreign() == []
    if not has_manifest:
        (mined.folder / "manifest.json").unlink()
    other = {**ORIGIN, "labels": {"background": 0}, "plans": "p", "policy": "another"}
    assert replace(mined, origin=other).find_foreign() == [
        "labels: {'background': 0, 'tumour': [1, 2]} in the store, {'background': 0} now",
        "plans: None in the store, p now",
    ]


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", "no JSON"])
def test_an_unreadable_manifest_is_as_good_as_none(mined, content):
    mined.write_case("case", some_stack(), [RECORD], (4, 4))
    (mined.folder / "manifest.json").write_text(content)
    assert mined.find_foreign() == []
    assert mined.find_finished(["case"]).records == {"case": [RECORD]}


def test_rounds_are_read_from_their_manifests_and_incomplete_ones_left_out(tmp_path):
    for number in (2, 10, 1):
        folder = tmp_path / "preferences" / f"round_{number:02d}"
        some_round = Round(folder, {"round": number})
        some_round.write_case("case", some_stack(), [RECORD], (4, 4))
        if number != 10:
            some_round.write_manifest({"case": [RECORD]}, VALUES)
    found = read_rounds(tmp_path)
    assert [mined.origin for mined in found] == [{"round": 1}, {"round": 2}]
    assert found[0].cases == {"case": [RECORD]}
    assert read_rounds(tmp_path / "nowhere") == []
    (tmp_path / "preferences" / "round_02" / "manifest.json").write_text("{}")
    with pytest.raises(StoreError, match=r"round_02.*is damaged"):
        read_rounds(tmp_path)


def test_a_round_pickles_for_spawned_workers(mined):
    mined.write_case("case", some_stack(), [RECORD], (4, 4))
    copy = pickle.loads(pickle.dumps(mined))
    assert copy == mined
    assert np.array_equal(copy.open_stack("case")[:], some_stack())


def test_channels_are_segmentation_chosen_rejected():
    segmentation = np.array([[[[-1, 2]]]], dtype=np.int8)
    chosen, rejected = np.array([[[1, 0]]], np.uint8), np.array([[[255, 3]]], np.uint8)
    stack = stack_preferences(segmentation, chosen, rejected)
    assert stack.tolist() == [[[[-1, 2]]], [[[1, 0]]], [[[255, 3]]]]
    assert stack.dtype == np.int16


FLIPS = st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255))


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(target=st.sampled_from(["stack", "record", "manifest"]), flip=FLIPS, cut=st.booleans())
def test_damage_anywhere_is_found_and_nothing_damaged_is_used(mined, target, flip, cut):
    mined.write_case("case", some_stack(), [RECORD, NO_PAIR], (4, 4))
    mined.write_manifest({"case": [RECORD, NO_PAIR]}, VALUES)
    path = {
        "stack": mined.path("case"),
        "record": mined.record_path("case"),
        "manifest": mined.folder / "manifest.json",
    }[target]
    whole = path.read_bytes()
    damaged = bytearray(whole)
    place = int(flip[0] * len(whole))
    if cut:
        del damaged[place:]
    else:
        damaged[place] ^= flip[1]
    path.write_bytes(damaged)
    found = mined.find_finished(["case"])
    if target == "manifest" or found == ({"case": [RECORD, NO_PAIR]}, []):
        # each case vouches for itself; another kind of space between two words of JSON harms none
        assert target == "manifest" or json.loads(damaged) == json.loads(whole)
    else:
        assert found == ({}, ["case"])
    assert mined.find_foreign() == []


def test_a_weight_is_a_further_channel():
    segmentation = np.array([[[[1, 2]]]], dtype=np.int8)
    one = np.array([[[1, 0]]], np.int16)
    stack = stack_preferences(segmentation, one, 0 * one, 100 * one)
    assert stack.tolist() == [[[[1, 2]]], [[[1, 0]]], [[[0, 0]]], [[[100, 0]]]]


def test_values_of_the_candidates_are_those_of_the_same_origin(mined):
    assert mined.read_values() == ()
    mined.write_values((0.0, 0.25))
    assert mined.read_values() == (0.0, 0.25)
    other = replace(mined, origin={**ORIGIN, "policy": "def"})
    assert other.read_values() == ()
    assert other.find_foreign() == []  # another policy is no other training


def test_the_manifest_says_what_the_candidates_differ_in(mined, tmp_path):
    mined.write_case("a", some_stack(), [RECORD], (4, 4))
    mined.write_manifest({"a": [RECORD]}, (0.0, 0.25))
    (stored,) = read_rounds(tmp_path)
    assert stored.candidates(2).values == (0.0, 0.25)
    before = replace(stored, values=())  # a store of version 0.1
    assert before.candidates(2).values == (0.0, 0.1)


def test_a_region_pair_has_the_dice_that_its_record_says():
    record = SampleRecord(
        [0.5, 0.25], 0, None, num_disagreeing=5, num_voxels=9, num_parts=2, pair_dice=[0.75, 0.25]
    )
    assert record.has_pair
    assert (record.dice_chosen, record.dice_rejected) == (0.75, 0.25)
    assert not replace(record, num_disagreeing=0).has_pair  # all of it is ignored
    assert RECORD.has_pair
    assert (RECORD.dice_chosen, RECORD.dice_rejected) == (0.9, 0.4)
    assert not NO_PAIR.has_pair
    assert NO_PAIR.dice_chosen == NO_PAIR.dice_rejected == 0.9
