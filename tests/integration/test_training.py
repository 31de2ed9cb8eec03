"""Whole trainings through nnU-Net's own entry points on a small data set."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from boxes import is_rehearsal
from nnunetv2.run.run_training import maybe_load_checkpoint

import nnunetv2_mapo.trainer as mapo
from nnunetv2_mapo.guards import checkpoint as checkpoints
from nnunetv2_mapo.method.loss import STEP_KEYS
from nnunetv2_mapo.method.mining import Miner
from nnunetv2_mapo.method.progress import MINING_KEYS
from nnunetv2_mapo.method.store import StoreError
from nnunetv2_mapo.support.files import hash_weights

# nnU-Net divides 0 by 0 where a validation batch has no foreground.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
MakeTrainer = Callable[..., Any]


def read_log(trainer: Any) -> str:
    return "".join(path.read_text() for path in sorted(Path(trainer.output_folder).glob("*.txt")))


def read_manifests(trainer: Any) -> dict[str, Any]:
    folder = Path(trainer.output_folder) / "preferences"
    return {
        path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/manifest.json")
    }


class StopHereError(Exception):
    """Takes the place of Ctrl-C."""


def stop_in_epoch(trainer: Any, epoch: int) -> None:
    """Make the training stop in the middle of an epoch."""
    train_step = trainer.train_step

    def step_or_stop(batch: dict[str, Any]) -> dict[str, Any]:
        if trainer.current_epoch == epoch and not is_rehearsal(trainer):
            raise StopHereError
        return train_step(batch)

    trainer.train_step = step_or_stop
    with pytest.raises(StopHereError):
        trainer.run_training()


def test_a_round_begins_with_one_write_of_each_file_and_one_hash(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def note(module: Any, name: str, what: str) -> None:
        function = getattr(module, name)

        def noted(*args: Any, **kwargs: Any) -> Any:
            done.append(what)
            return function(*args, **kwargs)

        monkeypatch.setattr(module, name, noted)

    trainer = make_trainer()
    trainer.mapo = replace(trainer.mapo, start_from="best")
    begin_round, begun = trainer._begin_round, {}

    def begin(number: int) -> None:
        done.clear()
        begin_round(number)
        begun[number] = sorted(done)

    trainer._begin_round = begin
    for module in (mapo, checkpoints):
        note(module, "hash_weights", "hash")
    note(mapo, "write_reference", "write reference.pth")
    note(trainer, "save_checkpoint", "write checkpoint_latest.pth")
    note(checkpoints, "read_checkpoint", "read checkpoint_best.pth")
    trainer.run_training()
    writes = ["write checkpoint_latest.pth", "write reference.pth"]
    # the hash is that which was compared with what checkpoint_best.pth says
    assert begun == {
        1: ["hash", "read checkpoint_best.pth", *writes],
        2: ["hash", "write checkpoint_latest.pth"],
    }


def test_the_warmup_is_saved_before_a_damaged_best_checkpoint_ends_the_training(
    make_trainer: MakeTrainer,
) -> None:
    trainer = make_trainer()
    trainer.mapo = replace(trainer.mapo, start_from="best")
    start_from_warmup = trainer._start_from_warmup

    def damage_and_start() -> Any:
        best = Path(trainer.output_folder) / "checkpoint_best.pth"
        best.write_bytes(best.read_bytes()[:1000])
        return start_from_warmup()

    trainer._start_from_warmup = damage_and_start
    with pytest.raises(ValueError, match=r"checkpoint_best\.pth is damaged"):
        trainer.run_training()
    saved = torch.load(Path(trainer.output_folder) / "checkpoint_latest.pth", weights_only=False)
    assert saved["current_epoch"] == trainer.schedule.stages[0].end_epoch
    assert saved["mapo"]["begun"]["round"] == 0


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_training_runs_through_all_stages(make_trainer: MakeTrainer, configuration: str) -> None:
    trainer = make_trainer(configuration=configuration)
    trainer.run_training()

    log = read_log(trainer)
    assert "round 1:" in log
    assert "round 2:" in log
    left = re.findall(r"MAPO: (at least|about) .* of training left", log)
    assert left == ["at least"] * 2 + ["about"] * 4
    assert "about 0 s of training left" in log
    manifests = read_manifests(trainer)
    assert sorted(manifests) == ["round_01", "round_02"]
    assert all(list(m["cases"]) == [f"case_{n}" for n in range(4)] for m in manifests.values())
    logged = trainer.logger.local_logger.my_fantastic_logging
    assert {len(logged[key]) for key in (*STEP_KEYS, *MINING_KEYS)} == {6}
    warmup = trainer.schedule.stages[0].end_epoch
    assert all(math.isnan(value) for value in logged["loss/dpo"][:warmup])
    assert all(math.isfinite(value) for value in logged["loss/dpo"][warmup:])
    assert all(value > 0 for value in logged["mining/pairs"][warmup:])
    folder = Path(trainer.output_folder)
    assert {"checkpoint_final.pth", "reference.pth", "progress_mapo.png"} <= {
        path.name for path in folder.iterdir()
    }
    assert not list(folder.rglob("*unfinished"))


@pytest.mark.parametrize(
    ("name", "plans"),
    [
        ("nnUNetTrainer_5epochs_MAPO_tiny", "nnUNetPlans"),
        ("nnUNetTrainerDA5_MAPO_tiny", "nnUNetPlans"),
        ("nnUNetTrainerTiny_MAPO_tiny", "resenc"),
    ],
)
def test_other_trainers_and_networks_pass_a_round(
    make_trainer: MakeTrainer, name: str, plans: str
) -> None:
    trainer = make_trainer(name, plans=plans)
    trainer.num_epochs, trainer.num_iterations_per_epoch = 2, 2
    trainer.num_val_iterations_per_epoch = 1
    trainer.run_training()
    assert list(read_manifests(trainer)) == ["round_01"]
    assert math.isfinite(trainer.logger.get_value("loss/dpo", -1))


def test_a_2d_configuration_mines_every_slice(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(configuration="2d")
    stop_in_epoch(trainer, epoch=2)
    assert {len(c["samples"]) for c in read_manifests(trainer)["round_01"]["cases"].values()} == {
        12
    }


def test_the_stock_trainer_loads_a_mapo_checkpoint(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    trainer.run_training()
    stock = make_trainer("nnUNetTrainerTiny")
    stock.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    for ours, theirs in zip(trainer.network.parameters(), stock.network.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_stock_checkpoint_is_continued_with_mapo(make_trainer: MakeTrainer) -> None:
    stock = make_trainer("nnUNetTrainerTiny")
    stock.on_train_start()
    stock.current_epoch = 1
    for key, values in stock.logger.local_logger.my_fantastic_logging.items():
        values.extend([[0.0, 0.0] if key == "dice_per_class_or_region" else 0.0] * 2)
    stock.save_checkpoint(str(Path(stock.output_folder) / "checkpoint_latest.pth"))
    trainer = make_trainer()
    trainer.load_checkpoint(str(Path(stock.output_folder) / "checkpoint_latest.pth"))
    trainer.run_training()
    assert read_manifests(trainer)


def test_a_checkpoint_is_written_once_and_read_once(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer()
    trainer.initialize()
    path = str(Path(trainer.output_folder) / "checkpoint_latest.pth")
    calls: list[str] = []

    def count(function: str) -> None:
        real = getattr(torch, function)

        def counting(*args: Any, **kwargs: Any) -> Any:
            calls.append(function)
            return real(*args, **kwargs)

        monkeypatch.setattr(torch, function, counting)

    count("save")
    count("load")
    trainer.save_checkpoint(path)
    assert calls == ["save"]
    other = make_trainer()
    other.load_checkpoint(path)
    assert calls == ["save", "load"]
    assert hash_weights(other.network.state_dict()) == hash_weights(trainer.network.state_dict())


@pytest.mark.parametrize("keyword", ["filename_or_checkpoint", "checkpoint"])
@pytest.mark.parametrize("is_content", [False, True])
def test_a_checkpoint_is_loaded_by_name_and_by_content_under_either_keyword(
    make_trainer: MakeTrainer, keyword: str, is_content: bool
) -> None:
    trainer = make_trainer()
    trainer.initialize()
    path = str(Path(trainer.output_folder) / "checkpoint_latest.pth")
    trainer.current_epoch = 1
    trainer.save_checkpoint(path)
    source = torch.load(path, weights_only=False) if is_content else path
    other = make_trainer()
    other.load_checkpoint(**{keyword: source})
    assert other.current_epoch == 2
    assert hash_weights(other.network.state_dict()) == hash_weights(trainer.network.state_dict())


def test_dropout_is_off_outside_training_steps(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    stop_in_epoch(trainer, epoch=1)
    assert not trainer.dropout.switch.active
    trainer.network.eval()
    data = torch.randn(1, 1, 8, 16, 16)
    assert torch.equal(trainer.network(data)[0], trainer.network(data)[0])


def test_the_control_never_mines(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("nnUNetTrainerTiny_MAPO_NoPreference")
    trainer.run_training()
    assert not (Path(trainer.output_folder) / "preferences").exists()
    assert "mining" not in read_log(trainer)


def test_the_paper_trainer_has_the_papers_length_and_optimiser(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("nnUNetTrainerTiny_MAPO_Paper")
    trainer.initialize()
    assert trainer.num_epochs == 1300
    assert isinstance(trainer.optimizer, torch.optim.AdamW)
    trainer.lr_scheduler.step(1000)
    assert trainer.optimizer.param_groups[0]["lr"] == 1e-4
    flat = make_trainer("nnUNetTrainerTiny_MAPO_Paper", "2d")
    flat.initialize()
    assert flat.num_epochs == 300
    assert type(flat.optimizer) is torch.optim.Adam


def test_validation_loss_is_the_base_trainers(make_trainer: MakeTrainer) -> None:
    trainer, stock = make_trainer(), make_trainer("nnUNetTrainerTiny")
    trainer.on_train_start()
    stock.initialize()
    stock.network.load_state_dict(trainer.network.state_dict())
    batch = next(trainer.dataloader_val)
    for one in (trainer, stock):
        one.on_validation_epoch_start()
    with torch.no_grad():
        assert trainer.validation_step(batch)["loss"] == stock.validation_step(batch)["loss"]


def test_the_preference_stage_starts_from_the_best_warmup_weights(
    make_trainer: MakeTrainer,
) -> None:
    trainer = make_trainer("nnUNetTrainerTiny_MAPO")
    stop_in_epoch(trainer, epoch=2)
    best = torch.load(Path(trainer.output_folder) / "checkpoint_best.pth", weights_only=False)
    reference = torch.load(Path(trainer.output_folder) / "reference.pth", weights_only=True)
    for name, weight in best["network_weights"].items():
        assert torch.equal(weight, reference[name])
        assert torch.equal(weight, trainer.network.state_dict()[name])
    assert not trainer.optimizer.state


def test_only_patches_with_disagreement_reach_the_reference(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer()
    settings = replace(type(trainer).mapo, reference="network")
    monkeypatch.setattr(type(trainer), "mapo", settings)
    stop_in_epoch(trainer, epoch=2)
    seen = []
    trainer._reference.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    batch = {key: next(trainer.dataloader_train)[key] for key in ("data", "target")}
    preferences = batch["target"][-1]
    preferences[:] = 0
    type(trainer).train_step(trainer, batch)
    assert seen == []
    preferences[1, 0, 3] = 1
    type(trainer).train_step(trainer, batch)
    assert seen == [1]


@pytest.mark.parametrize("epoch", [1, 2, 3, 5])
def test_a_stopped_training_continues_with_the_same_reference_and_pairs(
    make_trainer: MakeTrainer, epoch: int
) -> None:
    stopped = make_trainer()
    stop_in_epoch(stopped, epoch)
    before = read_manifests(stopped)
    reference = Path(stopped.output_folder) / "reference.pth"
    kept = reference.read_bytes() if reference.is_file() else None

    trainer = make_trainer(continue_training=True)
    trainer.run_training()
    assert trainer.current_epoch == 6
    after = read_manifests(trainer)
    assert sorted(after) == ["round_01", "round_02"]
    if kept is not None:
        assert reference.read_bytes() == kept
        assert after["round_01"] == before["round_01"]


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_a_training_continued_from_the_midst_of_a_stage_ends_like_one_that_was_not_stopped(
    make_trainer: MakeTrainer, configuration: str
) -> None:
    for epoch in (1, 3):
        stopped = make_trainer(configuration=configuration, continue_training=epoch > 1)
        stopped.save_every = 1
        stop_in_epoch(stopped, epoch)
        torch.rand(epoch)  # another process has drawn other numbers
    assert "MAPO: continued after 1 epoch" in read_log(stopped)
    continued = make_trainer(configuration=configuration, continue_training=True)
    continued.run_training()
    assert "MAPO: continued after 3 epoch" in read_log(continued)
    whole = make_trainer(configuration=configuration)
    whole.run_training()
    ends = [(end.network.state_dict(), end.optimizer.state_dict()) for end in (continued, whole)]
    torch.testing.assert_close(*ends, rtol=0, atol=0)


def test_mining_continues_with_the_cases_that_are_missing(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, mined_before, mined_after = Miner.find_candidates, [], []

    def mine_two(self: Miner, **arguments: Any) -> Any:
        if len(mined_before) == 2:
            raise StopHereError
        mined_before.append(self)
        return mine(self, **arguments)

    monkeypatch.setattr(Miner, "find_candidates", mine_two)
    stopped = make_trainer()
    with pytest.raises(StopHereError):
        stopped.run_training()
    assert len(list(Path(stopped.output_folder).glob("preferences/round_01/*.b2nd"))) == 2

    def mine_rest(self: Miner, **arguments: Any) -> Any:
        mined_after.append(self)
        return mine(self, **arguments)

    monkeypatch.setattr(Miner, "find_candidates", mine_rest)
    trainer = make_trainer(continue_training=True)
    trainer.run_training()
    assert len(mined_after) == 2 + 4  # the rest of round 1, all of round 2
    assert "2 cases mined" in read_log(trainer)


def test_margins_of_a_case_that_is_mined_again_are_those_of_the_reference(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = make_trainer()
    stopped.save_every = 1
    stop_in_epoch(stopped, epoch=3)  # the policy has left the reference
    case = Path(stopped.output_folder) / "preferences/round_01/case_0.b2nd"
    case.write_bytes(b"damaged")
    add_margins, asked = Miner.add_margins, []

    def note(self: Miner, **arguments: Any) -> None:
        asked.append(hash_weights(dict(self.reference or self.network.state_dict())))
        add_margins(self, **arguments)

    monkeypatch.setattr(Miner, "add_margins", note)
    trainer = make_trainer(continue_training=True)
    stop_in_epoch(trainer, epoch=3)
    assert asked == [trainer._begun.reference]
    assert asked != [hash_weights(trainer._plain_network().state_dict())]


def test_a_missing_reference_is_restored_or_replaced_and_said_so(make_trainer: MakeTrainer) -> None:
    stopped = make_trainer()
    stopped.save_every = 1
    stop_in_epoch(stopped, epoch=3)
    (Path(stopped.output_folder) / "reference.pth").unlink()
    for checkpoint in ("checkpoint_best.pth",):
        (Path(stopped.output_folder) / checkpoint).unlink()
    trainer = make_trainer(continue_training=True)
    trainer.run_training()
    assert "current weights become the reference" in read_log(trainer)
    assert (Path(trainer.output_folder) / "reference.pth").is_file()


def test_an_earlier_training_stays_until_a_new_one_has_something_to_save(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = make_trainer()
    stopped.save_every = 1
    stop_in_epoch(stopped, epoch=3)
    folder = Path(stopped.output_folder)
    names = ["checkpoint_best.pth", "checkpoint_latest.pth", "preferences", "reference.pth"]
    before = [(folder / name).stat().st_mtime_ns for name in names]
    refused = make_trainer()
    with monkeypatch.context() as patched:
        patched.setattr(type(refused), "_rehearse", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            refused.run_training()
    stop_in_epoch(make_trainer(), epoch=0)
    assert [(folder / name).stat().st_mtime_ns for name in names] == before
    again = make_trainer()
    stop_in_epoch(again, epoch=1)
    moved = folder / "earlier_1"
    assert sorted(path.name for path in moved.iterdir()) == names
    assert [path.name for path in (moved / "preferences").iterdir()] == ["round_01"]
    assert "what an earlier training left here is now in" in read_log(again)
    assert not (folder / "reference.pth").exists()


def test_a_restored_reference_is_on_the_device(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    stop_in_epoch(trainer, epoch=3)
    (Path(trainer.output_folder) / "reference.pth").unlink()
    trainer.device = torch.device("meta")  # any other than that of the file
    assert {weight.device.type for weight in trainer._read_reference().values()} == {"meta"}


def test_a_reference_that_was_not_written_any_more_is_the_policy_of_its_round(
    make_trainer: MakeTrainer,
) -> None:
    stopped = make_trainer()
    stop_in_epoch(stopped, epoch=2)
    path = Path(stopped.output_folder) / "reference.pth"
    written = torch.load(path, weights_only=True)
    path.unlink()
    before = read_manifests(stopped)
    trainer = make_trainer(continue_training=True)
    stop_in_epoch(trainer, epoch=3)
    assert "restored from the policy" in read_log(trainer)
    assert read_manifests(trainer) == before  # nothing had to be mined again
    torch.testing.assert_close(torch.load(path, weights_only=True), written, rtol=0, atol=0)


def test_other_settings_are_refused_when_continuing(make_trainer: MakeTrainer) -> None:
    stopped = make_trainer()
    stop_in_epoch(stopped, epoch=3)
    latest = Path(stopped.output_folder) / "checkpoint_latest.pth"
    trainer = make_trainer("nnUNetTrainerTiny_MAPO_tinybeta")
    trainer.load_checkpoint(str(latest))
    with pytest.raises(ValueError, match=r"beta: 1\.0 then, 2\.0 now"):
        trainer.run_training()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.plans_manager.plans.update(plans_name="other"), "plans"),
        (lambda t: t.dataset_json["labels"].update(small=3), "labels"),
        (lambda t: t.plans_manager.plans.update(dataset_name="Dataset991_Other"), "dataset"),
        (lambda t: setattr(t, "fold", 1), "fold"),
        (lambda t: setattr(t, "configuration_name", "3d_lowres"), "configuration"),
    ],
)
def test_a_foreign_store_is_refused(
    make_trainer: MakeTrainer, change: Callable[[Any], None], named: str
) -> None:
    stopped = make_trainer()
    stop_in_epoch(stopped, epoch=3)
    trainer = make_trainer(continue_training=True)
    change(trainer)
    with pytest.raises(StoreError, match=f"{named}: .* in the store, .* now"):
        trainer.run_training()


def test_invalid_settings_fail_before_anything_is_made(
    make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nnunetv2_mapo import MAPOConfig, nnUNetTrainer_MAPO

    monkeypatch.setattr(nnUNetTrainer_MAPO, "mapo", MAPOConfig(tau=2.0))
    with pytest.raises(ValueError, match=r"tau=2\.0"):
        make_trainer("nnUNetTrainer_MAPO")
    assert not list(tmp_path.iterdir())


def test_a_network_without_a_layer_to_drop_is_refused(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer()
    monkeypatch.setattr(
        trainer,
        "build_network_architecture",
        lambda plans_manager, *_: torch.nn.Conv3d(1, 3, 1),
    )
    with pytest.raises(ValueError, match="has no convolution or linear layer"):
        trainer.initialize()


def test_validation_only_and_best_checkpoint_work(make_trainer: MakeTrainer) -> None:
    make_trainer().run_training()
    trainer = make_trainer()
    maybe_load_checkpoint(trainer, continue_training=False, validation_only=True)
    trainer.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_best.pth"))
    trainer.perform_actual_validation(save_probabilities=True)
    folder = Path(trainer.output_folder) / "validation"
    assert {"summary.json", "case_4.npz", "case_5.nii.gz"} <= {p.name for p in folder.iterdir()}


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_the_control_is_the_base_trainer_bit_for_bit(
    make_trainer: MakeTrainer, configuration: str
) -> None:
    """So a stock model is the control, and what MAPO adds to it is preferences alone."""
    hashes = []
    for name in ("nnUNetTrainerSeeded", "nnUNetTrainerSeeded_MAPO_NoPreference"):
        trainer = make_trainer(name, configuration)
        trainer.run_training()
        hashes.append(hash_weights(trainer.network.state_dict()))
    assert hashes[0] == hashes[1]
