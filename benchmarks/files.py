"""Bytes of weights in `.atmc` against other coders, and the speed of decoding; writes benchmarks/results/files.json.

    python benchmarks/files.py --checkpoint resnet20-cifar10.th digits=run/model.atmc …

Sets: the network of a checkpoint (by default resnet20-cifar10.th in the folder that ATMC_MODELS_DIR names), its weights
pruned globally by magnitude to 20, 5 and 1 %, with 256, 16 and 4 values per tensor in float16, and networks that this
tool has made. Where the module deepCABAC of NNCodec 2.1.3 can be imported (`pip install --no-deps nncodec`, for this
benchmark only), it is compared too.
"""

import argparse
import gzip
import json
import lzma
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from atmc_tool.codebooks import lloyd
from atmc_tool.compressed import CompressedModel, CompressedWeight, SparseTensor
from atmc_tool.machine import machine
from exporters import entropy, level3
from exporters.atmc_file import decode_model, describe, encode_model, read_atmc
from exporters.codebook_fields import fits_half
from exporters.entropy import FactorHeader
from exporters.kernels import kernel_of

RESULT = Path(__file__).parent / "results" / "files.json"
DENSITIES, VALUES = (0.2, 0.05, 0.01), (256, 16, 4)
WIDE, ROUNDS = 512, 7
Factors = list[tuple[FactorHeader, SparseTensor]]


def pruned(weights: Mapping[str, torch.Tensor], density: float, size: int) -> CompressedModel:
    """The largest share `density` of all weights, each tensor's on at most `size` values of float16."""
    every = torch.cat([weight.abs().flatten() for weight in weights.values()])
    threshold = every.topk(round(density * len(every))).values[-1]
    found = {}
    for name, weight in weights.items():
        flat = weight.reshape(-1)
        positions = (flat.abs() >= threshold).nonzero()[:, 0]
        values = flat[positions]
        centres = values.double() if len(values) <= size else lloyd(values, size)
        codebook = np.unique(centres.numpy().astype(np.float16)).astype(np.float32)
        codes = np.abs(values.numpy()[:, None] - codebook).argmin(axis=1) if len(values) else np.zeros(0, np.int64)
        used, codes = np.unique(codes, return_inverse=True)
        empty = CompressedWeight(tuple(weight.shape), {})
        tensor = tensor_of(empty.matrix_shape, positions.numpy(), codes, codebook[used])
        found[name] = CompressedWeight(empty.shape, {empty.main: tensor})
    return CompressedModel(found, {}, b"", {})


def tensor_of(
    shape: tuple[int, int], positions: NDArray[np.int64], codes: NDArray[np.int64], codebook: NDArray[np.float32]
) -> SparseTensor:
    """A quantised factor; without entries it has no codebook."""
    if not len(positions):
        return SparseTensor(shape, positions, np.zeros(0, np.float32))
    small = codes.astype(np.uint8)
    return SparseTensor(shape, positions, codebook[small], small, codebook)


def shuffled(factors: Factors) -> Factors:
    """The same entries at random places of their factor: what the coder costs where there is nothing to gain."""
    rng, found = np.random.default_rng(0), []
    for header, tensor in factors:
        positions = np.sort(rng.choice(header.elements, tensor.kept, replace=False)).astype(np.int64)
        order = rng.permutation(tensor.kept)
        codes = None if tensor.codes is None else tensor.codes[order]
        found.append((header, SparseTensor(tensor.shape, positions, tensor.values[order], codes, tensor.codebook)))
    return found


def factors_of(model: CompressedModel) -> Factors:
    """Every factor that has entries."""
    found = []
    for name, weight in model.weights.items():
        for factor, tensor in weight.factors.items():
            size = 0 if tensor.codebook is None else len(tensor.codebook)
            kernel = kernel_of(weight.shape, factor)
            found.append((FactorHeader(name, tensor.shape, tensor.kept, size, kernel), tensor))
    return [(header, tensor) for header, tensor in found if tensor.kept]


def codebook_bytes(tensor: SparseTensor) -> int:
    """As it is, in float16 where that is exact."""
    return 0 if tensor.codebook is None else len(tensor.codebook) * (2 if fits_half(tensor.codebook) else 4)


