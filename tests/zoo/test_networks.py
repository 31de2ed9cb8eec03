from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunetv2_mapo import MAPOTrainer
from nnunetv2_mapo.method.dropout import StochasticDropout
from nnunetv2_mapo.support.errors import InputError
from nnunetv2_mapo.tools.export import find_plain_trainer
from nnunetv2_mapo.zoo import networks as module
from nnunetv2_mapo.zoo.networks import (
    NETWORKS,
    SingleOutputTrainer,
    check_patch_size,
    network_builder,
)

TRAINER_CONFIGS = Path(__file__).parents[2] / "trainer_configs"
NUM_HEADS = 3
SMALL = {"UNETR": {"hidden_size": 24, "mlp_dim": 24, "num_heads": 2}}  # else 86 million weights
# What one network takes, another does not; the plans' U-Net shrinks by 4.
TAKEN = {
    "VNet": (16, 32),
    "DynUNet": (4, 8),
    "UNETR": (16, 16),
    "SwinUNETR": (32, 64),
    "SegResNet": (8, 8),
    "AttentionUnet": (4, 8),
}
REFUSED = [
    ("VNet", (24, 32)),
    ("VNet", (16, 16)),
    ("DynUNet", (6, 8)),
    ("DynUNet", (4, 4)),
    ("UNETR", (24, 32)),
    ("UNETR", (8, 32)),
    ("SwinUNETR", (48, 64)),
    ("SwinUNETR", (32, 32)),
    ("SegResNet", (12, 16)),
    ("SegResNet", (15, 16)),
    ("AttentionUnet", (6, 8)),
    ("AttentionUnet", (4, 4)),
]
each_network = pytest.mark.parametrize("name", NETWORKS)


def make_plans(patch_size: tuple[int, ...]) -> PlansManager:
    axes = len(patch_size)
    planned = {
        "features_per_stage": [4, 8, 8],
        "kernel_sizes": [[3] * axes] * 3,
        "strides": [[1] * axes, [2] * axes, [2] * axes],
    }
    architecture = {"arch_kwargs": planned, "_kw_requires_import": []}
    configuration = {"patch_size": list(patch_size), "architecture": architecture}
    return PlansManager({"plans_name": "mine", "configurations": {"c": configuration}})


def build(name: str, patch_size: tuple[int, ...], num_inputs: int = 1) -> nn.Module:
    plans = make_plans(patch_size)
    builder = network_builder(name, **SMALL.get(name, {}))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return builder(plans, plans.get_configuration("c"), num_inputs, NUM_HEADS, False)


