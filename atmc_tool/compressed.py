"""A compressed network as plain NumPy values: what training hands over, what files store, what parity compares.

Nothing here needs torch, so export, inspect and verify work on this alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FACTOR_NAMES = ("U", "V", "C")


@dataclass(frozen=True)
class SparseTensor:
    """One factor, m × n, as its kept entries; with a codebook their values are `codebook[codes]`.

    shape:     (m, n)
    positions: int64 (k,), strictly increasing row-major positions in [0, m·n)
    codes:     uint8 (k,), indices into the codebook; None where the factor is not quantised
    codebook:  float32 (K,), 1 ≤ K ≤ 256, strictly increasing, no zero; None where the factor is not quantised
    values:    float32 (k,), the kept values (always present; equals codebook[codes] where quantised)
    """

    shape: tuple[int, int]
    positions: NDArray[np.int64]
    values: NDArray[np.float32]
    codes: NDArray[np.uint8] | None = None
    codebook: NDArray[np.float32] | None = None

    @property
    def kept(self) -> int:
        """Number of stored entries."""
        return len(self.positions)

    @property
    def bits(self) -> int:
        """Bits of one code, ⌈log2 K⌉ and at least 1; 32 where the factor is not quantised."""
        return 32 if self.codebook is None else max(1, (len(self.codebook) - 1).bit_length())

    @property
    def nominal_bits(self) -> int:
        """The paper's size (arXiv:1902.03538): nonzeros · bits + 32 · codebook values; positions are not counted."""
        return self.kept * self.bits + 32 * (0 if self.codebook is None else len(self.codebook))

    def dense(self) -> NDArray[np.float32]:
        """float32 (m, n): the kept values at their positions, zero elsewhere."""
        flat = np.zeros(self.shape[0] * self.shape[1], np.float32)
        flat[self.positions] = self.values
        return flat.reshape(self.shape)


@dataclass(frozen=True)
class CompressedWeight:
    """W (m × n, n = product of all dimensions but the first) = (I + U) V + C if m ≤ n, else U (I + V) + C.

    The identity is a constant and is not stored. `factors` holds U, V and C; an absent one is all zeros.
    With m ≤ n: U is m × m, V is m × n. With m > n: U is m × n, V is n × n. C is m × n.
    `shape` is the weight's own shape, such as (out, in, kh, kw).
    """

    shape: tuple[int, ...]
    factors: Mapping[str, SparseTensor]

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.shape[0], int(np.prod(self.shape[1:]))

    @property
    def main(self) -> str:
        """Name of the factor that carries W itself: V if m ≤ n, else U. The other one multiplies it."""
        m, n = self.matrix_shape
        return "V" if m <= n else "U"

    def factor_shape(self, name: str) -> tuple[int, int]:
        """(rows, columns) of factor U, V or C."""
        m, n = self.matrix_shape
        side = {"U": (m, m), "V": (n, n)}
        return (m, n) if name in ("C", self.main) else side[name]

    def dense(self) -> NDArray[np.float32]:
        """float32, the weight's own shape. Exact where only one of main and C is present (no product, no sum)."""
        m, n = self.matrix_shape
        dense = {name: factor.dense() for name, factor in self.factors.items() if factor.kept}
        main, side = dense.get(self.main), dense.get("U" if self.main == "V" else "V")
        weight = np.zeros((m, n), np.float32) if main is None else main
        if main is not None and side is not None:
            weight = main + (side @ main if self.main == "V" else main @ side)
        if "C" in dense:
            weight = weight + dense["C"] if main is not None else dense["C"]
        return weight.reshape(self.shape)


@dataclass(frozen=True)
class CompressedModel:
    """A whole network: compressed weights, everything else as it is, its graph, and what is known about it.

    weights:  parameter name → CompressedWeight
    rest:     name → array for every other entry of the state dict (biases, batch norm), in state-dict order
    skeleton: ONNX ModelProto bytes: the network's graph whose parameters and buffers are graph inputs named as
              in the state dict; first input `input` (N, C, H, W) in [0, 1], one output `logits` (N, classes)
    manifest: JSON-serialisable facts: {"card": ModelCard, "config": ..., "versions": ..., "metrics": ...}
    """

    weights: Mapping[str, CompressedWeight]
    rest: Mapping[str, NDArray[Any]]
    skeleton: bytes
    manifest: Mapping[str, Any]

    def state(self) -> dict[str, NDArray[Any]]:
        """name → dense array for every weight and everything else."""
        return {**{name: weight.dense() for name, weight in self.weights.items()}, **self.rest}


def sparsify(dense: NDArray[np.float32], *, quantized: bool) -> SparseTensor:
    """A SparseTensor of the nonzeros of `dense`, (m, n); `quantized` builds the codebook from its distinct values.

    Raises:
        ValueError: more than 256 distinct nonzero values where `quantized`.
    """
    shape = (dense.shape[0], dense.shape[1])
    flat = np.ascontiguousarray(dense, np.float32).reshape(-1)
    positions = np.flatnonzero(flat)
    values = flat[positions]
    if not quantized or not len(values):
        return SparseTensor(shape, positions, values)
    codebook, codes = np.unique(values, return_inverse=True)
    if len(codebook) > 256:
        raise ValueError(f"{len(codebook)} distinct values do not fit a codebook of 256")
    return SparseTensor(shape, positions, values, codes.astype(np.uint8), codebook)
