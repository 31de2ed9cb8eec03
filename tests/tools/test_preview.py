from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from nnunetv2_mapo import MAPOConfig
from nnunetv2_mapo.method import dropout
from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.method.mining import Miner
from nnunetv2_mapo.method.store import SampleRecord
from nnunetv2_mapo.support.table import WIDTH
from nnunetv2_mapo.tools.models import TrainedModel
from nnunetv2_mapo.tools.preview import Preview, look_at
from nnunetv2_mapo.tools.recommendation import Settings

CPU = torch.device("cpu")


def make_model(granularity: str = "element", **dataset_json: object) -> TrainedModel:
    """A 2D model with random weights, trained with MAPO."""
    torch.manual_seed(0)
    return TrainedModel(
        network=nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 2, 1)).eval(),
        labels=Labels(num_heads=2),
        trainer_name="nnUNetTrainer_MAPO",
        configuration="2d",
        plans_manager=None,
        configuration_manager=SimpleNamespace(patch_size=(8, 8), batch_size=2, spacing=(1.0, 1.0)),
        label_manager=None,
        dataset_json=dataset_json or {"channel_names": {"0": "MRI"}},
        folder=Path("Dataset001_One/nnUNetTrainer_MAPO__nnUNetPlans__2d"),
        fold=0,
        mapo=MAPOConfig(granularity=granularity, seed=7).to_dict(),
    )


class ThreeSlices:
    """nnU-Net's dataset of two cases of random values, in which 4 of 64 pixels are foreground."""

    def load_case(self, identifier: str):
        image = np.random.default_rng(ord(identifier)).normal(size=(1, 3, 8, 8))
        segmentation = np.zeros((1, 3, 8, 8), np.int16)
        segmentation[:, :, :2, :2] = 1
        return image, segmentation, None, {}


def look(model: TrainedModel) -> dict[str, list[SampleRecord]]:
    return look_at(model, ThreeSlices(), "ab", (0.0, 0.5), CPU)


def test_every_slice_is_looked_at_and_its_dice_are_the_same_each_time():
    model = make_model()
    samples = look(model)
    assert {case: len(slices) for case, slices in samples.items()} == {"a": 3, "b": 3}
    assert look(model) == samples
    assert any(plain != dropped for plain, dropped in (sample.dice for sample in samples["a"]))


def test_output_heads_are_those_of_a_training(monkeypatch):
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.wide = nn.Conv2d(1, 8, 3, 1, 1), nn.Conv2d(8, 2, 3, 1, 1)
            self.head = nn.Conv2d(8, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.body(x)
            return self.head(x) + self.wide(x)

    found = []
    find = dropout.find_dropout_sites
    monkeypatch.setattr(
        dropout, "find_dropout_sites", lambda *a: found.append(find(*a)) or found[0]
    )
    look(replace(make_model(), network=Sum().eval()))
    assert [list(sites) for sites in found] == [["body"]]


def test_fewer_images_stay_fewer_for_the_cases_to_come(monkeypatch, capsys):
    tried, find_candidates = [], Miner.find_candidates

    def find_with_few(miner, image):
        tried.append(miner.images_per_forward)
        if miner.images_per_forward > 1:
            raise torch.cuda.OutOfMemoryError
        return find_candidates(miner, image)

    monkeypatch.setattr(Miner, "find_candidates", find_with_few)
    assert list(look(make_model())) == ["a", "b"]
    assert tried == [2, 1, 1]  # a batch of 2
    assert "mining ran out of memory: 1 images a forward pass now" in capsys.readouterr().out


def test_network_is_plain_again_afterwards_even_after_an_error(monkeypatch):
    model = make_model()
    look(model)
    assert not model.network[0]._forward_hooks

    def fail(*_):
        assert model.network[0]._forward_hooks
        raise KeyError

    monkeypatch.setattr(Miner, "find_candidates", fail)
    with pytest.raises(KeyError):
        look(model)
    assert not model.network[0]._forward_hooks


def preview(model: TrainedModel, *dice: float) -> str:
    """One sample with the Dice of two candidates, at the default rates."""
    sample, default = SampleRecord(list(dice), 0, None, 0, 64), Settings((0.0, 0.1), 0.1)
    return str(Preview(model, "checkpoint_final.pth", 1, 1, (0.0, 0.1), [sample], default))


def test_default_is_trained_as_it_is_only_with_the_dropout_that_was_looked_at():
    same, other = (preview(make_model(kind), 0.8, 0.65) for kind in ("element", "channel"))
    assert "Train with MAPO as it is, and its control" in same
    assert "finds its rates itself: here 0 to about 0.053, where" in same  # 10 of 18.75 %
    assert "MAPOConfig" not in same
    assert "as it is" not in other
    assert 'To train with pair="case" and the default ones' in other
    assert "granularity='channel'" in other


def test_mapo_as_it_is_is_named_also_where_pairs_of_whole_candidates_need_other_settings():
    text = preview(make_model(), 0.8, 0.75)  # a gap below tau
    as_it_is, of_cases = text.split('To train with pair="case" and the recommended ones')
    assert "-tr nnUNetTrainer_MAPO\n" in as_it_is
    assert "-tr nnUNetTrainer\n" in as_it_is
    assert "-tr nnUNetTrainer_MAPO_Previewed\n" in of_cases


def test_no_line_is_longer_than_a_terminal():
    assert max(map(len, preview(make_model(), 0.01, 0.01).splitlines())) <= WIDTH


def test_few_pairs_are_said():
    assert "0 of 1 samples would have a pair." in preview(make_model(), 0.8, 0.8)
    text = preview(make_model(), 0.8, 0.8)
    assert "Note: MAPO will have few pairs here" in text
    assert "A longer warm-up gives more." in text  # all candidates are the same
    assert "A shorter warm-up gives more." in preview(make_model(), 0.8, 0.795)


def test_few_pairs_of_a_network_that_has_hardly_learnt_anything_need_a_longer_warmup():
    text = preview(make_model(), 0.01, 0.01)
    assert "has hardly learnt anything yet" in text
    assert "A longer warm-up gives more." in text
    assert "shorter" not in text


def test_channels_may_have_the_name_of_older_data_sets():
    assert make_model(channel_names={"0": "T1", "1": "T2"}).channel_names == ["T1", "T2"]
    assert make_model(modality={"0": "CT"}).channel_names == ["CT"]
