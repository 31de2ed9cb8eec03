"""Connected components."""

from __future__ import annotations

import cc3d
import numpy as np
from numpy.typing import NDArray

from nnunetv2_mapo.metrics.change import Mask


def find_components(mask: Mask) -> NDArray[np.integer]:
    """Number of the component of each voxel, from 1; 0 outside the mask.

    Neighbours are those at edges and corners, too.
    """
    voxels = mask.astype(np.uint8)  # of booleans, cc3d 4.1.1 numbers voxels in 2D that are False
    if mask.ndim == 2:
        return cc3d.connected_components(voxels, connectivity=8)
    return cc3d.connected_components(voxels, connectivity=26)
