"""Sparse factors as bytes: format level 3. FORMAT.md, section 3.2.

Whatever can be said in a few bits stands in fields at the beginning of the stream `coded`; the words of the entropy
coder follow. A factor that level 1 codes in less, such as one with a regular pattern, is coded as there.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from atmc_tool.compressed import SparseTensor
from atmc_tool.errors import InputError
from exporters import entropy
from exporters.bit_fields import FieldReader, FieldWriter
from exporters.codebook_fields import get_codebook, put_codebook
from exporters.entropy import FactorHeader
from exporters.extents import SPARSEST, Extent, extent, get_extent, is_extent, put_extent
from exporters.kernel_codes import RankModel, code_codes, code_signs, signs_of
from exporters.kernel_masks import code_kernels, most_symbols
from exporters.kernels import Kernels, Shape
from exporters.mixing import DEFAULT_WEIGHTS, LIGHTEST, Fit, Kind, Mixer
from exporters.rans import Decoder, Encoder
from exporters.strict_json import brief

MOST_SYMBOLS = 2**27
"""Symbols of all factors together that a reader decodes."""

MOST_SYMBOLS_OF_A_LANE = 2**22

MOST_LANES = 2048
FEW_SYMBOLS = 150_000
"""Symbols that one lane decodes in a fifth of a second."""

BYTES_OF_A_LANE = 400
"""So many at least, where there are many symbols and so more than one lane: each costs about one byte."""

NEARLY_FULL = 0.9
"""Share of entries from which on columns are looked at one by one."""

SAMPLE = 2**15
"""So many bytes of a longer stream tell whether level 1 is near."""

STREAMS_BYTES = 250
"""About what the two streams of level 1 cost in the header and the manifest."""


@dataclass(frozen=True)
class _Kept:
    """A factor with entries, as kernels; `side` says how many values are negative and how many positive."""

    index: int
    header: FactorHeader
    factor: SparseTensor
    shape: Shape
    kernels: Kernels
    held: Extent

    @property
    def modelled(self) -> bool:
        """Whether level 3 may code it."""
        return self.held.work(self.shape) <= SPARSEST * self.header.kept


def encode(
    factors: Sequence[SparseTensor], headers: Sequence[FactorHeader], halves: Sequence[bool]
) -> dict[str, bytes]:
    """Stream name → its bytes before compression.

    Args:
        halves: of every F32 array of `rest`, whether it is stored in F16.
    """
    kept = [_kept(i, *pair) for i, pair in enumerate(zip(factors, headers, strict=True)) if pair[0].kept]
    modelled, symbols = [], 0
    for factor in kept:
        own = _most_symbols(factor.header, factor.shape, factor.held)
        if factor.modelled and symbols + own <= MOST_SYMBOLS:
            modelled.append(factor)
            symbols += own
    weights = _fit(modelled)
    encoder, costs = _run(modelled, weights)
    gains = {kept.index: _level1_gain(kept.factor, cost) for kept, cost in zip(modelled, costs, strict=True)}
    better = {index for index, gain in gains.items() if gain > 0}
    if len(modelled) < len(kept) or sum(gains[index] for index in better) > STREAMS_BYTES:
        modelled = [factor for factor in modelled if factor.index not in better]
        encoder, _ = _run(modelled, weights)
    lanes = _lanes(encoder, sum(_most_symbols(kept.header, kept.shape, kept.held) for kept in modelled))
    before, words = encoder.words(lanes)
    extents = {factor.index: (factor.shape, factor.held) for factor in modelled}
    coded = _fields((lanes, before), weights, halves, list(zip(factors, headers, strict=True)), extents)
    if modelled:
        coded += words.astype("<u2").tobytes()
    plain = [factor.factor for factor in kept if factor.index not in extents]
    level1 = entropy.encode_factors(plain)
    values = np.concatenate([np.zeros(0, np.float32), *(f.values for f in factors if f.codebook is None)])
    return {"coded": coded, "values": entropy.encode_floats(values), "codes": level1["codes"], "gaps": level1["gaps"]}


def _kept(index: int, factor: SparseTensor, header: FactorHeader) -> _Kept:
    """By kernels; or column by column where some columns inside kernels are empty and the others nearly full."""
    shape = shape_of(header, single=True)
    kernels = Kernels.of(factor.positions, shape)
    held = extent(kernels, shape, factor.kept)
    if shape != (whole := shape_of(header, single=False)):
        by_kernels = Kernels.of(factor.positions, whole)
        around = extent(by_kernels, whole, factor.kept)
        room = held.rows * held.columns
        if factor.kept < NEARLY_FULL * room or room > NEARLY_FULL * around.rows * around.columns * whole.area:
            return _Kept(index, header, factor, whole, by_kernels, around)
    return _Kept(index, header, factor, shape, kernels, held)


def shape_of(header: FactorHeader, *, single: bool) -> Shape:
    """The kernels of a factor; or, where `single`, its columns as kernels of one position."""
    height, width = (1, 1) if single else header.kernel
    return Shape(header.shape[0], header.shape[1] // (height * width), height, width)


def _most_symbols(header: FactorHeader, shape: Shape, held: Extent) -> int:
    """Those of the positions, and a sign and a rank for each entry."""
    return most_symbols(shape, held, header.kept) + (2 * header.kept if header.codebook_size > 1 else 0)


def _sides(codebook: NDArray[np.float32]) -> tuple[int, int]:
    """(negative values, positive values)."""
    negative = int(np.count_nonzero(codebook < 0))
    return negative, len(codebook) - negative


def _fit(factors: Sequence[_Kept]) -> dict[Kind, tuple[int, ...]]:
    """The weights that are worth their bytes."""
    fit = Fit()
    for kept in factors:
        shape, factor = kept.shape, kept.factor
        code_kernels(fit, shape, factor.kept, kept.held, kept.kernels)
        if factor.codebook is not None and all(_sides(factor.codebook)):
            code_signs(fit, shape, kept.kernels.filled, signs_of(kept.kernels, factor.values < 0))
    return fit.weights()


def _run(factors: Sequence[_Kept], weights: Mapping[Kind, tuple[int, ...]]) -> tuple[Encoder, list[float]]:
    """(an encoder that was given every factor, the bytes of each)."""
    encoder, ranks, ends = Encoder(), RankModel(), [0]
    mixer = Mixer(encoder, {**DEFAULT_WEIGHTS, **weights})
    for kept in factors:
        shape, factor = kept.shape, kept.factor
        code_kernels(mixer, shape, factor.kept, kept.held, kept.kernels)
        if factor.codebook is not None and factor.codes is not None:
            code_codes(mixer, shape, kept.kernels, _sides(factor.codebook), ranks, factor.codes)
        ends.append(len(encoder.runs))
    return encoder, [encoder.cost(*run) for run in pairwise(ends)]


def _level1_gain(factor: SparseTensor, cost: float) -> float:
    """About how many bytes less than `cost` the positions and the codes of a factor take at level 1."""
    streams = entropy.encode_factors([factor])
    parts = [streams["gaps"], streams["codes"]]
    sampled = sum(len(part) / SAMPLE * len(entropy.compress(part[:SAMPLE])) for part in parts if len(part) > SAMPLE)
    if sampled > 1.1 * cost:
        return cost - sampled
    return cost - sum(len(entropy.compress(part)) for part in parts)


def _lanes(encoder: Encoder, most: int) -> int:
    """Few enough to cost a quarter of a per cent, enough to be quick; `most` is what a reader takes the symbols for."""
    if encoder.symbols() <= FEW_SYMBOLS and most <= MOST_SYMBOLS_OF_A_LANE:
        return 1
    share = max(1, int(encoder.cost() / BYTES_OF_A_LANE))
    return min(max(32, 1 << share.bit_length() - 1), MOST_LANES)


def _fields(
    lanes: tuple[int, int],
    weights: Mapping[Kind, tuple[int, ...]],
    halves: Sequence[bool],
    factors: Sequence[tuple[SparseTensor, FactorHeader]],
    extents: Mapping[int, tuple[Shape, Extent]],
) -> bytes:
    """The beginning of `coded`; `lanes`, and symbols before the tail; `extents` of the modelled factors, by number."""
    fields = FieldWriter()
    fields.put(lanes[0].bit_length() - 1, 4)
    if lanes[0] > 1:
        fields.put(lanes[1], MOST_SYMBOLS.bit_length())
    for kind in DEFAULT_WEIGHTS:
        fields.put(kind in weights, 1)
        if kind in weights:
            fields.put(any(weights[kind]), 1)
        if any(weights.get(kind, ())):
            fields.put_all(np.array(weights[kind]) - LIGHTEST, 8)
    fields.put_all(np.array(halves, np.int64), 1)
    for i, (factor, header) in enumerate(factors):
        if factor.codebook is not None:
            put_codebook(fields, factor.codebook)
        if factor.kept:
            fields.put(i not in extents, 1)
        if i in extents:
            shape, held = extents[i]
            if header.kernel != (1, 1):
                fields.put(shape.area == 1, 1)
            put_extent(fields, held, shape, header.kept)
    return fields.to_bytes()


class Share(NamedTuple):
    """What of the streams is a factor's own: bytes of `coded`, and if `plain` what it has in those of level 1."""

    coded: float
    plain: bool


