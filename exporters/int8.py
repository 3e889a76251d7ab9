"""A compressed network as an ONNX file that computes in int8: QuantizeLinear and DequantizeLinear around its operators.

Faster where the processor has int8 instructions, four times smaller than dense, but larger than the self-decoding file:
int8 weights stand in it one by one.
"""

import contextlib
import io
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, helper

from atmc_tool.compressed import CompressedModel
from atmc_tool.errors import AtmcError
from exporters.float_graph import float_graph

BATCH = 32
LEAST_RANGE = 1e-6  # else an empty filter gets the scale 1, and its bias is rounded to steps as coarse as the image's
KEY = "atmc_tool.int8"


def int8_onnx(model: CompressedModel, source_digest: str, images: NDArray[np.float32], facts: dict[str, Any]) -> bytes:
    """A serialised ONNX model: `input`, float32 (N, C, H, W) in [0, 1] → `logits`, (N, classes).

    onnxruntime's static quantisation of `float_graph`: symmetric int8 weights with a scale for each output channel,
    int32 biases, asymmetric int8 activations whose ranges are the least and largest values on `images`. The logits are
    not rounded. The dequantised weight P is the value `P`. The same input gives the same bytes on the same machine.

    images: float32 (n, C, H, W) in [0, 1], training images to calibrate on
    facts:  what to say of them in the file's metadata

    Raises:
        InputError: as `build_onnx`.
        AtmcError: onnxruntime can't quantise this network.
    """
    proto = float_graph(model, source_digest)
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    quantized = _quantized(proto, images)
    _leave_logits(quantized)
    _restore_names(quantized, {tensor.name for tensor in proto.graph.initializer})
    for node in quantized.graph.node:
        node.name = ""
    quantized.graph.ClearField("value_info")
    quantized.producer_name, quantized.producer_version = proto.producer_name, ""
    helper.set_model_props(quantized, {**metadata, KEY: json.dumps(facts, sort_keys=True, separators=(",", ":"))})
    onnx.checker.check_model(quantized, full_check=True)
    content: bytes = quantized.SerializeToString(deterministic=True)
    return content


def _quantized(proto: ModelProto, images: NDArray[np.float32]) -> ModelProto:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter([images[i : i + BATCH] for i in range(0, len(images), BATCH)])

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            batch = next(self.batches, None)
            return None if batch is None else {proto.graph.input[0].name: batch}

    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "int8.onnx"
        try:
            with _silence():
                quantize_static(
                    proto,
                    target,
                    Reader(),
                    quant_format=QuantFormat.QDQ,
                    per_channel=True,
                    activation_type=QuantType.QInt8,
                    weight_type=QuantType.QInt8,
                    extra_options={"MinimumRealRange": LEAST_RANGE},
                )
        except Exception as error:  # any of onnxruntime's own
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            raise AtmcError(f"onnxruntime can't quantise this network: {reason}", hint="export --onnx") from error
        return onnx.load_model(target)


def _leave_logits(proto: ModelProto) -> None:
    """Take away the rounding of the logits: 256 steps would give ties between classes."""
    graph, output = proto.graph, proto.graph.output[0].name
    makers = {name: node for node in graph.node for name in node.output}
    uses = Counter(name for node in graph.node for name in node.input)
    last = makers[output]
    rounding = makers.get(last.input[0]) if last.op_type == "DequantizeLinear" else None
    if rounding is None or uses[rounding.output[0]] > 1 or uses[rounding.input[0]] > 1:
        return
    maker = makers[rounding.input[0]]
    maker.output[list(maker.output).index(rounding.input[0])] = output
    for node in (last, rounding):
        graph.node.remove(node)
    _drop_unused(proto)


def _drop_unused(proto: ModelProto) -> None:
    used = {name for node in proto.graph.node for name in node.input}
    kept = [tensor for tensor in proto.graph.initializer if tensor.name in used]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)


def _restore_names(proto: ModelProto, names: set[str]) -> None:
    """Give what is dequantised from a stored array the name that it had as a float."""
    stored = {tensor.name for tensor in proto.graph.initializer}
    renamed = {
        node.output[0]: node.input[0].removesuffix("_quantized")
        for node in proto.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in stored
    }
    renamed = {old: new for old, new in renamed.items() if new in names - stored}
    for node in proto.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """The quantiser logs and prints even where all is well; what matters is in its exceptions."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)
