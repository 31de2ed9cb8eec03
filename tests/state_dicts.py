"""A state dict of every kind of tensor that networks have."""

from __future__ import annotations

import torch


def some_weights() -> dict[str, torch.Tensor]:
    return {
        "conv.weight": torch.arange(6, dtype=torch.float32).view(2, 3),
        "norm.num_batches_tracked": torch.tensor(5),  # a scalar, as batch norm has
        "mask": torch.tensor([True, False]),
        "half": torch.tensor([1.5], dtype=torch.bfloat16),
        "empty": torch.zeros(0, 3),
    }