@dataclass
class Decoded:
    """What `encode` was given, and how the factors share the streams."""

    halves: list[bool]
    factors: list[SparseTensor] = field(default_factory=list)
    shares: list[Share] = field(default_factory=list)


def decode(contents: Mapping[str, bytes], headers: Sequence[FactorHeader], singles: int) -> Decoded:
    """The inverse of `encode`; `singles` is the number of F32 arrays of `rest`.

    Raises:
        InputError: a stream is cut off or goes on after its end, or holds what is not allowed.
    """
    fields = FieldReader(contents["coded"])
    lanes = 1 << fields.get(4)
    before = fields.get(MOST_SYMBOLS.bit_length()) if lanes > 1 else 0
    weights = dict(DEFAULT_WEIGHTS)
    for kind, default in DEFAULT_WEIGHTS.items():
        if fields.get(1):
            weights[kind] = (0,) * len(default)
            if fields.get(1):
                weights[kind] = tuple((fields.get_all(len(default), 8) + LIGHTEST).tolist())
    decoded = Decoded((fields.get_all(singles, 1) > 0).tolist())
    codebooks, places, ends = [], [], [fields.at]
    for header in headers:
        codebooks.append(get_codebook(fields, header.codebook_size, header.name) if header.codebook_size else None)
        places.append(_get_place(fields, header) if header.kept and not fields.get(1) else None)
        ends.append(fields.at)
    symbols = sum(_most_symbols(h, *place) for h, place in zip(headers, places, strict=True) if place)
    if symbols > (most := MOST_SYMBOLS_OF_A_LANE if lanes == 1 else MOST_SYMBOLS):
        raise InputError("the coded stream holds too many symbols", expected=f"at most {most}", got=symbols)
    decoder = _decoder(contents["coded"][fields.end() :], (lanes, before), any(places))
    plain = _Plain.of(contents, [header for header, place in zip(headers, places, strict=True) if place is None])
    values = entropy.split(entropy.decode_floats(contents["values"]), [h.kept for h in headers if not h.codebook_size])
    mixer, ranks = Mixer(decoder, weights), RankModel()
    for header, codebook, place, (begin, end) in zip(headers, codebooks, places, pairwise(ends), strict=True):
        words = decoder.at
        try:
            positions, codes = _modelled(mixer, ranks, header, *place, codebook) if place else plain.next(header)
        except InputError as error:
            raise InputError(f"factor {brief(header.name)}: {error}") from error
        if codebook is None:
            factor = SparseTensor(header.shape, positions, next(values))
        else:
            factor = SparseTensor(header.shape, positions, codebook[codes], codes, codebook)
        if fault := header.fault(factor):
            raise InputError(f"factor {brief(header.name)} {fault}")
        decoded.factors.append(factor)
        decoded.shares.append(Share((end - begin) / 8 + 2 * (decoder.at - words), not place))
    decoder.finish()
    return decoded


