"""What a sampler of candidates is: several segmentations of the same window of the image."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

from nnunetv2_mapo.labels import Labels


class Sampler(Protocol):
    """Where the candidates come from: dropout, thresholds, input noise.

    Attributes:
        values: What tells the K candidates apart, such as their dropout rates; the first one gives
            the plain prediction.
        num_passes: Forward passes that the candidates of one window take.
    """

    @property
    def values(self) -> tuple[float, ...]: ...  # noqa: D102  # above

    @property
    def num_passes(self) -> int: ...  # noqa: D102  # above

    def segment(self, network: nn.Module, windows: Tensor, labels: Labels) -> Tensor:
        """Candidates of each window, all windows in one forward pass.

        Args:
            network: The policy, in evaluation mode.
            windows: Shape `(W, channels, *patch)`, on the network's device.
            labels: Meaning of the logits.

        Returns:
            Label maps, shape `(W, K, *patch)`.
        """
        ...


def full_resolution(outputs: Any) -> Tensor:
    """Logits at full resolution, whether or not the network is deeply supervised."""
    logits: Tensor = outputs[0] if isinstance(outputs, (list, tuple)) else outputs
    return logits


def repeat_windows(windows: Tensor, num_candidates: int) -> Tensor:
    """Each window K times in a row, shape `(W K, channels, *patch)`."""
    return windows.repeat_interleave(num_candidates, 0)


def group_candidates(label_maps: Tensor, num_candidates: int) -> Tensor:
    """Undo `repeat_windows` on label maps: from `(W K, *patch)` to `(W, K, *patch)`."""
    return label_maps.view(-1, num_candidates, *label_maps.shape[1:])


def fit_windows_per_forward(num_passes: int, batch_size: int) -> int:
    """Windows whose candidates fit into one forward pass, >= 1.

    A forward pass without gradients needs about a quarter of a training step's memory per sample.

    Args:
        num_passes: Of the sampler, for each window.
        batch_size: Batch size of training, which fits the device.
    """
    return max(1, 4 * batch_size // num_passes)
