from __future__ import annotations

import hashlib
import json

import pytest
import torch
from disk import full_disk
from state_dicts import some_weights

from nnunetv2_mapo.support.files import (
    WriteError,
    compare_shapes,
    complete_or_absent,
    hash_file,
    hash_json,
    hash_shapes,
    hash_weights,
    read_sealed,
    write_atomically,
    write_sealed,
)


def test_a_file_that_does_not_fit_leaves_the_earlier_one_and_says_so(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"earlier")
    with full_disk(1000), pytest.raises(WriteError) as error:
        write_atomically(path, bytes(2_500_000))
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"earlier"
    for part in (str(path), "File too large", "It needs about 2.5 MB", "are free there", "--c"):
        assert part in str(error.value)
    write_atomically(path, b"later")
    assert path.read_bytes() == b"later"


@pytest.mark.parametrize("reason", [KeyboardInterrupt, OSError("no"), RuntimeError("no")])
def test_an_interrupted_write_leaves_the_earlier_file(tmp_path, reason):
    path = tmp_path / "file"
    write_atomically(path, b"earlier")
    expected = KeyboardInterrupt if reason is KeyboardInterrupt else WriteError

    def write_half(path):
        with complete_or_absent(path, 1) as unfinished:
            unfinished.write_bytes(b"later")
            raise reason

    with pytest.raises(expected):
        write_half(path)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"earlier"


def test_a_file_in_a_folder_that_is_not_there_is_named_with_the_space_above(tmp_path):
    with pytest.raises(
        WriteError, match=r"gone/file could not be written .*MB are free there.* mend that"
    ):
        write_atomically(tmp_path / "gone" / "file", b"")


def test_another_error_in_the_block_is_not_taken_for_a_full_disk(tmp_path):
    with pytest.raises(KeyError), complete_or_absent(tmp_path / "file", 1):
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_sealed_content_comes_back(tmp_path):
    content = {"a": [1, None, 0.1], "ü": {"b": "x"}}
    write_sealed(tmp_path / "file.json", content)
    assert read_sealed(tmp_path / "file.json") == content
    assert json.loads((tmp_path / "file.json").read_text())["a"] == [1, None, 0.1]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"{}", b"[]", b"null", b"3", b"no JSON", b'{"a": 1}', b"\xff", b"[" * 100_000],
)
def test_what_is_not_sealed_is_none(tmp_path, content):
    (tmp_path / "file.json").write_bytes(content)
    assert read_sealed(tmp_path / "file.json") is None
    assert read_sealed(tmp_path / "missing.json") is None


def test_a_changed_value_breaks_the_seal(tmp_path):
    write_sealed(tmp_path / "file.json", {"dice": 0.25})
    changed = (tmp_path / "file.json").read_text().replace("0.25", "0.35")
    (tmp_path / "file.json").write_text(changed)
    assert read_sealed(tmp_path / "file.json") is None


def test_hash_of_a_file_is_its_sha256(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    # the example of FIPS 180-2
    assert hash_file(tmp_path / "file") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
    assert hash_file(tmp_path / "missing") is None


def test_hash_of_json_depends_on_values_and_not_on_the_order_of_keys():
    assert hash_json({"a": 1, "b": [1, 2]}) == hash_json({"b": [1, 2], "a": 1})
    assert hash_json({"a": 1, "b": [1, 2]}) != hash_json({"a": 1, "b": [2, 1]})
    assert hash_json({"a": 1}) == hashlib.sha256(b'{"a": 1}').hexdigest()


# Weights ------------------------------------------------------------------------------------------


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
