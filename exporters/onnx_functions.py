"""The decoders of the exported file: ONNX local functions of the domain `atmc`, of standard operators.

Each is in a file once, however many tensors use it. onnxruntime inlines and folds them when it loads the file, but only
operators whose shapes it can tell beforehand: so NonZero, Compress and their like are no way to decode.

onnxruntime keeps what it folds until it is done. In bytes per entry of the tensor: 12 for zeros, scattering and the
last reshape, 27 for a bitmask, 13 for codes of every entry, 16 and 3 for each bit where they are packed. Beside that,
for each gap 41 and 3 for each bit, for each kept entry 12 and 3 for each bit. `DecodeSymbols` and `Decode` take
about 250 for each kept entry together, and 12 for each entry.
"""

import functools
import string
from collections.abc import Iterable

from onnx import FunctionProto
from onnx.parser import parse_function

DOMAIN, VERSION = "atmc", 1

_OPSET = 21
_UNPACK = "Unpack"

# Fields of w bits, w ≤ 8: uint8 (w, 1, g) → int32 (8 g,). Bit q of the byte (p, 0, i) is bit p of field q·g + i.
_UNPACK_TEXT = """Unpack (packed) => (fields) {
  places = Constant <value = uint8[8, 1] {0, 1, 2, 3, 4, 5, 6, 7}> ()
  one = Constant <value = uint8 {1}> ()
  moved = BitShift <direction = "RIGHT"> (packed, places)
  bits = BitwiseAnd (moved, one)
  rows = Constant <value_ints = [0, -1]> ()
  planes = Reshape (bits, rows)
  powers = Constant <value = uint8[8] {1, 2, 4, 8, 16, 32, 64, 128}> ()
  from = Constant <value_ints = [0]> ()
  width = Shape <end = 1> (packed)
  used = Slice (powers, from, width)
  fields = MatMulInteger (used, planes)
}"""

_START = """
  axis = Constant <value_int = 0> ()
  from = Constant <value_ints = [0]> ()
  dims = Constant <value_ints: ints = @shape> ()
  size = ReduceProd (dims)"""

# Fields of gaps: the distance from the kept entry before, or 0 for a step of `far` without an entry there.
_GAPS = """
  n = Constant <value_ints: ints = @fields> ()
  padded = atmc.Unpack (gaps)
  gap = Slice (padded, from, n)
  kept = Cast <to = 9> (gap)
  step = Where (kept, gap, far)
  next = CumSum (step, axis)
  one = Constant <value = int32 {1}> ()
  at = Sub (next, one)
  flag = Cast <to = 6> (kept)"""

_MASK = """
  padded = atmc.Unpack (mask)
  flag = Slice (padded, from, size)"""

# A codebook is float32, or float16 where that is exact.
_PALETTE = """
  palette = Cast <to = 1> (codebook)"""

# The values (k,) of the kept entries; a raw decoder has them as they are.
_LOOK_UP = """
  code = atmc.Unpack (codes)
  values = Gather (palette, code)"""

# The i-th of `values` where the i-th 1 of `flag`, int32 (n,), is; zero where that is 0: float32 (n,).
_SPREAD = """
  count = CumSum (flag, axis)
  which = Mul (count, flag)
  zero = Constant <value = float[1] {0}> ()
  table = Concat <axis = 0> (zero, values)
  each = Gather (table, which)"""

# `each`, (k,), at the positions `at`, (k,), and zeros elsewhere.
_SCATTER = """
  zeros = ConstantOfShape (size)
  flat = ScatterElements (zeros, at, each)
  tensor = Reshape (flat, dims)"""

_WHOLE = """
  tensor = Reshape (each, dims)"""

# Bits for blocks of entries, and bits for the entries of those in use after a block without any: `shape` is theirs.
_GRID = """
  across = Constant <value_ints: ints = @grid> ()
  number = ReduceProd (across)
  fill = atmc.Unpack (blocks)
  full = Slice (fill, from, number)
  ahead = CumSum (full, axis)
  place = Mul (ahead, full)
  block = Reshape (place, across)"""

_ARRANGE = """
  parts = Reshape (each, dims)
  tensor = Gather (parts, block)"""

