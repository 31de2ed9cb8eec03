"""Where dropout sits in a network: which of its layers are dropped, and why the others are not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn

from nnunetv2_mapo.support.table import format_table

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED_CONVOLUTIONS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_KINDS: dict[tuple[type[nn.Module], ...], str] = {
    CONVOLUTIONS: "convolution",
    TRANSPOSED_CONVOLUTIONS: "transposed convolution",
    (nn.Linear,): "linear layer",
    (nn.MultiheadAttention,): "attention",
}
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
    network: nn.Module, num_outputs: int, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> DropoutSites:
    """Layers whose output is dropped: every convolution and linear layer but the output heads.

    A head is a layer that maps to the `num_outputs` segmentation heads voxel by voxel: a 1x1
    convolution, a linear layer, or a transposed convolution without overlap; where there is none,
    the last layer with that many outputs. In nnU-Net's blocks the sites are between convolution
    and norm, where its own `dropout_op` sits. An attention module of torch is a site as a whole,
    because it uses the weights of its last layer without calling it.

    Patterns such as `"blocks.*.mixer"`, in which `*` stands for any text, dots too, include modules
    of any type, and exclude modules and all their parts, which is stronger. Of several names of a
    module the first one counts, another one where a pattern fits no first name.

    Raises:
        ValueError: A pattern fits no module.
    """
    names: dict[nn.Module, list[str]] = {}
    for name, module in network.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    included = _find_matches(include, names, with_parts=False)
    excluded = _find_matches(exclude, names, with_parts=True)
    heads = find_heads(names, num_outputs)
    around = {
        inner: its_names[0]
        for module, its_names in names.items()
        if isinstance(module, nn.MultiheadAttention)
        for inner in [*module.modules()][1:]
    }
    sequence_first = _find_sequence_first(network)
    layers = []
    for module, its_names in names.items():
        kind = _kind(module)
        if not kind and module not in included:
            continue
        if module in excluded:
            is_site, reason = False, f"excluded by {excluded[module]!r}"
        elif module in included:
            is_site, reason = True, f"included by {included[module]!r}"
        elif module in around:
            is_site, reason = False, f"inside attention {around[module]}"
        elif module in heads:
            is_site, reason = False, f"output head: {heads[module]} to {num_outputs} heads"
        else:
            is_site, reason = True, kind
        layers.append(Layer(its_names[0], module, is_site, reason, int(module in sequence_first)))
    return DropoutSites(layers)


def find_heads(modules: Iterable[nn.Module], num_outputs: int) -> dict[nn.Module, str]:
    """Output heads among the modules of a network, and what makes each of them one."""
    fitting = [module for module in modules if _num_outputs(module) == num_outputs]
    heads = {module: what for module in fitting if (what := _describe_voxelwise(module))}
    if fitting and not heads:
        heads = {fitting[-1]: f"last {_kind(fitting[-1])}"}
    return heads


def _kind(module: nn.Module) -> str:
    """What sort of layer a module is; empty for all that is not dropped of itself."""
    return next((kind for types, kind in _KINDS.items() if isinstance(module, types)), "")


def _num_outputs(module: nn.Module) -> int | None:
    if isinstance(module, nn.Linear):
        return module.out_features
    if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED_CONVOLUTIONS)):
        return module.out_channels
    return None


def _describe_voxelwise(module: nn.Module) -> str:
    """Name of a layer that works voxel by voxel; empty for one that does not."""
    if isinstance(module, TRANSPOSED_CONVOLUTIONS):
        is_voxelwise = module.kernel_size == module.stride
        return "transposed convolution without overlap" if is_voxelwise else ""
    if isinstance(module, CONVOLUTIONS):
        size = "x".join(map(str, module.kernel_size))
        return f"{size} convolution" if set(module.kernel_size) == {1} else ""
    return "linear layer"


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
            raise ValueError(message)
        for module in fitting:
            found.setdefault(module, pattern)
    return found
