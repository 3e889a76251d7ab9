"""`export --int8`: the training images that its ranges come from."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from atmc_tool.cli.data_source import data_folder, load_configured
from atmc_tool.cli.origin import RECORDED_SECTIONS
from atmc_tool.compressed import CompressedModel
from atmc_tool.config import Config
from atmc_tool.data.data_set import limited_indices
from atmc_tool.errors import InputError
from atmc_tool.settings import merge
from evaluators.accuracy import images_digest
from exporters.int8 import int8_onnx

IMAGES = 256
SEED = 0  # of the choice of images


def exported_int8(
    model: CompressedModel, source_digest: str, path: Path, resolve: Callable[[Mapping[str, Any]], Config]
) -> bytes:
    """`model`, read from the file `path` of `source_digest`, as an ONNX file that computes in int8.

    It is calibrated on up to `IMAGES` training images, each class in its proportion, never on those of the validation
    or test part.

    Raises:
        UsageError, InputError: the data are not known, not there, or do not fit the network.
        AtmcError: see `int8_onnx`.
    """
    facts = model.manifest
    card, config = (_mapping(facts.get(key)) for key in ("card", "config"))
    settings: dict[str, Any] = {"data": {"name": card["data"]}} if isinstance(card.get("data"), str) else {}
    settings |= {key: config[key] for key in RECORDED_SECTIONS if key in config}
    data = load_configured(resolve(merge(data_folder(path), settings)))
    shape = card.get("image_shape", data.image_shape)
    if tuple(shape) != data.image_shape:
        raise InputError(
            f"the images of {data.name} do not fit the network", expected=tuple(shape), got=data.image_shape
        )
    chosen = data.train.take(limited_indices(data.train.labels, IMAGES, SEED)).read()
    stated = {"data": data.name, "images": len(chosen), "sha256": images_digest(chosen.images, chosen.labels)}
    return int8_onnx(model, source_digest, np.ascontiguousarray(chosen.floats()), stated)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
