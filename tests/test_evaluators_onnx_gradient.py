"""The gradient of an ONNX graph against finite differences in double precision, and against torch."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper
from onnx_models import CLASSES, batch, classifier, loss_of, reference_logits, relative_error, run
from torch import nn

from atmc_tool.attacks.classifier import Loss
from atmc_tool.errors import AtmcError
from evaluators.classifier import OrtClassifier, optimized_operators
from evaluators.onnx_dialect import EXPANDED
from evaluators.onnx_gradient import LOSSES, differentiate
from evaluators.onnx_graph import subgraph
from evaluators.onnx_rules import RULES

Images = NDArray[np.float32]
Labels = NDArray[np.int64]


def weights(*shape: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(sum(shape))
    return rng.standard_normal(shape).astype(np.float32) / np.float32(np.sqrt(np.prod(shape[1:])))


def wide(body: str, weight: NDArray[np.float32]) -> tuple[str, dict[str, Any]]:
    """`body` computes y from h, x with 16 channels: as many as onnxruntime's blocked convolution wants."""
    return f"h = Conv(x, widen)\n{body}", {"widen": weights(16, 4, 1, 1), "w": weight}


# operator → [(body that computes y from x, constants)]; x is (N, 4, 6, 6), its values on both sides of zero
CASES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "Abs": [("y = Abs(x)", {})],
    "Add": [
        ("y = Add(x, c)", {"c": weights(4, 1, 1)}),
        ("s = Add(c, x)\ny = Transpose<perm=[1,0,2,3,4]>(s)", {"c": weights(2, 1, 4, 1, 6)}),
        ("m = ReduceMean<keepdims=1>(x, a)\ny = Add(x, m)", {"a": [2, 3]}),
        ("y = Add(x, x)", {}),
    ],
    "AveragePool": [
        ("y = AveragePool<kernel_shape=[2,2], strides=[2,2]>(x)", {}),
        ("y = AveragePool<kernel_shape=[3,2], strides=[2,1], pads=[1,0,1,1]>(x)", {}),
        ("y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(x)", {}),
        ("y = AveragePool<kernel_shape=[6,6]>(x)", {}),
        ("h = Conv(x, widen)\ny = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(h)", {"widen": weights(16, 4, 1, 1)}),
    ],
    "BatchNormalization": [
        (
            "y = BatchNormalization<epsilon=0.1>(x, s, b, m, v)",
            {"s": weights(4), "b": weights(4), "m": weights(4), "v": weights(4) ** 2},
        ),
        (
            "f1 = Flatten(x)\ny = BatchNormalization(f1, s, b, m, v)",
            {"s": weights(144), "b": weights(144), "m": weights(144), "v": weights(144) ** 2 + 0.1},
        ),
    ],
    "Cast": [("d = Cast<to=11>(x)\ny = Cast<to=1>(d)", {})],
    "Celu": [("y = Celu(x)", {}), ("y = Celu<alpha=0.3>(x)", {})],
    "Clip": [
        ("y = Clip(x, low, high)", {"low": np.float32(-0.2), "high": np.float32(0.1)}),
        ("y = Clip(x, , high)", {"high": np.float32(0.1)}),
        ("y = Clip(x, low)", {"low": np.float32(-0.1)}),
        ("y = Clip(x)", {}),
    ],
    "Concat": [
        ("r = Tanh(x)\ny = Concat<axis=1>(x, c0, r)", {"c0": np.zeros((3, 2, 6, 6), np.float32)}),
        ("r = Tanh(x)\ns = Slice(x, i, j, a)\ny = Concat<axis=-2>(s, r, x)", {"i": [1], "j": [3], "a": [2]}),
    ],
    "Conv": [
        ("y = Conv(x, w, b)", {"w": weights(5, 4, 3, 3), "b": weights(5)}),
        ("y = Conv<pads=[1,0,2,1]>(x, w)", {"w": weights(5, 4, 3, 2)}),
        ("y = Conv<strides=[2,2], pads=[1,1,1,1]>(x, w)", {"w": weights(5, 4, 3, 3)}),
        ("y = Conv<strides=[3,2], pads=[1,0,0,1]>(x, w)", {"w": weights(5, 4, 2, 3)}),
        ("y = Conv<strides=[4,5]>(x, w)", {"w": weights(5, 4, 1, 1)}),
        ("y = Conv<dilations=[2,1], pads=[2,1,0,1]>(x, w)", {"w": weights(5, 4, 3, 3)}),
        ("y = Conv<strides=[2,2], dilations=[2,2], pads=[2,2,2,2]>(x, w)", {"w": weights(5, 4, 3, 3)}),
        ("y = Conv<group=2>(x, w)", {"w": weights(6, 2, 3, 3)}),
        ("y = Conv<group=4, strides=[2,2]>(x, w)", {"w": weights(8, 1, 2, 2)}),
        ('y = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x, w)', {"w": weights(5, 4, 3, 3)}),
        ('y = Conv<auto_pad="SAME_LOWER", strides=[2,1]>(x, w)', {"w": weights(5, 4, 3, 2)}),
        ('y = Conv<auto_pad="VALID">(x, w)', {"w": weights(5, 4, 3, 3)}),
        ("y = Conv<pads=[2,2,2,2]>(x, w)", {"w": weights(5, 4, 1, 1)}),
        wide("y = Conv<pads=[1,1,1,1]>(h, w)", weights(16, 16, 3, 3)),
        wide("y = Conv<pads=[1,0,0,2]>(h, w)", weights(8, 16, 3, 2)),
        wide("y = Conv<dilations=[2,1], pads=[2,1,1,0]>(h, w)", weights(16, 16, 3, 3)),
        wide("y = Conv<group=16, pads=[1,1,1,1]>(h, w)", weights(16, 1, 3, 3)),
        wide("y = Conv<group=4>(h, w)", weights(24, 4, 3, 3)),
        wide("y = Conv<pads=[1,1,1,1]>(h, w)", weights(16, 16, 1, 1)),
        wide("y = Conv<strides=[2,2], pads=[1,1,1,1]>(h, w)", weights(16, 16, 3, 3)),
        ("l = Reshape(x, flat)\ny = Conv<pads=[1,1]>(l, w)", {"flat": [0, 4, 36], "w": weights(5, 4, 3)}),
    ],
    "ConvTranspose": [
        ("y = ConvTranspose<strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]>(x, w)", {"w": weights(4, 3, 3, 3)}),
        *(
            (f'y = ConvTranspose<auto_pad="{mode}", strides=[2,{stride}]>(x, w)', {"w": weights(4, 3, 3, 4)})
            for mode in ("SAME_UPPER", "SAME_LOWER", "VALID")
            for stride in (1, 2)
        ),
    ],
    "CumSum": [
        ("y = CumSum(x, a)", {"a": np.array(1)}),
        ("y = CumSum<exclusive=1, reverse=1>(x, a)", {"a": np.array(-1)}),
        ("y = CumSum<reverse=1>(x, a)", {"a": np.array(2)}),
    ],
    "DepthToSpace": [
        ("y = DepthToSpace<blocksize=2>(x)", {}),
        ('h = Conv(x, w)\ny = DepthToSpace<blocksize=2, mode="CRD">(h)', {"w": weights(12, 4, 1, 1)}),
    ],
    "Div": [
        ("y = Div(x, c)", {"c": np.abs(weights(4, 1, 6)) + 0.5}),
        ("e = Add(x, two)\ny = Div(c, e)", {"c": weights(4, 1, 1), "two": np.float32(2)}),
        ("e = Add(x, two)\nm = ReduceMean(e, a)\ny = Div(x, m)", {"two": np.float32(2), "a": [1]}),
    ],
    "Dropout": [("y = Dropout(x)", {}), ("y, m = Dropout(x, r, t)", {"r": np.float32(0.5), "t": np.array(False)})],
    "Einsum": [
        ('y = Einsum<equation="nchw,chk->nkw">(x, w)', {"w": weights(4, 6, 3)}),
        ('y = Einsum<equation="nchw, nchv -> nvw">(x, x)', {}),
        ('y = Einsum<equation="kw,nchw->nhk">(w, x)', {"w": weights(3, 6)}),
        ('y = Einsum<equation="nchw->nwh">(x)', {}),
        (
            'm = ReduceMean<keepdims=0>(x, a)\ny = Einsum<equation="nch,c,nvh->nv">(m, w, m)',
            {"a": [3], "w": weights(4)},
        ),
    ],
    "Elu": [("y = Elu(x)", {}), ("y = Elu<alpha=0.5>(x)", {})],
    "Erf": [("y = Erf(x)", {})],
    "Exp": [("y = Exp(x)", {})],
    "Expand": [
        ("m = ReduceMean(x, a)\ny = Expand(m, to)", {"a": [2], "to": [1, 4, 7, 6]}),
        (
            "m = ReduceMean<keepdims=0>(x, a)\ne = Expand(m, to)\ny = Transpose<perm=[2,0,1,3,4]>(e)",
            {"a": [1], "to": [3, 2, 1, 6, 1]},
        ),
    ],
    "Flatten": [("y = Flatten(x)", {}), ("e = Flatten<axis=-2>(x)\ny = Reshape(e, s)", {"s": [-1, 4, 36]})],
    "Gather": [
        ("y = Gather<axis=1>(x, i)", {"i": np.array(2)}),
        ("y = Gather<axis=-1>(x, i)", {"i": [[0, 5, 5], [-1, 2, 0]]}),
        ("f1 = Flatten(x)\ny = Gather<axis=1>(f1, i)", {"i": np.array([3, 143, 3], np.int32)}),
    ],
    "GatherElements": [
        ("y = GatherElements<axis=2>(x, i)", {"i": np.array([0, 5, 5, 1] * 18).reshape(3, 4, 1, 6)}),
        ("y = GatherElements<axis=3>(x, i)", {"i": np.arange(216).reshape(3, 4, 6, 3) % 6}),
    ],
    "GatherND": [
        (
            "t = Transpose<perm=[1,0,2,3]>(x)\ng = GatherND(t, i)\ny = Transpose<perm=[1,0,2,3]>(g)",
            {"i": [[1], [3], [1]]},
        ),
        (
            "t = Transpose<perm=[3,2,0,1]>(x)\ng = GatherND(t, i)\ny = Transpose<perm=[1,0,2]>(g)",
            {"i": [[1, 5], [0, -1]]},
        ),
    ],
    "Gelu": [("y = Gelu(x)", {}), ('y = Gelu<approximate="tanh">(x)', {})],
    "Gemm": [
        ("g = Flatten(x)\ny = Gemm<alpha=0.5, beta=2.0>(g, w, b)", {"w": weights(144, 7), "b": weights(7)}),
        ("g = Flatten(x)\ny = Gemm<transB=1>(g, w)", {"w": weights(7, 144)}),
        (
            "g = Flatten(x)\nt = Transpose(g)\ny = Gemm<transA=1, alpha=3.0>(t, w, b)",
            {"w": weights(144, 7), "b": np.float32(1)},
        ),
        ("g = Flatten(x)\nt = Transpose(g)\ny = Gemm<transA=1, transB=1>(t, w)", {"w": weights(7, 144)}),
        *(
            (
                "g = Flatten(x)\nleft = Slice(g, i, j, a)\nt = Transpose(left)\n"
                f"p = Gemm<transA={a}, transB={b}, alpha=0.7>({'w' if a == 0 else 'v'}, {'left' if b else 't'})\n"
                "y = Transpose(p)",
                {"i": [3], "j": [9], "a": [1], "w": weights(5, 6), "v": weights(6, 5)},
            )
            for a in (0, 1)
            for b in (0, 1)
        ),
        ("g = Flatten(x)\ny = Gemm<beta=0.3>(c, w, g)", {"c": weights(3, 2), "w": weights(2, 144)}),
    ],
    "GlobalAveragePool": [("y = GlobalAveragePool(x)", {})],
    "GlobalMaxPool": [("y = GlobalMaxPool(x)", {})],
    "GridSample": [
        ("y = GridSample(x, g)", {"g": 1.2 * weights(3, 5, 4, 2) / np.abs(weights(3, 5, 4, 2)).max()}),
        ("y = GridSample<align_corners=1>(x, g)", {"g": 0.9 * np.tanh(9 * weights(3, 3, 7, 2))}),
        ('y = GridSample<padding_mode="border">(x, g)', {"g": 1.5 * np.tanh(9 * weights(3, 5, 4, 2))}),
        ('y = GridSample<mode="nearest">(x, g)', {"g": 1.2 * np.tanh(9 * weights(3, 5, 4, 2))}),
    ],
    "GroupNormalization": [
        ("y = GroupNormalization<num_groups=2>(x, s, b)", {"s": weights(4), "b": weights(4)}),
        ("y = GroupNormalization<num_groups=4, epsilon=0.1>(x, s, b)", {"s": weights(4), "b": weights(4)}),
    ],
    "HardSigmoid": [
        ("y = HardSigmoid(x)", {}),
        ("e = Mul(x, c)\ny = HardSigmoid<alpha=0.7, beta=0.3>(e)", {"c": np.float32(3)}),
    ],
    "HardSwish": [("e = Mul(x, c)\ny = HardSwish(e)", {"c": np.float32(9)})],
    "Identity": [("y = Identity(x)", {})],
    "InstanceNormalization": [("y = InstanceNormalization<epsilon=0.01>(x, s, b)", {"s": weights(4), "b": weights(4)})],
    "LayerNormalization": [
        ("y = LayerNormalization(x, s, b)", {"s": weights(6), "b": weights(6)}),
        ("y = LayerNormalization<axis=1, epsilon=0.1>(x, s)", {"s": weights(4, 6, 6)}),
    ],
    "LeakyRelu": [("y = LeakyRelu<alpha=0.3>(x)", {}), ("y = LeakyRelu(x)", {}), ("y = LeakyRelu<alpha=-2.0>(x)", {})],
    "Log": [("e = Mul(x, x)\np = Add(e, c)\ny = Log(p)", {"c": np.float32(0.1)})],
    "LogSoftmax": [("y = LogSoftmax<axis=1>(x)", {}), ("y = LogSoftmax(x)", {})],
    "LpPool": [
        ("y = LpPool<kernel_shape=[2,2], strides=[2,2]>(x)", {}),
        ("y = LpPool<kernel_shape=[3,2], p=3, pads=[1,0,1,1]>(x)", {}),
        ("y = LpPool<kernel_shape=[2,2], p=1, dilations=[2,1]>(x)", {}),
    ],
    "MatMul": [
        ("g = Flatten(x)\ny = MatMul(g, w)", {"w": weights(144, 7)}),
        ("y = MatMul(x, w)", {"w": weights(6, 5)}),
        ("y = MatMul(w, x)", {"w": weights(4, 5, 6)}),
        ("t = Transpose<perm=[0,1,3,2]>(x)\ny = MatMul(x, t)", {}),
        ("m = ReduceMean(x, a)\ny = MatMul(x, m)", {"a": [1]}),
        ("m = ReduceSum<keepdims=0>(x, a)\ny = MatMul(m, x)", {"a": [0, 1]}),
        ("y = MatMul(x, w)", {"w": weights(6)}),
        ("y = MatMul(w, x)", {"w": weights(6)}),
        ("v = ReduceSum<keepdims=0>(x, a)\nm = MatMul(v, w)\ny = Add(x, m)", {"a": [0, 1, 2], "w": weights(6, 6)}),
        ("v = ReduceSum<keepdims=0>(x, a)\ny = MatMul(x, v)", {"a": [0, 1, 2]}),
        ("v = ReduceSum<keepdims=0>(x, a)\nm = MatMul(v, v)\ny = Mul(x, m)", {"a": [0, 1, 2]}),
    ],
    "Max": [
        ("y = Max(x, low)", {"low": np.float32(-0.1)}),
        ("n = Neg(x)\nm = ReduceMean(x, a)\ny = Max(m, x, n)", {"a": [1]}),
    ],
    "MaxPool": [
        ("y = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x)", {}),
        ("y = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)", {}),
        ("y = MaxPool<kernel_shape=[3,2], dilations=[2,1], pads=[1,0,0,1]>(x)", {}),
        ('y = MaxPool<kernel_shape=[3,3], strides=[2,2], auto_pad="SAME_UPPER">(x)', {}),
    ],
    "Mean": [("e = Tanh(x)\nm = ReduceMean(x, a)\ny = Mean(x, e, m)", {"a": [1]})],
    "Min": [("y = Min(x, c)", {"c": weights(4, 1, 6)}), ("m = ReduceMean(x, a)\ny = Min(m, x)", {"a": [2, 3]})],
    "Mish": [("y = Mish(x)", {})],
    "Mul": [
        ("y = Mul(x, c)", {"c": weights(4, 1, 1)}),
        ("y = Mul(x, x)", {}),
        ("m = ReduceMean(x, a)\ny = Mul(m, x)", {"a": [2, 3]}),
    ],
    "Neg": [("y = Neg(x)", {})],
    "PRelu": [("y = PRelu(x, s)", {"s": weights(4, 1, 1)}), ("y = PRelu(x, s)", {"s": weights(1)})],
    "Pad": [
        ("y = Pad(x, p)", {"p": [0, 2, 0, 1, 0, 1, 3, 0]}),
        ("y = Pad(x, p, v)", {"p": [0, 0, 1, 1, 0, 0, 2, 0], "v": np.float32(3)}),
        ("y = Pad(x, p, , a)", {"p": [1, 2], "a": [1]}),
        ('y = Pad<mode="reflect">(x, p)', {"p": [0, 0, 2, 1, 0, 0, 1, 3]}),
        ('y = Pad<mode="edge">(x, p)', {"p": [0, 0, 0, 2, 0, 0, 3, 0]}),
        ('y = Pad<mode="wrap">(x, p)', {"p": [0, 0, 1, 1, 0, 0, 1, 1]}),
        ('l = Reshape(x, flat)\ny = Pad<mode="reflect">(l, p)', {"flat": [0, 4, 36], "p": [0, 0, 2, 0, 0, 3]}),
    ],
    "Pow": [
        ("y = Pow(x, p)", {"p": np.array(3, np.int64)}),
        ("e = Exp(x)\ny = Pow(e, p)", {"p": np.float32(-0.5)}),
        ("e = Exp(x)\nm = ReduceMean(e, a)\ny = Pow(m, p)", {"a": [2, 3], "p": weights(4, 1, 6)}),
    ],
    "Reciprocal": [("e = Exp(x)\ny = Reciprocal(e)", {})],
    "ReduceL2": [("y = ReduceL2(x, a)", {"a": [1]}), ("y = ReduceL2<keepdims=0>(x, a)", {"a": [2, 3]})],
    "ReduceLogSumExp": [
        ("y = ReduceLogSumExp(x, a)", {"a": [-1]}),
        ("y = ReduceLogSumExp<keepdims=0>(x, a)", {"a": [1, 2]}),
    ],
    "ReduceMax": [("y = ReduceMax(x, a)", {"a": [1]}), ("y = ReduceMax<keepdims=0>(x, a)", {"a": [2, 3]})],
    "ReduceMean": [
        ("y = ReduceMean<keepdims=0>(x, a)", {"a": [2, 3]}),
        ("y = ReduceMean<keepdims=0>(x, a)", {"a": [-3]}),
        ("y = ReduceMean<keepdims=1, noop_with_empty_axes=1>(x)", {}),
    ],
    "ReduceMin": [("y = ReduceMin<keepdims=0>(x, a)", {"a": [3]})],
    "ReduceProd": [
        ("y = ReduceProd(x, a)", {"a": [1]}),
        ("e = Mul(x, four)\ny = ReduceProd<keepdims=0>(e, a)", {"a": [3], "four": np.float32(4)}),
        ("r = Relu(x)\ny = ReduceProd<keepdims=0>(r, a)", {"a": [1]}),
    ],
    "ReduceSum": [
        ("y = ReduceSum(x, a)", {"a": [1]}),
        ("y = ReduceSum<keepdims=0>(x, a)", {"a": [1, -1]}),
    ],
    "Relu": [("y = Relu(x)", {})],
    "Reshape": [
        ("y = Reshape(x, s)", {"s": [0, 2, -1, 4]}),
        ("n = Shape<start=0, end=1>(x)\ns = Concat<axis=0>(n, rest)\ny = Reshape(x, s)", {"rest": [9, 16]}),
    ],
    "Resize": [
        ("y = Resize(x, , s)", {"s": np.array([1, 1, 2, 1.5], np.float32)}),
        ('y = Resize<mode="linear", coordinate_transformation_mode="align_corners">(x, , , t)', {"t": [3, 4, 9, 4]}),
        ('y = Resize<mode="cubic">(x, , s)', {"s": np.array([1, 1, 0.7, 2.5], np.float32)}),
    ],
    "ScatterElements": [
        ("y = ScatterElements<axis=1>(x, i, u)", {"i": np.full((3, 1, 2, 6), 2), "u": np.ones((3, 1, 2, 6), "f4")}),
        ("y = ScatterElements<axis=3>(c, i, x)", {"i": np.tile(np.arange(6), (3, 4, 6, 1)), "c": weights(3, 4, 7, 9)}),
        (
            's = Slice(x, j, k, a)\ny = ScatterElements<axis=3, reduction="add">(x, i, s)',
            {"i": np.full((3, 4, 6, 2), 1), "j": [0], "k": [2], "a": [3]},
        ),
    ],
    "ScatterND": [
        ("y = ScatterND(x, i, u)", {"i": [[0, 1], [2, 3]], "u": np.ones((2, 6, 6), np.float32)}),
        (
            "e = Tanh(x)\nt = Transpose<perm=[1,0,2,3]>(e)\ng = Gather<axis=0>(t, j)\n"
            "s = ScatterND(t, i, g)\ny = Transpose<perm=[1,0,2,3]>(s)",
            {"i": [[0], [3]], "j": [1, 2]},
        ),
    ],
    "Selu": [("y = Selu(x)", {}), ("y = Selu<alpha=0.5, gamma=2.0>(x)", {})],
    "Sigmoid": [("y = Sigmoid(x)", {})],
    "Slice": [
        ("y = Slice(x, i, j)", {"i": [0, 1], "j": [3, 3]}),
        ("y = Slice(x, i, j, a, s)", {"i": [0, 1], "j": [100, 100], "a": [2, 3], "s": [2, 3]}),
        ("y = Slice(x, i, j, a, s)", {"i": [-1, 4], "j": [-100, 0], "a": [-2, 1], "s": [-1, -2]}),
        (
            "y = Slice(x, i, j, a)",
            {"i": np.array([1], np.int32), "j": np.array([-1], np.int32), "a": np.array([3], np.int32)},
        ),
        ("i = Sub(j, one)\ny = Slice(x, i, j, a)", {"j": [3], "one": [1], "a": [2]}),
    ],
    "Softmax": [("y = Softmax<axis=1>(x)", {}), ("y = Softmax(x)", {})],
    "Softplus": [("y = Softplus(x)", {})],
    "SpaceToDepth": [("y = SpaceToDepth<blocksize=3>(x)", {})],
    "Split": [
        ("a, b = Split<axis=1, num_outputs=2>(x)\ny = Mul(a, b)", {}),
        ("a, b, c = Split<axis=-1>(x, n)\ny = Mul(c, a)", {"n": [1, 4, 1]}),
    ],
    "Sqrt": [("e = Exp(x)\ny = Sqrt(e)", {})],
    "Squeeze": [("m = ReduceMean(x, a)\ny = Squeeze(m, a)", {"a": [2]})],
    "Sub": [("y = Sub(c, x)", {"c": weights(6)}), ("m = ReduceMean(x, a)\ny = Sub(x, m)", {"a": [1, 2, 3]})],
    "Sum": [("e = Tanh(x)\nm = ReduceMean(x, a)\ny = Sum(m, x, e, c)", {"a": [1], "c": weights(4, 1, 1)})],
    "Tanh": [("y = Tanh(x)", {})],
    "Tile": [
        ("y = Tile(x, n)", {"n": [1, 2, 1, 3]}),
        ("t = Transpose<perm=[1,0,2,3]>(x)\nr = Tile(t, n)\ny = Transpose<perm=[1,0,2,3]>(r)", {"n": [2, 1, 3, 1]}),
    ],
    "Transpose": [("y = Transpose<perm=[0,2,3,1]>(x)", {}), ("t = Transpose(x)\ny = Transpose<perm=[3,1,0,2]>(t)", {})],
    "Trilu": [
        ("y = Trilu(x)", {}),
        ("y = Trilu<upper=0>(x, k)", {"k": np.array(-1)}),
    ],
    "Unsqueeze": [("y = Unsqueeze(x, a)", {"a": [1, -1]})],
    "Where": [
        ("p = Greater(x, c)\ny = Where(p, x, c)", {"c": weights(6, 1)}),
        ("e = Mul(x, x)\np = Less(x, c)\nm = ReduceMean(x, a)\ny = Where(p, m, e)", {"c": weights(4, 1, 1), "a": [1]}),
    ],
}
PARAMETERS = [
    pytest.param(operator, body, constants, id=f"{operator}-{i}")
    for operator, cases in CASES.items()
    for i, (body, constants) in enumerate(cases)
]


