"""Files without weights are identified in one sentence, with a hint."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import torch

from c2fdft_cli.engine.weights.checkpoint import load_checkpoint
from c2fdft_cli.errors import CheckpointError

POINTER = """version https://git-lfs.github.com/spec/v1
oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393
size 101234567
"""


def archive(*names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for name in names:
            made.writestr(name, "content")
    return file.getvalue()


def tar():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as made:
        made.addfile(tarfile.TarInfo("net_g.pth"))
    return file.getvalue()


def numpy(save):
    file = io.BytesIO()
    save(file, np.ones(3))
    return file.getvalue()


KINDS = [
    (b"", "the file is empty", "download"),
    (
        POINTER.encode(),
        "a Git LFS pointer, not the checkpoint of 101,234,567 bytes",
        "git lfs pull",
    ),
    (b"<!DOCTYPE html>\n<html><title>Sign in</title>", "a web page (HTML)", "download button"),
    (b"\xef\xbb\xbf \r\n<HTML><body>", "a web page (HTML)", "download button"),
    (b"<?xml version='1.0'?><Error><Code>AccessDenied", "an XML document", "a server"),
    (b'{"error": "Not Found"}', 'begins with \'{"error": "Not Found"}\'', "download"),
    (b"function{ return 1 }", "a text file that begins with 'function{", "download"),
    (b"Entry not found", "a text file that begins with 'Entry not found'", "download"),
    (archive("photos/a.jpg", "photos/b.jpg"), "other files (photos/a.jpg, photos/b.jpg)", ".pth"),
    (archive("README.md", "models/net_g.pth"), "other files (models/net_g.pth)", "unpack it"),
    (archive(*(f"{i}.png" for i in range(9))), "(0.png, 1.png, 2.png, ...)", ".pth"),
    (archive(), "an empty zip archive", "download"),
    (archive("m/data.pkl", "m/constants.pkl", "m/code/a.py"), "a TorchScript program", "jit.load"),
    (numpy(np.savez), "zip archive of other files (arr_0.npy)", ".pth"),
    (numpy(np.save), "a NumPy array", ".pth"),
    (tar(), "a tar archive", "unpack it"),
    (gzip.compress(b"weights"), "a gzip archive", "unpack it"),
    (b"\x08\x08\x12\x07pytorch\x1a\x062.13.0" + bytes(99), "an ONNX file", "made from"),
    (b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file", ".pth"),
    (b"\x89PNG\r\n\x1a\n" + bytes(99), "a PNG image", ".safetensors"),
    (b"\xff\xd8\xff\xe0" + bytes(99), "a JPEG image", ".safetensors"),
    (bytes(5000), "it begins with zeros", "download"),
    (b"\0\xa2\xff" * 99, "damaged, or is neither a torch nor a safetensors file", "download"),
    (pickle.dumps({"params": [1.0]}), "a pickle of Python objects", "torch.save(torch.load("),
    (archive("x" * 9999), "zip archive of other files (xxx", ".pth"),
]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".ckpt"])
@pytest.mark.parametrize(("content", "says", "hint"), KINDS, ids=[says for _, says, _ in KINDS])
def test_a_file_of_another_kind_is_identified(tmp_path, content, says, hint, suffix):
    path = tmp_path / f"net_g{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert says in str(caught.value)
    assert hint in caught.value.hint
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


def test_weights_with_the_suffix_of_the_other_format_are_identified(tmp_path):
    path = tmp_path / "x.safetensors"
    torch.save({"a": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match="not the weights of a DFT"):
        load_checkpoint(path)
