"""The direct form of the loss, eq. 6 put into eq. 2, is written out here in float64."""

from __future__ import annotations

import math

import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from torch import Tensor, nn
from torch.nn import functional

from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.method.loss import (
    MAPOLoss,
    Pairs,
    average,
    chosen_log_likelihood,
    find_disagreement,
    preference_loss,
    voxel_loss,
    voxel_margins,
)

TWO, FIVE = Labels(2), Labels(5)
REGIONS = Labels(3, regions=((1, 2, 3), (2, 3), (3,)))
KINDS = {"two classes": TWO, "five classes": FIVE, "regions": REGIONS}
LN2 = math.log(2)


def log_likelihood_of_each_voxel(logits: Tensor, label_map: Tensor, labels: Labels) -> Tensor:
    if labels.regions is None:
        return logits.log_softmax(1).gather(1, label_map.long().unsqueeze(1)).squeeze(1)
    is_on = torch.stack([label_map >> bit & 1 for bit in range(labels.num_heads)], 1).bool()
    return torch.where(is_on, functional.logsigmoid(logits), functional.logsigmoid(-logits)).sum(1)


def margin(logits: Tensor, disagreement) -> Tensor:
    """Mean log-likelihood of chosen minus that of rejected, of logits at these voxels."""
    return average(voxel_margins(logits, disagreement), disagreement)


def direct_loss(
    policy: Tensor, reference: Tensor, chosen: Tensor, rejected: Tensor, labels, likelihood, beta
) -> Tensor:
    """-log σ(β [(log π(ŷ₊) - log π_ref(ŷ₊)) - (log π(ŷ₋) - log π_ref(ŷ₋))]) of each pair."""
    counted = torch.ones_like(chosen, dtype=torch.bool)
    if likelihood == "disagreement":
        counted = chosen != rejected
    axes = tuple(range(1, chosen.ndim))
    num_voxels = counted.sum(axes).clamp(min=0.001 * chosen[0].numel())

    def log_pi(logits: Tensor, label_map: Tensor) -> Tensor:
        voxels = log_likelihood_of_each_voxel(logits.double(), label_map, labels)
        return (voxels * counted).sum(axes) / num_voxels

    gain_chosen = log_pi(policy, chosen) - log_pi(reference, chosen)
    gain_rejected = log_pi(policy, rejected) - log_pi(reference, rejected)
    return -torch.log(torch.sigmoid(beta * (gain_chosen - gain_rejected)))


def margin_loss(policy, reference, chosen, rejected, labels, likelihood, beta) -> Tensor:
    disagreement = find_disagreement(chosen, rejected, labels, likelihood)
    margins = [margin(disagreement.gather(z), disagreement) for z in (policy, reference)]
    policy, reference = margins
    return preference_loss(policy - reference, beta=beta)


def random_batch(labels: Labels, shape: tuple[int, ...], seed: int = 0, differing: float = 0.3):
    """Logits of policy and reference, and chosen and rejected, of three patches."""
    rng = torch.Generator().manual_seed(seed)
    policy, reference = 3 * torch.randn(2, 3, labels.num_heads, *shape, generator=rng)
    num_values = 2**labels.num_heads if labels.regions else labels.num_heads
    chosen = torch.randint(0, num_values, (3, *shape), generator=rng)
    other = torch.randint(0, num_values, (3, *shape), generator=rng)
    where = torch.rand(3, *shape, generator=rng) < differing
    rejected = torch.where(where, other, chosen)
    return policy, reference, chosen.short(), rejected.short()


@pytest.mark.parametrize("shape", [(6, 5), (4, 3, 5)], ids=["2D", "3D"])
@pytest.mark.parametrize("likelihood", ["image", "disagreement"])
@pytest.mark.parametrize("labels", KINDS.values(), ids=KINDS)
def test_margin_form_equals_the_direct_form_in_value_and_gradient(labels, likelihood, shape):
    policy, reference, chosen, rejected = random_batch(labels, shape)
    maps = (chosen, rejected, labels, likelihood, 0.7)
    ours, direct = policy.clone().requires_grad_(), policy.double().requires_grad_()

    losses = margin_loss(ours, reference, *maps)
    expected = direct_loss(direct, reference, *maps)
    torch.testing.assert_close(losses.double(), expected, atol=1e-6, rtol=1e-6)
    assert (expected - LN2).abs().min() > 1e-3  # no trivial agreement

    losses.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad.double(), direct.grad, atol=1e-7, rtol=1e-5)
    assert direct.grad.abs().max() > 1e-3


