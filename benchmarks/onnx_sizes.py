"""What the bytes of the self-decoding ONNX file are; writes benchmarks/results/onnx_sizes.json.

    python benchmarks/onnx_sizes.py [--checkpoint resnet20-cifar10.th] [NAME=model.atmc …]

The sets of files.py: ResNet-20 pruned globally by magnitude, its batch norms in float16 values; and files of this tool.
"""

import argparse
import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from files import DENSITIES, VALUES, factors_of, level_3, pruned, zero_order

from atmc_tool.compressed import CompressedModel
from atmc_tool.models import ARCHITECTURES
from exporters.atmc_file import read_atmc
from exporters.onnx_file import build_onnx
from exporters.onnx_skeleton import trace_skeleton

RESULT = Path(__file__).parent / "results" / "onnx_sizes.json"


def decoding(proto: onnx.ModelProto) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto], list[onnx.TensorProto]]:
    """The nodes that decode, what they read of the weights (streams, tables and codebooks), and shapes and bounds."""
    nodes, read = [], set()
    for node in reversed(proto.graph.node):
        if node.domain or read & set(node.output):
            nodes.append(node)
            read |= set(node.input)
    tensors = [tensor for tensor in proto.graph.initializer if tensor.name in read]
    shapes = [tensor for tensor in tensors if tensor.data_type == onnx.TensorProto.INT64]
    return nodes, [tensor for tensor in tensors if tensor.data_type != onnx.TensorProto.INT64], shapes


def numbers_bytes(tensor: onnx.TensorProto) -> int:
    """Bytes of the numbers in the tensor, as they are or as varints."""
    empty = onnx.TensorProto()
    empty.int32_data.extend(tensor.int32_data)
    varints = empty.ByteSize()
    framing = 1 + max(1, -(-(varints - 2).bit_length() // 7)) if varints else 0
    return len(tensor.raw_data) + varints - framing


def parts(model: CompressedModel) -> dict[str, Any]:
    """Bytes of the file by what they are for; the streams of the weights against Z0 and those of `.atmc`."""
    content = build_onnx(model, "0" * 64)
    proto = onnx.load_from_string(content)
    decoders, streams, shapes = decoding(proto)
    factors = factors_of(model)
    z0 = zero_order(factors)
    own = sum(numbers_bytes(tensor) for tensor in streams)
    framing = sum(tensor.ByteSize() + 3 for tensor in [*streams, *shapes]) - own
    found = {
        "file": len(content),
        "streams of weights": own,
        "framing, shapes": framing,
        "nodes that decode": sum(node.ByteSize() + 2 for node in decoders),
        "functions": sum(function.ByteSize() + 3 for function in proto.functions),
    }
    return {
        **found,
        "all else": 2 * len(content) - sum(found.values()),
        "Z0": round(z0),
        "streams / Z0": round(own / z0, 3),
        ".atmc, level 3": level_3(factors),
        "decoders": dict(sorted(Counter(node.op_type for node in decoders if node.domain).items())),
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("ATMC_MODELS_DIR", ".")) / "resnet20-cifar10.th"
    parser.add_argument("--checkpoint", type=Path, default=default)
    parser.add_argument("networks", nargs="*", metavar="NAME=FILE.atmc")
    arguments = parser.parse_args()
    state = torch.load(arguments.checkpoint, map_location="cpu", weights_only=True)
    state = {name.removeprefix("module."): tensor for name, tensor in state.get("state_dict", state).items()}
    architecture = ARCHITECTURES["resnet20"]
    skeleton = trace_skeleton(architecture.build(), (3, 32, 32), 10, architecture.mean, architecture.std)
    weights = {name: tensor for name, tensor in state.items() if tensor.ndim >= 2}
    rest = {name: tensor.numpy() for name, tensor in state.items() if tensor.ndim < 2}
    rest = {
        name: array.astype(np.float16).astype(array.dtype) if array.dtype == np.float32 else array
        for name, array in rest.items()
    }
    sets = {
        f"resnet20-cifar10, {density:.0%}, {size} values": replace(
            pruned(weights, density, size), skeleton=skeleton, rest=rest
        )
        for density in DENSITIES
        for size in VALUES
    }
    for named in arguments.networks:
        name, _, path = named.partition("=")
        sets[name] = read_atmc(Path(path))
    table = {name: parts(model) for name, model in sets.items()}
    for name, line in table.items():
        print(name, line)
    result = {"command": "python benchmarks/onnx_sizes.py … NAME=FILE.atmc …", "bytes": table}
    RESULT.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