def zero_order(factors: Factors) -> float:
    """Z0: entropy of the mask and of the codes of every factor, codebooks or values as they are; nothing else."""
    total = 0.0
    for header, tensor in factors:
        n, k = header.elements, tensor.kept
        mask = -k * math.log2(k / n) - (n - k) * math.log2(1 - k / n) if k < n else 0.0
        shares = np.zeros(0) if tensor.codes is None else np.bincount(tensor.codes) / k
        codes = -k * sum(share * math.log2(share) for share in shares.tolist() if share)
        values = 4 * k if tensor.codes is None else 0
        total += (mask + codes) / 8 + codebook_bytes(tensor) + values
    return total


def bitmask_and_codes(factors: Factors) -> bytes:
    """Bitmasks of all factors, then packed codes, then codebooks or values; 4 bytes of counts for each."""
    masks, codes, books = [], [], []
    for header, tensor in factors:
        mask = np.zeros(header.elements, np.bool_)
        mask[tensor.positions] = True
        masks.append(np.packbits(mask).tobytes())
        if tensor.codes is None or tensor.codebook is None:
            books.append(tensor.values.tobytes())
        else:
            codes.append(entropy.encode_codes(tensor.codes, header.codebook_size))
            half = fits_half(tensor.codebook)
            books.append(tensor.codebook.astype(np.float16 if half else np.float32).tobytes())
    return bytes(4 * len(factors)) + b"".join(masks + codes + books)


def level_bytes(streams: Mapping[str, bytes]) -> int:
    """Bytes of these streams in a file."""
    return sum(
        len(entropy.store(content) if name == "coded" else entropy.compress(content))
        for name, content in streams.items()
        if content
    )


def level_3(factors: Factors) -> int:
    """Weight bytes of the format that is written."""
    return level_bytes(level3.encode([tensor for _, tensor in factors], [header for header, _ in factors], []))


def nncodec() -> Any | None:
    """NNCodec's entropy coder where it is installed. The package itself wants other versions of its dependencies."""
    found = next((file for folder in sys.path for file in Path(folder).glob("nncodec/extensions/deepCABAC*.so")), None)
    if found is None:
        return None
    spec = spec_from_file_location("deepCABAC", found)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def nncodec_bytes(factors: Factors, coder: Any) -> int | None:
    """Payloads of NNCodec's entropy coder, for each factor of the best of 20 settings, decoded and compared; codebooks
    as they are and 4 bytes each. None where a factor has no codebook."""
    total = 0
    for header, tensor in factors:
        if tensor.codes is None or tensor.codebook is None:
            return None
        negative = int(np.count_nonzero(tensor.codebook < 0))
        codes = tensor.codes.astype(np.int32)
        levels = np.zeros(header.elements, np.int32)
        levels[tensor.positions] = np.where(codes < negative, codes - negative, codes - negative + 1)
        levels = levels.reshape(header.shape)
        total += 4 + codebook_bytes(tensor)
        total += min(
            cabac_bytes(coder, levels, unary, optimize, skip, (header.codebook_size + 1, negative))
            for unary in (1, 2, 4, 8, 16)
            for optimize in (0, 1)
            for skip in (0, 1)
        )
    return total


def cabac_bytes(
    coder: Any, levels: NDArray[np.int32], unary: int, optimize: int, skip: int, codebook: tuple[int, int]
) -> int:
    """Bytes of one factor by DeepCABAC, rows in order, without dependent quantisation."""
    off = (coder.HdspMode.AlwaysOff, np.zeros(2, np.int8))
    encoder = coder.Encoder()
    encoder.initCtxModels(unary, optimize)
    empty = (~levels.any(axis=1)).astype(np.int32)
    encoder.encodeLayer(levels, 0, 0, 1, 0, skip, empty, *off, *codebook)
    payload = encoder.finish().tobytes()
    decoder = coder.Decoder()
    decoder.setStream(np.frombuffer(payload, np.uint8))
    decoder.initCtxModels(unary)
    decoded = np.zeros_like(levels)
    decoder.decodeLayer(decoded, 0, 0, 1, 0, *off, *codebook)
    assert np.array_equal(decoded, levels)
    return len(payload)


