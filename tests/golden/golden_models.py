"""The networks that the golden files hold; `python tests/golden/golden_models.py` makes that of the present level.

Once released, a golden file is never made anew.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atmc_tool.compressed import CompressedModel, CompressedWeight, SparseTensor
from atmc_tool.files import write_atomic
from exporters.atmc_file import LEVEL, encode_model

FOLDER = Path(__file__).parent


def golden_model(level: int) -> CompressedModel:
    """The network that the golden file of this level holds, from what is written beside it."""
    return described_model(json.loads((FOLDER / f"level{level}.json").read_text()))


def described_model(described: dict[str, Any]) -> CompressedModel:
    """The network that such a description spells out; a list may be {"range": [begin, end, step]}."""
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
    shape, positions = tuple(fields["shape"]), _numbers(fields["positions"])
    if fields["codebook"] is None:
        return SparseTensor(shape, positions, np.array(fields["values"], np.float32))
    codes, codebook = _numbers(fields["codes"]).astype(np.uint8), np.array(fields["codebook"], np.float32)
    return SparseTensor(shape, positions, codebook[codes], codes, codebook)


def _numbers(described: Any) -> NDArray[np.int64]:
    return np.array(range(*described["range"]) if isinstance(described, dict) else described, np.int64)


if __name__ == "__main__":
    write_atomic(FOLDER / f"level{LEVEL}.atmc", encode_model(golden_model(LEVEL)))
