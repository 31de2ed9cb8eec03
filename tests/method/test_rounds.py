from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from miners import CPU, RATES, fail_above, some_case, units_of, with_settings
from torch import Tensor

from nnunetv2_mapo.method import mining, rounds, store
from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.method.examples import choose_samples
from nnunetv2_mapo.method.mining import Miner
from nnunetv2_mapo.method.pairing import PairFinder
from nnunetv2_mapo.method.rounds import Ranks, draw_cases, mine_round, thin_out_earlier
from nnunetv2_mapo.method.store import Round, SampleRecord, read_round
from nnunetv2_mapo.support.device import OutOfMemoryError, seeded


class Cases:
    """Cases by identifier, in memory, that remember which were loaded."""

    def __init__(self, *identifiers: str) -> None:
        self.cases = {name: some_case((8, 8, 9), seed) for seed, name in enumerate(identifiers)}
        self.loaded: list[str] = []

    def __call__(self, identifier: str) -> tuple[Tensor, np.ndarray]:
        self.loaded.append(identifier)
        image, segmentation = self.cases[identifier]
        return image, segmentation[None].numpy()


def round_in(folder, number: int = 1, **origin) -> Round:
    return Round(folder, {"round": number, "policy": "p", **origin})


def read_stacks(mined: Round, identifiers) -> dict[str, np.ndarray]:
    return {identifier: mined.open_stack(identifier)[:] for identifier in identifiers}


def test_a_round_stores_segmentation_chosen_and_rejected_of_every_case(tmp_path, make_miner):
    load, mined = Cases("a", "b"), round_in(tmp_path / "round_01")
    miner = make_miner((8, 8, 8))
    summary = mine_round(miner, load, ["a", "b"], mined, print)
    for identifier in "ab":
        image, segmentation = load.cases[identifier]
        stack = mined.open_stack(identifier)[:]
        assert np.array_equal(stack[0], segmentation)
        with seeded(f"0/1/{identifier}", CPU):
            expected = miner.mine(image, segmentation)
        assert np.array_equal(stack[1], expected.preferences[0])
        assert np.array_equal(stack[2], expected.preferences[1])
        assert mined.find_finished([identifier]).records == {identifier: expected.records}
    assert (summary.num_samples, summary.num_pairs) == (2, 2)
    manifest = json.loads((mined.folder / "manifest.json").read_text())
    assert list(manifest["cases"]) == ["a", "b"]


@pytest.mark.parametrize("patch_size", [(8, 8), (8, 8, 8)], ids=["2D", "3D"])
def test_pairs_do_not_depend_on_the_order_of_the_cases(tmp_path, make_miner, patch_size):
    stacks = []
    for order in ("abc", "cab"):
        mined = round_in(tmp_path / order)
        torch.manual_seed(len(stacks))  # nor on what was drawn before
        mine_round(make_miner(patch_size), Cases(*"abc"), list(order), mined, print)
        stacks.append(read_stacks(mined, "abc"))
    for identifier in "abc":
        assert np.array_equal(stacks[0][identifier], stacks[1][identifier])


def test_seed_round_and_case_each_change_the_candidates(tmp_path, make_miner):
    miner, load = make_miner((8, 8, 8)), Cases("a", "b")
    load.cases["b"] = load.cases["a"]
    dice = set()
    for place, (number, seed) in enumerate([(1, 0), (2, 0), (1, 1)]):
        mined = round_in(tmp_path / str(place), number)
        mine_round(with_settings(miner, seed=seed), load, ["a", "b"], mined, print)
        found = mined.find_finished(["a", "b"]).records
        dice |= {tuple(records[0].dice) for records in found.values()}
    assert len(dice) == 6
    assert len({values[0] for values in dice}) == 1  # the plain prediction is always the same


def test_a_complete_round_is_not_mined_again(tmp_path, make_miner):
    load, mined = Cases("a", "b"), round_in(tmp_path / "round_01")
    first = mine_round(make_miner((8, 8, 8)), load, ["a", "b"], mined, print)
    load.loaded.clear()
    logged = []
    again = mine_round(make_miner((8, 8, 8)), load, ["a", "b"], mined, logged.append)
    assert load.loaded == []
    assert "; 0 cases mined in " in logged[-1]
    assert again == first


