"""Whether a network fits MAPO, tried with random input before the first epoch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from nnunetv2.utilities.helpers import empty_cache
from torch import Tensor, nn

from nnunetv2_mapo.guards.site_outputs import SiteOutputs, watch_sites
from nnunetv2_mapo.method.dropout import StochasticDropout
from nnunetv2_mapo.method.output_heads import find_heads
from nnunetv2_mapo.method.reference import build_reference
from nnunetv2_mapo.method.sampling import full_resolution
from nnunetv2_mapo.support.device import is_out_of_memory, seeded
from nnunetv2_mapo.support.table import join_names, list_some, name_blocks

_BLOCK = "and a block around it in dropout_include if its output holds the batch first"
RATE = 0.5  # of the sample with dropout: large, so that what it reaches is seen


class NetworkError(ValueError):
    """A network that MAPO cannot train; the message says why and what to do."""


def check_network(
    network: nn.Module,
    dropout: StochasticDropout,
    num_outputs: int,
    input_shape: Sequence[int],
    device: torch.device,
) -> list[str]:
    """Try a network and its dropout in five forward passes of at most two samples.

    Args:
        network: In evaluation mode, without deep supervision, not compiled.
        dropout: Its dropout, off.
        num_outputs: Number of segmentation heads.
        input_shape: `(channels, *patch)`.
        device: Where the network lies; its random state is afterwards as it was before.

    Returns:
        What a user should know, one line each.

    Raises:
        NetworkError: The network does not fit.
    """
    try:
        with (
            seeded("network check", device),
            torch.no_grad(),
            torch.autocast(device.type, enabled=device.type == "cuda"),
        ):
            images = torch.randn(2, *input_shape).to(device)
            return _Trial(network, dropout, num_outputs, images).run()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    # Not in the except clause, whose traceback holds what is to be freed.
    empty_cache(device)
    return ["the network was not checked: there is not enough memory for two samples and a copy"]


@dataclass
class _Trial:
    """The checks of one network; its fields are the arguments of `check_network`."""

    network: nn.Module
    dropout: StochasticDropout
    num_outputs: int
    images: Tensor  # two random ones, shape (2, channels, *patch)

    def run(self) -> list[str]:
        """Every check in the order in which their messages help most."""
        num_values = self.num_outputs * self.images[:, 0].numel()
        with watch_sites(self.dropout, num_values) as seen:
            plain = self._forward_first()
        self._refuse_shape(plain)
        if not plain.isfinite().all():
            return ["the network was not checked: random images make its output infinite or NaN"]
        _refuse_dropped_logits(plain, seen)
        notes = self._list_uncalled(seen)
        with watch_sites(self.dropout, num_values) as seen_of_one:
            self._forward(self.images[:1])
        _refuse_unbatched(seen, seen_of_one)
        noise = self._measure_noise(plain)
        if noise > 1e-2 * plain.abs().max():
            notes.append(
                "WARNING: in evaluation mode two forward passes of the network differ by up to "
                f"{noise:.3g}, as with a dropout of its own that ignores eval(). Candidates of "
                "rate 0 are then no plain predictions, and dropout cannot be checked further"
            )
            return notes
        notes += self._check_rates(plain, 10 * noise, seen)
        self._check_copy(plain)
        return notes

    def _forward_first(self) -> Any:
        try:
            return self._forward(self.images)
        except Exception as error:
            if isinstance(error, RuntimeError) and is_out_of_memory(error):
                raise
            num_inputs, *patch = self.images.shape[1:]
            message = (
                f"The network fails on images of shape {tuple(self.images.shape)}, which is "
                "(B, channels, *patch) as nnU-Net feeds it, with "
                f"{type(error).__name__}: {error}\n"
                "nnU-Net calls build_network_architecture(plans_manager, configuration_manager, "
                "num_input_channels, num_output_channels, enable_deep_supervision) with "
                f"num_input_channels = {num_inputs}, num_output_channels = {self.num_outputs} and "
                f"configuration_manager.patch_size = {patch}: make the network for these numbers. "
                "If it takes another patch size only, copy the plans file in the data set's folder "
                'in nnUNet_preprocessed to a new name, set "plans_name" to that name and '
                '"patch_size" of the configuration to that size in it, and train with -p and that '
                "name. Nothing has to be preprocessed again."
            )
            raise NetworkError(message) from error

    def _forward(self, images: Tensor, rates: Sequence[float] = ()) -> Any:
        if not rates:
            output = self.network(images)
        else:
            with self.dropout.at(torch.tensor(rates, device=images.device)):
                output = self.network(images)
        logits: Any = full_resolution(output)
        return logits.float() if isinstance(logits, Tensor) else logits

    def _refuse_shape(self, logits: Any) -> None:
        expected = (len(self.images), self.num_outputs, *self.images.shape[2:])
        if isinstance(logits, Tensor) and logits.shape == expected:
            return
        is_tensor = isinstance(logits, Tensor)
        what = f"shape {tuple(logits.shape)}" if is_tensor else f"type {type(logits).__name__}"
        message = (
            f"The network makes an output of {what} of images of shape {tuple(self.images.shape)}. "
            f"Logits of shape {expected} are needed, as the only output or as the first one of a "
            "list or tuple. Wrap the network accordingly in build_network_architecture."
        )
        raise NetworkError(message)

    def _list_uncalled(self, seen: dict[str, SiteOutputs]) -> list[str]:
        uncalled = [name for name, site in seen.items() if not site.num_rows]
        if len(uncalled) == len(seen):
            message = (
                f"No layer with dropout is called: {_list(uncalled, seen)}. The network uses their "
                "weights in another way. Name blocks that it does call in dropout_include of "
                "MAPOConfig."
            )
            raise NetworkError(message)
        called = [name for name in seen if name not in uncalled]
        blocks = _list(name_blocks(uncalled, called), called)
        note = f"no dropout in layers that the network never calls: {blocks}"
        return [note] if uncalled else []

    def _measure_noise(self, plain: Tensor) -> float:
        """How much a pass at rate 0 differs from one without dropout, or two such passes."""
        noise = (self._forward(self.images, (0.0, 0.0)) - plain).abs().max()
        if noise > 0:
            noise = torch.maximum(noise, (self._forward(self.images) - plain).abs().max())
        return float(noise)

    def _check_rates(
        self, plain: Tensor, tolerance: float, seen: dict[str, SiteOutputs]
    ) -> list[str]:
        """Dropout must change the sample that has a rate, and no other one."""
        dropped = self._forward(self.images, (0.0, RATE))
        first, second = (dropped - plain).abs().flatten(1).amax(1)
        # Kernels may round otherwise in each pass, more than two passes happened to show.
        rounding = max(tolerance, 1e-4 * float(plain.abs().max()))
        if first > rounding:
            other = torch.stack([self.images[0], -self.images[1]])
            if (self._forward(other)[0] - plain[0]).abs().max() <= rounding:
                raise NetworkError(_say_mixed(seen))
            return [
                "WARNING: the network mixes the samples of a batch in evaluation mode, as batch "
                "norm without running statistics does: candidates depend on each other"
            ]
        if second > tolerance:
            return []
        if (self._forward(self.images.flip(0)) - plain).abs().max() <= tolerance:
            return ["the output does not depend on the image yet: dropout could not be checked"]
        message = (
            f"Dropout after {len(self.dropout.sites)} layers does not change the output of the "
            "network: nothing that they make reaches it. Name blocks that do reach it in "
            "dropout_include of MAPOConfig."
        )
        raise NetworkError(message)

    def _check_copy(self, plain: Tensor) -> None:
        """The reference is a copy, which must not call the network; heads show what logits are."""
        try:
            copy = build_reference(self.network, self.network.state_dict())
        except (TypeError, ValueError, AttributeError) as error:
            message = (
                "The reference is a copy of the network, and copy.deepcopy fails with "
                f"{type(error).__name__}: {error}. Keep what cannot be copied out of the network, "
                "or give its class a __deepcopy__."
            )
            raise NetworkError(message) from error
        called: list[str] = []
        with ExitStack() as hooks:
            for name, module in self.network.named_modules():
                note = partial(called.append, name or type(module).__name__)
                hook = module.register_forward_pre_hook(lambda *_, note=note: note())
                hooks.callback(hook.remove)
            heads = find_heads(copy, self.num_outputs)
            for weight in {weight for head in heads for weight in head.parameters()}:
                weight.neg_()
            negated = full_resolution(copy(self.images)).float()
        if called:
            message = (
                f"A copy of the network still calls {list_some(called)} of the network itself, as "
                "through a lambda or nested function that holds it: the reference would follow "
                "the training. Call the layer in a method instead."
            )
            raise NetworkError(message)
        _refuse_probabilities(plain, negated)


def _refuse_probabilities(plain: Tensor, negated: Tensor) -> None:
    """Refuse what only a sigmoid or softmax makes; `negated` is of heads with negated weights."""
    is_share = plain.min() >= 0 and plain.max() <= 1 and plain.min() < plain.max()
    sums = plain.sum(1), plain + negated  # p(z) + p(-z) = 1 of a sigmoid
    if is_share and any((total - 1).abs().max() < 1e-2 for total in sums):
        message = (
            "The network returns probabilities: a sigmoid or softmax makes its output. nnU-Net's "
            "losses and MAPO need the logits before it: take it out of the network."
        )
        raise NetworkError(message)


def _refuse_dropped_logits(plain: Tensor, seen: dict[str, SiteOutputs]) -> None:
    names = [
        name
        for name, site in seen.items()
        if any(_have_same_values(output, plain) for output in site.candidates)
    ]
    if names:
        message = (
            f"{_list(names, seen)} makes the logits themselves: dropping them would only put noise "
            f"into the candidates. {_say_exclude(names, seen)}."
        )
        raise NetworkError(message)


def _refuse_unbatched(seen: dict[str, SiteOutputs], seen_of_one: dict[str, SiteOutputs]) -> None:
    names = [
        name
        for name, site in seen.items()
        if site.num_rows != [2 * num_rows for num_rows in seen_of_one[name].num_rows]
    ]
    if names:
        message = (
            f"The samples of a batch do not lie one after the other in the output of "
            f"{_list(names, seen)}: dropout of one sample would change another one. "
            f"{_say_exclude(names, seen)}, {_BLOCK}."
        )
        raise NetworkError(message)


def _say_mixed(seen: dict[str, SiteOutputs]) -> str:
    folding = [name for name, site in seen.items() if max(site.num_rows, default=0) > 2]
    return (
        "Dropout of one sample changes the output of another one: the samples of a batch do not "
        "lie one after the other in the output of a layer, likely of "
        f"{_list(folding or list(seen), seen)}. Name it in dropout_exclude of MAPOConfig, {_BLOCK}."
    )


def _say_exclude(names: Sequence[str], all_names: Iterable[str]) -> str:
    patterns = ", ".join(map(repr, join_names(names, all_names)))
    return f"Set dropout_exclude=({patterns},) in MAPOConfig"


def _list(names: Sequence[str], all_names: Iterable[str]) -> str:
    return list_some(join_names(names, all_names))


def _have_same_values(output: Tensor, logits: Tensor) -> bool:
    """Whether two tensors hold the same values in any order; constant ones tell nothing."""
    one, other = output.float().flatten(), logits.flatten()
    if one.min() != other.min() or one.max() != other.max() or one.min() == one.max():
        return False
    return torch.equal(one.sort().values, other.sort().values)
