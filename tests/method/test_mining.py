from __future__ import annotations

import itertools
import json
import math
import threading
from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
import whole_case
from sklearn.metrics import f1_score
from torch import Tensor

from nnunetv2_mapo.method import mining, rounds, store
from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.method.dropout import StochasticDropout
from nnunetv2_mapo.method.examples import choose_samples
from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.method.mining import Miner
from nnunetv2_mapo.method.mining import make_miner as make_miner_by_settings
from nnunetv2_mapo.method.pairing import MinedCase, PairFinder
from nnunetv2_mapo.method.rounds import Ranks, draw_cases, mine_round, thin_out_earlier
from nnunetv2_mapo.method.sampling import DropoutSampler
from nnunetv2_mapo.method.store import Round, read_round
from nnunetv2_mapo.method.windows import find_windows
from nnunetv2_mapo.support.device import OutOfMemoryError, seeded

CPU = torch.device("cpu")
CLASSES = Labels(3)
REGIONS = Labels(2, regions=((1, 2), (2,)))
RATES = (0.0, 0.2, 0.5, 0.8)


@pytest.fixture
def make_miner(make_network):
    def make(patch_size, labels=CLASSES, images_per_forward=12, **given) -> Miner:
        network = make_network(len(patch_size), num_heads=labels.num_heads)
        sampler = DropoutSampler(RATES, StochasticDropout(network, labels.num_heads))
        # what no test says otherwise: pairs of two candidates from windows side by side
        usual = {"pair": "case", "agree": False, "tau": 1e-6, "tile_step_size": 1.0}
        config = MAPOConfig(**{**usual, "reference": "none", **given})
        finder = PairFinder(labels, config, patch_size)
        return Miner(network, sampler, finder, images_per_forward, CPU)

    return make


def with_settings(miner: Miner, **given) -> Miner:
    finder = replace(miner.finder, config=replace(miner.config, **given))
    return replace(miner, finder=finder)


def segment(miner: Miner, image: Tensor) -> Tensor:
    return torch.from_numpy(miner.find_candidates(image)[:])


def units_of(unit: str) -> dict[str, str]:
    return {"selection_unit_2d": unit, "selection_unit_3d": unit}


def some_case(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    image = torch.randn(1, *shape, generator=rng)
    return image, torch.randint(0, 3, shape, generator=rng).short()


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


# A round ------------------------------------------------------------------------------------------


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


def fail_above(miner: Miner, most_samples: int, error: Exception) -> list[int]:
    """Fail with more samples than so many; returns the numbers of samples that were tried."""
    seen = []

    def forward(_, inputs):
        seen.append(len(inputs[0]))
        if len(inputs[0]) > most_samples:
            raise error

    miner.network.register_forward_pre_hook(forward)
    return seen


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    ],
    ids=["cuda", "cpu"],
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