def make_image(patch_size: tuple[int, ...], num_samples: int = 1) -> torch.Tensor:
    return torch.randn(num_samples, 1, *patch_size, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def in_checkout(monkeypatch):
    monkeypatch.setenv("nnUNet_extTrainer", str(TRAINER_CONFIGS))


# Networks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_dimensions", [2, 3])
@each_network
def test_each_network_gives_logits_of_the_patch_and_trains_every_weight(name, num_dimensions):
    patch_size = (TAKEN[name][0],) * (num_dimensions - 2) + TAKEN[name]
    network = build(name, patch_size).train()
    logits = network(make_image(patch_size))
    assert logits.shape == (1, NUM_HEADS, *patch_size)
    assert logits.min() < 0  # no softmax or sigmoid
    logits.square().mean().backward()
    without = [k for k, w in network.named_parameters() if w.requires_grad and w.grad is None]
    assert not without  # distributed training stops at them


@each_network
def test_own_dropout_is_off(name):
    network = build(name, TAKEN[name]).train()
    image = make_image(TAKEN[name], num_samples=2)
    with torch.no_grad():
        assert torch.equal(network(image), network(image))


@each_network
def test_mapo_finds_dropout_sites_and_copies_the_network(name):
    network = build(name, TAKEN[name]).eval()
    image = make_image(TAKEN[name]).repeat(2, *[1] * 3)
    dropout = StochasticDropout(network, NUM_HEADS)
    with torch.no_grad():
        plain = network(image)
        with dropout.at(torch.tensor([0.0, 0.5])):
            dropped = network(image)
        assert torch.allclose(dropped[0], plain[0], atol=1e-5)
        assert not torch.allclose(dropped[1], plain[1], atol=1e-2)
        assert torch.equal(deepcopy(network)(image), plain)


@pytest.mark.parametrize("num_inputs", [1, 3, 4, 5, 16])
def test_vnet_takes_any_number_of_channels_up_to_16(num_inputs):
    network = build("VNet", (16, 32), num_inputs).eval()
    image = torch.randn(1, num_inputs, 16, 32)
    assert network(image).shape == (1, NUM_HEADS, 16, 32)
    if num_inputs == 3:  # the fourth is zero
        assert network[0](image).shape == (1, 4, 16, 32)
        assert torch.equal(network[0](image)[:, :3], image)
        assert not network[0](image)[:, 3].any()


def test_vnet_refuses_more_channels():
    with pytest.raises(InputError, match="at most 16 input channels, here are 17"):
        build("VNet", (16, 32), 17)


def test_arguments_replace_those_of_the_plans_and_the_defaults():
    builder = network_builder("SegResNet", init_filters=16, blocks_down=(1, 1, 1, 1))
    plans = make_plans((8, 8))
    network = builder(plans, plans.get_configuration("c"), 1, NUM_HEADS)
    assert network.init_filters == 16
    assert network.blocks_down == (1, 1, 1, 1)


def test_img_size_is_given_to_the_versions_of_monai_that_ask_for_it(monkeypatch):
    class SwinUNETR(nn.Module):
        def __init__(self, img_size, in_channels, out_channels, feature_size, spatial_dims):
            super().__init__()
            self.img_size = img_size

    networks = SimpleNamespace(SwinUNETR=SwinUNETR)
    monkeypatch.setattr(module, "_import_networks", lambda: networks)
    assert build("SwinUNETR", (32, 64)).img_size == [32, 64]


# Patch sizes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "patch_size"), REFUSED)
def test_refused_patch_sizes_name_one_that_works(monkeypatch, name, patch_size):
    refused: list[InputError] = []

    def check(*args: Any) -> None:
        with pytest.raises(InputError) as error:
            check_patch_size(*args)
        refused.append(error.value)

    monkeypatch.setattr(module, "check_patch_size", check)
    with pytest.raises((RuntimeError, ValueError, WrongShapeError)):  # what it saves us from
        run(build, name, patch_size)
    assert f"{name} cannot take the patch size {list(patch_size)}" in str(refused[0])
    monkeypatch.undo()
    nearest = str(refused[0]).partition("take: ")[2].partition(".")[0].split(" or ")
    for size in nearest:
        run(build, name, tuple(int(axis) for axis in size.strip("[]").split(",")))


class WrongShapeError(Exception):
    """Logits of another shape than the patch."""


def run(build: Callable[..., nn.Module], name: str, patch_size: tuple[int, ...]) -> None:
    """Train one step with a single sample, as one of several GPUs may."""
    logits = build(name, patch_size).train()(make_image(patch_size))
    if logits.shape[2:] != patch_size:
        raise WrongShapeError
    logits.mean().backward()


def test_a_patch_size_is_refused_before_anything_is_built(monkeypatch):
    monkeypatch.setattr(module, "_import_networks", lambda: pytest.fail("built"))
    with pytest.raises(InputError, match=r"of the plans mine.*\[16, 32\] or \[32, 32\]"):
        build("UNETR", (24, 32))


# Trainers -----------------------------------------------------------------------------------------


@each_network
def test_nnunet_finds_a_trainer_of_each_network_and_with_mapo(in_checkout, name):
    trainer = recursive_find_trainer_class_by_name(f"nnUNetTrainer_{name}")
    assert issubclass(trainer, SingleOutputTrainer)
    assert not issubclass(trainer, MAPOTrainer)
    plans = make_plans((64, 64))
    if name != "UNETR":  # for its size
        network = trainer.build_network_architecture(
            plans, plans.get_configuration("c"), 1, 2, enable_deep_supervision=False
        )
        assert type(network).__name__ == name
    with_mapo = recursive_find_trainer_class_by_name(f"nnUNetTrainer_{name}_MAPO_NoPreference")
    assert with_mapo.mapo.num_rounds == 0
    assert issubclass(with_mapo, SingleOutputTrainer)
    # nnU-Net has no such network: an exported model needs this trainer
    assert find_plain_trainer(with_mapo) == f"nnUNetTrainer_{name}"


@pytest.mark.parametrize("missing", ["monai.networks", "einops"])
def test_without_monai_the_message_says_what_to_install(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r"pip install 'nnunetv2-mapo\[monai\]'"):
        build("UNETR", (16, 16))


@pytest.mark.parametrize(
    "path", ["trainer_configs/monai_networks.py", "nnunetv2_mapo/zoo/networks.py"]
)
def test_looking_for_trainers_needs_no_monai(monkeypatch, path):
    for name in [name for name in sys.modules if name.partition(".")[0] == "monai"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "monai", None)
    runpy.run_path(str(TRAINER_CONFIGS.parent / path))