def test_only_a_missing_case_is_mined_again_and_comes_out_the_same(tmp_path, make_miner):
    load, mined = Cases(*"abc"), round_in(tmp_path / "round_01")
    mine_round(make_miner((8, 8, 8)), load, list("abc"), mined, print)
    before, records = read_stacks(mined, "abc"), mined.find_finished("abc")
    mined.path("b").unlink()
    load.loaded.clear()
    mine_round(make_miner((8, 8, 8)), load, list("abc"), mined, print)
    assert load.loaded == ["b"]
    assert mined.find_finished("abc") == records
    for identifier, stack in read_stacks(mined, "abc").items():
        assert np.array_equal(stack, before[identifier])


def test_an_interrupted_round_goes_on_and_has_its_manifest_last(tmp_path, make_miner):
    load, mined = Cases(*"abc"), round_in(tmp_path / "round_01")
    mine_round(make_miner((8, 8, 8)), load, list("abc"), round_in(tmp_path / "whole"), print)

    def interrupted(identifier: str):
        if identifier == "c":
            raise KeyboardInterrupt
        return load(identifier)

    with pytest.raises(KeyboardInterrupt):
        mine_round(make_miner((8, 8, 8)), interrupted, list("abc"), mined, print)
    assert sorted(mined.folder.iterdir()) == [
        path for each in "ab" for path in (mined.path(each), mined.record_path(each))
    ]
    load.loaded.clear()
    mine_round(make_miner((8, 8, 8)), load, list("abc"), mined, print)
    assert load.loaded == ["c"]
    assert (mined.folder / "manifest.json").is_file()
    whole = read_stacks(round_in(tmp_path / "whole"), "abc")
    for identifier, stack in read_stacks(mined, "abc").items():
        assert np.array_equal(stack, whole[identifier])


def test_cases_of_another_policy_are_mined_again(tmp_path, make_miner):
    load = Cases("a")
    mine_round(make_miner((8, 8, 8)), load, ["a"], round_in(tmp_path), print)
    mine_round(make_miner((8, 8, 8)), load, ["a"], round_in(tmp_path, policy="q"), print)
    assert load.loaded == ["a", "a"]


def test_cases_without_a_pair_are_stored_with_chosen_equal_to_rejected(tmp_path, make_miner):
    load, mined = Cases("a"), round_in(tmp_path)
    summary = mine_round(make_miner((8, 8, 8), tau=1.0), load, ["a"], mined, print)
    stack = mined.open_stack("a")[:]
    assert np.array_equal(stack[0], load.cases["a"][1])
    assert np.array_equal(stack[1], stack[2])
    assert summary.num_pairs == 0
    assert math.isnan(summary.dice_chosen)


class RanksInThreads(Ranks):
    """Two ranks in the threads of this process, which tell each other what they have."""

    meeting = threading.Barrier(2)
    told: ClassVar[list] = [None, None]

    @classmethod
    def find(cls):
        return cls(int(threading.current_thread().name), 2)

    def gather(self, part):
        self.told[self.rank] = part
        self.meeting.wait(60)
        parts = list(self.told)
        self.meeting.wait(60)
        return parts


