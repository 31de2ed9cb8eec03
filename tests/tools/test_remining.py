from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from nnunetv2_mapo import MAPOConfig
from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.method.mining import Miner
from nnunetv2_mapo.support.randomness import seeded
from nnunetv2_mapo.tools.models import TrainedModel
from nnunetv2_mapo.tools.remining import mine_like

CPU, RATES = torch.device("cpu"), (0.0, 0.5)
IMAGE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))  # three slices
SETTINGS = MAPOConfig(seed=7, granularity="channel", rates_2d=RATES)


@pytest.fixture
def model() -> TrainedModel:
    """A 2D model with random weights."""
    torch.manual_seed(0)
    return TrainedModel(
        network=nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 2, 1)).eval(),
        labels=Labels(num_heads=2),
        trainer_name="nnUNetTrainer_MAPO",
        configuration="2d",
        plans_manager=None,
        configuration_manager=SimpleNamespace(patch_size=(8, 8), batch_size=1),
        label_manager=None,
        dataset_json={"channel_names": {"0": "MRI"}},
        folder=Path("nowhere"),
        fold=0,
        mirroring_axes=None,
        mapo=None,
    )


def test_candidates_have_the_seed_of_the_case_in_the_round_and_no_other(model):
    segment = partial(Miner.segment, image=IMAGE)
    with mine_like(model, SETTINGS, CPU, number=2) as remining:
        assert remining.miner.sampler.dropout.switch.granularity == "channel"
        with seeded("7/2/case_0", CPU):
            expected = segment(remining.miner)
        first, other = (remining.do(segment, case) for case in ("case_0", "case_1"))
        again = remining.do(segment, "case_0")
    assert expected.shape == (2, 3, 8, 8)
    assert torch.equal(first, expected)
    assert torch.equal(again, expected)
    assert torch.equal(other[0], expected[0])  # the plain prediction
    assert not torch.equal(other[1], expected[1])


def test_fewer_windows_stay_fewer_for_the_cases_to_come(model):
    def fail_with_many(miner: Miner) -> int:
        if miner.windows_per_forward > 1:
            raise torch.cuda.OutOfMemoryError
        return miner.windows_per_forward

    said = []
    with mine_like(model, SETTINGS, CPU, log=said.append) as remining:
        assert remining.miner.windows_per_forward == 2  # 4 times a batch of 1, by 2 rates
        assert [remining.do(fail_with_many, case) for case in ("case_0", "case_1")] == [1, 1]
    assert said == ["mining ran out of memory: 1 windows a forward pass now"]


def test_network_is_plain_again_afterwards_even_after_an_error(model):
    def fail(miner: Miner) -> None:
        raise KeyError

    def mine() -> None:
        with mine_like(model, SETTINGS, CPU) as remining:
            assert model.network[0]._forward_hooks
            remining.do(fail, "case_0")

    with pytest.raises(KeyError):
        mine()
    assert not model.network[0]._forward_hooks
