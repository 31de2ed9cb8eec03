from __future__ import annotations

import numpy as np

from nnunetv2_mapo.metrics.components import find_components


def test_voxels_that_share_a_corner_are_one_lesion():
    for num_axes in (2, 3):
        mask = np.zeros((4,) * num_axes, bool)
        mask[(1,) * num_axes] = mask[(2,) * num_axes] = True
        assert find_components(mask).max() == 1
