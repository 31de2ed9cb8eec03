from __future__ import annotations

import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from state_dicts import some_weights
from torch import nn

from nnunetv2_mapo.method.dropout import StochasticDropout
from nnunetv2_mapo.method.reference import (
    build_reference,
    read_reference,
    update_average,
    write_reference,
)
from nnunetv2_mapo.support.files import hash_weights

CPU = torch.device("cpu")


def test_what_is_written_is_read(tmp_path):
    weights, path = some_weights(), tmp_path / "reference.pth"
    write_reference(path, weights)
    read = read_reference(path, hash_weights(weights), CPU)
    assert list(read) == list(weights)
    for name, tensor in weights.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)
    assert [file.name for file in tmp_path.iterdir()] == ["reference.pth"]


def test_a_missing_reference_is_none(tmp_path):
    assert read_reference(tmp_path / "reference.pth", "0" * 64, CPU) is None


def test_a_reference_that_cannot_be_read_is_not_taken_for_a_missing_one(tmp_path):
    (tmp_path / "reference.pth").mkdir()
    with pytest.raises(OSError):
        read_reference(tmp_path / "reference.pth", "0" * 64, CPU)


def test_a_device_without_memory_is_not_taken_for_a_damaged_reference(tmp_path, monkeypatch):
    def fail(*_):
        raise torch.cuda.OutOfMemoryError

    weights, path = some_weights(), tmp_path / "reference.pth"
    write_reference(path, weights)
    monkeypatch.setattr(torch.Tensor, "to", fail)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        read_reference(path, hash_weights(weights), CPU)


def test_other_weights_than_the_expected_are_none(tmp_path):
    path = tmp_path / "reference.pth"
    write_reference(path, some_weights())
    assert read_reference(path, "0" * 64, CPU) is None


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.7, 0.97])
def test_a_truncated_reference_is_none(tmp_path, share):
    weights, path = some_weights(), tmp_path / "reference.pth"
    write_reference(path, weights)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert read_reference(path, hash_weights(weights), CPU) is None


@settings(max_examples=300, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255), cut=st.booleans())
def test_damage_anywhere_is_found_or_harmless(tmp_path_factory, share, flip, cut):
    weights, path = some_weights(), tmp_path_factory.mktemp("damage") / "reference.pth"
    write_reference(path, weights)
    damaged = bytearray(path.read_bytes())
    place = int(share * len(damaged))
    if cut:
        del damaged[place:]
    else:
        damaged[place] ^= flip
    path.write_bytes(damaged)
    read = read_reference(path, hash_weights(weights), CPU)
    # a byte between the values (zip's padding) may do no harm
    assert read is None or all(torch.equal(read[name], weights[name]) for name in weights)


def test_a_flipped_bit_in_a_value_is_found(tmp_path):
    weights, path = some_weights(), tmp_path / "reference.pth"
    write_reference(path, weights)
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(weights["conv.weight"].numpy().tobytes()) + 5] ^= 1
    path.write_bytes(damaged)
    assert read_reference(path, hash_weights(weights), CPU) is None


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"\x80\x02", bytes(100)])
def test_a_file_of_something_else_is_none(tmp_path, content):
    path = tmp_path / "reference.pth"
    path.write_bytes(content)
    assert read_reference(path, "0" * 64, CPU) is None


@pytest.mark.parametrize("is_plain", [True, False], ids=["pickle", "checkpoint"])
def test_anything_but_tensors_is_not_unpickled(tmp_path, planted, is_plain):
    path, content = tmp_path / "reference.pth", {"weight": planted}
    if is_plain:
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    assert read_reference(path, "0" * 64, CPU) is None
    assert not planted.trace.exists()


def test_reference_is_frozen_and_does_not_follow_the_policy(make_network):
    policy = make_network(norm="batch")
    dropout = StochasticDropout(policy, 3)
    weights = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    image = torch.randn(2, 1, 8, 8)
    expected = policy(image).detach()
    policy.train()
    reference = build_reference(policy, weights)
    assert policy.training
    assert not reference.training
    assert not any(module.training for module in reference.modules())
    assert not any(weight.requires_grad for weight in reference.parameters())
    assert all(weight.requires_grad for weight in policy.parameters())
    with torch.no_grad():
        for weight in policy.parameters():
            weight += 1
    with dropout.at(torch.tensor([0.5, 0.5])):  # of the policy: the reference never drops
        assert torch.equal(reference(image), expected)


def test_reference_takes_the_given_weights(make_network):
    policy = make_network()
    doubled = {name: 2 * tensor for name, tensor in policy.state_dict().items()}
    reference = build_reference(policy, doubled)
    for name, tensor in reference.state_dict().items():
        assert torch.equal(tensor, doubled[name])


class Keeping(nn.Module):
    """Keeps what a forward pass made in attributes and nested containers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.kept = nn.Linear(2, 2), None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output = self.layer(x)
        self.kept = {"outputs": [output, (2 * output, self.layer.weight)]}
        return output


def test_results_of_a_training_step_that_a_network_keeps_do_not_prevent_a_copy():
    policy = Keeping()
    policy(torch.ones(1, 2)).sum().backward()
    reference = build_reference(policy, policy.state_dict())
    first, (second, weight) = reference.kept["outputs"]
    assert not first.requires_grad
    assert torch.equal(second, policy.kept["outputs"][1][0])
    assert second is not policy.kept["outputs"][1][0]
    assert weight is reference.layer.weight
    assert weight is not policy.layer.weight
    assert policy.kept["outputs"][0].requires_grad


def test_a_kept_result_is_one_tensor_in_the_copy_wherever_it_is_kept():
    policy = Keeping()
    policy(torch.ones(1, 2))
    policy.again = policy.kept["outputs"][0]
    reference = build_reference(policy, policy.state_dict())
    assert reference.again is reference.kept["outputs"][0]


def test_a_moving_average_by_hand():
    policy = torch.nn.BatchNorm1d(1)  # weight 1, running mean 0, no batch yet
    reference = build_reference(policy, policy.state_dict())
    with torch.no_grad():
        policy.weight.fill_(5.0)
    policy.running_mean.fill_(-math.inf)
    policy.num_batches_tracked.fill_(3)
    update_average(reference, policy, decay=0.75)
    assert reference.weight.item() == 2.0  # 0.75 * 1 + 0.25 * 5
    assert reference.running_mean.item() == -math.inf  # buffers are copied
    assert reference.num_batches_tracked.item() == 3
    update_average(reference, policy, decay=0.75)
    assert reference.weight.item() == 2.75  # 0.75 * 2 + 0.25 * 5
    assert policy.weight.item() == 5.0


def test_a_moving_average_moves_weights_with_two_names_once(make_network):
    policy = make_network()  # nnU-Net's: conv is also all_modules.0
    reference = build_reference(policy, policy.state_dict())
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    with torch.no_grad():
        for weight in policy.parameters():
            weight += 1
    update_average(reference, policy, decay=0.5)
    for name, tensor in reference.state_dict().items():
        torch.testing.assert_close(tensor, before[name] + 0.5)
