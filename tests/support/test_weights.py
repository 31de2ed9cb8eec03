from __future__ import annotations

import hashlib

import torch
from state_dicts import some_weights

from nnunetv2_mapo.support.weights import compare_shapes, hash_shapes, hash_weights


def test_hash_by_hand():
    weights = {"w": torch.tensor([[1.0, 2.0]])}
    expected = hashlib.sha256(b"w (1, 2) torch.float32" + weights["w"].numpy().tobytes())
    assert hash_weights(weights) == expected.hexdigest()


def test_hash_changes_with_any_value_name_shape_or_type():
    weights = some_weights()
    hashes = {hash_weights(weights)}
    for name in weights:
        if weights[name].numel():
            changed = {key: tensor.clone() for key, tensor in weights.items()}
            flat = changed[name].view(-1)
            flat[-1] = ~flat[-1] if flat.dtype == torch.bool else flat[-1] + 1
            hashes.add(hash_weights(changed))
    renamed = {("other" if name == "mask" else name): value for name, value in weights.items()}
    reshaped = {**weights, "conv.weight": weights["conv.weight"].view(3, 2)}
    retyped = {**weights, "conv.weight": weights["conv.weight"].view(torch.int32)}
    hashes |= {hash_weights(variant) for variant in (renamed, reshaped, retyped)}
    assert len(hashes) == 8
    assert hash_weights(some_weights()) in hashes


def test_hash_does_not_depend_on_the_memory_layout():
    tensor = torch.arange(6.0).view(2, 3)
    transposed = tensor.t().contiguous().t()
    assert not transposed.is_contiguous()
    assert hash_weights({"w": transposed}) == hash_weights({"w": tensor})


def test_networks_of_one_form_have_the_same_hash_of_shapes():
    weights = some_weights()
    others = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    assert hash_shapes(weights) == hash_shapes(others)
    assert hash_shapes(weights) != hash_shapes({**weights, "half": torch.zeros(2)})
    assert hash_shapes(weights) != hash_shapes({**weights, "more": torch.zeros(2)})


def test_weights_of_one_form_do_not_differ_whatever_nnunet_prefixes():
    weights = some_weights()
    assert compare_shapes(weights, weights) == []
    assert compare_shapes({f"module.{name}": w for name, w in weights.items()}, weights) == []


def test_differences_of_shape_and_name_are_listed():
    mine = {"a": torch.zeros(2, 3), "b": torch.zeros(1), "c": torch.zeros(4)}
    theirs = {"a": torch.zeros(3, 3), "c": torch.zeros(4), "d": torch.zeros(1)}
    assert compare_shapes(theirs, mine) == [
        "it has no b", "the network has no d", "a is (3, 3) there, (2, 3) in the network",
    ]  # fmt: skip


def test_many_differences_are_cut():
    mine = {str(number): torch.zeros(1) for number in range(9)}
    assert compare_shapes({}, mine) == [
        "it has no 0", "it has no 1", "it has no 2", "it has no 3", "and 5 more",
    ]  # fmt: skip
