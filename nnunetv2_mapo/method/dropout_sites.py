"""Where dropout sits in a network: which of its layers are dropped, and why the others are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import Tensor, nn

from nnunetv2_mapo.method.output_heads import find_heads, layer_kind
from nnunetv2_mapo.support.errors import InputError
from nnunetv2_mapo.support.table import format_table

_TRANSFORMERS = (
    nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer,
    nn.TransformerEncoder, nn.TransformerDecoder, nn.Transformer,
)  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """A layer of a network and whether its output is dropped.

    The batch lies on axis 1 of what torch's own attention and transformer layers put out without
    `batch_first`, else on axis 0.
    """

    name: str  # dotted, the first one if the module is registered under several
    module: nn.Module
    is_site: bool  # whether its output is dropped
    reason: str  # why, or why not
    batch_axis: int


class DropoutSites(dict[str, nn.Module]):
    """The sites of a network by name; its text is the table of all layers with the reasons.

    `layers` are every convolution, linear layer and attention module, and what a pattern includes,
    each once, in the order of registration; `sites` are those whose output is dropped.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = tuple(layers)
        self.sites = tuple(layer for layer in layers if layer.is_site)
        super().__init__((layer.name, layer.module) for layer in self.sites)

    def __str__(self) -> str:
        rows = [
            (each.name, type(each.module).__name__, "yes" if each.is_site else "no", each.reason)
            for each in self.layers
        ]
        return format_table(("layer", "type", "dropout", "reason"), rows)


def find_dropout_sites(
    network: nn.Module,
    num_outputs: int,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    images: Tensor | None = None,
) -> DropoutSites:
    """Layers whose output is dropped: every convolution and linear layer but the output heads.

    A head is a layer that maps to the `num_outputs` segmentation heads voxel by voxel: a 1x1
    convolution, a linear layer, or a transposed convolution without overlap. With an example of the
    images, shape `(B, channels, *patch)`, on the network's device, so is every layer with as many
    outputs that is returned, at most resized, put together, added up or activated: that takes a
    forward pass where a network has such layers, in which its own dropout is off. Where there is no
    head, it is the last layer with that many outputs. In nnU-Net's blocks the sites are between
    convolution and norm, where its own `dropout_op` sits. An attention module of torch is a site as
    a whole, because it uses the weights of its last layer without calling it.

    Patterns such as `"blocks.*.mixer"`, in which `*` stands for any text, dots too, include modules
    of any type, and exclude modules and all their parts, which is stronger. Of several names of a
    module the first one counts, another one where a pattern fits no first name.

    Raises:
        InputError: A pattern fits no module.
    """
    names: dict[nn.Module, list[str]] = {}
    for name, module in network.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    included = _find_matches(include, names, with_parts=False)
    excluded = _find_matches(exclude, names, with_parts=True)
    heads = find_heads(network, num_outputs, images)
    around = {
        inner: its_names[0]
        for module, its_names in names.items()
        if isinstance(module, nn.MultiheadAttention)
        for inner in [*module.modules()][1:]
    }
    sequence_first = _find_sequence_first(network)
    layers = []
    for module, its_names in names.items():
        kind = layer_kind(module)
        if not kind and module not in included:
            continue
        if module in excluded:
            is_site, reason = False, f"excluded by {excluded[module]!r}"
        elif module in included:
            is_site, reason = True, f"included by {included[module]!r}"
        elif module in around:
            is_site, reason = False, f"inside attention {around[module]}"
        elif module in heads:
            is_site, reason = False, f"output head: {heads[module]}"
        else:
            is_site, reason = True, kind
        layers.append(Layer(its_names[0], module, is_site, reason, int(module in sequence_first)))
    return DropoutSites(layers)


def _find_sequence_first(network: nn.Module) -> set[nn.Module]:
    """Torch's own transformers, and all in them, that hold the batch on axis 1."""
    found = set()
    for module in network.modules():
        parts = list(module.modules()) if isinstance(module, _TRANSFORMERS) else []
        if any(isinstance(part, nn.MultiheadAttention) and not part.batch_first for part in parts):
            found.update(parts)
    return found


def _find_matches(
    patterns: Sequence[str], names: Mapping[nn.Module, Sequence[str]], *, with_parts: bool
) -> dict[nn.Module, str]:
    """Modules that a pattern fits, and which one does."""

    def fits(name: str, pattern: str) -> bool:
        places = name.split(".") if name else []
        first = 1 if with_parts else len(places)  # the whole network has no name
        return any(
            fnmatchcase(".".join(places[:end]), pattern)
            for end in range(max(first, 1), len(places) + 1)
        )

    found: dict[nn.Module, str] = {}
    for pattern in patterns:
        # nnU-Net's encoder is also a part of its decoder: a second name counts only where no first
        # one fits.
        for num_names in (1, None):
            fitting = [
                module
                for module, its_names in names.items()
                if any(fits(name, pattern) for name in its_names[:num_names])
            ]
            if fitting:
                break
        else:
            every = [name for each in names.values() for name in each]
            close = get_close_matches(pattern, every, cutoff=0.4)
            advice = f" Did you mean {', '.join(map(repr, close))}?" if close else ""
            message = (
                f"dropout pattern {pattern!r} fits no module of the network.{advice} "
                "print(find_dropout_sites(network, num_outputs)) shows the names of its layers."
            )
            raise InputError(message)
        for module in fitting:
            found.setdefault(module, pattern)
    return found