def _decoder(content: bytes, lanes: tuple[int, int], used: bool) -> Decoder:
    """Of the words, which are there only where a factor is modelled; `lanes`, and symbols before the tail."""
    if not used:
        if content:
            raise InputError("bytes follow the fields of the coded stream, which codes nothing")
        return Decoder(np.zeros(2, np.uint16), 1)
    if len(content) % 2:
        raise InputError("the coded stream does not end with a whole word")
    return Decoder(np.frombuffer(content, "<u2").astype(np.uint16), *lanes)


def _get_place(fields: FieldReader, header: FactorHeader) -> tuple[Shape, Extent]:
    """The kernels and the extent of a factor that is modelled."""
    shape = shape_of(header, single=header.kernel == (1, 1) or fields.get(1) > 0)
    return shape, get_extent(fields, shape, header.kept, brief(header.name))


def _modelled(
    mixer: Mixer,
    ranks: RankModel,
    header: FactorHeader,
    shape: Shape,
    held: Extent,
    codebook: NDArray[np.float32] | None,
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """(positions, codes) of a factor; the codes are empty where it has no codebook."""
    kernels = code_kernels(mixer, shape, header.kept, held, None)
    if not is_extent(held, kernels, shape):
        raise InputError("a row or a column that is said to hold entries holds none")
    kernel, place = kernels.entries()
    positions = kernels.at[kernel] * shape.area + place
    if codebook is None:
        return positions, np.zeros(0, np.uint8)
    return positions, code_codes(mixer, shape, kernels, _sides(codebook), ranks, None)


@dataclass(frozen=True)
class _Plain:
    """The factors that are coded as at level 1, to be taken one after the other."""

    positions: Iterator[NDArray[np.int64]]
    codes: Iterator[NDArray[np.uint8]]

    @classmethod
    def of(cls, contents: Mapping[str, bytes], headers: Sequence[FactorHeader]) -> "_Plain":
        """Those with these headers."""
        sizes = [entropy.code_bytes(header.kept, header.codebook_size) for header in headers if header.codebook_size]
        if sum(sizes) != len(contents["codes"]):
            got = f"{len(contents['codes'])} bytes"
            raise InputError("stream 'codes' has another size", expected=f"{sum(sizes)} bytes", got=got)
        packed = entropy.split(np.frombuffer(contents["codes"], np.uint8), sizes)
        return cls(iter(entropy.decode_positions(contents["gaps"], headers)), packed)

    def next(self, header: FactorHeader) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """(positions, codes); the codes are empty where it has no codebook."""
        codes = entropy.decode_codes(next(self.codes).tobytes(), header) if header.codebook_size else None
        return next(self.positions), np.zeros(0, np.uint8) if codes is None else codes