def gradient(model: ModelProto, images: Images, labels: Labels, loss: str) -> Images:
    """By differentiation of the graph as it is, before any optimisation."""
    part = subgraph(differentiate(model), [f"gradient.{loss}"])
    onnx.checker.check_model(part, full_check=True)
    return run(part, {"image": images, "labels": labels})


def test_every_rule_has_a_case() -> None:
    straight_through = {"QuantizeLinear", "DequantizeLinear"}  # test_evaluators_onnx_quantization_rules.py
    by_torch = {"LRN"}  # onnx's reference computes it in float32
    assert set(CASES) | straight_through | by_torch == set(RULES)


@pytest.mark.parametrize(("operator", "body", "constants"), PARAMETERS)
def test_rule_agrees_with_finite_differences(operator: str, body: str, constants: dict[str, Any]) -> None:
    agree_with_finite_differences(classifier(body, constants), operator)


def agree_with_finite_differences(model: ModelProto, operator: str) -> None:
    assert operator in {node.op_type for node in model.graph.node}
    images, labels = batch()
    rng, h = np.random.default_rng(2), 1e-6
    gradients = {loss: gradient(model, images, labels, loss).astype(np.float64) for loss in LOSSES}
    for _ in range(3):
        direction = rng.standard_normal(images.shape)
        ahead, behind = (reference_logits(model, images + step * direction) for step in (h, -h))
        for loss, g in gradients.items():
            slope = (loss_of(ahead, labels, loss) - loss_of(behind, labels, loss)).sum() / (2 * h)
            assert abs(slope - np.sum(g * direction)) <= 1e-4 * np.linalg.norm(g) != 0


