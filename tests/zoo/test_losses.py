"""Each loss is written out here a second time from its definition, voxel by voxel, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.training.loss.robust_ce_loss import RobustCrossEntropyLoss
from scipy.ndimage import distance_transform_edt
from torch import Tensor, nn
from torch.nn import functional

from nnunetv2_mapo.support.errors import InputError
from nnunetv2_mapo.zoo.losses import (
    DiceFocalLoss,
    FocalLoss,
    HausdorffLoss,
    LovaszLoss,
    TargetFormat,
    lovasz_jaccard,
    replace_loss,
)

CLASSES, REGIONS = TargetFormat(), TargetFormat(has_regions=True)
FORMATS = {"classes": CLASSES, "regions": REGIONS}
SPARSE = {
    "classes": TargetFormat(ignore_label=3),
    "regions": TargetFormat(has_regions=True, ignore_label=3),
}
SHAPES = {"2D": (7, 6), "3D": (4, 5, 6)}


def make_stock(targets: TargetFormat) -> nn.Module:
    """nnU-Net's default loss, as its trainer makes it."""
    dice = {"batch_dice": False, "smooth": 1e-5, "do_bg": targets.has_regions, "ddp": False}
    dice_class = MemoryEfficientSoftDiceLoss
    if targets.has_regions:
        use_ignore_label = targets.ignore_label is not None
        return DC_and_BCE_loss({}, dice, use_ignore_label=use_ignore_label, dice_class=dice_class)
    return DC_and_CE_loss(dice, {}, ignore_label=targets.ignore_label, dice_class=dice_class)


LOSSES = {
    "focal": FocalLoss,
    "dice focal": lambda targets: DiceFocalLoss(make_stock(targets).dc, targets),
    "lovasz": lambda targets: LovaszLoss(targets, batch_dice=False),
    "lovasz of the batch": lambda targets: LovaszLoss(targets, batch_dice=True),
    "hausdorff": lambda targets: HausdorffLoss(make_stock(targets), targets),
}
each_loss = pytest.mark.parametrize("name", LOSSES)
each_loss_that_ignores = pytest.mark.parametrize("name", [n for n in LOSSES if n != "hausdorff"])
each_kind = pytest.mark.parametrize("kind", FORMATS)
each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def make_batch(kind: str, shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits of two samples with three heads, and a target in nnU-Net's form."""
    rng = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, 3, *shape, generator=rng)
    if kind == "regions":
        return logits, torch.rand(2, 3, *shape, generator=rng) < 0.4
    return logits, torch.randint(0, 3, (2, 1, *shape), generator=rng).float()


def add_ignored(target: Tensor, kind: str, is_ignored: Tensor) -> Tensor:
    """The target with ignored voxels, given as a mask of shape `(B, 1, *spatial)`."""
    if kind == "regions":
        return torch.cat([target & ~is_ignored, is_ignored], 1)
    return target.masked_fill(is_ignored, 3.0)


# Values -------------------------------------------------------------------------------------------


def test_focal_loss_of_classes_by_hand():
    # p of the right class: 0.5 and 0.9; -(1 - p)^2 ln p
    logits = torch.tensor([[[[0.0, 0.0]], [[0.0, math.log(9)]]]])
    loss = FocalLoss(CLASSES)(logits, torch.tensor([[[[0.0, 1.0]]]]))
    expected = (0.25 * math.log(2) + 0.01 * -math.log(0.9)) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_focal_loss_of_regions_by_hand():
    # one voxel, two heads: sigmoid 0.8 where it should be on, 0.5 where it should be off
    logits = torch.tensor([math.log(4), 0.0]).view(1, 2, 1, 1)
    loss = FocalLoss(REGIONS)(logits, torch.tensor([True, False]).view(1, 2, 1, 1))
    expected = (0.04 * -math.log(0.8) + 0.25 * math.log(2)) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-6)


@each_shape
def test_focal_loss_is_weighted_cross_entropy(shape):
    logits, target = make_batch("classes", shape)
    cross_entropy = functional.cross_entropy(logits.double(), target[:, 0].long(), reduction="none")
    expected = ((1 - (-cross_entropy).exp()) ** 2 * cross_entropy).mean()
    assert FocalLoss(CLASSES)(logits, target).item() == pytest.approx(expected.item(), rel=1e-5)


@each_shape
@each_kind
def test_dice_focal_loss_is_the_sum_of_nnunets_dice_and_focal(kind, shape):
    targets, (logits, target) = FORMATS[kind], make_batch(kind, shape)
    dice = make_stock(targets).dc
    expected = dice(logits, target) + FocalLoss(targets)(logits, target)
    torch.testing.assert_close(DiceFocalLoss(dice, targets)(logits, target), expected)