def sizes(model: CompressedModel, coder: Any | None) -> dict[str, Any]:
    """Coder → bytes of the weights; and level 3 against Z0, seconds of writing and reading the whole file."""
    factors = factors_of(model)
    dense = [weight.dense().astype("<f4").tobytes() for weight in model.weights.values()]
    begun = time.process_time()
    content = encode_model(model)
    written = time.process_time()
    decoded = decode_model(content)
    read = time.process_time()
    for name, weight in decoded.weights.items():
        assert weight.dense().tobytes() == model.weights[name].dense().tobytes()
    streams = describe(content)["streams"]
    own = sum(streams[name]["stored_bytes"] for name in ("coded", "values", "codes", "gaps") if name in streams)
    packed = bitmask_and_codes(factors)
    z0 = zero_order(factors)
    return {
        "weights": sum(math.prod(weight.shape) for weight in model.weights.values()),
        "kept": sum(header.kept for header, _ in factors),
        "Z0": round(z0),
        "level 3": own,
        "level 1": level_bytes(entropy.encode_factors([tensor for _, tensor in factors])),
        "xz -9e of bitmask and codes": len(lzma.compress(packed, preset=9 | lzma.PRESET_EXTREME)),
        "gzip of the dense array": len(gzip.compress(b"".join(dense), 9)),
        "NNCodec's coder": None if coder is None else nncodec_bytes(factors, coder),
        "level 3, shuffled": level_3(shuffled(factors)),
        "level 3 / Z0": round(own / z0, 3),
        "level 3, shuffled / Z0": round(level_3(shuffled(factors)) / z0, 3),
        "file": len(content),
        "seconds to write": round(written - begun, 3),
        "seconds to read": round(read - written, 3),
    }


def smooth(density: float) -> CompressedModel:
    """A layer of 512 × 512 × 3 × 3 whose kernels are smooth and whose rows and columns differ, 16 values."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(WIDE, WIDE, 3, 3))
    for axis in (2, 3):
        weight += 0.5 * np.roll(weight, 1, axis)
    weight *= rng.uniform(0.5, 1.5, (WIDE, 1, 1, 1)) * rng.uniform(0.5, 1.5, (1, WIDE, 1, 1))
    return pruned({"weight": torch.from_numpy(weight.astype(np.float32))}, density, 16)


def speed(density: float) -> dict[str, Any]:
    """Seconds from the file's bytes to the dense array, and megabytes of it a second; the median of several."""
    model = smooth(density)
    content = encode_model(model)
    seconds = []
    for _ in range(ROUNDS):
        begun = time.process_time()
        dense = decode_model(content).weights["weight"].dense()
        seconds.append(time.process_time() - begun)
    median = statistics.median(seconds)
    return {
        "file": len(content),
        "seconds": round(median, 4),
        "least": round(min(seconds), 4),
        "MB/s of dense float32": round(dense.nbytes / 1e6 / median),
    }


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = Path(os.environ.get("ATMC_MODELS_DIR", ".")) / "resnet20-cifar10.th"
    parser.add_argument("--checkpoint", type=Path, default=known)
    parser.add_argument("networks", nargs="*", metavar="NAME=FILE.atmc")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    coder = nncodec()
    state = torch.load(arguments.checkpoint, map_location="cpu", weights_only=True)
    state = state.get("state_dict", state)
    weights = {name: tensor.float() for name, tensor in state.items() if tensor.ndim > 1}
    sets: dict[str, CompressedModel] = {
        f"{arguments.checkpoint.stem}, {density:.0%}, {size} values": pruned(weights, density, size)
        for density in DENSITIES
        for size in VALUES
    }
    for named in arguments.networks:
        name, _, path = named.partition("=")
        sets[name] = read_atmc(Path(path))
    table = {}
    for name, model in sets.items():
        table[name] = sizes(model, coder)
        print(name, table[name], flush=True)
    result = {
        "command": "python benchmarks/files.py --checkpoint … NAME=FILE.atmc …",
        "machine": machine(torch.device("cpu")),
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "NNCodec": None if coder is None else "2.1.3",
        "bytes of the weights": table,
        f"decoding {WIDE} × {WIDE} × 3 × 3, 16 values, one core": {f"{d:.0%}": speed(d) for d in DENSITIES},
    }
    RESULT.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(result[f"decoding {WIDE} × {WIDE} × 3 × 3, 16 values, one core"])


if __name__ == "__main__":
    main()
