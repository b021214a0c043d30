"""Headers of safetensors files are believed only as far as they agree with themselves and with the file."""

import json
import struct

import numpy as np
import pytest
from safetensors.numpy import save_file

from vidjax.errors import InputError
from vidjax.weights import lora
from vidjax.weights.tensors import read, read_shards


def write(path, header, body=b"", length=None):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + body)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


WRONG = {
    "length of 2^63": (({}, b"", 2**63), "is no safetensors file"),
    "no JSON": ((b'{"a"',), "is no safetensors file"),
    "no object": ((b"[]",), "is no safetensors file"),
    "nested": ((b"[" * 100_000,), "is no safetensors file"),
    "no entry": (({"a": 3},), "its header says of a 3"),
    "empty entry": (({"a": {}},), "its header says of a {}"),
    "negative shape": (({"a": entry(shape=(-2,))}, bytes(8)), "its header says"),
    "negative offset": (({"a": entry(offsets=(-8, 8))}, bytes(8)), "its header says"),
    "offset of a float": (({"a": entry(offsets=(0, 8.0))}, bytes(8)), "its header says"),
    "dtype that is a list": (({"a": entry(dtype=[])}, bytes(8)), "its header says"),
    "unknown dtype": (({"a": entry(dtype="F7")}, bytes(8)), "tensors of type F7"),
    "past the end": (({"a": entry(offsets=(0, 16))}, bytes(8)), "is cut off"),
    "other shape": (({"a": entry(shape=(3,))}, bytes(8)), r"a, F32 of shape \[3\], cannot be at 0 to 8"),
    "shape beyond numbers": (({"a": entry(shape=(2**62, 2**62))}, bytes(8)), "cannot be at"),
    "overlap": (({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)), "b, F32 .* cannot be at 4 to 12 with 8"),
    "hole": (({"a": entry(offsets=(4, 12))}, bytes(12)), "cannot be at 4 to 12 with 0"),
    "twice": (
        (json.dumps({"a": entry(), "?": entry(shape=(1,), offsets=(4, 8))}).replace("?", "a").encode(), bytes(8)),
        "cannot be at 4 to 8 with 0",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_header_that_is_wrong_is_refused(tmp_path, name):
    file, says = WRONG[name]
    with pytest.raises(InputError, match=says):
        read(write(tmp_path / "a.safetensors", *file))


def test_tensors_of_no_size_and_of_no_axes_are_read(tmp_path):
    tensors = {"none": np.zeros((0, 3), np.float32), "one": np.array(4, np.float32), "b": np.arange(3, dtype=np.int8)}
    save_file(tensors, tmp_path / "a.safetensors")
    found = read(tmp_path / "a.safetensors")
    for key, value in tensors.items():
        np.testing.assert_array_equal(found[key], value, strict=True)


def test_an_index_names_files_beside_it_and_no_others(tmp_path):
    (tmp_path / "model").mkdir()
    index = tmp_path / "model" / "m.safetensors.index.json"
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "secret.safetensors")
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "model" / "own.safetensors")
    index.write_text(json.dumps({"weight_map": {"a": "own.safetensors"}}))
    np.testing.assert_array_equal(read_shards(index)["a"], np.ones(2))
    for name in ("../secret.safetensors", str(tmp_path / "secret.safetensors"), "", "..", "a\0", "..\\secret"):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(InputError, match="which is no file beside it"):
            read_shards(index)
    for text in (
        "[]",
        "{}",
        '{"weight_map": 3}',
        '{"weight_map": {"a": 3}}',
        "[" * 100_000,
        '{"weight_map": {"a": []}}',
    ):
        index.write_text(text)
        with pytest.raises(InputError, match="has no weight_map"):
            read_shards(index)


LAYER = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def adapter(path, metadata, **more):
    tensors = {
        f"{LAYER}.lora_A.weight": np.zeros((2, 8), np.float32),
        f"{LAYER}.lora_B.weight": np.ones((8, 2), np.float32),
    }
    save_file({**tensors, **more}, path, metadata={lora.METADATA: metadata})
    return path


@pytest.mark.parametrize(
    "metadata, says",
    [
        ("{", "metadata that are no JSON"),
        ("3", "metadata that are no JSON"),
        ('{"unet.lora_alpha": "x"}', "it should be a number"),
        ('{"unet.lora_alpha": 1, "unet.alpha_pattern": {"(a+)+$": 2}}', "only names of layers are read"),
        ('{"unet.lora_alpha": 1, "unet.alpha_pattern": 2}', "only names of layers are read"),
    ],
)
def test_metadata_of_adapters_that_are_wrong_are_refused(tmp_path, metadata, says):
    with pytest.raises(InputError, match=says):
        lora.load(adapter(tmp_path / "a.safetensors", metadata), 2)
    with pytest.raises(InputError, match="it should be one number"):
        lora.load(adapter(tmp_path / "a.safetensors", "{}", **{f"{LAYER}.alpha": np.zeros(3, np.float32)}), 2)


@pytest.mark.parametrize("name, alpha", [("attn1.to_q", 3), ("n1.to_q", 2), (LAYER.removeprefix("unet."), 3)])
def test_an_alpha_is_found_by_the_end_of_the_layers_name(tmp_path, name, alpha):
    metadata = json.dumps({"unet.lora_alpha": 2, "unet.alpha_pattern": {name: 3}})
    found = lora.load(adapter(tmp_path / "a.safetensors", metadata), 2)
    assert [value for key, value in found.items() if key.endswith("lora_alpha")] == [alpha]
