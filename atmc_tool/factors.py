"""W = U V + C: the factor tensors of a weight, and the dense weight they stand for.

W is m × n with n = product of all its dimensions but the first. If m ≤ n: W = (I + U) V + C with U m × m and V m × n,
else W = U (I + V) + C with U m × n and V n × n. The identity is a constant: it costs nothing and is not stored.
The factor that carries W itself (V if m ≤ n, else U) is the main one; the other multiplies it, so it is the side one.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from atmc_tool.compressed import CompressedWeight, SparseTensor, sparsify

Kind = Literal["none", "uv", "uvc"]
Start = Literal["published", "svd"]
Factors = dict[str, Tensor]


def main_factor(m: int, n: int) -> str:
    """Name of the factor that carries an m × n weight itself."""
    return "V" if m <= n else "U"


def factorize(weight: Tensor, kind: Kind, start: Start = "published") -> Factors:
    """Factor tensors that stand for `weight`, exactly but for rounding.

    `none` leaves U and C of W = U V + C out for good: only the main factor exists. `uv` leaves out C. At the start C is
    0; `published` (arXiv:1902.03538) makes the main factor W and the side factor 0, `svd` splits W = A S Bᵀ between the
    two: A √S and √S Bᵀ, where the side factor is stored without its identity.

    Args:
        weight: (m, ...) of at least two dimensions.

    Returns:
        name → detached copy, (m, n) for the main factor and C, square for the side factor.
    """
    matrix = weight.detach().reshape(len(weight), -1).clone()
    m, n = matrix.shape
    main = main_factor(m, n)
    if kind == "none":
        return {main: matrix}
    side, size = ("U", m) if main == "V" else ("V", n)
    factors = {main: matrix, side: matrix.new_zeros(size, size)}
    if start == "svd":
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        left, right = left * values.sqrt(), values.sqrt()[:, None] * right
        factors = {main: right, side: left} if main == "V" else {main: left, side: right}
        factors[side] = factors[side] - torch.eye(size, device=matrix.device)
    return factors if kind == "uv" else {**factors, "C": matrix.new_zeros(m, n)}


def materialize(factors: Mapping[str, Tensor], shape: torch.Size) -> Tensor:
    """The dense weight of `shape` that the factors stand for; differentiable in every factor.

    Costs m·m·n (or m·n·n) multiply-adds where there is a side factor, nothing where there is only the main one.
    """
    m, n = shape[0], shape[1:].numel()
    main = main_factor(m, n)
    weight = factors[main]
    side = factors.get("U" if main == "V" else "V")
    if side is not None:
        weight = weight + (side @ weight if main == "V" else weight @ side)
    if "C" in factors:
        weight = weight + factors["C"]
    return weight.reshape(shape)


def to_compressed(factors: Mapping[str, Tensor], shape: torch.Size, *, quantized: bool) -> CompressedWeight:
    """The factors as NumPy values for files; factors without a nonzero entry are left out."""
    tensors: dict[str, SparseTensor] = {}
    for name in ("U", "V", "C"):
        if name in factors:
            sparse = sparsify(factors[name].detach().cpu().numpy(), quantized=quantized)
            if sparse.kept:
                tensors[name] = sparse
    return CompressedWeight(tuple(shape), tensors)
