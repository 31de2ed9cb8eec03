"""Output heads of a network: the layers that make its logits, which are never dropped."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED_CONVOLUTIONS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_KINDS: dict[tuple[type[nn.Module], ...], str] = {
    CONVOLUTIONS: "convolution",
    TRANSPOSED_CONVOLUTIONS: "transposed convolution",
    (nn.Linear,): "linear layer",
    (nn.MultiheadAttention,): "attention",
}
# By autograd's names without "Backward0"; resizing is all that begins with Upsample.
_MOVES = {
    "Add", "Alias", "AsStrided", "AvgPool2D", "AvgPool3D", "Cat", "Clone", "Copy", "Div", "Expand",
    "Flip", "Index", "Mean", "Permute", "PixelShuffle", "ReshapeAlias", "Select", "Slice", "Split",
    "SplitWithSizes", "Squeeze", "Stack", "Sum", "ToCopy", "Transpose", "Unbind", "UnsafeView",
    "Unsqueeze", "View",
}  # fmt: skip
_ACTIVATIONS = {
    "Clamp", "ClampMin", "Elu", "Gelu", "Hardtanh", "LeakyRelu", "Log", "LogSigmoid", "LogSoftmax",
    "Logit", "Relu", "Sigmoid", "Softmax", "Softplus", "Tanh",
}  # fmt: skip


def layer_kind(module: nn.Module) -> str:
    """What sort of layer a module is; empty for all that is not dropped of itself."""
    return next((kind for types, kind in _KINDS.items() if isinstance(module, types)), "")


def find_heads(
    network: nn.Module, num_outputs: int, images: Tensor | None = None
) -> dict[nn.Module, str]:
    """Output heads among the layers of a network, and what makes each of them one.

    They are layers with `num_outputs` outputs: those that work voxel by voxel, and those that an
    example of the images, shape `(B, channels, *patch)`, shows to be returned, at most resized,
    put together, added up or activated. Where there is neither, it is the last one.

    The network runs only if an example is given and other layers have so many outputs: once, in
    evaluation mode. If that fails, the layers alone decide.
    """
    fitting = [module for module in network.modules() if _num_outputs(module) == num_outputs]
    to = f"to {num_outputs} heads"
    heads = {module: f"{what} {to}" for module in fitting if (what := _describe_voxelwise(module))}
    if images is not None and len(fitting) > max(1, len(heads)):
        heads = {**_find_returned(network, fitting, images), **heads}
    if fitting and not heads:
        heads = {fitting[-1]: f"last {layer_kind(fitting[-1])} {to}"}
    return heads


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


def _find_returned(
    network: nn.Module, layers: list[nn.Module], images: Tensor
) -> dict[nn.Module, str]:
    """Those of the layers whose output is returned; none if the network fails on the images."""
    called: dict[Any, tuple[nn.Module, list[Any]]] = {}  # by the graph's node of what it puts out

    def note(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.grad_fn is not None:
            called[output.grad_fn] = module, _nodes(args) if _describe_voxelwise(module) else []

    with ExitStack() as restore:
        for module in network.modules():
            restore.callback(setattr, module, "training", module.training)
        for layer in layers:
            restore.callback(layer.register_forward_hook(note).remove)
        restore.enter_context(torch.enable_grad())
        restore.enter_context(
            torch.autocast(images.device.type, enabled=images.device.type == "cuda")
        )
        try:  # of a copy, so that the first layer may work in place
            returned = _nodes(network.eval()(images.detach().requires_grad_().clone()))
        except Exception:  # the network's own; the check before the first epoch says what is wrong
            return {}
    found = {}
    for node in _walk_back(returned, {node: inputs for node, (_, inputs) in called.items()}):
        way = "as it is" if node in returned else "through resizing, fusion or activation"
        found[called[node][0]] = f"returned {way}"
    return found


def _walk_back(returned: list[Any], called: dict[Any, list[Any]]) -> Iterator[Any]:
    """Nodes of `called` that what is returned comes from; each goes on with what it fuses."""
    path, seen = [(node, True) for node in returned], set()
    while path:
        node, is_output = step = path.pop()
        if step in seen:
            continue
        seen.add(step)
        name = re.sub(r"Backwards?\d*$", "", node.name())
        if node in called:
            yield node
            path += [(before, False) for before in called[node]]  # activated, they were hidden
        elif name in _MOVES or name.startswith("Upsample") or (is_output and name in _ACTIVATIONS):
            path += [(before, is_output) for before, _ in node.next_functions if before is not None]


def _nodes(tree: Any) -> list[Any]:
    """Nodes of autograd's graph that the tensors of nested lists, tuples and dicts come from."""
    return [
        part.grad_fn
        for part in tree_leaves(tree)
        if isinstance(part, Tensor) and part.grad_fn is not None
    ]
