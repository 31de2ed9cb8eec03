"""The record of choices, and the pairs that answers make; expected values by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest

from nnunetv2_mapo.method.choices import (
    CHOICE,
    EQUAL,
    RECORD,
    SKIP,
    UNUSABLE,
    Answer,
    ChoicesError,
    append_answer,
    append_undo,
    disputed_regions,
    pair_of,
    prefer,
    read_answers,
)

ANSWER = Answer("liver_1", "aa", "bb", (2, 0, 1), CHOICE, "ada", 3.5, "2026-01-01", best=1, worst=2)


def say(best=None, worst=None, verdict=CHOICE, **changes):
    return replace(ANSWER, best=best, worst=worst, verdict=verdict, **changes)


def test_answers_come_back_in_their_order(tmp_path):
    second = say(verdict=EQUAL, rater="Grace", region=1, repeat=True)
    assert append_answer(tmp_path, ANSWER) == 0
    assert append_answer(tmp_path, second) == 1
    assert read_answers(tmp_path) == {0: ANSWER, 1: second}


def test_nothing_was_said_yet(tmp_path):
    assert read_answers(tmp_path) == {}


def test_what_is_taken_back_stays_in_the_file(tmp_path):
    append_answer(tmp_path, ANSWER)
    append_undo(tmp_path, 0)
    assert append_answer(tmp_path, say(0, 1)) == 2
    assert read_answers(tmp_path) == {2: say(0, 1)}
    assert len((tmp_path / RECORD).read_text().splitlines()) == 3


@pytest.mark.parametrize("cut", [1, 20, -2])
def test_a_line_cut_by_a_crash_is_left_out_and_the_next_one_is_whole(tmp_path, cut):
    append_answer(tmp_path, ANSWER)
    path = tmp_path / RECORD
    path.write_bytes(path.read_bytes() + path.read_bytes()[:cut])
    assert append_answer(tmp_path, say(0, 1)) == 2
    assert read_answers(tmp_path) == {0: ANSWER, 2: say(0, 1)}


def test_fields_of_a_later_package_of_this_version_do_not_count(tmp_path):
    append_answer(tmp_path, ANSWER)
    path = tmp_path / RECORD
    path.write_text(json.dumps(json.loads(path.read_text()) | {"mood": "fine"}) + "\n")
    assert read_answers(tmp_path) == {0: ANSWER}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"version": 2}', "line 1 has version 2, this package reads version 1"),
        ('{"version": 1, "image": "a"}', "line 1 is no answer"),
        ('{"version": 1, "shown": [0, 1]}', r"line 1 is no answer .* Empty that line, but keep it"),
    ],
)
def test_what_is_no_answer_is_refused(tmp_path, line, words):
    (tmp_path / RECORD).write_text(line + "\n")
    with pytest.raises(ChoicesError, match=words):
        read_answers(tmp_path)


def test_a_line_that_was_emptied_by_hand_leaves_what_was_taken_back(tmp_path):
    append_answer(tmp_path, ANSWER)
    append_undo(tmp_path, append_answer(tmp_path, say(1, 2)))
    append_answer(tmp_path, say(0, 1))
    lines = (tmp_path / RECORD).read_text().splitlines()
    (tmp_path / RECORD).write_text("\n".join(["", *lines[1:]]) + "\n")
    assert read_answers(tmp_path) == {3: say(0, 1)}


def test_of_two_the_other_one_is_rejected():
    assert say(1, shown=(0, 1)).rejected == 0
    assert say(1, shown=(2, 0, 1)).rejected is None
    assert say(verdict=EQUAL, shown=(0, 1)).rejected is None


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([say(1, 2)], (1, 2)),
        ([say(1, 2), say(1, 0)], (1, 2)),  # worst once each: the first of equals
        ([say(1, 2), say(2, 1)], None),  # they contradict each other
        ([say(1, 2), say(2, 1), say(1, 0)], (1, 0)),  # worst once each, 2 also the best
        ([say(verdict=EQUAL)], None),
        ([say(verdict=SKIP), say(1, 2)], (1, 2)),
        ([say(verdict=UNUSABLE), say(1, 2)], None),
        ([say(verdict=UNUSABLE), say(1, 2), say(1, 2)], (1, 2)),
        ([say(1, 2), say(verdict=EQUAL)], None),
        ([say(1, 2), say(verdict=EQUAL), say(verdict=EQUAL)], None),
        ([say(1, 2), say(verdict=EQUAL), say(1, 2)], (1, 2)),
        ([say(1)], None),  # of three, who is worse than it?
        ([say(1), say(2, 0), say(1)], (1, 0)),
        ([say(1), say(1), say(0, 1)], None),  # 1 is the best, and no other one the worst
        ([say(1, 2), say(1, 2), say(0, 1), say(2, 1)], None),  # as many call 1 the worst
        ([], None),
    ],
)
def test_pair_by_several_answers(answers, expected):
    assert prefer(answers) == expected


CANDIDATES = np.array([
    [[0, 0, 0, 0, 0, 0, 0, 0, 0, 0]],
    [[1, 1, 1, 1, 0, 0, 2, 2, 2, 2]],
    [[0, 0, 0, 0, 0, 0, 2, 2, 2, 2]],
])  # fmt: skip


def test_disputed_regions_are_the_largest_parts():
    regions = disputed_regions(CANDIDATES[0], CANDIDATES[1])
    assert [np.flatnonzero(each).tolist() for each in regions] == [[0, 1, 2, 3], [6, 7, 8, 9]]
    small = np.array([[1, 1, 1, 0, 0]])
    assert disputed_regions(small, 0 * small) == []


def test_pair_of_a_whole_image_is_two_candidates():
    chosen, rejected, weight = pair_of(CANDIDATES, [say(1, 2)])
    np.testing.assert_array_equal(chosen, CANDIDATES[1])
    np.testing.assert_array_equal(rejected, CANDIDATES[2])
    assert weight.tolist() == [[100, 100, 100, 100, 0, 0, 0, 0, 0, 0]]


def test_regions_change_the_plain_prediction_where_they_are():
    first = say(1, shown=(1, 0), region=0)
    second = say(0, shown=(0, 1), region=1)
    chosen, rejected, weight = pair_of(CANDIDATES, [second, first])
    assert chosen.tolist() == [[1, 1, 1, 1, 0, 0, 0, 0, 0, 0]]
    assert rejected.tolist() == [[0, 0, 0, 0, 0, 0, 2, 2, 2, 2]]
    assert weight.tolist() == [[100, 100, 100, 100, 0, 0, 100, 100, 100, 100]]


def test_nothing_preferred_is_no_pair():
    assert pair_of(CANDIDATES, [say(verdict=EQUAL)]) is None
    same = np.stack([CANDIDATES[0]] * 3)
    assert pair_of(same, [say(1, 2)]) is None
