from __future__ import annotations

import pytest
from miners import CLASSES, CPU, RATES

from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.method.dropout import StochasticDropout
from nnunetv2_mapo.method.mining import Miner
from nnunetv2_mapo.method.pairing import PairFinder
from nnunetv2_mapo.method.sampling import DropoutSampler


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