@pytest.mark.parametrize("likelihood", ["image", "disagreement"])
@pytest.mark.parametrize("labels", KINDS.values(), ids=KINDS)
def test_loss_is_ln_2_where_policy_and_reference_agree(labels, likelihood):
    policy, _, chosen, rejected = random_batch(labels, (4, 4))
    losses = margin_loss(policy, policy, chosen, rejected, labels, likelihood, 1.0)
    assert losses.tolist() == pytest.approx([LN2] * 3, abs=1e-7)


def test_a_lesser_disagreement_than_a_thousandth_is_averaged_over_a_thousandth():
    # one voxel of 64 x 64: N = 4.096 instead of 1
    chosen = torch.zeros(1, 64, 64, dtype=torch.int16)
    rejected = chosen.clone()
    rejected[0, 5, 7] = 1
    logits = torch.zeros(1, 2, 64, 64)
    logits[0, 0, 5, 7], logits[0, 1, 5, 7] = 3.0, 1.0
    share = find_disagreement(chosen, rejected, TWO, "disagreement")
    assert margin(share.gather(logits), share).item() == pytest.approx(2 / 4.096)
    image = find_disagreement(chosen, rejected, TWO, "image")
    assert margin(image.gather(logits), image).item() == pytest.approx(2 / 4096)


def test_disagreement_lists_each_voxel_once_and_pads_with_zeros():
    chosen = torch.tensor([[[0, 1], [2, 0]], [[1, 1], [1, 1]], [[0, 0], [0, 0]]])
    rejected = torch.tensor([[[1, 1], [0, 2]], [[0, 1], [1, 1]], [[0, 0], [0, 0]]])
    found = find_disagreement(chosen, rejected, Labels(3), "disagreement")
    assert found.num_disagreeing.tolist() == [3, 1, 0]
    assert found.voxels.tolist() == [[0, 2, 3], [0, 0, 0], [0, 0, 0]]
    assert found.heads.tolist() == [
        [[1, -1, 1], [-1, 0, 0], [0, 1, -1]],
        [[-1, 0, 0], [1, 0, 0], [0, 0, 0]],
        [[0, 0, 0], [0, 0, 0], [0, 0, 0]],
    ]
    # 0.001 * 4 voxels is the least N
    assert found.num_voxels.tolist() == pytest.approx([3, 1, 0.004])
    image = find_disagreement(chosen, rejected, Labels(3), "image")
    assert image.num_voxels.tolist() == [4, 4, 4]


def test_samples_of_a_disagreement_are_taken_by_mask():
    _, _, chosen, rejected = random_batch(FIVE, (4, 4))
    found = find_disagreement(chosen, rejected, FIVE, "disagreement")
    second = found.of(torch.tensor([False, True, False]))
    assert second.voxels.tolist() == found.voxels[1:2].tolist()
    assert second.heads.tolist() == found.heads[1:2].tolist()
    assert second.num_voxels.tolist() == found.num_voxels[1:2].tolist()
    assert second.num_disagreeing.tolist() == found.num_disagreeing[1:2].tolist()


def averaged(**settings) -> MAPOConfig:
    """Settings of a loss of the averaged margin."""
    return MAPOConfig(likelihood="disagreement", **settings)


def preference_target(target, reference, chosen, rejected, labels, likelihood):
    disagreement = find_disagreement(chosen, rejected, labels, likelihood)
    return target, Pairs(disagreement, voxel_margins(disagreement.gather(reference), disagreement))


