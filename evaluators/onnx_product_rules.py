"""Gradient rules of matrix products."""

from onnx import NodeProto

from atmc_tool.errors import AtmcError
from evaluators.onnx_arithmetic_rules import unbroadcast
from evaluators.onnx_graph import GraphBuilder, attributes


def gemm(graph: GraphBuilder, node: NodeProto, d: str, position: int) -> str:
    """Y = alpha A' B' + beta C, where ' transposes if transA or transB."""
    a = attributes(node)
    alpha, beta, trans_a, trans_b = a.get("alpha", 1.0), a.get("beta", 1.0), a.get("transA", 0), a.get("transB", 0)
    if position == 2:
        summed = unbroadcast(graph, d, node.input[2], node.output[0])
        return graph.op("Mul", summed, graph.floats(beta, node.input[2]))
    other = node.input[1 - position]
    if position == 0 and trans_a:
        return graph.op("Gemm", other, d, alpha=alpha, transA=trans_b, transB=1)
    if position == 0:
        return graph.op("Gemm", d, other, alpha=alpha, transB=1 - trans_b)
    if trans_b:
        return graph.op("Gemm", d, other, alpha=alpha, transA=1, transB=trans_a)
    return graph.op("Gemm", other, d, alpha=alpha, transA=1 - trans_a)


def matmul(graph: GraphBuilder, node: NodeProto, d: str, position: int) -> str:
    """dL/dA = d Bᵀ, dL/dB = Aᵀ d over the last two axes, summed over the leading axes that were broadcast.

    A vector counts as a row on the left and as a column on the right.
    """
    ranks = [len(graph.shape(name)) for name in node.input]
    for vector, axis in ((1, -1), (0, -2)):
        if ranks[vector] == 1:
            d = graph.op("Unsqueeze", d, graph.integers([axis]))
    other, rank = node.input[1 - position], ranks[1 - position]
    if rank == 1:
        transposed = graph.op("Unsqueeze", other, graph.integers([0 if position == 0 else 1]))
    else:
        transposed = graph.op("Transpose", other, perm=[*range(rank - 2), rank - 1, rank - 2])
    product = graph.op("MatMul", *((transposed, d) if position else (d, transposed)))
    return _unrepeated(graph, product, node, position, ranks)


def _unrepeated(graph: GraphBuilder, product: str, node: NodeProto, position: int, ranks: list[int]) -> str:
    """`product`, of a matrix for each of all leading axes, summed over those that its input was repeated along."""
    own, other = (graph.shape(node.input[i])[:-2] for i in (position, 1 - position))
    extra = len(other) - len(own)
    repeated = [i for i, size in enumerate(other) if i < extra or (own[i - extra] == 1 and size != 1)]
    if repeated:
        product = graph.op("ReduceSum", product, graph.integers(repeated), keepdims=1)
    if extra > 0 or ranks[position] == 1:
        product = graph.op("Reshape", product, graph.op("Shape", node.input[position]))
    return product


def einsum(graph: GraphBuilder, node: NodeProto, d: str, position: int) -> str:
    """dL/dA of R = Σ A B …: the sum of d B … over every index that A lacks."""
    equation = attributes(node)["equation"].replace(" ", "")
    left, _, result = equation.partition("->")
    terms, names = left.split(","), list(node.input)
    simple = "->" in equation and "." not in equation and all(len({*t}) == len(t) for t in (*terms, result))
    own, x = terms.pop(position), names.pop(position)
    sizes = {
        letter: size for t, n in zip(terms, names, strict=True) for letter, size in zip(t, graph.shape(n), strict=True)
    }
    if not simple or any(size == 1 != sizes.get(letter, 1) for letter, size in zip(own, graph.shape(x), strict=True)):
        raise AtmcError(f"no gradient rule for Einsum {node.name!r} with {equation}", hint="name each axis, each once")
    if {*own} - {*result, *"".join(terms)}:  # summed over in A alone
        terms.append(own)
        names.append(graph.op("Expand", graph.floats(1, x), graph.op("Shape", x)))
    return graph.op("Einsum", d, *names, equation=f"{','.join([result, *terms])}->{own}")


def along_axis(graph: GraphBuilder, matrix: str, d: str, *, last: bool) -> str:
    """Σ over t of matrix[s, t] d[…, t, …], along the last axis of d or the one before it."""
    return graph.op("MatMul", d, graph.op("Transpose", matrix, perm=[1, 0])) if last else graph.op("MatMul", matrix, d)