_POSITIONS = """
  at = Cast <to = 6> (positions)"""

_PACKED_CODES = """
  code = atmc.Unpack (codes)
  used = Slice (code, from, size)
  each = Gather (palette, used)"""

# Codes of a width that divides a byte: those shifted by the q-th of `shifts` (s, 1) are the q-th part of the tensor.
_CODES = """
  moved = BitShift <direction = "RIGHT"> (codes, shifts)
  field = BitwiseAnd (moved, mask)
  all = Constant <value_ints = [-1]> ()
  row = Reshape (field, all)
  used = Slice (row, from, size)
  whole = Reshape (used, dims)
  code = Cast <to = 6> (whole)
  tensor = Gather (palette, code)"""

# A symbol is the base of its class and w low bits. The classes of all rows are in `widths`, w of each; the base is the
# sum of 2^w over those before it in its row. `ends` has for each symbol as many ones as its class is from the first of
# the row, then a zero: bit q of byte i is bit q·g + i of g·8; symbols beyond those are of the first class. From each of
# `starts` on, the row is another, `steps` entries of `widths` further. `low` has the low bits of all, the lowest first.
_SYMBOLS_TEXT = """DecodeSymbols <number> (ends, widths, low, starts, steps) => (symbols) {
  axis = Constant <value_int = 0> ()
  powers = Constant <value = uint8[8, 1] {1, 2, 4, 8, 16, 32, 64, 128}> ()
  places = BitwiseAnd (ends, powers)
  planes = Sign (places)
  all = Constant <value_ints = [-1]> ()
  bits = Reshape (planes, all)
  more = Cast <to = 6> (bits)
  one = Constant <value = int32 {1}> ()
  last = Sub (one, more)
  index = CumSum <exclusive = 1> (last, axis)
  n = Constant <value_ints: ints = @number> ()
  none = ConstantOfShape <value = int32[1] {0}> (n)
  jump = ScatterElements (none, starts, steps)
  row = CumSum (jump, axis)
  entry = ScatterElements <reduction = "add"> (row, index, more)
  width = Gather (widths, entry)
  from = CumSum <exclusive = 1> (width, axis)
  eight = Constant <value = int32 {8}> ()
  at = Div (from, eight)
  after = Add (at, one)
  shift = Mod (from, eight)
  bytes = Cast <to = 6> (low)
  first = Gather (bytes, at)
  second = Gather (bytes, after)
  two = Add (one, one)
  byte = Pow (two, eight)
  high = Mul (second, byte)
  word = Add (first, high)
  place = Pow (two, shift)
  moved = Div (word, place)
  span = Pow (two, width)
  value = Mod (moved, span)
  spans = Pow (two, widths)
  sums = CumSum <exclusive = 1> (spans, axis)
  sum = Gather (sums, entry)
  start = Gather (sums, row)
  base = Sub (sum, start)
  symbols = Add (base, value)
}"""

# Values of float16, by keys 2 m + s: the bits m of the magnitude and the sign s. In a range of symbols is for each how
# many keys are between it and the one before (or 0), but `jumps` for those `far`. A value is (m - 1024 e) 2^e units of
# 2^-24, e = max(0, ⌊m / 1024⌋ - 1), so that the leading one, which subnormal numbers do not have, stays in the bracket.
_CODEBOOKS_TEXT = """DecodeCodebooks <start, stop> (symbols, far, jumps) => (values) {
  a = Constant <value_ints: ints = @start> ()
  b = Constant <value_ints: ints = @stop> ()
  short = Slice (symbols, a, b)
  between = ScatterElements (short, far, jumps)
  one = Constant <value = int32 {1}> ()
  step = Add (between, one)
  axis = Constant <value_int = 0> ()
  key = CumSum (step, axis)
  two = Add (one, one)
  sign = Mod (key, two)
  bits = Div (key, two)
  full = Constant <value = int32 {1024}> ()
  field = Div (bits, full)
  above = Sub (field, one)
  exponent = Relu (above)
  implied = Mul (exponent, full)
  mantissa = Sub (bits, implied)
  number = Cast <to = 1> (mantissa)
  double = Cast <to = 1> (two)
  power = Pow (double, exponent)
  moved = Mul (number, power)
  units = Constant <value = float[2] {5.9604644775390625e-8, -5.9604644775390625e-8}> ()
  unit = Gather (units, sign)
  values = Mul (moved, unit)
}"""

