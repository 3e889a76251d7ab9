"""The same network gives the same bytes on every run: in another process, with another order of hashing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

SCRIPT = """
import sys
from compressed_networks import digits_network, random_images
from atmc_tool.files import sha256
from exporters.atmc_file import decode_model, encode_model
from exporters.dense import dense_safetensors, dense_torch
from exporters.int8 import int8_onnx
from exporters.onnx_file import build_onnx

content = open(sys.argv[1], "rb").read()
model = decode_model(content)
digest = sha256(content)
images = random_images((1, 8, 8), 64)
for made in (
    encode_model(digits_network()),
    encode_model(model),
    build_onnx(model, digest),
    build_onnx(model, digest, dense=True),
    dense_safetensors(model),
    dense_torch(model),
    int8_onnx(model, digest, images, {"images": 64}),
):
    print(sha256(made))
"""
NAMES = ("atmc, traced again", "atmc", "onnx", "dense onnx", "safetensors", "pt", "int8 onnx")


def digests(path: Path, seed: str) -> list[str]:
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    command = [sys.executable, "-c", SCRIPT, str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from compressed_networks import digits_network

    from exporters.atmc_file import encode_model

    made = tmp_path_factory.mktemp("bytes") / "model.atmc"
    made.write_bytes(encode_model(digits_network()))
    return made


def test_two_processes_write_the_same_bytes(path: Path) -> None:
    first, second = digests(path, "1"), digests(path, "2")
    assert dict(zip(NAMES, first, strict=True)) == dict(zip(NAMES, second, strict=True))
    assert first[0] == first[1]