def torch_gradient(network: Any, images: Images, labels: Labels, loss: str) -> Images:
    """By torch's autograd."""
    leaf = torch.from_numpy(images).requires_grad_()
    logits, y = network(leaf), torch.from_numpy(labels)
    if loss == "cross_entropy":
        value = F.cross_entropy(logits, y, reduction="sum")
    else:
        own = F.one_hot(y, logits.shape[1]).bool()
        value = (logits.masked_fill(own, -torch.inf).max(1).values - logits[own]).sum()
    return torch.autograd.grad(value, leaf)[0].numpy()


def constant(model: ModelProto, name: str) -> torch.Tensor:
    return torch.from_numpy(next(numpy_helper.to_array(t).copy() for t in model.graph.initializer if t.name == name))


def pool(x: torch.Tensor, **options: Any) -> torch.Tensor:
    return F.avg_pool2d(x, 3, 2, ceil_mode=True, **options)


# What computes y from x, in ONNX and in torch; x is a multiple of 1/2
WINDOWS: list[tuple[str, Callable[[torch.Tensor], torch.Tensor]]] = [
    ("MaxPool<kernel_shape=[2,2], strides=[2,2]>(x)", lambda x: F.max_pool2d(x, 2)),
    ("MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)", lambda x: F.max_pool2d(x, 3, 2, 1)),
    ("MaxPool<kernel_shape=[3,3], storage_order=1>(x)", lambda x: F.max_pool2d(x, 3, 1)),
    ("MaxPool<kernel_shape=[4,4], strides=[3,3], ceil_mode=1>(x)", lambda x: F.max_pool2d(x, 4, 3, ceil_mode=True)),
    ("MaxPool<kernel_shape=[2,2], dilations=[2,3]>(x)", lambda x: F.max_pool2d(x, 2, 1, dilation=(2, 3))),
    ("GlobalMaxPool(x)", lambda x: F.max_pool2d(x, 6)),
    ("AveragePool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(x)", pool),
    (
        "AveragePool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1, pads=[1,1,1,1], count_include_pad=1>(x)",
        lambda x: pool(x, padding=1),
    ),
    (
        "AveragePool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1, pads=[1,1,1,1]>(x)",
        lambda x: pool(x, padding=1, count_include_pad=False),
    ),
    (
        "ConvTranspose<group=2, dilations=[1,2]>(x, w)",
        lambda x: F.conv_transpose2d(x, torch.from_numpy(weights(4, 3, 2, 2)), groups=2, dilation=(1, 2)),
    ),
    (
        "ConvTranspose<strides=[2,2], output_shape=[11,12]>(x, v)",
        lambda x: F.conv_transpose2d(x, torch.from_numpy(weights(4, 3, 4, 4)), stride=2)[:, :, 2:-1, 1:-1],
    ),
    (
        'ConvTranspose<strides=[2,1], auto_pad="SAME_UPPER">(x, v)',
        lambda x: F.conv_transpose2d(x, torch.from_numpy(weights(4, 3, 4, 4)), stride=(2, 1))[:, :, 1:-1, 1:-2],
    ),
    (
        'ConvTranspose<strides=[2,1], auto_pad="SAME_LOWER">(x, v)',
        lambda x: F.conv_transpose2d(x, torch.from_numpy(weights(4, 3, 4, 4)), stride=(2, 1))[:, :, 1:-1, 2:-1],
    ),
    ("LpPool<kernel_shape=[3,3], strides=[2,2]>(x)", lambda x: F.lp_pool2d(x, 2.0, 3, 2)),
    ("CumSum<exclusive=1>(x, axis)", lambda x: x.cumsum(2) - x),
    ("Trilu<upper=0>(x)", torch.tril),
    ("ReduceProd<keepdims=0>(x, axes)", lambda x: x.prod(1)),
    *(
        (
            f'GridSample<padding_mode="{padding}", align_corners={aligned}>(x, grid)',
            lambda x, p=padding, a=aligned: F.grid_sample(
                x, torch.from_numpy(1.3 * weights(3, 5, 4, 2)), padding_mode=p, align_corners=bool(a)
            ),
        )
        for padding in ("zeros", "border")
        for aligned in (0, 1)
    ),
    ("Pad(x, p)", lambda x: F.pad(x, (-1, 2, 1, -2, 0, -1))),
    ("LRN<size=3, alpha=0.9, beta=0.6, bias=1.5>(x)", lambda x: F.local_response_norm(x, 3, 0.9, 0.6, 1.5)),
    ("LRN<size=7, alpha=30.0>(x)", lambda x: F.local_response_norm(x, 7, 30.0)),
]


