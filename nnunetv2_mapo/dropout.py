"""Dropout inside any network through forward hooks: another rate for each sample of the batch.

Hooks leave the modules and the state dict as they are: a stock checkpoint loads into a network
with dropout and back, and prediction runs the plain network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED_CONVOLUTIONS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def find_dropout_sites(network: nn.Module, num_outputs: int) -> dict[str, nn.Module]:
    """Modules whose output is dropped: every convolution and linear layer but the output heads.

    A head is a layer that maps to the `num_outputs` segmentation heads voxel by voxel: a 1x1
    convolution, a linear layer, or a transposed convolution without overlap. In nnU-Net's blocks
    the sites are between convolution and norm, where its own `dropout_op` sits. An attention
    module is a site as a whole, because it uses the weights of its last layer without calling it.

    Args:
        network: Any network, not compiled.
        num_outputs: Number of segmentation heads (classes or regions).

    Returns:
        The sites by name, each module once, in the order of registration.
    """
    inside_attention = {
        id(inner)
        for module in network.modules()
        if isinstance(module, nn.MultiheadAttention)
        for inner in module.modules()
        if inner is not module
    }
    return {
        name: module
        for name, module in network.named_modules()
        if id(module) not in inside_attention and _is_site(module, num_outputs)
    }


def _is_site(module: nn.Module, num_outputs: int) -> bool:
    if isinstance(module, nn.MultiheadAttention):
        return True
    if isinstance(module, nn.Linear):
        return module.out_features != num_outputs
    if isinstance(module, TRANSPOSED_CONVOLUTIONS):
        return module.out_channels != num_outputs or module.kernel_size != module.stride
    if isinstance(module, CONVOLUTIONS):
        return module.out_channels != num_outputs or set(module.kernel_size) != {1}
    return False


class StochasticDropout:
    """Element or channel dropout after every dropout site of a network; off until switched on.

    Args:
        network: The network to hook into, not compiled and not wrapped.
        num_outputs: Number of its segmentation heads, see `find_dropout_sites`.
        granularity: `"element"` (`nn.Dropout`) or `"channel"` (`nn.Dropout3d`).

    Raises:
        ValueError: The network has no layer to drop out.
    """

    def __init__(self, network: nn.Module, num_outputs: int, granularity: str = "element") -> None:
        self.sites = find_dropout_sites(network, num_outputs)
        if not self.sites:
            message = (
                f"{type(network).__name__} has no convolution or linear layer besides its output "
                "heads: MAPO finds its candidates through dropout and needs at least one."
            )
            raise ValueError(message)
        self.granularity = granularity
        self.active = False
        # A tensor, so that torch.compile sees an input and does not compile anew for each rate.
        self.rates = torch.zeros(1)
        self._handles = [site.register_forward_hook(self) for site in self.sites.values()]

    @contextmanager
    def at(self, rates: Tensor) -> Iterator[None]:
        """Switch dropout on inside a `with` block, also in evaluation mode.

        Args:
            rates: Dropout rate of each sample of the batch, each in [0, 1), shape `(B,)`, on the
                network's device.
        """
        self.rates, self.active = rates, True
        try:
            yield
        finally:
            self.active = False

    def remove(self) -> None:
        """Take every hook off the network."""
        for handle in self._handles:
            handle.remove()

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Forward hook: drop the output of one site (of attention: its features)."""
        if not self.active:
            return output
        if not isinstance(module, nn.MultiheadAttention):
            return self._drop(output, channels_last=isinstance(module, nn.Linear))
        features, weights = output
        if module.batch_first:
            return self._drop(features, channels_last=True), weights
        return self._drop(features.transpose(0, 1), channels_last=True).transpose(0, 1), weights

    def _drop(self, features: Tensor, *, channels_last: bool) -> Tensor:
        # Attention in windows folds several windows of a sample into the batch.
        rates = self.rates.repeat_interleave(features.shape[0] // self.rates.shape[0])
        shape = list(features.shape)
        if self.granularity == "channel":
            channels = features.ndim - 1 if channels_last else 1
            shape = [size if axis in (0, channels) else 1 for axis, size in enumerate(shape)]
        multiplier = dropout_multiplier(rates, shape).to(features.dtype)
        # In place: neither a convolution nor a linear layer needs its output for its gradient.
        return features.mul_(multiplier)


def dropout_multiplier(rates: Tensor, shape: Sequence[int]) -> Tensor:
    """Random factors of inverted dropout: 0 with probability p, else 1 / (1 - p).

    Args:
        rates: Dropout rate p of each sample, shape `(B,)`.
        shape: Shape of the result, the batch first.

    Returns:
        Independent factors, float32; exactly 1 everywhere in samples of rate 0.
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
    words = torch.empty((num_elements + 3) // 4, dtype=torch.int64, device=rates.device)
    noise = words.random_(-(2**63), None).view(torch.int16)[:num_elements].view(shape)
    threshold = (rates * 2**16 - 2**15).round().clamp(max=2**15 - 1).to(torch.int16)
    # Straight to float: a mask in between is two more passes over memory.
    return torch.ge(noise, threshold, out=torch.empty(shape, device=rates.device))


def sample_rates(rates: Sequence[float], num_samples: int, device: torch.device) -> Tensor:
    """Rate of each training sample, drawn from the candidate rates: the network knows them all.

    Args:
        rates: Candidate rates.
        num_samples: Batch size B.
        device: Where the result lies.

    Returns:
        Shape `(B,)`, float32.
    """
    drawn = torch.randint(len(rates), (num_samples,))
    return torch.tensor(rates)[drawn].to(device)
