"""What the dropout sites of a network put out in a forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nnunetv2_mapo.method.dropout import StochasticDropout
from nnunetv2_mapo.method.dropout_sites import Layer


@dataclass
class SiteOutputs:
    """Outputs of a site in one forward pass."""

    num_rows: list[int] = field(default_factory=list)  # size of each tensor's batch axis
    candidates: list[Tensor] = field(default_factory=list)  # those of as many values as the logits


@contextmanager
def watch_sites(dropout: StochasticDropout, num_values: int) -> Iterator[dict[str, SiteOutputs]]:
    """Note what each site puts out inside a `with` block; outputs as large as the logits stay."""
    seen = {layer.name: SiteOutputs() for layer in dropout.sites.sites}
    with ExitStack() as hooks:
        for layer in dropout.sites.sites:
            look = partial(_look, layer, seen[layer.name], num_values)
            hooks.callback(layer.module.register_forward_hook(look).remove)
        yield seen


def _look(
    layer: Layer, seen: SiteOutputs, num_values: int, module: nn.Module, args: Any, output: Any
) -> None:
    if isinstance(module, nn.MultiheadAttention):
        output = output[0]  # its weights are not dropped
    for part in tree_leaves(output):
        if isinstance(part, Tensor) and part.is_floating_point() and part.ndim > layer.batch_axis:
            seen.num_rows.append(part.shape[layer.batch_axis])
            if part.numel() == num_values:
                seen.candidates.append(part)
