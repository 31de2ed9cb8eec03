"""Networks of a repository that knows nothing of nnU-Net, as `docs/how-to/your-own.md` has them.

Each is 2D and as small as its kind gets.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class Net(nn.Module):
    """One output: logits at full resolution."""

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(num_inputs, 8), nn.InstanceNorm2d(8), nn.ReLU(), conv(8, 8))
        self.head = nn.Conv2d(8, num_outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x))
        return logits


class DeepNet(nn.Module):
    """Logits at full, half and quarter resolution, of heads with a kernel of 3."""

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(conv(inputs, 8) for inputs in (num_inputs, 8, 8))
        self.side = nn.ModuleList(conv(8, num_outputs) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        maps = []
        for stage in self.stages:
            x = functional.relu(stage(functional.avg_pool2d(x, 2) if maps else x))
            maps.append(x)
        return tuple(side(each) for side, each in zip(self.side, maps, strict=True))


class SigmoidNet(nn.Module):
    """Probabilities, for images of three channels and 16 x 16 pixels, and for 14 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = conv(3, 8), conv(8, 8), nn.Conv2d(8, 14, 1)
        self.position = nn.Parameter(torch.zeros(8, 16, 16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(functional.relu(self.stem(x) + self.position))
        probabilities: Tensor = torch.sigmoid(self.head(x))
        return probabilities
