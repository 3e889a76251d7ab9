"""Make level1.atmc from level1.json: `python tests/golden/make_level1.py`. Once released, it is never made anew."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from atmc_tool.compressed import CompressedModel, CompressedWeight, SparseTensor
from atmc_tool.files import write_atomic
from exporters.atmc_file import encode_model

FOLDER = Path(__file__).parent


def described_model(described: dict[str, Any]) -> CompressedModel:
    """The network that level1.json spells out."""
    weights = {
        name: CompressedWeight(
            tuple(weight["shape"]), {factor: _factor(fields) for factor, fields in weight["factors"].items()}
        )
        for name, weight in described["weights"].items()
    }
    rest = {
        name: np.array(array["values"], array["dtype"]).reshape(array["shape"])
        for name, array in described["rest"].items()
    }
    return CompressedModel(weights, rest, described["skeleton"].encode(), described["manifest"])


def _factor(fields: dict[str, Any]) -> SparseTensor:
    shape, positions = tuple(fields["shape"]), np.array(fields["positions"], np.int64)
    if fields["codebook"] is None:
        return SparseTensor(shape, positions, np.array(fields["values"], np.float32))
    codes, codebook = np.array(fields["codes"], np.uint8), np.array(fields["codebook"], np.float32)
    return SparseTensor(shape, positions, codebook[codes], codes, codebook)


if __name__ == "__main__":
    model = described_model(json.loads((FOLDER / "level1.json").read_text()))
    write_atomic(FOLDER / "level1.atmc", encode_model(model))
