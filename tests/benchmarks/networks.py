"""The networks of the MAPO paper from their public repositories, unchanged: does MAPO fit them?

FOLDER holds clones under the names of the column "repository"; one that is missing is a row that
says so. Some need `pip install timm einops`. Prints a Markdown table and the commits.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import inspect
import io
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import Tensor, nn
from torch.nn import functional

from nnunetv2_mapo import MAPOConfig
from nnunetv2_mapo.guards.network import check_network
from nnunetv2_mapo.method.dropout import StochasticDropout
from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.method.loss import MAPOLoss, Pairs, find_disagreement
from nnunetv2_mapo.method.reference import build_reference, reference_margins
from nnunetv2_mapo.method.sampling import full_resolution
from nnunetv2_mapo.zoo.networks import network_builder

NUM_OUTPUTS = 3
CPU = torch.device("cpu")
HEADER = (
    "network", "repository", "patch", "sites of all layers", "lines that build it",
    "rate 0 is the plain network", "check passes", "preference step", "notes",
)  # fmt: skip
Load = Callable[[str], ModuleType]  # imports a module of the repository


# How a user would build them: the lines are those of `build_network_architecture` ----------------


def unet(_load: Load) -> nn.Module:
    features, conv = (32, 64, 128, 256, 512), nn.Conv2d
    return PlainConvUNet(
        1, 5, features, conv, 3, (1, 2, 2, 2, 2), 2, NUM_OUTPUTS, 2, norm_op=nn.InstanceNorm2d,
        nonlin=nn.LeakyReLU,
    )  # fmt: skip


def rolling_unet(load: Load) -> nn.Module:
    return load("archs").Rolling_Unet_S(NUM_OUTPUTS, input_channels=1, img_size=64)


def u2net_one_output(load: Load) -> nn.Module:
    class U2Net(load("model.u2net").U2NET):
        def forward(self, x: Tensor) -> Tensor:
            return torch.logit(super().forward(x)[0].float(), eps=1e-6)

    return U2Net(1, NUM_OUTPUTS)


def u2net_seven_outputs(load: Load) -> nn.Module:
    class U2Net(load("model.u2net").U2NET):
        def forward(self, x: Tensor) -> list[Tensor]:
            return [torch.logit(each.float(), eps=1e-6) for each in super().forward(x)]

    return U2Net(1, NUM_OUTPUTS)


def swin_unet(load: Load) -> nn.Module:
    module = load("networks.swin_transformer_unet_skip_expand_decoder_sys")
    return module.SwinTransformerSys(img_size=224, in_chans=1, num_classes=NUM_OUTPUTS)


def missformer(load: Load) -> nn.Module:
    return load("networks.MISSFormer").MISSFormer(num_classes=NUM_OUTPUTS)


def h2former(load: Load) -> nn.Module:
    module = load("H2Former")

    class H2Former(module.Res34_Swin_MS):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.repeat(1, 4, 1, 1))

    return H2Former(224, module.BasicBlock, [3, 4, 6, 3], NUM_OUTPUTS)


def trans_att_unet(load: Load) -> nn.Module:
    return load("model.TransAttUnet").UNet_Attention_Transformer_Multiscale(1, NUM_OUTPUTS)


def monai(name: str, _load: Load) -> nn.Module:
    """The network of this package's trainer, for plans with a small patch."""
    kernel_sizes, strides = [[3] * 3] * 4, [[1] * 3, *[[2] * 3] * 3]
    planned = {"features_per_stage": [32, 64, 128, 256], "kernel_sizes": kernel_sizes}
    plan = SimpleNamespace(
        patch_size=[32] * 3, network_arch_init_kwargs={**planned, "strides": strides}
    )
    return network_builder(name)(SimpleNamespace(plans_name="nnUNetPlans"), plan, 1, NUM_OUTPUTS)