def test_lovasz_loss_by_hand():
    # One sample, three voxels of the classes 1, 1, 0 with p(1) = 0.8, 0.1, 0.6.
    # Class 1: errors .9 (fg), .6 (bg), .2 (fg): .9 * 1/2 + .6 * 1/6 + .2 * 1/3 (see test_lovasz).
    # Class 0: errors .9 (bg), .6 (fg), .2 (bg), foreground 1 voxel. Jaccard loss 1/2, 1, 1:
    # .9 * 1/2 + .6 * 1/2.
    p = torch.tensor([0.8, 0.1, 0.6])
    logits = torch.stack([(1 - p).log(), p.log()]).view(1, 2, 1, 3)
    loss = LovaszLoss(CLASSES, batch_dice=False)(logits, torch.tensor([[[[1.0, 1.0, 0.0]]]]))
    expected = ((0.45 + 0.1 + 0.2 / 3) + (0.45 + 0.3)) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-6)


@each_kind
def test_lovasz_loss_of_the_batch_takes_all_samples_as_one(kind):
    targets, (logits, target) = FORMATS[kind], make_batch(kind, (4, 6))
    joined = torch.cat(tuple(logits), -1)[None], torch.cat(tuple(target), -1)[None]
    expected = LovaszLoss(targets, batch_dice=False)(*joined)
    torch.testing.assert_close(LovaszLoss(targets, batch_dice=True)(logits, target), expected)
    assert not torch.isclose(LovaszLoss(targets, batch_dice=False)(logits, target), expected)


def test_lovasz_loss_of_classes_is_a_mean_over_those_that_the_sample_has():
    logits, target = make_batch("classes", (5, 5))
    target[target == 2] = 0
    target[1] = 0
    p = logits.softmax(1).flatten(2)
    wrong = (p - torch.stack([target == c for c in range(3)], 1).flatten(2).float()).abs()
    truth = [(0, 0), (0, 1), (1, 0)]
    first, second, third = (lovasz_jaccard(wrong[s, c], target[s].flatten() == c) for s, c in truth)
    loss = LovaszLoss(CLASSES, batch_dice=False)(logits, target)
    # as many classes as a sample has, each sample counts the same
    torch.testing.assert_close(loss, ((first + second) / 2 + third) / 2)


def test_lovasz_loss_of_an_empty_region_is_its_largest_probability():
    logits = torch.tensor([-1.0, 2.0, 0.5]).view(1, 1, 1, 3)
    target = torch.zeros(1, 1, 1, 3, dtype=torch.bool)
    loss = LovaszLoss(REGIONS, batch_dice=False)(logits, target)
    assert loss.item() == pytest.approx(1 / (1 + math.exp(-2)))


@each_shape
@each_kind
def test_hausdorff_loss_by_scipy_distances(kind, shape):
    targets, (logits, target) = FORMATS[kind], make_batch(kind, shape)
    if kind == "regions":
        p, y = logits.sigmoid().numpy(), target.numpy()
    else:  # without the background
        p = logits.softmax(1)[:, 1:].numpy()
        y = np.concatenate([target.numpy() == 1, target.numpy() == 2], 1)

    def distance(mask: np.ndarray) -> np.ndarray:
        return distance_transform_edt(mask) + distance_transform_edt(~mask)

    terms = [
        (p[index] - y[index]) ** 2 * (distance(p[index] > 0.5) ** 2 + distance(y[index]) ** 2)
        for index in np.ndindex(p.shape[:2])
    ]
    expected = make_stock(targets)(logits, target).item() + 0.25 * math.log(1 + np.mean(terms))
    loss = HausdorffLoss(make_stock(targets), targets)(logits, target)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


# What all of them promise -------------------------------------------------------------------------


@each_shape
@each_kind
@each_loss
def test_gradient_is_finite_and_points_away_from_the_truth(name, kind, shape):
    logits, target = make_batch(kind, shape)
    logits.requires_grad_()
    loss = LOSSES[name](FORMATS[kind])
    before = loss(logits, target)
    before.backward()
    assert before.shape == ()
    assert logits.grad.isfinite().all()
    assert logits.grad.abs().max() > 1e-4
    after = loss(logits.detach() - 0.1 * logits.grad / logits.grad.norm(), target)
    assert after < before


@each_kind
@each_loss
def test_a_confident_and_right_output_has_the_least_loss(name, kind):
    _, target = make_batch(kind, (5, 5))
    heads = FORMATS[kind].split(torch.zeros(2, 3, 5, 5), target).heads
    logits = (40 * (2 * heads - 1)).requires_grad_()
    loss = LOSSES[name](FORMATS[kind])(logits, target)
    loss.backward()
    best = {"dice focal": -1, "hausdorff": -1}.get(name, 0)  # nnU-Net's Dice loss is -Dice
    assert loss.item() == pytest.approx(best, abs=1e-5)
    assert logits.grad.abs().max() < 1e-4


@each_loss
@each_kind
def test_empty_classes_leave_value_and_gradient_finite(name, kind):
    logits, target = make_batch(kind, (5, 5))
    target[:] = 0
    logits.requires_grad_()
    loss = LOSSES[name](FORMATS[kind])(logits, target)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()
    assert logits.grad.abs().max() > 1e-3  # false positives are punished


