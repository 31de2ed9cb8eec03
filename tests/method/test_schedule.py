from __future__ import annotations

import pytest

from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.method.schedule import Schedule, Stage


def test_2d_schedule_of_the_paper_is_100_and_4_times_50_epochs():
    assert MAPOConfig().schedule(300, 2).stages == [
        Stage(0, 0, 100), Stage(1, 100, 150), Stage(2, 150, 200), Stage(3, 200, 250),
        Stage(4, 250, 300),
    ]  # fmt: skip


def test_3d_schedule_of_the_paper_is_500_and_4_times_200_epochs():
    assert MAPOConfig().schedule(1300, 3).stages == [
        Stage(0, 0, 500), Stage(1, 500, 700), Stage(2, 700, 900), Stage(3, 900, 1100),
        Stage(4, 1100, 1300),
    ]  # fmt: skip


def test_nnunets_1000_epochs_are_split_in_the_papers_proportions():
    # 1000/3 = 333.3 -> 333, 667 = 167 + 167 + 167 + 166
    ends_2d = [stage.end_epoch for stage in MAPOConfig().schedule(1000, 2).stages]
    assert ends_2d == [333, 500, 667, 834, 1000]
    # 1000 * 5/13 = 384.6 -> 385, 615 = 154 + 154 + 154 + 153
    ends_3d = [stage.end_epoch for stage in MAPOConfig().schedule(1000, 3).stages]
    assert ends_3d == [385, 539, 693, 847, 1000]


@pytest.mark.parametrize("num_dimensions", [2, 3])
@pytest.mark.parametrize("num_rounds", [0, 1, 3, 4, 7])
def test_stages_are_contiguous_never_empty_and_cover_every_epoch(num_dimensions, num_rounds):
    config = MAPOConfig(num_rounds=num_rounds)
    for num_epochs in [*range(1, 120), 250, 300, 999, 1000, 1001, 1299, 1300]:
        stages = config.schedule(num_epochs, num_dimensions).stages
        assert [stage.round for stage in stages] == list(range(len(stages)))
        assert len(stages) <= num_rounds + 1
        covered = [epoch for stage in stages for epoch in range(stage.first_epoch, stage.end_epoch)]
        assert covered == list(range(num_epochs))
        lengths = [stage.end_epoch - stage.first_epoch for stage in stages]
        assert min(lengths) >= 1
        if len(lengths) > 2:
            assert max(lengths[1:]) - min(lengths[1:]) <= 1
            assert lengths[1:] == sorted(lengths[1:], reverse=True)


def test_one_epoch_is_warm_up():
    assert MAPOConfig().schedule(1, 3).stages == [Stage(0, 0, 1)]


def test_two_epochs_are_one_of_warm_up_and_one_round():
    expected = [Stage(0, 0, 1), Stage(1, 1, 2)]
    assert MAPOConfig().schedule(2, 2).stages == expected
    assert MAPOConfig().schedule(2, 3).stages == expected


def test_a_warm_up_as_long_as_the_training_leaves_one_epoch():
    assert Schedule(5, warmup_epochs=50, num_rounds=4).stages == [Stage(0, 0, 4), Stage(1, 4, 5)]


def test_without_rounds_every_epoch_is_warm_up():
    schedule = MAPOConfig(num_rounds=0).schedule(300, 2)
    assert schedule.stages == [Stage(0, 0, 300)]
    assert schedule.stage(299) == Stage(0, 0, 300)


def test_stage_of_an_epoch_changes_exactly_at_the_first_epoch_of_a_round():
    schedule = Schedule(10, warmup_epochs=4, num_rounds=2)
    assert [schedule.stage(epoch).round for epoch in range(10)] == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("epoch", [-1, 10, 11])
def test_an_epoch_outside_the_training_is_refused(epoch):
    schedule = Schedule(10, warmup_epochs=4, num_rounds=2)
    with pytest.raises(IndexError, match=f"Epoch {epoch} is outside a training of 10 epochs"):
        schedule.stage(epoch)


def test_text_names_the_epochs_of_every_stage():
    assert str(Schedule(10, warmup_epochs=4, num_rounds=2)) == (
        "warm-up in epochs 0-3, round 1 in 4-6, round 2 in 7-9"
    )


def test_what_has_begun_stays_and_the_rest_is_shared():
    planned = Schedule(12, warmup_epochs=2, num_rounds=3)
    ends = [stage.end_epoch for stage in planned.stages]
    assert ends == [2, 6, 9, 12]
    # as long as the length stays, what has begun changes nothing
    for begun in ((2,), (2, 6), (2, 6, 9)):
        assert Schedule(12, 2, 3, begun).stages == planned.stages
    longer = Schedule(20, 2, 3, begun=(2, 6))
    assert longer.stages == [Stage(0, 0, 2), Stage(1, 2, 6), Stage(2, 6, 13), Stage(3, 13, 20)]
    over = Schedule(20, 2, 3, begun=(2, 6, 9))
    assert over.stages[-1] == Stage(3, 9, 20)
    shorter = Schedule(8, 5, 3, begun=(2,))
    assert shorter.stages == [Stage(0, 0, 2), Stage(1, 2, 4), Stage(2, 4, 6), Stage(3, 6, 8)]
    # nothing is left: the round that has begun is the last one
    assert Schedule(3, 2, 3, begun=(2, 6)).stages[-1] == Stage(2, 6, 7)