def dformer_one_output(load: Load) -> nn.Module:
    network = load("model").SegNetwork(NUM_OUTPUTS, deep_supervision=False)
    for final in network.final:
        final[1] = nn.Conv3d(final[1].in_channels, NUM_OUTPUTS, 1, bias=False)
    return network


def dformer_three_outputs(load: Load) -> nn.Module:
    network = load("model").SegNetwork(NUM_OUTPUTS, deep_supervision=True)
    for final in network.final:
        final[1] = nn.Conv3d(final[1].in_channels, NUM_OUTPUTS, 1, bias=False)
    return network


class Recipe(NamedTuple):
    """How a network is built and fed."""

    network: str
    repository: str  # name of the clone in FOLDER, or of an installed package
    build: Callable[[Load], nn.Module]
    patch: tuple[int, ...]
    path: str = ""  # folder in the repository that its modules are imported from
    note: str = ""


PACKAGES = ("nnunetv2", "monai")
FLAT, BOX, DEEP = (64, 64), (32, 32, 32), (32, 64, 64)
OURS, CLASSES = "a trainer of this package", "for 14 classes"
RECIPES = (
    Recipe("U-Net", "nnunetv2", unet, FLAT, note="nnU-Net's own, with 4 heads"),
    Recipe("Rolling-Unet S", "Rolling-Unet", rolling_unet, FLAT),
    Recipe("U²-Net, one output", "U-2-Net", u2net_one_output, FLAT, note="sigmoids undone"),
    Recipe("U²-Net, 7 outputs", "U-2-Net", u2net_seven_outputs, FLAT, note="sigmoids undone"),
    Recipe("Swin-Unet", "Swin-Unet", swin_unet, (224, 224), note="for 224 pixels"),
    Recipe("MISSFormer", "MISSFormer", missformer, (224, 224), note="for 224 pixels, 3 channels"),
    Recipe("H2Former", "H2Former", h2former, (224, 224), "models", "for 4 channels"),
    Recipe("TransAttUnet", "TransAttUnet", trans_att_unet, FLAT),
    Recipe("VNet", "monai", partial(monai, "VNet"), BOX, note=OURS),
    Recipe("DynUNet", "monai", partial(monai, "DynUNet"), BOX, note=OURS),
    Recipe("UNETR", "monai", partial(monai, "UNETR"), BOX, note=OURS),
    Recipe("D-Former, one output", "D-Former", dformer_one_output, DEEP, note=CLASSES),
    Recipe("D-Former, 3 outputs", "D-Former", dformer_three_outputs, DEEP, note=CLASSES),
)


# What is tried ------------------------------------------------------------------------------------


class Supervised(nn.Module):
    """Cross-entropy of the first output, in the place of nnU-Net's loss."""

    def forward(self, output: Any, target: Tensor) -> Tensor:
        return functional.cross_entropy(full_resolution(output), target)


def try_network(recipe: Recipe, network: nn.Module) -> list[str]:
    """Cells of a row after the lines."""
    torch.manual_seed(0)
    shape = (1, *recipe.patch)
    images, network = torch.randn(2, *shape), network.eval()
    dropout = StochasticDropout(network, NUM_OUTPUTS, images=images[:1])
    sites = dropout.sites
    traced = [each.name for each in sites.layers if "returned" in each.reason]
    notes = [f"heads by where their output goes: {', '.join(traced)}"] if traced else []
    with torch.no_grad():
        plain = full_resolution(network(images))
        with dropout.at(torch.zeros(2)):
            is_same = torch.equal(full_resolution(network(images)), plain)
    notes += check_network(network, dropout, NUM_OUTPUTS, shape, CPU)
    works = take_preference_step(network, images)
    return [f"{len(sites)}/{len(sites.layers)}", yes(is_same), "yes", yes(works), *notes]


