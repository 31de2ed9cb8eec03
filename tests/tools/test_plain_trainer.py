from __future__ import annotations

import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerDA5 import (
    nnUNetTrainerDA5,
)
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerBN import (
    nnUNetTrainerBN,
)

from nnunetv2_mapo import MAPOTrainer, nnUNetTrainer_MAPO
from nnunetv2_mapo.tools.export import find_plain_trainer
from nnunetv2_mapo.tools.models import ModelError


class Longer(nnUNetTrainerBN):
    """A third party's, which leaves the network as it is."""


class OwnNetwork(nnUNetTrainer):
    @staticmethod
    def build_network_architecture(*_args, **_kwargs):
        return None


class OwnNetworkLonger(OwnNetwork):
    pass


class InstalledVariant(nnUNetTrainer_MAPO):
    __module__ = "nnunetv2.training.nnUNetTrainer.variants.mapo.mine"  # as the wheel installs ours


class InstalledLoss(nnUNetTrainer):
    """One of this package without MAPO, as the wheel installs it."""

    __module__ = "nnunetv2.training.nnUNetTrainer.variants.mapo.base_losses"


def with_mapo(base):
    return type(f"{base.__name__}_MAPO", (MAPOTrainer, base), {})


@pytest.mark.parametrize(
    ("trainer", "name"),
    [
        (nnUNetTrainer_MAPO, "nnUNetTrainer"),
        (InstalledVariant, "nnUNetTrainer"),
        (with_mapo(nnUNetTrainerDA5), "nnUNetTrainerDA5"),
        (with_mapo(nnUNetTrainerBN), "nnUNetTrainerBN"),
        (with_mapo(Longer), "nnUNetTrainerBN"),
        (with_mapo(InstalledLoss), "nnUNetTrainer"),
    ],
)
def test_the_nearest_trainer_of_nnunet_with_the_same_network_is_taken(trainer, name):
    assert find_plain_trainer(trainer) == name


@pytest.mark.parametrize("base", [OwnNetwork, OwnNetworkLonger])
def test_a_third_party_s_network_needs_its_own_trainer(base):
    assert find_plain_trainer(with_mapo(base)) == base.__name__


def test_a_network_that_only_a_class_of_mapo_builds_is_refused_with_what_to_do():
    class Built(MAPOTrainer, nnUNetTrainer):
        build_network_architecture = OwnNetwork.build_network_architecture

    with pytest.raises(ModelError, match=r"Built builds its network itself.* Move its build_net"):
        find_plain_trainer(Built)


def test_a_trainer_without_mapo_is_refused_with_the_command_that_exports_its_models():
    with pytest.raises(ModelError, match="BN trains without MAPO: nnUNetv2_export_model_to_zip"):
        find_plain_trainer(nnUNetTrainerBN)
