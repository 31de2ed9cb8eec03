"""`torch.compile` and automatic mixed precision on the CPU, where nnU-Net itself has both off."""

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as stock
from torch._dynamo.utils import counters

from nnunetv2_mapo.method import dropout, loss

# nnU-Net divides 0 by 0 where a validation batch has no foreground.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
MakeTrainer = Callable[..., Any]


def every_seventh(rates: torch.Tensor, shape: Any) -> torch.Tensor:
    """In place of random dropout, which eager and compiled code draw differently."""
    dropped = torch.arange(torch.Size(shape).numel()).view(*shape) % 7 == 0
    rates = rates.view(-1, *[1] * (len(shape) - 1))
    return torch.where(dropped, 1 - rates, torch.ones(()))


def train(make_trainer: MakeTrainer, name: str = "nnUNetTrainerTiny_MAPO_tiny") -> Any:
    trainer = make_trainer(name)
    trainer.run_training()
    return trainer


# torch.compile ------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # what torch says while it traces nnU-Net's Dice loss
def test_a_compiled_training_is_the_eager_one_and_compiles_few_graphs(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dropout, "dropout_multiplier", every_seventh)
    eager = train(make_trainer)
    monkeypatch.setattr(stock.nnUNetTrainer, "_do_i_compile", lambda _: True)
    counters.clear()
    compiled = train(make_trainer)
    assert isinstance(compiled.network, torch._dynamo.OptimizedModule)
    # policy: training with dropout, validation; reference: one patch of the batch, or several
    assert 0 < counters["stats"]["unique_graphs"] <= 5
    ours, theirs = (t.logger.local_logger.my_fantastic_logging for t in (compiled, eager))
    for key in ("train_losses", "val_losses", "loss/dpo", "rewards/margins", "mining/pairs"):
        assert ours[key] == pytest.approx(theirs[key], rel=1e-3, abs=1e-4, nan_ok=True), key
    for one, other in zip(
        compiled._plain_network().parameters(), eager.network.parameters(), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-3)


# Mixed precision ----------------------------------------------------------------------------------


def test_margins_and_preference_loss_stay_float32_in_mixed_precision(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def cpu_autocast() -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            yield

    # where nnU-Net takes autocast on CUDA, it takes this on the CPU
    monkeypatch.setattr(stock, "dummy_context", cpu_autocast)
    seen: dict[str, set[torch.dtype]] = {"logits": set(), "margin": set(), "loss": set()}
    voxel_margins, preference_loss = loss.voxel_margins, loss.preference_loss

    def note_margin(logits: torch.Tensor, disagreement: Any) -> torch.Tensor:
        result = voxel_margins(logits, disagreement)
        seen["margin"].add(result.dtype)
        return result

    def note_loss(delta: torch.Tensor, **settings: Any) -> torch.Tensor:
        result = preference_loss(delta, **settings)
        seen["loss"].add(result.dtype)
        return result

    monkeypatch.setattr(loss, "voxel_margins", note_margin)
    monkeypatch.setattr(loss, "preference_loss", note_loss)
    trainer = make_trainer()
    trainer.initialize()
    trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    trainer.loss.register_forward_hook(lambda _, inputs, __: seen["logits"].add(inputs[0][0].dtype))
    trainer.run_training()
    assert seen == {
        "logits": {torch.bfloat16},
        "margin": {torch.float32},
        "loss": {torch.float32},
    }
    assert trainer.grad_scaler.get_scale() == 8.0  # no step had an infinite gradient
    logged = trainer.logger.local_logger.my_fantastic_logging
    assert all(0 < value < 10 for value in logged["loss/dpo"][2:])