def take_preference_step(network: nn.Module, images: Tensor) -> bool:
    """Whether a step on planted maps, chosen and rejected, moves the weights as it should."""
    reference = build_reference(network, copy.deepcopy(network.state_dict()))
    truth = torch.randint(NUM_OUTPUTS, (len(images), *images.shape[2:]))
    rejected = torch.where(torch.rand(truth.shape) < 0.1, (truth + 1) % NUM_OUTPUTS, truth)
    config, labels = MAPOConfig(), Labels(NUM_OUTPUTS)
    disagreement = find_disagreement(truth, rejected, labels, config.likelihood)
    pairs = Pairs(disagreement, reference_margins(reference, images, disagreement))
    objective = MAPOLoss(config)
    supervised = objective.attach(Supervised())
    with objective.of(pairs):
        supervised(network.train()(images), truth).backward()
    gradients = [weight.grad for weight in network.parameters() if weight.grad is not None]
    is_finite = all(bool(gradient.isfinite().all()) for gradient in gradients)
    return is_finite and any(bool(gradient.any()) for gradient in gradients)


def yes(holds: bool) -> str:
    return "yes" if holds else "**no**"


# The table ----------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--only", help="networks whose name holds this text")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # of the repositories
    print_row(HEADER)
    print_row(["---"] * len(HEADER))
    chosen = [each for each in RECIPES if not arguments.only or arguments.only in each.network]
    for recipe in chosen:
        print_row(make_row(recipe, arguments.folder))
    folders = {each.repository: arguments.folder / each.repository for each in chosen}
    commits = [f"{name} {find_commit(at)}" for name, at in folders.items() if at.is_dir()]
    used = [f"{name} {version(name)}" for name in folders if name in PACKAGES]
    print(f"\nOf {', '.join([*used, *commits])}.")


def make_row(recipe: Recipe, folder: Path) -> list[str]:
    """Cells of a network's row; what is missing or fails is said in the last one."""
    patch = " x ".join(map(str, recipe.patch))
    start = [recipe.network, recipe.repository, patch]
    clone = folder / recipe.repository
    if recipe.repository not in PACKAGES and not clone.is_dir():
        return [*start, *["-"] * 5, f"not tried: there is no {recipe.repository} in the folder"]
    try:
        with importing_from(clone / recipe.path), contextlib.redirect_stdout(io.StringIO()):
            network = recipe.build(importlib.import_module)
            sites, is_same, passes, works, *notes = try_network(recipe, network)
    except Exception as error:  # the table says of every network what happened
        what = " ".join(f"{type(error).__name__}: {error}".split())
        return [*start, *["-"] * 5, f"**failed**: {what.replace('|', '/')[:300]}"]
    lines = "0" if recipe.repository in PACKAGES else str(count_lines(recipe.build))
    remarks = "; ".join([recipe.note, *notes] if recipe.note else notes)
    return [*start, sites, lines, is_same, passes, works, remarks]


def print_row(cells: Any) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def count_lines(build: Callable[[Load], nn.Module]) -> int:
    """Lines of a function's body without empty ones."""
    _, *body = textwrap.dedent(inspect.getsource(build)).splitlines()
    return sum(bool(line.strip()) for line in body)


def find_commit(repository: Path) -> str:
    command = ["git", "-C", str(repository), "rev-parse", "--short=10", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@contextlib.contextmanager
def importing_from(folder: Path) -> Iterator[None]:
    """Import modules of a folder inside a `with` block, and forget them afterwards.

    Several repositories have modules of the same names, some also of this file's.
    """
    path, modules = list(sys.path), set(sys.modules)
    here = Path(__file__).parent.resolve()
    sys.path[:] = [str(folder), *(each for each in path if Path(each).resolve() != here)]
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - modules:
            places = [getattr(sys.modules[name], "__file__", None) or ""]
            places += getattr(sys.modules[name], "__path__", [])
            if any(str(place).startswith(str(folder)) for place in places):
                del sys.modules[name]


if __name__ == "__main__":
    main()
