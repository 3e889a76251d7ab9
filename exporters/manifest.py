"""The manifest of an `.atmc` file: which tensors its streams hold, and what is known of the network. FORMAT.md, 2."""

import json
import math
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from atmc_tool.errors import InputError
from exporters.container import Limits
from exporters.entropy import LONGEST_GAP, FactorHeader, code_bytes
from exporters.kernels import kernel_of
from exporters.strict_json import brief, parse_json

Dtype = Literal["F64", "F32", "F16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"]
DTYPES: Mapping[Dtype, type[np.generic]] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
"""safetensors' names of the element types that `rest` may hold."""

Factor = Literal["U", "V", "C"]
Stream = Literal["skeleton", "rest", "coded", "codebooks", "values", "codes", "gaps"]
CODED_BYTES, CODED_FACTOR_BYTES = 2**15, 32
"""What the stream `coded` may take at most, beside 8 bytes for each entry and each value of a codebook."""

Name = Annotated[str, Field(min_length=1, max_length=1000)]
Count = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
Size = Annotated[int, Field(strict=True, ge=1, lt=2**31)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class WeightEntry(_Entry):
    """A compressed weight: its shape and, for each factor, (kept entries, codebook values; 0: not quantised)."""

    name: Name
    shape: Annotated[list[Size], Field(min_length=1, max_length=8)]
    factors: dict[Factor, tuple[Count, Annotated[int, Field(strict=True, ge=0, le=256)]]]

    def headers(self) -> dict[Factor, FactorHeader]:
        """Factor → its header, in the order U, V, C. By exact integers, for the shape is not yet trusted."""
        m, n = self.shape[0], math.prod(self.shape[1:])
        shapes: dict[Factor, tuple[int, int]] = {"U": (m, min(m, n)), "V": (min(m, n), n), "C": (m, n)}
        return {
            factor: FactorHeader(f"{self.name}.{factor}", shape, *self.factors[factor], kernel_of(self.shape, factor))
            for factor, shape in shapes.items()
            if factor in self.factors
        }


class RestEntry(_Entry):
    """Any other entry of the state dict."""

    name: Name
    dtype: Dtype
    shape: Annotated[list[Annotated[int, Field(strict=True, ge=0, lt=2**31)]], Field(max_length=8)]

    @property
    def bytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * np.dtype(DTYPES[self.dtype]).itemsize


class StreamEntry(_Entry):
    """A stream: bytes after decompression, and the SHA-256 of the bytes as they lie in the file."""

    bytes: Annotated[int, Field(strict=True, ge=1, lt=2**63)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Manifest(_Entry):
    """Everything that a reader must know before it opens a stream; `facts` is the network's own manifest."""

    weights: list[WeightEntry]
    rest: list[RestEntry]
    streams: dict[Stream, StreamEntry]
    facts: dict[str, Any]

    def factors(self) -> list[FactorHeader]:
        """The factors of every weight, in the order in which they lie in the streams."""
        return [header for weight in self.weights for header in weight.headers().values()]

    def to_json(self) -> bytes:
        """Compact ASCII JSON, the same for equal manifests.

        Raises:
            ValueError, TypeError: `facts` is not JSON (NaN and infinity are not).
        """
        facts = json.loads(json.dumps(self.facts, sort_keys=True, allow_nan=False))
        return json.dumps({**self.model_dump(exclude={"facts"}), "facts": facts}, separators=(",", ":")).encode()

    def check_limits(self, limits: Limits, level: int) -> None:
        """Every stated size, before anything of that size is allocated.

        Raises:
            InputError: a name twice, more entries than elements, more than `limits` allows,
                or a stream whose stated size does not follow from the tensors.
        """
        entries: list[WeightEntry | RestEntry] = [*self.weights, *self.rest]
        for name, times in Counter(entry.name for entry in entries).most_common(1):
            if times > 1:
                raise InputError(f"manifest names the tensor {brief(name)} twice")
        factors = self.factors()
        if len(entries) + len(factors) > limits.tensors:
            expected = f"at most {limits.tensors} weights, factors and other arrays"
            raise InputError("too many tensors", expected=expected, got=len(entries) + len(factors))
        for factor in factors:
            if factor.kept > factor.elements:
                what = f"factor {brief(factor.name)} keeps more entries than it has"
                raise InputError(what, expected=f"at most {factor.elements}", got=factor.kept)
        # A size of 0 counts as 1, for NumPy refuses huge shapes even where they are empty.
        elements = sum(math.prod(max(1, size) for size in entry.shape) for entry in entries)
        elements += sum(factor.elements for factor in factors if factor.kept)
        if elements > limits.elements:
            raise InputError("tensors are too large", expected=f"at most {limits.elements} elements", got=elements)
        kept = sum(factor.kept for factor in factors)
        if kept > limits.kept:
            raise InputError("too many stored entries", expected=f"at most {limits.kept}", got=kept)
        for stream, (least, most) in self._stream_sizes(limits, level).items():
            stated = self.streams[stream].bytes if stream in self.streams else 0
            if not least <= stated <= most:
                expected = f"{least} bytes" if least == most else f"{least} to {most} bytes"
                raise InputError(f"stream {stream!r} can't have the size it states", expected=expected, got=stated)

    def _stream_sizes(self, limits: Limits, level: int) -> dict[Stream, tuple[int, int]]:
        """Stream → the least and the most bytes it may have after decompression."""
        quantized = [factor for factor in self.factors() if factor.codebook_size]
        kept = sum(factor.kept for factor in self.factors())
        values = 4 * (kept - sum(factor.kept for factor in quantized))
        rest = sum(entry.bytes for entry in self.rest)
        centres = sum(factor.codebook_size for factor in quantized)
        codes = sum(code_bytes(factor.kept, factor.codebook_size) for factor in quantized)
        sizes: dict[Stream, tuple[int, int]] = {"skeleton": (0, limits.skeleton_bytes), "values": (values, values)}
        if level == 1:
            sizes |= {"rest": (rest, rest), "codebooks": (4 * centres, 4 * centres), "codes": (codes, codes)}
            return {**sizes, "coded": (0, 0), "gaps": (kept, LONGEST_GAP * kept)}
        coded = CODED_BYTES + len(self.rest) + CODED_FACTOR_BYTES * len(self.factors()) + 8 * (centres + kept)
        sizes |= {"rest": (-(-rest // 2), rest), "codebooks": (0, 0), "codes": (0, codes)}
        return {**sizes, "coded": (1, coded), "gaps": (0, LONGEST_GAP * kept)}


def parse_manifest(content: bytes) -> Manifest:
    """Manifest from its JSON; sizes are well-formed but not yet checked against one another.

    Raises:
        InputError: not JSON, or a field that is missing, unknown or of the wrong kind.
    """
    try:
        return Manifest.model_validate(parse_json(content, "manifest"))
    except ValidationError as error:
        first = error.errors()[0]
        where = brief(".".join(str(part) for part in first["loc"]))
        raise InputError(f"manifest does not follow the format at {where}", got=brief(first["msg"])) from error
