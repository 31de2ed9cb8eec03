"""Dropout inside any network through forward hooks: another rate for each sample of the batch.

Hooks leave the modules and the state dict as they are: a stock checkpoint loads into a network
with dropout and back, and prediction runs the plain network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.random import SFC64
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from nnunetv2_mapo.method.dropout_sites import Layer, find_dropout_sites
from nnunetv2_mapo.method.output_heads import CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS
from nnunetv2_mapo.support.errors import InputError

MOST_NOISE = 2**22  # random numbers that are drawn at once in inference, 24 MB with their masks


class Switch:
    """What all hooks of a network share, and all that a copy of the network takes along."""

    def __init__(self, granularity: str) -> None:
        self.granularity = granularity  # `"element"` or `"channel"`
        self.active = False  # whether anything is dropped
        # Rate of each sample, shape `(B,)`: a tensor, so that torch.compile sees an input and does
        # not compile anew for each rate.
        self.rates = torch.zeros(1)

    @contextmanager
    def at(self, rates: Tensor) -> Iterator[None]:
        """Switch dropout on inside a `with` block, also in evaluation mode.

        The rate of each sample of the batch is in [0, 1); shape `(B,)`, on the network's device.
        """
        before = self.rates, self.active
        self.rates, self.active = rates, True
        try:
            yield
        finally:
            self.rates, self.active = before


class StochasticDropout:
    """Element or channel dropout after every dropout site of a network; off until switched on.

    The network is neither compiled nor wrapped. The granularity is `"element"` (`nn.Dropout`) or
    `"channel"` (`nn.Dropout3d`); the other arguments are those of `find_dropout_sites`.

    Raises:
        InputError: The network has no layer to drop out, or a pattern fits no module.
    """

    def __init__(
        self,
        network: nn.Module,
        num_outputs: int,
        granularity: str = "element",
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        images: Tensor | None = None,
    ) -> None:
        self.sites = find_dropout_sites(network, num_outputs, include, exclude, images)
        if not self.sites:
            message = (
                f"{type(network).__name__} has no convolution or linear layer besides its output "
                "heads, or none is left by dropout_exclude: MAPO finds its candidates through "
                "dropout and needs at least one. dropout_include takes modules of any type."
            )
            raise InputError(message)
        self.switch = Switch(granularity)
        self.at = self.switch.at  # `with dropout.at(rates)`
        self._handles = [
            layer.module.register_forward_hook(SiteHook(layer, self.switch), prepend=True)
            for layer in self.sites.sites
        ]

    def remove(self) -> None:
        """Take every hook off the network."""
        for handle in self._handles:
            handle.remove()


def find_switch(network: nn.Module) -> Switch:
    """Switch of the dropout of a network, such as a copy of one that `StochasticDropout` hooked."""
    hooks = (hook for module in network.modules() for hook in module._forward_hooks.values())
    return next(hook.switch for hook in hooks if isinstance(hook, SiteHook))


class SiteHook:
    """Forward hook that drops what a site puts out: a tensor, or those in lists, tuples, dicts."""

    # No reference to the module or its network: a copy of one block must not copy all others.
    def __init__(self, layer: Layer, switch: Switch) -> None:
        self.name, self.batch_axis, self.switch = layer.name, layer.batch_axis, switch
        self.is_attention = isinstance(layer.module, nn.MultiheadAttention)
        self.channel_axis: int | None = None
        if isinstance(layer.module, (*CONVOLUTIONS, *TRANSPOSED_CONVOLUTIONS)):
            self.channel_axis = 1
        elif isinstance(layer.module, nn.Linear) or self.is_attention:
            self.channel_axis = -1
        # Neither a convolution nor a linear layer needs its output for its gradient, and hooks of
        # the network come later. A derived class may have returned anything, also its input.
        own = (*CONVOLUTIONS, *TRANSPOSED_CONVOLUTIONS, nn.Linear)
        self.is_in_place = type(layer.module) in own and layer.batch_axis == 0

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Drop the output of one call (of attention: its features)."""
        if not self.switch.active:
            return output
        if isinstance(output, Tensor):
            return self._drop(output)
        if self.is_attention:
            features, *others = output
            return self._drop(features), *others
        if not any(isinstance(part, Tensor) for part in tree_leaves(output)):
            message = (
                f"dropout of {self.name!r}: it returns {type(output).__name__}; only tensors, also "
                "in lists, tuples and dicts, can be dropped. Take it out of dropout_include."
            )
            raise TypeError(message)
        return tree_map_only(Tensor, self._drop, output)

    def _drop(self, features: Tensor) -> Tensor:
        if not features.is_floating_point() or features.ndim <= self.batch_axis:
            return features  # indices, or a loss
        num_rows, num_samples = features.shape[self.batch_axis], self.switch.rates.shape[0]
        if num_rows % num_samples:
            message = (
                f"dropout of {self.name!r}: its output of shape {tuple(features.shape)} does not "
                f"hold a batch of {num_samples} samples on axis {self.batch_axis}. "
                f"Set dropout_exclude=({self.name!r},) in MAPOConfig."
            )
            raise ValueError(message)
        # Attention in windows folds several windows of a sample into the batch.
        rates = self.switch.rates.repeat_interleave(num_rows // num_samples)
        is_element = self.switch.granularity == "element"
        takes_turns = is_element and self.is_in_place and features.numel() > MOST_NOISE
        if takes_turns and _is_eager_inference():
            return _drop_in_turns(features, rates, num_samples)
        if self.batch_axis:
            features = features.transpose(0, self.batch_axis)
        shape = list(features.shape)
        if not is_element:
            # of an included module the last axis of tokens, else axis 1
            channels = (self.channel_axis or (-1 if features.ndim == 3 else 1)) % features.ndim
            shape = [size if axis in (0, channels) else 1 for axis, size in enumerate(shape)]
        multiplier = dropout_multiplier(rates, shape).to(features.dtype)
        if self.is_in_place:
            return features.mul_(multiplier)
        return (features * multiplier).transpose(0, self.batch_axis)


def _is_eager_inference() -> bool:
    # Not wherever gradients are off: a checkpointed block must draw the same once more with them.
    return not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()


def _drop_in_turns(features: Tensor, rates: Tensor, num_samples: int) -> Tensor:
    """Multiply the features of one sample after the other, so that the noise of one is in memory.

    Features `(rows, …)` of so many samples, changed in place; the rate of each row `(rows,)`.
    """
    size = len(features) // num_samples
    for rows, rate in zip(torch.split(features, size), torch.split(rates, size), strict=True):
        rows.mul_(dropout_multiplier(rate, rows.shape).to(rows.dtype))
    return features


def dropout_multiplier(rates: Tensor, shape: Sequence[int]) -> Tensor:
    """Random factors of inverted dropout: 0 with probability p, else 1 / (1 - p).

    They are independent, float32, of a shape with the batch first, whose samples have the rates p,
    shape `(B,)`; exactly 1 everywhere in samples of rate 0.
    """
    rates = rates.float().view(-1, *[1] * (len(shape) - 1))
    return _keep(rates, shape).mul_(1 / (1 - rates))


def _keep(rates: Tensor, shape: Sequence[int]) -> Tensor:
    """1 where an element is kept, 0 where it is dropped, float32."""
    if torch.compiler.is_compiling():  # fused into the multiplication, no noise in memory
        return (torch.rand(shape, device=rates.device) >= rates).float()
    # Eager random numbers cost more than the convolution of a thin layer. One 64-bit draw gives
    # four 16-bit numbers; a rate is met to within 2^-17.
    num_elements = torch.Size(shape).numel()
    words = _draw_words((num_elements + 3) // 4, rates.device)
    noise = words.view(torch.int16)[:num_elements].view(shape)
    threshold = (rates * 2**16 - 2**15).round().clamp(max=2**15 - 1).to(torch.int16)
    # Straight to float: a mask in between is two more passes over memory.
    return torch.ge(noise, threshold, out=torch.empty(shape, device=rates.device))


def _draw_words(number: int, device: torch.device) -> Tensor:
    """So many random 64-bit numbers, shape `(number,)`, by the state of torch's generator."""
    if device.type != "cpu":
        return torch.empty(number, dtype=torch.int64, device=device).random_(-(2**63), None)
    seed = int(torch.empty((), dtype=torch.int64).random_())
    words = SFC64(seed).random_raw(number)  # torch's Mersenne Twister is slower
    return torch.from_numpy(words.view(np.int64))


def sample_rates(rates: Sequence[float], num_samples: int, device: torch.device) -> Tensor:
    """Rate of each of B training samples, drawn from the candidate rates, shape `(B,)`, float32."""
    drawn = torch.randint(len(rates), (num_samples,))
    return torch.tensor(rates)[drawn].to(device)


def preference_rates(rates: Tensor, has_pair: Tensor, preference_dropout: str) -> Tensor:
    """Rates `(B,)` of the preference stage, at which policy and reference are comparable.

    From the rates as drawn for the warm-up: `"off"`: 0 for all; `"without pair"`: 0 where there is
    a preference, because the reference drops nothing; `"same masks"`: as drawn, for both networks.
    """
    if preference_dropout == "off":
        return torch.zeros_like(rates)
    if preference_dropout == "without pair":
        return rates.masked_fill(has_pair, 0)
    return rates