@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("given", [{}, {"tau_quantile": 0.5}], ids=["τ", "quantile"])
def test_a_finished_case_is_read_once_when_its_round_is_opened(
    tmp_path, make_miner, monkeypatch, num_ranks, given
):
    load, mined = Cases(*"abcd"), round_in(tmp_path / "round_01")
    miner = make_miner((8, 8, 8), **given)
    expected = mine_round(miner, load, list("abcd"), mined, print)
    read, hash_file = [], store.hash_file
    monkeypatch.setattr(store, "hash_file", lambda path: read.append(path) or hash_file(path))
    if num_ranks == 1:
        found = [mine_round(miner, load, list("abcd"), mined, print)]
    else:
        monkeypatch.setattr(rounds, "Ranks", RanksInThreads)
        found = []
        threads = [
            threading.Thread(
                name=str(rank),
                target=lambda: found.append(mine_round(miner, load, list("abcd"), mined, print)),
            )
            for rank in range(num_ranks)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(read) == [mined.path(each) for each in "abcd"]
    assert found == [expected] * num_ranks


def test_a_case_that_was_just_mined_is_not_read(tmp_path, make_miner, monkeypatch):
    monkeypatch.setattr(store, "hash_file", lambda path: pytest.fail(f"{path} is read"))
    mine_round(make_miner((8, 8, 8)), Cases("a"), ["a"], round_in(tmp_path), print)


def test_the_next_case_is_opened_and_the_last_one_paired_beside_the_network(
    tmp_path, make_miner, monkeypatch
):
    order, meeting = [], threading.Barrier(2)
    load, miner = Cases(*"abc"), make_miner((8, 8, 8))
    find_candidates, find_pairs = Miner.find_candidates, PairFinder.find_pairs

    def note_candidates(self, image):
        if order.count("network") == 1:  # the second case waits until the first one is paired
            meeting.wait(60)
            order.append("network again")
        order.append("network")
        return find_candidates(self, image)

    def note_pairs(self, candidates, segmentation):
        if "paired" not in order:
            order.append("paired")
            meeting.wait(60)
        return find_pairs(self, candidates, segmentation)

    monkeypatch.setattr(Miner, "find_candidates", note_candidates)
    monkeypatch.setattr(PairFinder, "find_pairs", note_pairs)
    mine_round(miner, load, list("abc"), round_in(tmp_path), print)
    assert order[:4] == ["network", "paired", "network again", "network"]
    assert load.loaded == list("abc")


def test_an_error_in_finding_pairs_ends_the_round(tmp_path, make_miner, monkeypatch):
    def fail(*_):
        message = "of a metric"
        raise ValueError(message)

    monkeypatch.setattr(PairFinder, "find_pairs", fail)
    for cases in ("a", "abc"):
        with pytest.raises(ValueError, match="of a metric"):
            mine_round(make_miner((8, 8, 8)), Cases(*cases), list(cases), round_in(tmp_path), print)


SETTLE = """
import sys, time
from datetime import timedelta
from pathlib import Path
from torch import distributed
from nnunetv2_mapo.method.rounds import settle_values
from nnunetv2_mapo.method.store import Round
folder, rank = Path(sys.argv[1]), int(sys.argv[2])
most, file = timedelta(seconds=5), f"file://{folder}/rendezvous"
distributed.init_process_group("gloo", file, rank=rank, world_size=2, timeout=most)
find = lambda: time.sleep(8) or (0.0, 0.1)
print(settle_values(Round(folder / "round", {"round": 1}), find))
"""


def test_ranks_wait_longer_for_each_other_than_the_backend_would(tmp_path):
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", SETTLE, str(tmp_path), str(rank)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    assert [rank.communicate(timeout=100)[0] for rank in ranks] == ["(0.0, 0.1)\n"] * 2


# Some of the cases --------------------------------------------------------------------------------


def test_only_the_cases_that_are_drawn_are_mined_and_the_others_do_not_change_them():
    names = [f"case_{number}" for number in range(1000)]
    config = MAPOConfig(cases_per_round=0.1)
    drawn = draw_cases(names, config, 1)
    assert len(drawn) == 100
    assert drawn == sorted(drawn, key=names.index)
    assert drawn == draw_cases(names, replace(config, cases_per_round=100), 1)
    assert set(draw_cases(names[::-1], config, 1)) == set(drawn)
    for other in (draw_cases(names, config, 2), draw_cases(names, replace(config, seed=1), 1)):
        # of 100 of 1000, another 100 of them share 10 on average; the standard deviation is 2.8
        assert len(other) == 100
        assert len(set(other) & set(drawn)) < 25
    every_round = set().union(*(draw_cases(names, config, number) for number in range(1, 81)))
    assert len(every_round) > 990  # 0.9 ** 80 of them is never drawn: 0.2 cases
    more = draw_cases(names, replace(config, cases_per_round=200), 1)
    assert set(more) > set(drawn)


def test_as_many_cases_are_drawn_as_there_are_and_at_least_one():
    names = list("abc")
    for wanted, number in ((None, 3), (3, 3), (500, 3), (1, 1), (0.01, 1), (0.5, 2), (0.99, 3)):
        assert len(draw_cases(names, MAPOConfig(cases_per_round=wanted), 1)) == number


# Earlier rounds -----------------------------------------------------------------------------------


def test_of_earlier_rounds_only_manifests_and_what_a_report_shows_stay(tmp_path, make_miner):
    names = [f"case_{number}" for number in range(6)]
    load, miner = Cases(*names), make_miner((8, 8, 8))
    rounds_ = [round_in(tmp_path / f"round_0{number}", number) for number in (1, 2, 3)]
    for mined in rounds_:
        mine_round(miner, load, names, mined, print)
    (rounds_[1].folder / "manifest.json").write_text("damaged")  # is no reason to stop
    rounds_[0].write_case("left the split", np.zeros((4, 8, 8, 9), np.int16), [], (8, 8, 8))
    before = [{path: path.read_bytes() for path in m.folder.iterdir()} for m in rounds_]
    thin_out_earlier(rounds_[2])
    after = [{path: path.read_bytes() for path in m.folder.iterdir()} for m in rounds_]
    assert after[1:] == before[1:]
    first = read_round(rounds_[0].folder / "manifest.json")
    shown = {sample.identifier for sample in choose_samples(first.cases)}
    assert len(shown) == 3
    assert list(first.cases) == names
    files = {first.path(name) for name in shown} | {first.record_path(name) for name in shown}
    assert after[0].keys() == files | {first.folder / "manifest.json"}
    thin_out_earlier(rounds_[2])  # once more changes nothing
    assert set(first.folder.iterdir()) == after[0].keys()


# A quantile of the gaps ---------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["case", "slice", "window"])
def test_with_a_quantile_the_samples_with_the_largest_gaps_keep_their_pairs(
    tmp_path, make_miner, unit
):
    miner, load = make_miner((8, 8, 8), **units_of(unit)), Cases(*"abcd")
    every, mined = round_in(tmp_path / "every"), round_in(tmp_path / "half")
    mine_round(miner, load, list("abcd"), every, print)
    half = with_settings(miner, tau_quantile=0.5)
    summary = mine_round(half, load, list("abcd"), mined, print)
    before, after = (each.find_finished("abcd").records for each in (every, mined))
    gaps = sorted(record.gap for records in before.values() for record in records)
    assert gaps[0] > 0  # so that all count
    assert summary.tau == gaps[math.ceil((len(gaps) - 1) / 2)]
    assert summary.num_pairs == sum(gap >= summary.tau for gap in gaps) < len(gaps)
    for identifier in "abcd":
        all_pairs, stack = (each.open_stack(identifier)[:] for each in (every, mined))
        units = miner.finder.find_units(stack.shape[1:])
        for place, old, new in zip(units, before[identifier], after[identifier], strict=True):
            part = (slice(None), *place)
            if old.gap >= summary.tau:
                assert new == old
                assert np.array_equal(stack[part], all_pairs[part])
            else:
                assert new == replace(old, rejected=None, num_disagreeing=0)
                assert np.array_equal(stack[part][0], all_pairs[part][0])
                assert not stack[part][1:].any()
    manifest = json.loads((mined.folder / "manifest.json").read_text())
    rejected = [s["rejected"] for case in manifest["cases"].values() for s in case["samples"]]
    assert sum(each is not None for each in rejected) == summary.num_pairs


def test_with_a_limit_from_above_the_gap_that_counts_is_that_of_the_pair():
    """A limit can make a pair of others than the best and the worst."""
    record = SampleRecord([0.9, 0.89, 0.2], chosen=0, rejected=1, num_disagreeing=9, num_voxels=99)
    assert record.gap == record.gap_within(1.0) == pytest.approx(0.7)
    assert record.gap_within(0.3) == pytest.approx(0.01)
    assert record.gap_within(0.001) == 0
    assert replace(record, scores=[0.5, 0.1, 0.9]).gap_within(0.5) == pytest.approx(0.4)


def test_a_quantile_below_a_limit_keeps_its_share_of_the_pairs(tmp_path, make_miner):
    load, names = Cases(*"abcd"), list("abcd")
    miner = make_miner((8, 8, 8), **units_of("slice"))
    gaps = mine_round(miner, load, names, round_in(tmp_path / "all"), print).gaps
    limit = with_settings(miner, tau_max=float(np.median(gaps)))
    every = mine_round(limit, load, names, round_in(tmp_path / "every"), print)
    mined = round_in(tmp_path / "half")
    half = mine_round(with_settings(limit, tau_quantile=0.5), load, names, mined, print)
    assert every.num_pairs / 2 <= half.num_pairs < every.num_pairs
    records = mined.find_finished(names).records.values()
    pairs = [record for case in records for record in case if record.has_pair]
    assert all(each.dice_chosen - each.dice_rejected >= half.tau for each in pairs)


def test_a_round_that_was_stopped_while_pairs_were_dropped_ends_the_same(
    tmp_path, make_miner, monkeypatch
):
    miner = make_miner((8, 8, 8), tau_quantile=0.5, **units_of("slice"))
    load = Cases(*"abcd")
    whole, mined = round_in(tmp_path / "whole"), round_in(tmp_path / "stopped")
    expected = mine_round(miner, load, list("abcd"), whole, print)
    write_case, written = Round.write_case, []

    def write_five(self, *arguments):
        if len(written) == 5:  # four cases were mined, one has lost pairs
            raise KeyboardInterrupt
        written.append(arguments)
        write_case(self, *arguments)

    monkeypatch.setattr(Round, "write_case", write_five)
    with pytest.raises(KeyboardInterrupt):
        mine_round(miner, load, list("abcd"), mined, print)
    monkeypatch.undo()
    load.loaded.clear()
    summary = mine_round(miner, load, list("abcd"), mined, print)
    assert load.loaded == []
    assert (summary.tau, summary.num_pairs) == (expected.tau, expected.num_pairs)
    assert mined.find_finished("abcd") == whole.find_finished("abcd")
    for identifier, stack in read_stacks(mined, "abcd").items():
        assert np.array_equal(stack, read_stacks(whole, "abcd")[identifier])


# Memory and damage -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.06 GB, max allowed: 9.07 GB)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
    ids=["cuda", "cpu", "mps", "cublas"],
)
def test_out_of_memory_halves_the_images_of_a_forward_pass_for_good(tmp_path, make_miner, error):
    load, logged = Cases("a", "b"), []
    miner = make_miner((4, 4, 4), images_per_forward=32)
    seen = fail_above(miner, 2 * len(RATES), error)
    mined = round_in(tmp_path / "short")
    mine_round(miner, load, ["a", "b"], mined, logged.append)
    assert [each // len(RATES) for each in seen] == [8, 4, *[2] * 12]  # 2 x 12 windows of 4³
    assert len(logged) == 3
    assert "8 images a forward pass now" in logged[1]
    whole = round_in(tmp_path / "whole")
    mine_round(make_miner((4, 4, 4), images_per_forward=8), load, ["a", "b"], whole, print)
    for identifier, stack in read_stacks(mined, "ab").items():
        assert np.array_equal(stack, read_stacks(whole, "ab")[identifier])


def test_out_of_memory_with_a_single_image_keeps_the_cases_before_and_says_what_to_do(
    tmp_path, make_miner
):
    load, mined = Cases("a", "b"), round_in(tmp_path)
    miner = make_miner((8, 8, 8), images_per_forward=2)
    mine_round(miner, load, ["a"], mined, print)
    fail_above(miner, 0, torch.cuda.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(OutOfMemoryError, match=r"single image of \(8, 8, 8\) .* go on with --c"):
        mine_round(miner, load, ["a", "b"], mined, print)
    assert list(mined.find_finished(["a", "b"]).records) == ["a"]


def test_another_error_of_the_network_is_not_taken_for_a_lack_of_memory(tmp_path, make_miner):
    miner = make_miner((8, 8, 8))
    seen = fail_above(miner, 0, RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        mine_round(miner, Cases("a"), ["a"], round_in(tmp_path), print)
    assert len(seen) == 1


def test_a_damaged_case_is_mined_again_with_a_warning(tmp_path, make_miner):
    load, mined, logged = Cases(*"abc"), round_in(tmp_path / "round_01"), []
    miner = make_miner((8, 8, 8))
    mine_round(miner, load, list("abc"), mined, logged.append)
    assert len(logged) == 1  # what was found
    logged.clear()
    before = read_stacks(mined, "abc")
    content = bytearray(mined.path("b").read_bytes())
    content[len(content) // 2] ^= 1
    mined.path("b").write_bytes(content)
    load.loaded.clear()
    mine_round(miner, load, list("abc"), mined, logged.append)
    assert load.loaded == ["b"]
    assert logged[0].startswith("WARNING: files of ['b'] in ")
    for identifier, stack in read_stacks(mined, "abc").items():
        assert np.array_equal(stack, before[identifier])


def test_a_lack_of_memory_for_margins_halves_the_images_too(tmp_path, make_miner, monkeypatch):
    sizes, logged, measure_margins = [], [], mining.measure_margins

    def limited(reference, images, *others):
        sizes.append(len(images))
        if len(images) > len(RATES):
            msg = "CUDA out of memory"
            raise torch.cuda.OutOfMemoryError(msg)
        return measure_margins(reference, images, *others)

    load, mined = Cases("a", "b"), round_in(tmp_path / "short")
    plenty = make_miner((4, 4, 4), images_per_forward=8, reference="cached")
    mine_round(plenty, load, ["a", "b"], round_in(tmp_path / "plenty"), print)
    monkeypatch.setattr(mining, "measure_margins", limited)
    mine_round(plenty, load, ["a", "b"], mined, logged.append)
    assert sizes[0] == 2 * len(RATES)
    assert sizes[1] == max(sizes[1:]) == len(RATES)
    assert any("memory" in text for text in logged)
    first = mined.open_stack("a")[:]  # its candidates came before memory ran out
    assert np.array_equal(first[:4], round_in(tmp_path / "plenty").open_stack("a")[:4])
    assert np.abs(first[4] - round_in(tmp_path / "plenty").open_stack("a")[4]).max() <= 1