@pytest.mark.parametrize(("body", "function"), WINDOWS, ids=[body for body, _ in WINDOWS])
def test_windows_agree_with_torch_where_values_tie(body: str, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Images of three grey levels: nearly every window has several maxima, of which torch takes the first."""
    constants = {"centre": np.float32(0.5), "w": weights(4, 3, 2, 2), "p": [0, 0, 1, -1, 0, -1, -2, 2]}
    constants |= {"v": weights(4, 3, 4, 4), "axis": np.array(2), "axes": [1], "grid": 1.3 * weights(3, 5, 4, 2)}
    model = classifier(f"y = {body}", constants)
    images, labels = batch()
    images = np.round(images * 2) / 2
    head = torch.from_numpy(numpy_helper.to_array(model.graph.initializer[-1]).copy())
    for loss in LOSSES:
        expected = torch_gradient(lambda x: function(x - 0.5).flatten(1) @ head, images, labels, loss)
        assert relative_error(gradient(model, images, labels, loss), expected) <= 1e-6


@pytest.mark.parametrize("options", ["align_corners=0", "align_corners=1", 'padding_mode="border"'])
def test_a_grid_that_the_image_decides_agrees_with_torch(options: str) -> None:
    """As in a spatial transformer. (onnx's reference computes places in float32, too coarse for finite differences.)"""
    body = f"f1 = Flatten(x)\nk = Gemm(f1, v)\nt = Tanh(k)\ng = Reshape(t, s)\ny = GridSample<{options}>(x, g)"
    model = classifier(body, {"v": 2 * weights(144, 40), "s": [0, 5, 4, 2]})
    head, centre, matrix = constant(model, "head"), constant(model, "centre"), constant(model, "v")
    padding = "border" if "border" in options else "zeros"

    def function(x: torch.Tensor) -> torch.Tensor:
        grid = torch.tanh((x - centre).flatten(1) @ matrix).reshape(-1, 5, 4, 2)
        return F.grid_sample(x - centre, grid, padding_mode=padding, align_corners="=1" in options).flatten(1) @ head

    images, labels = batch()
    for loss in LOSSES:
        expected = torch_gradient(function, images, labels, loss)
        assert relative_error(gradient(model, images, labels, loss), expected) <= 1e-5


def standardized(x: torch.Tensor) -> torch.Tensor:
    return (x - x.mean((2, 3), keepdim=True)) / x.std((2, 3), correction=0, keepdim=True)


# operator → opset, body that computes y from x, constants, the same in torch
EXPANSIONS: dict[str, tuple[int, str, dict[str, Any], Callable[[torch.Tensor], torch.Tensor]]] = {
    "Attention": (
        23,
        "k = Tanh(x)\ny = Attention(x, k, x)",
        {},
        lambda x: F.scaled_dot_product_attention(x, torch.tanh(x), x),
    ),
    "CastLike": (15, "y = CastLike(x, c)", {"c": np.float32(0)}, lambda x: x),
    "MeanVarianceNormalization": (13, "y = MeanVarianceNormalization<axes=[2, 3]>(x)", {}, standardized),
    "RMSNormalization": (
        23,
        "y = RMSNormalization(x, s)",
        {"s": weights(6)},
        lambda x: F.rms_norm(x, (6,), torch.from_numpy(weights(6)), 1e-5),
    ),
    "ReduceL1": (13, "y = ReduceL1<axes=[2]>(x)", {}, lambda x: x.abs().sum(2)),
    "ReduceLogSum": (18, "e = Exp(x)\ny = ReduceLogSum(e, a)", {"a": [1]}, lambda x: x.logsumexp(1)),
    "ReduceSumSquare": (13, "y = ReduceSumSquare<axes=[1]>(x)", {}, lambda x: (x * x).sum(1)),
    "Shrink": (
        9,
        "y = Shrink<lambd=0.1, bias=0.05>(x)",
        {},
        lambda x: torch.where(x.abs() > 0.1, x - 0.05 * x.sign(), 0),
    ),
    "Softsign": (7, "y = Softsign(x)", {}, F.softsign),
    "Swish": (24, "y = Swish<alpha=1.5>(x)", {}, lambda x: x * torch.sigmoid(1.5 * x)),
    "ThresholdedRelu": (10, "y = ThresholdedRelu<alpha=0.1>(x)", {}, lambda x: F.threshold(x, 0.1, 0)),
}


def test_every_expansion_is_tried() -> None:
    assert set(EXPANSIONS) == set(EXPANDED)


@pytest.mark.parametrize("operator", EXPANSIONS)
def test_what_onnx_defines_by_other_operators_agrees_with_torch(operator: str) -> None:
    version, body, constants, function = EXPANSIONS[operator]
    model = classifier(body, constants, opset=version)
    centre, head = constant(model, "centre"), constant(model, "head")
    images, labels = batch()
    network = OrtClassifier(model, "cpu", threads=1)
    for loss in LOSSES:
        expected = torch_gradient(lambda x: function(x - centre).flatten(1) @ head, images, labels, loss)
        logits, got = network.logits_and_gradient(images, labels, loss)
        assert relative_error(got, expected) <= 1e-5
        assert relative_error(logits, network.logits(images)) <= 1e-6


class Network(nn.Module):
    """What torch's exporter makes of a residual network with every kind of layer that image classifiers have."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.conv1, self.norm1 = nn.Conv2d(16, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.norm2 = nn.Conv2d(16, 16, 3, 1, 2, dilation=2, groups=4), nn.BatchNorm2d(16)
        self.down, self.norm3 = nn.Conv2d(16, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32)
        self.squeeze, self.excite = nn.Linear(32, 8), nn.Linear(8, 32)
        self.hidden, self.out = nn.Linear(32 * 4 + 32, 24), nn.Linear(24, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = (x - 0.45) / 0.22
        x = self.pool(F.relu(self.stem_norm(self.stem(x))))
        x = F.relu(x + self.norm2(self.conv2(F.leaky_relu(self.norm1(self.conv1(x)), 0.1))))
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8))  # ResNet's option A
        x = F.relu6(self.norm3(self.down(x)) + shortcut)
        gate = torch.sigmoid(self.excite(torch.tanh(self.squeeze(x.mean((2, 3))))))
        x = x * gate[:, :, None, None]
        features = torch.cat([F.avg_pool2d(x, 2).flatten(1), F.adaptive_avg_pool2d(x, 1).flatten(1)], 1)
        logits: torch.Tensor = self.out(F.relu(self.hidden(features)))
        return logits


@pytest.fixture(scope="module")
def exported() -> tuple[nn.Module, ModelProto]:
    """A network with the batch norms of a trained one, and its graph."""
    torch.manual_seed(0)
    network = Network().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own
        program = torch.onnx.export(
            network,
            (torch.rand(2, 3, 16, 16),),
            dynamo=True,
            verbose=False,
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("N")},),
        )
    assert program is not None
    return network, program.model_proto


@pytest.mark.parametrize("loss", LOSSES)
def test_exported_network_agrees_with_torch(exported: tuple[nn.Module, ModelProto], loss: Loss) -> None:
    network, model = exported
    images, labels = batch((3, 16, 16), n=8)
    got = OrtClassifier(model, "cpu", threads=1).logits_and_gradient(images, labels, loss)[1]
    assert relative_error(got, torch_gradient(network, images, labels, loss)) <= 1e-5


def test_samples_of_a_batch_do_not_mix(exported: tuple[nn.Module, ModelProto]) -> None:
    images, labels = batch((3, 16, 16), n=4)
    whole = gradient(exported[1], images, labels, "margin")
    for i in range(4):
        alone = gradient(exported[1], images[i : i + 1], labels[i : i + 1], "margin")
        assert relative_error(alone, whole[i : i + 1]) <= 1e-5


DECODER = """
h = Conv(x, widen)
values = Gather(codebook, codes)
kept = Cast<to=1>(bits)
spread = Mul(values, kept)
"conv1.weight" = Reshape(spread, shape)
y = Conv<pads=[1,1,1,1]>(h, "conv1.weight")
"""


def test_weights_may_be_computed_by_the_graph() -> None:
    """And onnxruntime decodes them at load, and turns them around for the way back."""
    rng, shape = np.random.default_rng(3), (8, 16, 3, 3)
    codes, bits = (rng.integers(0, n, np.prod(shape)).astype(np.uint8) for n in (4, 2))
    codebook, widen = weights(4), weights(16, 4, 1, 1)
    stored = {"codebook": codebook, "codes": codes.astype(np.int32), "bits": bits, "shape": np.array(shape)}
    decoding = classifier(DECODER, {"widen": widen, **stored})
    dense = {"widen": widen, "w": (codebook[codes] * bits).reshape(shape)}
    plain = classifier("h = Conv(x, widen)\ny = Conv<pads=[1,1,1,1]>(h, w)", dense)
    images, labels = batch()
    for loss in LOSSES:
        np.testing.assert_array_equal(gradient(decoding, images, labels, loss), gradient(plain, images, labels, loss))
    only = subgraph(differentiate(decoding), ["gradient.cross_entropy"])
    assert not set(optimized_operators(only)) & {"Gather", "Cast", "Slice", "Transpose"}


def test_the_batch_needs_no_name_and_the_model_is_left_as_it_is() -> None:
    body = """
    n = Shape<start=0, end=1>(x)
    s = Concat<axis=0>(n, rest)
    z = Reshape(x, s)
    m = ReduceMean(z, a)
    y = Mul(z, m)
    """
    model = classifier(body, {"rest": [9, 16], "a": [1]})
    images, labels = batch()
    named = gradient(model, images, labels, "margin")
    model.graph.input[0].type.tensor_type.shape.dim[0].ClearField("dim_param")
    before = model.SerializeToString()
    np.testing.assert_array_equal(gradient(model, images, labels, "margin"), named)
    assert model.SerializeToString() == before


def test_names_do_not_clash() -> None:
    """Every name that differentiation would give is taken by a value of the model, or a node."""
    plain = differentiate(classifier("y = Relu(x)"))
    added = [name for node in plain.graph.node[4:] for name in node.output] + ["labels"]
    model = classifier("y = Relu(x)")
    for name in added:
        model.graph.node.insert(0, helper.make_node("Identity", ["head"], [name], name="gradient/constant.0"))
    differentiated = differentiate(model)
    onnx.checker.check_model(differentiated, full_check=True)
    images, labels = batch()
    part = subgraph(differentiated, [differentiated.graph.output[-1].name])
    got = run(part, {"image": images, differentiated.graph.input[-1].name: labels})
    np.testing.assert_array_equal(got, gradient(classifier("y = Relu(x)"), images, labels, "margin"))


@pytest.mark.parametrize("opset", [16, 17, 18, 23])
def test_opsets(opset: int) -> None:
    body = """
    c = Conv<pads=[1,1,1,1]>(x, w)
    p = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(c)
    s = Slice(c, i, j, a, t)
    y = Add(p, s)
    """
    integers = {"i": [0, 0], "j": [6, 6], "a": [2, 3], "t": [2, 2]}
    constants = {"w": weights(4, 4, 3, 3), **{name: np.array(value) for name, value in integers.items()}}
    images, labels = batch()
    expected = gradient(classifier(body, constants), images, labels, "cross_entropy")
    got = gradient(classifier(body, constants, opset=opset), images, labels, "cross_entropy")
    np.testing.assert_array_equal(got, expected)


def test_reduction_axes_may_be_an_attribute() -> None:
    images, labels = batch()
    old = gradient(classifier("y = ReduceMean<axes=[-1], keepdims=0>(x)", opset=17), images, labels, "margin")
    new = gradient(classifier("y = ReduceMean<keepdims=0>(x, a)", {"a": np.array([3])}), images, labels, "margin")
    np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("operator", ["Round", "Floor", "Sign"])
def test_steps_have_no_gradient(operator: str) -> None:
    """As in torch: a network that hides its gradient so must be seen to hide it."""
    images, labels = batch()
    hidden = gradient(classifier(f"y = {operator}(x)"), images, labels, "cross_entropy")
    np.testing.assert_array_equal(hidden, np.zeros_like(images))
    beside = gradient(classifier(f"s = {operator}(x)\no = Sub(s, s)\ny = Add(x, o)"), images, labels, "margin")
    np.testing.assert_array_equal(beside, gradient(classifier("y = Identity(x)"), images, labels, "margin"))


def test_local_functions_are_inlined() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 21, "local": 1]>
        g (float[N,1,2,2] image) => (float[N,4] logits) { t = local.twice(image) logits = Flatten(t) }
        <domain: "local", opset_import: ["": 21]> twice (a) => (b) { b = Add(a, a) }"""
    )
    images, labels = batch((1, 2, 2))[0], np.array([3, 0, 2])
    got = gradient(model, images, labels, "margin")
    np.testing.assert_array_equal(np.sort(got.reshape(3, 4)), np.tile([-2.0, 0, 0, 2], (3, 1)))


@pytest.mark.parametrize(
    ("body", "constants", "named"),
    [
        ('y = GridSample<mode="cubic">(x, g)', {"g": weights(3, 5, 4, 2)}, "cubic"),
        ("d, ds, dz = DynamicQuantizeLinear(x)\ny = Cast<to=1>(d)", {}, "DynamicQuantizeLinear"),
        ("m = ReduceMean<keepdims=0>(x, a)\nw = Reshape(m, s)\ny = Conv(x, w)", {"a": [0], "s": [1, 4, 6, 6]}, "'w'"),
        (
            "o = If (yes) <then_branch = t () => (float[N,4,6,6] a) { a = Relu(x) }, "
            "else_branch = e () => (float[N,4,6,6] b) { b = Identity(x) }>\ny = Identity(o)",
            {"yes": np.array(True)},
            "If",
        ),
        ('y = Pad<mode="reflect">(x, p)', {"p": [0, 1, 1, 1, 0, 0, 1, 1]}, "reflect"),
        ('y = Einsum<equation="nchh->nc">(x)', {}, "nchh->nc"),
        ('m = ReduceMean(x, a)\ny = Einsum<equation="nchw,nchw->nw">(m, x)', {"a": [1]}, "Einsum"),
        ("y = GatherND<batch_dims=1>(x, i)", {"i": [[0], [1], [2]]}, "batch_dims"),
        ("y = Resize<axes=[2,3]>(x, , , t)", {"t": [3, 3]}, "Resize"),
        (
            "y, m2, v2 = BatchNormalization<training_mode=1>(x, o, z, z, o)",
            {"o": weights(4), "z": weights(4)},
            "training",
        ),
        ("t, i = TopK(x, k)\ny = Identity(t)", {"k": [2]}, "TopK"),
        (
            "l, m = MaxPool<kernel_shape=[2,2]>(x)\nn, i, j = LayerNormalization(x, s)\ny = Concat<axis=3>(n, j)",
            {"s": weights(6)},
            "'j'",
        ),
    ],
)
def test_what_has_no_rule_is_named(body: str, constants: dict[str, Any], named: str) -> None:
    with pytest.raises(AtmcError) as raised:
        differentiate(classifier(body, constants))
    assert named in str(raised.value)


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 15])
def test_old_opsets_are_converted(opset: int) -> None:
    """Operators that changed since: attributes became inputs, and softmax another axis."""
    body = f"""
    n = BatchNormalization(x, s, b, b, s)
    p = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(n)
    m = ReduceMean<axes=[2], keepdims=0>(p)
    q = {"Unsqueeze<axes=[2]>(m)" if opset < 13 else "Unsqueeze(m, two)"}
    t = Add(p, q)
    c = {"Clip<min=-0.2, max=0.9>(t)" if opset < 11 else "Clip(t, low, high)"}
    f1 = Flatten(c)
    k = Dropout(f1)
    y = Softmax<axis=1>(k)
    """
    s, b = np.abs(weights(4)) + 0.5, weights(4)
    constants = {"s": s, "b": b, "two": [2], "low": np.float32(-0.2), "high": np.float32(0.9)}
    model = classifier(body, constants, opset=opset)
    centre, head = constant(model, "centre"), constant(model, "head")
    scale, shift = torch.from_numpy(s), torch.from_numpy(b)

    def function(x: torch.Tensor) -> torch.Tensor:
        p = F.max_pool2d(F.batch_norm(x - centre, shift, scale, scale, shift), 3, 2, 1)
        return F.softmax((p + p.mean(2, keepdim=True)).clamp(-0.2, 0.9).flatten(1), 1) @ head

    images, labels = batch()
    network = OrtClassifier(model, "cpu", threads=1)
    for loss in LOSSES:
        logits, got = network.logits_and_gradient(images, labels, loss)
        assert relative_error(got, torch_gradient(function, images, labels, loss)) <= 1e-5
        assert relative_error(logits, network.logits(images)) <= 1e-6


def test_what_onnx_cannot_convert_is_said() -> None:
    text = "g (float[N,2,3,3] x, float[2] c) => (float[N,F] y) { s = Add<broadcast=1, axis=1>(x, c) y = Flatten(s) }"
    with pytest.raises(AtmcError, match="opset 6 is too old for a gradient"):
        differentiate(onnx.parser.parse_model(f'<ir_version: 3, opset_import: ["": 6]> {text}'))


def test_what_only_a_grey_image_keeps_constant_is_no_constant() -> None:
    """The padding is the place of the brightest pixel: 0 on images of one grey, and else not."""
    body = """
    flat = Reshape(image, all)
    k = ArgMax<axis=0, keepdims=1>(flat)
    p = Concat<axis=0>(none, k)
    q = Pad<mode="edge">(x, p)
    y = Slice(q, from, to, axis)
    """
    constants = {"all": [-1], "none": [0] * 7, "from": [0], "to": [6], "axis": [3]}
    images, labels = batch()
    network = OrtClassifier(classifier(body, constants), "cpu")
    assert network.logits(images).shape == (len(images), CLASSES)
    with pytest.raises(AtmcError, match="'p' must be a constant"):
        network.logits_and_gradient(images, labels, "margin")