class Total:
    """A base loss with MAPO's added, called with the pairs of the batch or without."""

    def __init__(self, base, config: MAPOConfig) -> None:
        self.objective = MAPOLoss(config)
        self.base = self.objective.attach(base)

    def __call__(self, output, target, pairs: Pairs | None = None) -> Tensor:
        with self.objective.of(pairs):
            return self.base(output, target)


def supervised_loss(batch_dice: bool = False) -> nn.Module:
    return DC_and_CE_loss(
        {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": False, "ddp": False}, {}
    )


@pytest.mark.parametrize("likelihood", ["image", "disagreement"])
def test_total_is_lambda_times_nnunets_loss_plus_the_mean_preference_loss(likelihood):
    policy, reference, chosen, rejected = random_batch(FIVE, (8, 8))
    target = torch.randint(0, 5, (3, 1, 8, 8)).float()
    loss = Total(supervised_loss(), averaged(beta=0.8, lambda_supervised=0.5))
    with_pairs = preference_target(target, reference, chosen, rejected, FIVE, likelihood)
    supervised = supervised_loss()(policy, target)
    preference = direct_loss(policy, reference, chosen, rejected, FIVE, likelihood, 0.8).mean()
    expected = 0.5 * supervised.item() + preference.item()
    assert loss(policy, *with_pairs).item() == pytest.approx(expected, rel=1e-6)
    assert loss.objective.supervised.item() == pytest.approx(supervised.item())


def values_of_pairs(loss: Total) -> list[float]:
    return [
        value for name, value in loss.objective.step_values().items() if name != "loss/supervised"
    ]


def test_patches_without_a_pair_add_neither_loss_nor_gradient():
    policy, reference, chosen, rejected = random_batch(FIVE, (8, 8))
    rejected[1] = chosen[1]
    policy.requires_grad_()
    loss = Total(supervised_loss(), averaged(beta=0.8, lambda_supervised=0.0))
    pairs = preference_target(
        torch.zeros(3, 1, 8, 8), reference, chosen, rejected, FIVE, "disagreement"
    )
    total = loss(policy, *pairs)
    total.backward()
    each = direct_loss(policy, reference, chosen, rejected, FIVE, "disagreement", 0.8)
    assert total.item() == pytest.approx((each[0].item() + each[2].item()) / 3, rel=1e-6)
    assert policy.grad[1].abs().max() == 0
    assert policy.grad[0].abs().max() > 0
    assert policy.grad[2].abs().max() > 0


def test_a_batch_without_any_disagreement_has_exactly_zero_preference_gradient():
    policy, reference, chosen, _ = random_batch(TWO, (4, 4, 4))
    policy.requires_grad_()
    loss = Total(supervised_loss(), averaged(beta=1.0, lambda_supervised=0.0))
    target = torch.zeros(3, 1, 4, 4, 4)
    total = loss(policy, *preference_target(target, reference, chosen, chosen, TWO, "image"))
    total.backward()
    assert total.item() == 0
    assert policy.grad.abs().max() == 0
    assert all(math.isnan(value) for value in values_of_pairs(loss))


def test_a_plain_target_gives_nnunets_loss_and_no_rewards():
    policy, reference, chosen, rejected = random_batch(FIVE, (8, 8))
    target = torch.randint(0, 5, (3, 1, 8, 8)).float()
    loss = Total(supervised_loss(), averaged(beta=1.0, lambda_supervised=0.5))
    loss(policy, *preference_target(target, reference, chosen, rejected, FIVE, "image"))
    assert loss(policy, target).item() == supervised_loss()(policy, target).item()
    assert loss.objective.supervised.item() == supervised_loss()(policy, target).item()
    assert all(math.isnan(value) for value in values_of_pairs(loss))


def test_deep_supervision_enters_the_base_loss_and_only_full_resolution_the_preferences():
    policy, reference, chosen, rejected = random_batch(FIVE, (8, 8))
    outputs = [policy, torch.randn(3, 5, 4, 4)]
    targets = [torch.randint(0, 5, (3, 1, side, side)).float() for side in (8, 4)]
    base = DeepSupervisionWrapper(supervised_loss(), (0.7, 0.3))
    expected_base = 0.7 * supervised_loss()(outputs[0], targets[0]) + 0.3 * supervised_loss()(
        outputs[1], targets[1]
    )
    preference = direct_loss(policy, reference, chosen, rejected, FIVE, "image", 1.0).mean()
    loss = Total(base, averaged(beta=1.0, lambda_supervised=1.0))
    pairs = preference_target(targets, reference, chosen, rejected, FIVE, "image")
    expected = expected_base.item() + preference.item()
    assert loss(outputs, *pairs).item() == pytest.approx(expected, rel=1e-6)
    assert loss(tuple(outputs), *pairs).item() == pytest.approx(expected, rel=1e-6)
    assert loss(outputs, targets).item() == pytest.approx(expected_base.item(), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_outputs_give_a_finite_float32_loss(dtype):
    policy, reference, chosen, rejected = random_batch(TWO, (64, 64), differing=0.5)
    # the sum over 2,000 voxels of logits around 100 is beyond float16's 65,504
    policy, reference = (100 * policy).to(dtype), (-100 * policy).to(dtype)
    pairs = preference_target(
        torch.zeros(3, 1, 64, 64), reference, chosen, rejected, TWO, "disagreement"
    )
    loss = Total(supervised_loss(), averaged(beta=1.0, lambda_supervised=0.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(policy.requires_grad_(), *pairs)
    value.backward()
    expected = direct_loss(policy, reference, chosen, rejected, TWO, "disagreement", 1.0).mean()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)
    assert policy.grad.isfinite().all()


def test_a_hopeless_pair_has_a_finite_loss_and_gradient():
    # -log σ(-1000) = 1000; a naive log(sigmoid) overflows
    policy = torch.tensor([-1000.0], requires_grad=True)
    loss = preference_loss(policy, beta=1.0)
    loss.sum().backward()
    assert loss.item() == pytest.approx(1000)
    assert policy.grad.item() == pytest.approx(-1)


@pytest.mark.parametrize("labels", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("where", ["one voxel", "all voxels"])
def test_degenerate_pairs_of_extreme_logits_have_a_finite_loss_and_gradient(labels, dtype, where):
    chosen = torch.ones(1, 16, 16, 16, dtype=torch.int16)
    rejected = chosen.clone()
    rejected[(0, 3, 4, 5) if where == "one voxel" else ...] = 0
    largest = 6e4  # float16 ends at 65,504
    logits = torch.zeros(1, labels.num_heads, 16, 16, 16, dtype=dtype)
    logits[:, 0], logits[:, 1] = largest, -largest
    logits.requires_grad_()
    pairs = find_disagreement(chosen, rejected, labels, "disagreement")
    loss = preference_loss(margin(pairs.gather(logits), pairs), beta=1.0)
    loss.sum().backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite().all()
    assert logits.grad.isfinite().all()


@pytest.mark.slow
def test_half_precision_does_not_overflow_where_a_patch_of_512_cubed_voxels_disagrees():
    shape = (1, 512, 512, 512)
    pairs = find_disagreement(
        torch.ones(shape, dtype=torch.uint8), torch.zeros(shape, dtype=torch.uint8), TWO, "image"
    )
    logits = (
        torch.tensor([-6e4, 6e4], dtype=torch.float16).view(1, 2, 1, 1, 1).expand(1, 2, *shape[1:])
    )
    assert margin(pairs.gather(logits), pairs).item() == pytest.approx(2 * 60000, rel=1e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_base_loss_that_is_not_finite_makes_every_gradient_nan(bad):
    policy, reference, chosen, rejected = random_batch(TWO, (8, 8))
    pairs = preference_target(None, reference, chosen, rejected, TWO, "disagreement")
    loss = Total(lambda *_: torch.tensor(bad), averaged(beta=1.0, lambda_supervised=1.0))
    value = loss(policy.requires_grad_(), *pairs)
    value.backward()
    assert value.isnan()
    assert policy.grad[chosen[:, None].expand_as(policy) != rejected[:, None]].isnan().all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_margin_that_is_not_finite_makes_every_gradient_nan(bad):
    policy, reference, chosen, rejected = random_batch(TWO, (8, 8))
    chosen[0], rejected[0] = 0, 1
    reference[0, 0] = bad  # Δ is NaN or minus infinity
    pairs = preference_target(None, reference, chosen, rejected, TWO, "disagreement")
    weight = torch.ones(1, requires_grad=True)
    loss = Total(lambda output, _: output.sum(), averaged(beta=1.0, lambda_supervised=1.0))
    value = loss(policy * weight, *pairs)
    value.backward()
    assert value.isnan()
    assert weight.grad.isnan()


def test_a_base_loss_that_is_not_finite_makes_every_gradient_nan_in_the_warmup_too():
    weight = torch.ones(3, requires_grad=True)
    loss = Total(
        lambda output, _: output.sum() * 0 + math.inf, averaged(beta=1.0, lambda_supervised=1)
    )
    loss(weight * 2, None).backward()
    assert weight.grad.isnan().all()


def one_voxel_target(labels: Labels, reference_logits: Tensor):
    """Two patches of 2 x 2; only voxel 1 of the first one disagrees: chosen 1, rejected 0."""
    rejected = torch.zeros(2, 2, 2, dtype=torch.int16)
    chosen = rejected.clone()
    chosen[0, 0, 1] = 1
    return preference_target(
        torch.zeros(2, 1, 2, 2), reference_logits, chosen, rejected, labels, "disagreement"
    )


def test_rewards_of_classes_by_hand():
    # softmax(0, ln 3) = (1/4, 3/4); the reference has (1/2, 1/2); β = 2
    policy = torch.zeros(2, 2, 2, 2)
    policy[0, 1, 0, 1] = math.log(3)
    loss = Total(supervised_loss(), averaged(beta=2.0, lambda_supervised=1.0))
    loss(policy, *one_voxel_target(TWO, torch.zeros(2, 2, 2, 2)))
    rewards = loss.objective.step_values()
    assert rewards["rewards/chosen"] == pytest.approx(2 * math.log(1.5), abs=1e-6)
    assert rewards["rewards/rejected"] == pytest.approx(2 * math.log(0.5), abs=1e-6)
    assert rewards["rewards/margins"] == pytest.approx(2 * math.log(3), abs=1e-6)
    assert rewards["rewards/accuracies"] == 1
    assert rewards["loss/dpo"] == pytest.approx(math.log(1 + 1 / 9), abs=1e-6)  # -log σ(ln 9)


def test_rewards_of_regions_by_hand():
    # σ(-ln 3) = 1/4; the reference has 1/2: chosen loses, rejected gains
    labels = Labels(2, regions=((1, 2), (2,)))
    policy = torch.zeros(2, 2, 2, 2)
    policy[0, 0, 0, 1] = -math.log(3)
    policy[0, 1, 0, 1] = 5.0  # region 1 is off in both: it must not enter
    loss = Total(nn.BCEWithLogitsLoss(), averaged(beta=1.0, lambda_supervised=0.0))
    _, pairs = one_voxel_target(labels, torch.zeros(2, 2, 2, 2))
    loss(policy, torch.zeros(2, 2, 2, 2), pairs)
    assert loss.objective.step_values()["rewards/chosen"] == pytest.approx(math.log(0.5), abs=1e-6)
    assert loss.objective.step_values()["rewards/rejected"] == pytest.approx(
        math.log(1.5), abs=1e-6
    )
    assert loss.objective.step_values()["rewards/margins"] == pytest.approx(-math.log(3), abs=1e-6)
    assert loss.objective.step_values()["rewards/accuracies"] == 0


def test_accuracy_is_the_share_of_the_patches_with_a_pair():
    policy, reference, chosen, rejected = random_batch(FIVE, (8, 8), seed=3)
    rejected[2] = chosen[2]
    loss = Total(supervised_loss(), averaged(beta=1.0, lambda_supervised=1.0))
    # the policy has moved towards chosen in patch 0 and towards rejected in patch 1
    policy = reference.clone()
    policy[0].scatter_add_(0, chosen[:1].long(), torch.ones(1, 8, 8))
    policy[1].scatter_add_(0, rejected[1:2].long(), torch.ones(1, 8, 8))
    loss(
        policy,
        *preference_target(
            torch.zeros(3, 1, 8, 8), reference, chosen, rejected, FIVE, "disagreement"
        ),
    )
    assert loss.objective.step_values()["rewards/accuracies"] == 0.5
    # one logit up for every disagreement voxel: margin +1 and -1
    assert loss.objective.step_values()["rewards/margins"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("labels", KINDS.values(), ids=KINDS)
def test_chosen_reward_is_the_log_likelihood_of_chosen_between_the_two(labels):
    policy, _, chosen, rejected = random_batch(labels, (6, 5))
    found = find_disagreement(chosen, rejected, labels, "disagreement")
    both = [
        log_likelihood_of_each_voxel(policy.double(), label_map, labels).exp()
        for label_map in (chosen, rejected)
    ]
    expected = torch.log(both[0] / (both[0] + both[1])).flatten(1).gather(1, found.voxels)
    ours = chosen_log_likelihood(voxel_margins(found.gather(policy), found)).double()
    is_real = (found.heads != 0).any(1)
    torch.testing.assert_close(ours[is_real], expected[is_real], atol=1e-5, rtol=1e-5)


def test_logged_values_have_the_names_that_dpo_users_know():
    policy = torch.zeros(2, 2, 2, 2)
    policy[0, 1, 0, 1] = math.log(3)
    loss = Total(supervised_loss(), averaged(beta=1.0, lambda_supervised=1.0))
    loss(policy, *one_voxel_target(TWO, torch.zeros(2, 2, 2, 2)))
    values = loss.objective.step_values()
    assert values == {
        "loss/supervised": pytest.approx(loss.objective.supervised.item()),
        "loss/dpo": pytest.approx(math.log(4 / 3), abs=1e-6),
        "rewards/chosen": pytest.approx(math.log(1.5), abs=1e-6),
        "rewards/rejected": pytest.approx(-LN2, abs=1e-6),
        "rewards/margins": pytest.approx(math.log(3), abs=1e-6),
        "rewards/accuracies": 1.0,
    }
    assert values["rewards/margins"] == pytest.approx(
        values["rewards/chosen"] - values["rewards/rejected"], abs=1e-6
    )


def test_nothing_is_logged_before_the_first_step():
    loss = Total(supervised_loss(), averaged(beta=1.0, lambda_supervised=1.0))
    assert all(math.isnan(value) for value in loss.objective.step_values().values())


def test_the_base_loss_stays_what_its_trainer_reads_and_sets():
    base = supervised_loss()
    loss = Total(base, averaged(beta=1.0, lambda_supervised=1.0))
    assert loss.base is base
    assert not base.state_dict()
    policy, reference, chosen, rejected = random_batch(TWO, (8, 8))
    target, pairs = preference_target(
        torch.zeros(3, 1, 8, 8), reference, chosen, rejected, TWO, "disagreement"
    )
    both = loss(policy, target, pairs)
    base.weight_ce = 3.0  # as trainers do that change a weight from epoch to epoch
    more = 2 * base.ce(policy, target[:, 0].long())
    torch.testing.assert_close(loss(policy, target, pairs), both + more)


def test_the_base_loss_takes_further_arguments_in_any_way():
    def base(output, target, weight=1.0):
        return weight * (output - target).square().mean()

    policy, reference, chosen, rejected = random_batch(TWO, (8, 8))
    target, pairs = preference_target(
        torch.zeros(()), reference, chosen, rejected, TWO, "disagreement"
    )
    objective = MAPOLoss(averaged(beta=1.0, lambda_supervised=1.0))
    loss = objective.attach(base)
    preference = direct_loss(policy, reference, chosen, rejected, TWO, "disagreement", 1.0).mean()
    with objective.of(pairs):
        values = [loss(policy, target, 5.0), loss(output=policy, target=target, weight=5.0)]
    for value in values:
        assert value.item() == pytest.approx(5 * base(policy, target) + preference.item())
    assert objective.num_calls == 2


def test_a_loss_that_is_attached_twice_counts_preferences_once():
    policy, reference, chosen, rejected = random_batch(TWO, (8, 8))
    target, pairs = preference_target(
        torch.zeros(3, 1, 8, 8), reference, chosen, rejected, TWO, "disagreement"
    )
    loss = Total(supervised_loss(), averaged(beta=1.0, lambda_supervised=1.0))
    once = loss(policy, target, pairs)
    other = loss.objective.attach(supervised_loss())
    assert loss.objective.attach(loss.base) is loss.base
    assert loss(policy, target, pairs) == once
    with loss.objective.of(pairs):
        assert other(policy, target) == once


def test_an_output_of_other_patches_is_refused():
    policy, reference, chosen, rejected = random_batch(TWO, (8, 8))
    target, pairs = preference_target(
        torch.zeros(()), reference, chosen, rejected, TWO, "disagreement"
    )
    loss = Total(lambda output, _: output.mean(), averaged(beta=1.0, lambda_supervised=1.0))
    for output in (policy[..., :4], policy[:2], torch.cat((policy, policy), 1)):
        with pytest.raises(ValueError, match=r"where the batch has 3 patches of 64 voxels and 2"):
            loss(output, target, pairs)


def test_a_loss_that_is_no_tensor_is_left_alone_until_there_are_preferences():
    policy, reference, chosen, rejected = random_batch(TWO, (8, 8))
    target, pairs = preference_target(
        torch.zeros(()), reference, chosen, rejected, TWO, "disagreement"
    )
    loss = Total(lambda *_: (1.0, {}), averaged(beta=1.0, lambda_supervised=1.0))
    assert loss(policy, target) == (1.0, {})
    with pytest.raises(TypeError, match="the loss returns tuple"):
        loss(policy, target, pairs)


# Weights and a loss of each voxel ---------------------------------------------------------------


def two_voxels(weights=None):
    """A patch of 2 x 2: in voxel 1 chosen is 1 and rejected 0, in voxel 2 chosen 0, rejected 1."""
    chosen = torch.tensor([[[0, 1], [0, 0]]])
    rejected = torch.tensor([[[0, 0], [1, 0]]])
    return find_disagreement(chosen, rejected, TWO, "disagreement", weights)


def test_weights_make_a_weighted_mean_of_the_margin():
    logits = torch.zeros(1, 2, 2, 2)
    logits[0, 1, 0, 1], logits[0, 0, 1, 0] = 3.0, 5.0  # margins 3 and 5
    pairs = two_voxels(torch.tensor([[[9.0, 0.5], [0.25, 9.0]]]))
    assert margin(pairs.gather(logits), pairs).item() == pytest.approx((1.5 + 1.25) / 0.75)
    unweighted = two_voxels()
    assert margin(unweighted.gather(logits), unweighted).item() == pytest.approx(4)


def test_voxel_loss_by_hand():
    # 2 κ / (β |Ω|) (1 * ln(1 + e^-3β) + 0.5 * ln(1 + e^5β)), κ = 3, β = 0.5, |Ω| = 4
    logits = torch.zeros(1, 2, 2, 2)
    logits[0, 1, 0, 1], logits[0, 0, 1, 0] = 3.0, -5.0
    pairs = two_voxels(torch.tensor([[[0.0, 1.0], [0.5, 0.0]]]))
    deltas = voxel_margins(pairs.gather(logits), pairs)
    loss = voxel_loss(preference_loss(deltas, beta=0.5), pairs, beta=0.5, kappa=3.0)
    expected = 3 * (math.log1p(math.exp(-1.5)) + 0.5 * math.log1p(math.exp(2.5)))
    assert loss.item() == pytest.approx(expected)


def test_a_voxel_pulls_kappa_times_as_much_as_cross_entropy_can_and_saturates():
    logits = torch.zeros(1, 2, 2, 2, requires_grad=True)
    pairs = two_voxels()
    target = None, Pairs(pairs, torch.zeros(1, 2))
    loss = Total(
        lambda output, _: 0 * output.sum(),
        MAPOConfig(beta=1.0, lambda_supervised=1.0, kappa=2.0),
    )
    loss(logits, *target).backward()
    assert logits.grad[0, 1, 0, 1].item() == pytest.approx(-2 / 4)  # -κ / |Ω|
    assert logits.grad[0, 0, 0, 1].item() == pytest.approx(2 / 4)
    logits.grad = None
    far = torch.zeros(1, 2, 2, 2)
    far[0, 1, 0, 1] = 20.0  # this voxel has learnt its preference, the other has not
    loss(logits + far, *target).backward()
    assert logits.grad[0, 1, 0, 1].abs().item() < 1e-6
    assert logits.grad[0, 0, 1, 0].item() == pytest.approx(-2 / 4)


def test_the_voxel_loss_skips_patches_without_a_pair():
    policy, reference, chosen, rejected = random_batch(FIVE, (8, 8))
    rejected[1] = chosen[1]
    policy.requires_grad_()
    pairs = preference_target(None, reference, chosen, rejected, FIVE, "voxel")
    loss = Total(
        lambda output, _: 0 * output.sum(),
        MAPOConfig(beta=1.0, lambda_supervised=1.0, kappa=1.0),
    )
    loss(policy, *pairs).backward()
    assert policy.grad[1].abs().max() == 0
    assert policy.grad[0].abs().max() > 0
    assert 0 < loss.objective.step_values()["loss/dpo"] < math.inf


# Losses of a pair ---------------------------------------------------------------------------------

LN3 = torch.tensor(math.log(3))  # σ(ln 3) = 3/4


def test_sigmoid_loss_by_hand():
    # β Δ = 0.5 ln 9 = ln 3; -log σ(ln 3) = ln(4/3)
    assert preference_loss(2 * LN3, beta=0.5).item() == pytest.approx(math.log(4 / 3))
    assert preference_loss(torch.tensor(0.0), beta=5.0).item() == pytest.approx(math.log(2))


def test_conservative_loss_by_hand():
    # 0.9 ln(4/3) + 0.1 ln 4
    expected = 0.9 * math.log(4 / 3) + 0.1 * math.log(4)
    assert preference_loss(LN3, beta=1.0, label_smoothing=0.1).item() == pytest.approx(expected)


def robust_loss(delta, label_smoothing):
    return preference_loss(delta, beta=1.0, loss_type="robust", label_smoothing=label_smoothing)


def test_robust_loss_by_hand():
    # (0.9 ln(4/3) - 0.1 ln 4) / 0.8
    expected = (0.9 * math.log(4 / 3) - 0.1 * math.log(4)) / 0.8
    assert robust_loss(LN3, 0.1).item() == pytest.approx(expected)


def test_robust_loss_is_unbiased_under_turned_pairs():
    # turned round with probability 0.2, its mean is the sigmoid loss of the right pair
    mean = 0.8 * robust_loss(LN3, 0.2) + 0.2 * robust_loss(-LN3, 0.2)
    assert mean.item() == pytest.approx(math.log(4 / 3))


def test_ipo_loss_by_hand():
    # the aim 1 / (2 β) of β = 0.25 is 2
    delta = torch.tensor([0.0, 2.0, 5.0])
    assert preference_loss(delta, beta=0.25, loss_type="ipo").tolist() == [4.0, 0.0, 9.0]


def test_hinge_loss_by_hand():
    delta = torch.tensor([-1.0, 0.0, 1.0, 2.0, 3.0])
    assert preference_loss(delta, beta=0.5, loss_type="hinge").tolist() == [1.5, 1.0, 0.5, 0.0, 0.0]


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo", "hinge", "robust"])
def test_every_loss_wants_a_larger_margin_where_policy_and_reference_agree(loss_type):
    delta = torch.zeros(1, requires_grad=True)
    smoothing = 0.1 if loss_type == "robust" else 0.0
    loss = preference_loss(delta, loss_type=loss_type, beta=0.3, label_smoothing=smoothing)
    loss.sum().backward()
    assert delta.grad.item() < 0
