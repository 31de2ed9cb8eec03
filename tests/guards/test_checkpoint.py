from __future__ import annotations

import io

import pytest
import torch

from nnunetv2_mapo.guards import checkpoint as checkpoint_module
from nnunetv2_mapo.guards.checkpoint import (
    Begun,
    Hashed,
    Loaded,
    adding_to_checkpoint,
    already_read,
    explaining_other_network,
    read_checkpoint,
    recover_reference,
)
from nnunetv2_mapo.support.files import WriteError, hash_weights


def checkpoint_of(value: float) -> dict:
    return {"network_weights": {"weight": torch.full((3,), value)}, "current_epoch": 1}


def save(path, value: float = 1.0) -> None:
    with adding_to_checkpoint(lambda: {"begun": {"round": 2}}):
        torch.save(checkpoint_of(value), path)


def test_what_is_saved_inside_has_the_key_under_its_own_name(tmp_path):
    path = tmp_path / "checkpoint_of_a_trainer.pth"
    save(str(path))
    content = read_checkpoint(path, needed=("current_epoch",))
    assert content["mapo"]["begun"] == {"round": 2}
    assert content["mapo"]["weights"] == hash_weights(content["network_weights"])
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_the_hash_of_the_very_weights_that_are_saved_is_not_computed_again(tmp_path, monkeypatch):
    weights, path = {"weight": torch.ones(3)}, tmp_path / "checkpoint.pth"
    hashed = Hashed(weights, hash_weights(weights))
    zeros = {"weight": torch.zeros(3)}
    for other in (zeros, {"other": weights["weight"]}, {"weight": weights["weight"][:2]}):
        assert hashed.hash(other) == hash_weights(other)
    monkeypatch.setattr(checkpoint_module, "hash_weights", None)  # cannot be called
    with adding_to_checkpoint(dict, hashed):
        torch.save({"network_weights": {"weight": weights["weight"].view(3)}}, path)
    assert torch.load(path)["mapo"]["weights"] == hash_weights(weights)


def test_other_files_and_what_is_saved_afterwards_are_left_alone(tmp_path):
    with adding_to_checkpoint(dict):
        torch.save({"lesions": 3}, tmp_path / "second.pth")
    torch.save(checkpoint_of(1.0), tmp_path / "later.pth")
    assert torch.load(tmp_path / "second.pth") == {"lesions": 3}
    assert "mapo" not in torch.load(tmp_path / "later.pth")


def test_a_checkpoint_that_is_saved_in_memory_has_the_key_too():
    content = io.BytesIO()
    save(content)
    content.seek(0)
    assert torch.load(content)["mapo"]["begun"] == {"round": 2}


def test_a_checkpoint_that_is_missing_is_no_damaged_one(tmp_path):
    save(tmp_path / "checkpoint_best.pth")
    path = tmp_path / "checkpoint_latest.pth"
    there = r"There is no checkpoint .*latest\.pth, but in its folder: checkpoint_best\.pth\."
    with pytest.raises(ValueError, match=there):
        read_checkpoint(path)


def test_an_earlier_checkpoint_outlives_one_that_cannot_be_written(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint_latest.pth"
    save(path, 1.0)

    def fail(content, file):
        file.write_bytes(b"half")
        message = "PytorchStreamWriter failed writing file"
        raise RuntimeError(message)

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(WriteError, match=r"checkpoint_latest\.pth could not be written"):
        save(path, 2.0)
    monkeypatch.undo()
    assert read_checkpoint(path)["network_weights"]["weight"].tolist() == [1.0, 1.0, 1.0]
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_checkpoint_whose_weights_changed_on_the_disk_is_refused(tmp_path):
    path = tmp_path / "checkpoint_final.pth"
    save(path)
    content = torch.load(path)
    content["network_weights"]["weight"][0] = 5.0
    torch.save(content, path)
    with pytest.raises(ValueError, match="its checksum is wrong"):
        read_checkpoint(path)


def test_a_missing_key_is_named(tmp_path):
    torch.save(checkpoint_of(1.0), tmp_path / "checkpoint_best.pth")
    with pytest.raises(ValueError, match="KeyError: 'logging'"):
        read_checkpoint(tmp_path / "checkpoint_best.pth", needed=("logging",))


def test_one_file_is_answered_and_the_others_are_read(tmp_path):
    torch.save({"other": 1}, tmp_path / "other.pth")
    with already_read("checkpoint.pth", checkpoint_of(1.0)):
        assert torch.load("checkpoint.pth", map_location="cpu")["current_epoch"] == 1
        assert torch.load(tmp_path / "other.pth") == {"other": 1}


def test_a_stock_checkpoint_says_nothing_of_mapo():
    assert Loaded.of({}) == Loaded(None, None, None, None)


def test_what_a_checkpoint_says_is_kept_until_it_is_used():
    weights = {"weight": torch.ones(3)}
    mapo = {
        "config": {"tau": 0.1}, "random_state": {"torch": 1}, "schedule": "warm-up",
        "reference": {"weights": weights, "sha256": hash_weights(weights)},
    }  # fmt: skip
    assert Loaded.of(mapo) == Loaded({"tau": 0.1}, {"torch": 1}, weights, "warm-up")


def test_weights_of_another_network_are_told_from_other_errors():
    network = torch.nn.Linear(2, 1)
    other = torch.nn.Linear(3, 1).state_dict()
    with (
        pytest.raises(
            ValueError, match=r"a\.pth holds the weights of another network .* 2d: weight"
        ),
        explaining_other_network("a.pth", other, network, plans="2d"),
    ):
        network.load_state_dict(other)
    weights = network.state_dict()
    with (
        pytest.raises(RuntimeError, match="Invalid device"),
        explaining_other_network("a.pth", weights, network, plans="2d"),
    ):
        network.to("no device")


def test_a_lost_reference_is_found_in_the_policy_or_in_the_best_checkpoint(tmp_path):
    path, lost = tmp_path / "reference.pth", checkpoint_of(1.0)["network_weights"]
    other = checkpoint_of(2.0)["network_weights"]
    begun = Begun(2, "of the policy", hash_weights(lost), (3, 5))
    found = recover_reference(path, lost, begun)
    assert found == (lost, begun, f"{path} is missing or damaged; restored from the policy")
    save(tmp_path / "checkpoint_best.pth", 1.0)
    found = recover_reference(path, other, begun)
    assert hash_weights(found.weights) == hash_weights(lost)
    assert found.begun == begun
    assert found.note.endswith(f"restored from {tmp_path / 'checkpoint_best.pth'}")


def test_where_a_lost_reference_is_gone_the_policy_takes_its_place(tmp_path):
    path, policy = tmp_path / "reference.pth", checkpoint_of(2.0)["network_weights"]
    save(tmp_path / "checkpoint_best.pth", 3.0)
    found = recover_reference(path, policy, Begun(2, "lost", "lost", (3, 5)))
    assert found.weights is policy
    assert found.begun == Begun(2, hash_weights(policy), hash_weights(policy), (3, 5))
    assert found.note.startswith(f"WARNING: {path} is missing or damaged and the weights it held")
