from __future__ import annotations

import hashlib
import json

import pytest
from disk import full_disk

from nnunetv2_mapo.support.files import (
    WriteError,
    complete_or_absent,
    hash_file,
    hash_json,
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
    with pytest.raises(WriteError, match=r"gone/file could not be written .*MB are free there"):
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