@each_kind
@each_loss
def test_extreme_logits_leave_value_and_gradient_finite(name, kind):
    logits, target = make_batch(kind, (5, 5))
    logits = (1e4 * logits).requires_grad_()
    loss = LOSSES[name](FORMATS[kind])(logits, target)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@each_kind
@each_loss
def test_half_precision_logits_are_computed_in_float32(name, kind, dtype):
    logits, target = make_batch(kind, (6, 6))
    logits = logits.to(dtype)
    half = logits.clone().requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        loss = LOSSES[name](FORMATS[kind])(half, target)
    expected = LOSSES[name](FORMATS[kind])(logits.float(), target)
    # nnU-Net's own part of the Hausdorff loss stays in half precision
    tolerance = 5e-2 if name == "hausdorff" else 1e-6
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance, abs=tolerance)
    loss.backward()
    assert half.grad.isfinite().all()


# Ignore label -------------------------------------------------------------------------------------


@each_shape
@each_kind
@each_loss_that_ignores
def test_ignored_voxels_have_no_gradient_and_no_influence(name, kind, shape):
    logits, target = make_batch(kind, shape)
    is_ignored = torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(1)) < 0.3
    sparse = add_ignored(target, kind, is_ignored)
    loss = LOSSES[name](SPARSE[kind])
    logits.requires_grad_()
    value = loss(logits, sparse)
    value.backward()
    ignored = is_ignored.expand_as(logits)
    assert (logits.grad[ignored] == 0).all()
    assert (logits.grad[~ignored] != 0).any()
    other = torch.where(ignored, -3 * logits.detach() + 1, logits.detach())
    torch.testing.assert_close(loss(other, sparse), value.detach())


@each_kind
@each_loss_that_ignores
def test_loss_with_ignored_voxels_is_the_loss_of_the_others(name, kind):
    logits, target = make_batch(kind, (6, 8))
    is_ignored = torch.zeros(2, 1, 6, 8, dtype=torch.bool)
    is_ignored[..., 5:] = True
    sparse = add_ignored(target, kind, is_ignored)
    expected = LOSSES[name](FORMATS[kind])(logits[..., :5], target[..., :5])
    torch.testing.assert_close(LOSSES[name](SPARSE[kind])(logits, sparse), expected)


@each_kind
@pytest.mark.parametrize("name", ["focal", "lovasz", "lovasz of the batch"])
def test_a_sample_that_is_ignored_as_a_whole_does_not_count(name, kind):
    logits, target = make_batch(kind, (6, 6))
    is_ignored = torch.zeros(2, 1, 6, 6, dtype=torch.bool)
    is_ignored[1] = True
    sparse = add_ignored(target, kind, is_ignored)
    expected = LOSSES[name](FORMATS[kind])(logits[:1], target[:1])
    torch.testing.assert_close(LOSSES[name](SPARSE[kind])(logits, sparse), expected)


@each_kind
@each_loss_that_ignores
def test_a_batch_that_is_ignored_as_a_whole_has_gradients_of_zero(name, kind):
    logits, target = make_batch(kind, (6, 6))
    sparse = add_ignored(target, kind, torch.ones(2, 1, 6, 6, dtype=torch.bool))
    logits.requires_grad_()
    loss = LOSSES[name](SPARSE[kind])(logits, sparse)
    loss.backward()
    assert loss.item() == pytest.approx(-1 if name == "dice focal" else 0)
    assert (logits.grad == 0).all()


@each_kind
def test_hausdorff_loss_refuses_an_ignore_label(kind):
    with pytest.raises(InputError, match=r"cannot be used with the ignore label \(3\)"):
        HausdorffLoss(make_stock(SPARSE[kind]), SPARSE[kind])


# In nnU-Net's loss --------------------------------------------------------------------------------


def test_the_loss_takes_its_place_in_nnunets_deep_supervision():
    stock = DeepSupervisionWrapper(make_stock(CLASSES), (2 / 3, 1 / 3, 0.0))
    loss = replace_loss(stock, lambda _: FocalLoss(CLASSES))
    batches = [make_batch("classes", shape, seed) for seed, shape in enumerate([(8, 8), (4, 4)])]
    batches.append((torch.full((2, 3, 2, 2), math.nan), torch.zeros(2, 1, 2, 2)))  # weight 0
    outputs, targets = map(list, zip(*batches, strict=True))
    focal = FocalLoss(CLASSES)
    expected = 2 / 3 * focal(*batches[0]) + 1 / 3 * focal(*batches[1])
    torch.testing.assert_close(loss(outputs, targets), expected)


def test_without_deep_supervision_there_is_only_the_loss():
    stock = make_stock(CLASSES)
    loss = replace_loss(stock, lambda inner: DiceFocalLoss(inner.dc, CLASSES))
    assert isinstance(loss, DiceFocalLoss)
    assert loss.dice is stock.dc
    assert isinstance(stock.ce, RobustCrossEntropyLoss)
