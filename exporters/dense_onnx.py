"""A compressed network as an ordinary ONNX file with dense weights: what others are compared with. Needs no torch."""

from atmc_tool.compressed import CompressedModel
from exporters.onnx_file import build_onnx


def dense_onnx(model: CompressedModel, source_digest: str) -> bytes:
    """As `build_onnx`, with every weight an initialiser of its own name.

    Raises:
        InputError: as `build_onnx`.
    """
    return build_onnx(CompressedModel({}, model.state(), model.skeleton, model.manifest), source_digest)
