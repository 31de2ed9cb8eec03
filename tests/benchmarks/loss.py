"""Preference loss: the margin form against log-softmax, as eq. 6 and eq. 2 are printed.

Time and peak memory of everything from the two label maps to the gradient of the policy's logits.
Peak memory is the largest sum of what torch's CPU allocator handed out and did not get back yet,
from the profiler's record of every single allocation; the inputs do not count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from alternate import Row, parse_repeats, print_table, summarize, time_ratios
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.method.loss import average, find_disagreement, preference_loss, voxel_margins

BATCH_SIZE, PATCH, BETA = 2, (64, 64, 64), 0.1
SHARES = (0.01, 0.05, 0.20)
BARS = {2: 0.8, 20: 0.4}  # by number of classes


class Batch(NamedTuple):
    """Logits, shape `(B, C, *patch)`, and label maps, shape `(B, *patch)`, int16."""

    policy: Tensor
    reference: Tensor
    chosen: Tensor
    rejected: Tensor


def main() -> None:
    print_table(_rows(parse_repeats(__doc__, default=5)))


def _rows(repeats: int) -> Iterator[Row]:
    for num_classes, bar in BARS.items():
        for share in SHARES:
            batch = make_batch(num_classes, share)
            torch.testing.assert_close(gradient(margin_form, batch), gradient(log_form, batch))
            name = f"{num_classes} classes, disagreement {share:.0%}"
            ratios = time_ratios(
                lambda batch=batch: gradient(margin_form, batch),
                lambda batch=batch: gradient(log_form, batch),
                repeats,
            )
            yield Row(f"{name}, time", ratios, bar)
            forms = (partial(gradient, form, batch) for form in (margin_form, log_form))
            ours, theirs = map(peak_bytes, forms)
            peak = ours / theirs
            yield Row(f"{name}, peak memory", summarize([peak]), bar)


def margin_form(batch: Batch) -> Tensor:
    """DPO loss as this package computes it, a scalar."""
    labels = Labels(batch.policy.shape[1])
    disagreement = find_disagreement(batch.chosen, batch.rejected, labels, "image")
    with torch.no_grad():
        reference = voxel_margins(disagreement.gather(batch.reference), disagreement)
    policy = voxel_margins(disagreement.gather(batch.policy), disagreement)
    return preference_loss(average(policy - reference, disagreement), beta=BETA).mean()


def log_form(batch: Batch) -> Tensor:
    """DPO loss with log-likelihoods of chosen and rejected (eq. 6) put into eq. 2, a scalar."""
    chosen, rejected = batch.chosen.long()[:, None], batch.rejected.long()[:, None]

    def log_ratio(logits: Tensor) -> Tensor:
        log_probabilities = logits.log_softmax(1)
        log_chosen = log_probabilities.gather(1, chosen).flatten(1).mean(1)
        return log_chosen - log_probabilities.gather(1, rejected).flatten(1).mean(1)

    with torch.no_grad():
        reference = log_ratio(batch.reference)
    return -functional.logsigmoid(BETA * (log_ratio(batch.policy) - reference)).mean()


def gradient(loss: Callable[[Batch], Tensor], batch: Batch) -> Tensor:
    (gradient,) = torch.autograd.grad(loss(batch), batch.policy)
    return gradient


def peak_bytes(function: Callable[[], object]) -> int:
    """Largest sum of what torch's CPU allocator handed out at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as record:
        function()
    results = record.profiler.kineto_results  # the one place that has every allocation, in order
    events = [event for event in results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in events), default=0)


def make_batch(num_classes: int, share: float, patch: tuple[int, ...] = PATCH) -> Batch:
    """Label maps of noise, which differ in blobs."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    chosen = torch.randint(num_classes, (BATCH_SIZE, *patch))
    # Disagreement is a few blobs, not single voxels: it is candidates of one window that differ.
    field = gaussian_filter(random.standard_normal((BATCH_SIZE, *patch)), (0, 4, 4, 4))
    differs = torch.from_numpy(field > np.quantile(field, 1 - share))
    rejected = torch.where(differs, (chosen + 1) % num_classes, chosen)
    shape = (BATCH_SIZE, num_classes, *patch)
    return Batch(
        torch.randn(shape, requires_grad=True), torch.randn(shape), chosen.short(), rejected.short()
    )


if __name__ == "__main__":
    main()