# The k entries of a tensor from two runs of symbols, from the a-th and from the c-th on: how many zeros are before
# each, and which of the values from the e-th on it is. `at` is [a, k, c, e], `shape` the tensor's.
_ENTRIES = """
  axis = Constant <value_int = 0> ()
  size = ReduceProd (shape)
  bounds = Constant <value_ints: ints = @at> ()
  a, k, c, e = Split <num_outputs = 4> (bounds)
  b = Add (a, k)
  gap = Slice (symbols, a, b)
  one = Constant <value = int32 {1}> ()
  step = Add (gap, one)
  next = CumSum (step, axis)
  at = Sub (next, one)
  d = Add (c, k)
  code = Slice (symbols, c, d)
  first = Cast <to = 6> (e)
  which = Add (code, first)
  found = Gather (values, which)
  each = Cast <to = 1> (found)"""


def _texts() -> dict[str, str]:
    """Name → text of the functions, each after those that it calls."""
    texts = {_UNPACK: _UNPACK_TEXT}

    def add(name: str, attributes: str, inputs: str, *parts: str) -> None:
        head = f"{name} <{attributes}>" if attributes else name
        texts[name] = f"{head} ({inputs}) => (tensor) {{{''.join(parts)}\n}}"

    for kind, inputs, look_up in (("", "codes, codebook", _PALETTE + _LOOK_UP), ("Raw", "values", "")):
        values = look_up + _SPREAD
        add(f"DecodeGaps{kind}", "shape, fields", f"gaps, far, {inputs}", _START, _GAPS, values, _SCATTER)
        add(f"DecodeBitmask{kind}", "shape", f"mask, {inputs}", _START, _MASK, values, _WHOLE)
        parts = (_START, _GRID, _MASK, values, _ARRANGE)
        add(f"DecodeBlocks{kind}", "grid, shape", f"blocks, mask, {inputs}", *parts)
    add("DecodeCodes", "shape", "codes, shifts, mask, codebook", _START, _PALETTE, _CODES)
    add("DecodePackedCodes", "shape", "codes, codebook", _START, _PALETTE, _PACKED_CODES, _WHOLE)
    add("DecodePositions", "shape", "positions, each", _START, _POSITIONS, _SCATTER)
    texts["DecodeSymbols"] = _SYMBOLS_TEXT
    texts["DecodeCodebooks"] = _CODEBOOKS_TEXT
    add("Decode", "at", "symbols, values, shape", _ENTRIES, _SCATTER.replace("dims", "shape"))
    return texts


@functools.cache
def functions() -> dict[str, FunctionProto]:
    """Name → function, each after those that it calls."""
    own = f', "{DOMAIN}" : {VERSION}'
    parsed = {
        name: parse_function(f'<domain: "{DOMAIN}", opset_import: ["" : {_OPSET}{own * (DOMAIN in text)}]>\n{text}')
        for name, text in _texts().items()
    }
    for function in parsed.values():
        _shorten(function)
    return parsed


def _shorten(function: FunctionProto) -> None:
    """Spare the bytes of what nobody needs to read: names of values inside, and the domain where it is the default."""
    inner = dict.fromkeys(name for node in function.node for name in node.output if name not in function.output)
    short = dict(zip(inner, string.ascii_letters, strict=False))  # the longest function has fewer
    for node in function.node:
        node.input[:] = [short.get(name, name) for name in node.input]
        node.output[:] = [short.get(name, name) for name in node.output]
        if not node.domain:
            node.ClearField("domain")


def with_callees(names: Iterable[str]) -> list[FunctionProto]:
    """The functions called `names` and all that they call, in a fixed order."""
    needed = set(names)
    for name, function in reversed(functions().items()):
        if name in needed:
            needed.update(node.op_type for node in function.node if node.domain == DOMAIN)
    return [function for name, function in functions().items() if name in needed]
