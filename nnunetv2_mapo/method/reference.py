"""The frozen reference π_ref: its weights on disk, and its margins, of a network or stored.

DPO compares the policy's margins with the reference's. The reference never changes while a round
lasts, so its margins can be measured when the round is mined (`measure_margins`), stored and
carried through the augmentation; or a second network gives them in each step, for the very images
that the policy sees (`reference_margins`).
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from nnunetv2_mapo.method.dropout import find_switch
from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.method.loss import Disagreement, find_disagreement, voxel_margins
from nnunetv2_mapo.method.sampling import full_resolution
from nnunetv2_mapo.method.store import MARGIN_ONE
from nnunetv2_mapo.support.device import untouched
from nnunetv2_mapo.support.files import hash_weights, write_atomically

REFERENCE = "reference.pth"


def write_reference(path: Path, weights: dict[str, Tensor]) -> None:
    """Write the reference's weights so that the file appears complete or not at all."""
    content = io.BytesIO()
    torch.save({name: tensor.cpu() for name, tensor in weights.items()}, content)
    write_atomically(path, content.getvalue())


def read_reference(
    path: Path, expected_hash: str, device: torch.device
) -> dict[str, Tensor] | None:
    """Read the reference's weights onto a device; nothing but tensors is unpickled.

    There are none if the file is missing, damaged or not the expected one.

    Raises:
        OSError: It is there but cannot be read.
    """
    if not path.exists():
        return None
    content = io.BytesIO(path.read_bytes())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of what a damaged header may look like
            weights = torch.load(content, map_location="cpu", weights_only=True)
        if hash_weights(weights) != expected_hash:
            return None
    except Exception:  # the bytes are in memory: whatever torch raises, they are no weights
        return None
    return {name: tensor.to(device) for name, tensor in weights.items()}


def build_reference(policy: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """Frozen copy of a network with the reference's weights, in evaluation mode.

    The policy is not compiled, not wrapped, its dropout off and its deep supervision off; the copy
    keeps both off for good.
    """
    reference = _copy(policy)
    reference.load_state_dict(weights)
    return reference.eval().requires_grad_(requires_grad=False)


@torch.no_grad()
def reference_margins(
    reference: nn.Module,
    images: Tensor,
    disagreement: Disagreement,
    rates: Tensor | None = None,
) -> Tensor:
    """The reference's margin at each disagreement voxel, under the conditions of the policy.

    Of images of shape `(B, channels, *patch)`, those without a disagreement are not computed. At
    the dropout rate of each, shape `(B,)`, the policy, which comes next, draws the same masks; None
    is no dropout. The shape is `(B, n)`, see `Disagreement`.
    """
    margins = torch.zeros_like(disagreement.weights)
    if disagreement.voxels.shape[1] == 0:
        return margins
    device = images.device
    with torch.autocast(device.type, enabled=device.type == "cuda"):
        if rates is not None:
            with untouched(device), find_switch(reference).at(rates):
                return _margins_of(reference(images), disagreement)
        has_pair = disagreement.has_pair
        outputs = reference(images[has_pair])
    margins[has_pair] = _margins_of(outputs, disagreement.of(has_pair))
    return margins


@torch.inference_mode()
def measure_margins(
    reference: Callable[[Tensor], Any],
    images: Tensor,
    chosen: Tensor,
    rejected: Tensor,
    labels: Labels,
) -> Tensor:
    """The reference's margin at each disagreement voxel of some windows, in 1 / `MARGIN_ONE`.

    Args:
        reference: The network without dropout and deep supervision, see `bind_reference`.
        images: Network input, shape `(W, channels, *patch)`.
        chosen: Label maps, shape `(W, *patch)`, on the same device.
        rejected: The same.
        labels: Meaning of the label maps.

    Returns:
        Margins in logits times `MARGIN_ONE`, clamped, int16, shape `(W, *patch)`; 0 where chosen
        and rejected agree.
    """
    disagreement = find_disagreement(chosen, rejected, labels, "image")
    device = images.device
    with torch.autocast(device.type, enabled=device.type == "cuda"):
        margins = _margins_of(reference(images), disagreement)
    # the padding adds 0 to voxel 0
    placed = torch.zeros(chosen.flatten(1).shape, device=device)
    placed.scatter_add_(1, disagreement.voxels, margins)
    limits = torch.iinfo(torch.int16)
    fixed = (placed * MARGIN_ONE).round().clamp(limits.min, limits.max).short()
    return fixed.view_as(chosen)


def bind_reference(
    network: nn.Module, weights: Mapping[str, Tensor] | None
) -> Callable[[Tensor], Any]:
    """A network with the reference's weights in place of its own, which stay where they are.

    None: the reference is the network as it is.
    """
    if weights is None:
        return network
    # Each module once, which nnU-Net's networks hold under several names: a weight that is replaced
    # twice would not be put back.
    names = (
        f"{prefix}.{name}".lstrip(".")
        for prefix, module in network.named_modules()
        for name in chain(module._parameters, module._buffers)
    )
    own = {name: weights[name] for name in names if name in weights}
    return partial(functional_call, network, own, tie_weights=False)


@torch.no_grad()
def update_average(reference: nn.Module, policy: nn.Module, decay: float) -> None:
    """Move the reference towards the policy: the reference is the policy's moving average.

    It is a copy made by `build_reference` and keeps the share `decay` of itself, in (0, 1).
    """
    # Not by state dicts: nnU-Net's hold a weight under several names.
    for average, latest in zip(reference.parameters(), policy.parameters(), strict=True):
        average.lerp_(latest, 1 - decay)
    for mine, theirs in zip(reference.buffers(), policy.buffers(), strict=True):
        mine.copy_(theirs)  # such as counts, or masks of -inf, which have no average


def _margins_of(outputs: Any, disagreement: Disagreement) -> Tensor:
    return voxel_margins(disagreement.gather(full_resolution(outputs)), disagreement)


def _copy(network: nn.Module) -> nn.Module:
    """`deepcopy`, also of networks that keep results of a forward pass."""
    memo = {
        id(value): value.detach().clone()
        for value in _walk(network, set())
        if isinstance(value, Tensor) and not value.is_leaf  # of an autograd graph: torch refuses
    }
    return deepcopy(network, memo)


def _walk(value: Any, seen: set[int]) -> Iterator[Any]:
    """All that a network holds, but parts of objects that are neither modules nor containers."""
    if id(value) in seen:
        return
    seen.add(id(value))
    yield value
    parts: Iterable[Any] = ()
    if isinstance(value, nn.Module):
        parts = vars(value).values()
    elif isinstance(value, Mapping):
        parts = value.values()
    elif isinstance(value, (list, tuple, set, frozenset)):
        parts = value
    for part in parts:
        yield from _walk(part, seen)
