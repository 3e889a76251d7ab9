"""The factors of a level 3 file, decoded slowly in plain Python, from the words of exporters/FORMAT.md alone.

It shares no code with the package. A factor is ((rows, columns), k, K, weight's shape, name of the factor).
"""

import struct
from typing import Any

KINDS = {
    "occupied": [18, 18],
    "more": [14, 20, 10, 6, 5, 3],
    "here": [22, -7, 18, -4, -2, 1, -12, -1, -5, -6, 10, 2, -16],
    "positive": [70, 80, 5, 26, -12, 0],
}
T = [4, 12, 19, 27, 34, 41, 47, 54, 60, 67, 73, 79, 84, 90, 96, 101, 106, 112, 117, 122, 127, 132, 136, 141, 146, 150]
T += [154, 159, 163, 167, 171, 175]
S = [32768, 40793, 47911, 53581, 57724, 60565, 62428, 63615, 64357, 64816, 65097, 65269, 65374, 65438, 65476, 65500]
S += [65514, 65523, 65528, 65531, 65533, 65534, 65535, 65535, 65536]
BATCH = [0, 1, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 4, 4, 4, 4]


def L(x: int) -> int:
    e = x.bit_length() - 1
    return 45426 * e // 256 + T[32 * x // 2**e - 32]


def probability(y: int) -> int:
    y = max(-3072, min(3072, y))
    i, t = divmod(abs(y), 128)
    high = S[i] if t == 0 else ((128 - t) * S[i] + t * S[i + 1]) // 128
    return max(1, min(65535, high if y >= 0 else 65536 - high))


def width(most: int) -> int:
    bits = 0
    while 2**bits <= most:
        bits += 1
    return bits


class Coded:
    """The stream `coded`: fields, then symbols."""

    def __init__(self, content: bytes) -> None:
        self.content, self.at = content, 0
        self.lanes = 2 ** self.field(4)
        self.before = self.field(28) if self.lanes > 1 else 0
        self.weights = {}
        for kind, default in KINDS.items():
            self.weights[kind] = default
            if self.field(1):
                own = self.field(1)
                self.weights[kind] = [self.field(8) - 128 if own else 0 for _ in default]

    def field(self, bits: int) -> int:
        value = 0
        for i in range(bits):
            value += (self.content[self.at // 8] >> self.at % 8 & 1) << i
            self.at += 1
        return value

    def unary(self) -> int:
        zeros = 0
        while not self.field(1):
            zeros += 1
        return zeros

    def start(self) -> None:
        assert self.field(-self.at % 8) == 0
        rest = self.content[self.at // 8 :]
        self.words = list(struct.unpack(f"<{len(rest) // 2}H", rest))[::-1]
        self.states = [65536 * self.words.pop() + self.words.pop() for _ in range(self.lanes)]
        assert self.lanes == 1 or min(self.states) >= 65536
        self.tail()

    def tail(self) -> None:
        """Go over to one lane when the symbols before the tail are decoded."""
        if self.lanes > 1 and self.before == 0:
            assert not self.words
            assert all(state < 2**17 for state in self.states)
            self.words = [state % 2**16 for state in self.states][::-1]
            self.lanes = 1
            if not any(self.words):
                self.words = [0, 0]
            self.states = [65536 * self.words.pop() + self.words.pop()]

    def symbol(self, i: int, m: int, frequencies: list[int]) -> int:
        x = self.states[i % self.lanes]
        slot, symbol, s = x % 2**m, 0, 0
        while slot >= s + frequencies[symbol]:
            s += frequencies[symbol]
            symbol += 1
        x = frequencies[symbol] * (x // 2**m) + slot - s
        if x < 2**16 and (self.lanes > 1 or self.words):
            x = 2**16 * x + self.words.pop()
        self.states[i % self.lanes] = x
        self.before -= 1
        self.tail()
        return symbol

    def bit(self, i: int, p: int) -> bool:
        return self.symbol(i, 16, [p, 65536 - p]) == 0

    def mixed(self, i: int, kind: str, base: int, features: list[int]) -> bool:
        terms = [w * f // 32 for w, f in zip(self.weights[kind], features, strict=True)]
        return self.bit(i, probability(base + sum(terms)))

    def finish(self) -> None:
        assert not self.words
        assert self.states == [0]


def codebook_of(coded: Coded, size: int) -> list[bytes]:
    """The codebook as bytes of F32."""
    single = coded.field(1)
    negative = coded.field(width(size))
    first = coded.field(31 if single else 15)
    sides = [[first]]
    if size > 1:
        r = coded.field(5)
        high = [coded.unary() for _ in range(size - 1)]
        steps = [2**r * h + coded.field(r) for h in high]
        if 0 < negative < size:
            z = steps.pop(0)
            sides.append([first + (z // 2 if z % 2 == 0 else -(z + 1) // 2)])
        for side, count in zip(sides, [negative or size, size - negative], strict=False):
            while len(side) < count:
                side.append(side[-1] + steps.pop(0) + 1)

    def value(magnitude: int, sign: int) -> bytes:
        if single:
            return struct.pack("<I", magnitude + (2**31 if sign < 0 else 0))
        (number,) = struct.unpack("<e", struct.pack("<H", magnitude))
        return struct.pack("<f", sign * number)

    below = [value(magnitude, -1) for magnitude in (sides[0] if negative else [])]
    above = [value(magnitude, 1) for magnitude in (sides[-1] if negative < size else [])]
    return below[::-1] + above


def decode(content: bytes, factors: list[Any], singles: int) -> dict[str, Any]:
    """{"halves": [...], "factors": [(codebook or None, (positions, codes or None) or None where plain)]}."""
    coded = Coded(content)
    halves = [bool(coded.field(1)) for _ in range(singles)]
    heads = []
    for (rows, columns), k, size, shape, name in factors:
        codebook = codebook_of(coded, size) if size else None
        kernel = (1, 1)
        n = 1
        for length in shape[1:]:
            n *= length
        if len(shape) > 2 and not (name == "U" and shape[0] <= n):
            area = 1
            for length in shape[2:]:
                area *= length
            if area <= 64:
                kernel = (area // shape[-1], shape[-1])
        extent = None
        plain = coded.field(1) if k else 1
        if not plain and kernel[0] * kernel[1] > 1 and coded.field(1):
            kernel = (1, 1)
        grid = (rows, columns // (kernel[0] * kernel[1]))
        if not plain:
            held = list(grid)
            least = -(-k // (kernel[0] * kernel[1]))
            for axis, length in enumerate(grid):
                if length > 1 and coded.field(1):
                    held[axis] = 1 + coded.field(width(min(length - 1, k) - 1))
                    assert held[axis] < length
                    least = max(least, held[axis])
            extent = (*held, least + coded.field(width(min(held[0] * held[1], k) - least)))
        heads.append((grid, kernel, k, codebook, extent))
    found: list[Any] = []
    if any(head[4] for head in heads):
        coded.start()
        model = Model()
        for grid, kernel, k, codebook, extent in heads:
            found.append((codebook, _entries(coded, grid, kernel, k, codebook, extent, model) if extent else None))
        coded.finish()
    else:
        assert coded.field(-coded.at % 8) == 0
        assert 8 * len(content) == coded.at
        found = [(head[3], None) for head in heads]
    return {"halves": halves, "factors": found}


def _entries(coded: Coded, grid: Any, kernel: Any, k: int, codebook: Any, extent: Any, model: "Model") -> Any:
    lines = []
    for length, held in zip(grid, extent, strict=False):
        found = list(range(length))
        if held < length:
            p = max(1, 65536 * held // length)
            found = [i for i in found if coded.bit(i, p)]
        assert len(found) == held
        lines.append(found)
    at = _occupied(coded, extent)
    assert len(at) == extent[2]
    counts = _counts(coded, extent, kernel[0] * kernel[1], k, at)
    filled = _filled(coded, kernel, counts)
    columns = grid[1] * kernel[0] * kernel[1]
    positions = [
        lines[0][row] * columns + lines[1][column] * kernel[0] * kernel[1] + position
        for (row, column), places in zip(at, filled, strict=True)
        for position in places
    ]
    return positions, _codes(coded, kernel, filled, codebook, model) if codebook else None


def _occupied(coded: Coded, extent: Any) -> list[tuple[int, int]]:
    rows, columns, n = extent
    if n == rows * columns:
        return [(i, j) for i in range(rows) for j in range(columns)]
    base = L(n) - L(rows * columns - n)
    found: set[tuple[int, int]] = set()
    band = max(1, 2**20 // columns)
    for first in range(0, rows, band):
        height = min(band, rows - first)
        tallies = [[[0, 0] for _ in range(length)] for length in (height, columns)]  # of each line: kernels, occupied
        for batch in range(5):
            members = [(i, j) for i in range(height) for j in range(columns) if BATCH[(i + j) % 16] == batch]
            known = []
            for lines in tallies:
                features = []
                for m, a in lines:
                    e = m * (65536 * n // (rows * columns)) // 256
                    features.append(L(256 * a + 512) - L(e + 512) - L(256 * (m - a) + 512) + L(256 * m - e + 512))
                known.append(features)
            for s, (i, j) in enumerate(members):
                occupied = coded.mixed(s, "occupied", base, [known[0][i], known[1][j]])
                for line in (tallies[0][i], tallies[1][j]):
                    line[0] += 1
                    line[1] += occupied
                if occupied:
                    found.add((first + i, j))
    return sorted(found)


def _counts(coded: Coded, extent: Any, area: int, k: int, at: list[tuple[int, int]]) -> list[int]:
    counts = [1] * len(at)
    live, left, level = list(range(len(at))), k - len(at), 1
    while 0 < left < len(live) * (area - level):
        known = []
        for axis in (0, 1):
            sums = [0] * extent[axis]
            for place, count in zip(at, counts, strict=True):
                sums[place[axis]] += count
            known.append([L(256 * a + 512) - L(256 * (k - left) // extent[axis] + 512) for a in sums])
        more = [256, L(left) - L(len(live) * (area - level) - left), 256 * (level == 1), 256 * (level == 2)]
        base = L(left) - L(len(live))
        live = [
            i
            for s, i in enumerate(live)
            if coded.mixed(s, "more", base, [known[0][at[i][0]], known[1][at[i][1]], *more])
        ]
        for i in live:
            counts[i] += 1
        left, level = left - len(live), level + 1
    assert left in (0, len(live) * (area - level))
    if left:
        for i in live:
            counts[i] = area
    return counts


def _around(kernel: tuple[int, int], position: int) -> list[int | None]:
    row, column = divmod(position, kernel[1])
    places = [(row - 1, column), (row, column - 1), (row - 1, column - 1), (row - 1, column + 1)]
    return [i * kernel[1] + j if i >= 0 and 0 <= j < kernel[1] else None for i, j in places]


def _filled(coded: Coded, kernel: tuple[int, int], counts: list[int]) -> list[list[int]]:
    filled: list[list[int]] = [[] for _ in counts]
    area = kernel[0] * kernel[1]
    for position in range(area):
        row, column = divmod(position, kernel[1])
        u, symbol = area - position, 0
        for places, count in zip(filled, counts, strict=True):
            r = count - len(places)
            here = r == u
            if 0 < r < u:
                states = [None if q is None else q in places for q in _around(kernel, position)]
                features = [256 * (state is wanted) for state in states for wanted in (True, False)]
                features += [256 * (row in (0, kernel[0] - 1)), 256 * (column in (0, kernel[1] - 1))]
                features += [256 * (r == 1), 256 * (r == 2), 256 * (states[0] is True and states[1] is True)]
                here = coded.mixed(symbol, "here", L(r) - L(u - r), features)
                symbol += 1
            if here:
                places.append(position)
    return filled


def _codes(coded: Coded, kernel: tuple[int, int], filled: list[list[int]], codebook: Any, model: "Model") -> list[int]:
    negative = sum(value[3] >= 128 for value in codebook)
    sides = [negative, len(codebook) - negative]
    signs: list[dict[int, int]] = [{} for _ in filled]
    for position in range(kernel[0] * kernel[1]):
        symbol = 0
        for places, known in zip(filled, signs, strict=True):
            if position in places:
                if all(sides):
                    near = [0 if q is None else known.get(q, 0) for q in _around(kernel, position)]
                    near += [max(-2, min(2, sum(known.values()))), 1]
                    positive = coded.mixed(symbol, "positive", 0, [256 * sign for sign in near])
                    symbol += 1
                else:
                    positive = sides[1] > 0
                known[position] = 1 if positive else -1
    ranks: list[dict[int, int]] = [dict.fromkeys(places, 0) for places in filled]
    if max(sides) > 1:
        _ranks(coded, kernel, sides, signs, ranks, model)
    return [
        negative + known[position] if own[position] > 0 else negative - 1 - known[position]
        for places, own, known in zip(filled, signs, ranks, strict=True)
        for position in places
    ]


class Model:
    """What ranks have taught: B; and by class and quarter, how often ranks came up and were expected, times 2^16."""

    def __init__(self) -> None:
        self.bins = [8] * 16
        self.came = [[[20 * 2**16] * 4 for _ in range(5)] for _ in range(2)]
        self.expected = [[[20 * 2**16] * 4 for _ in range(5)] for _ in range(2)]

    def ratio(self, which: int, c: int, b: int) -> int:
        return max(16, min(4096, 256 * self.came[which][c][b] // self.expected[which][c][b]))


def _ranks(coded: Coded, kernel: Any, sides: list[int], signs: Any, ranks: Any, model: Model) -> None:
    area = kernel[0] * kernel[1]
    seen = [[0] * s for s in sides]
    shape = [[model.bins[16 * j // s] for j in range(s)] for s in sides]
    prior = [[1 + 1024 * s * b // sum(row) for b in row] for s, row in zip(sides, shape, strict=True)]
    done, counted, waiting = 0, 0, []
    g, ratios = _table(seen, prior, model)
    for position in range(area):
        live = [i for i, known in enumerate(signs) if position in known]
        while live:
            run, live = live[: max(16, done)], live[max(16, done) :]
            if done - counted >= max(16, counted // 8):
                _learn(sides, area, waiting, g, ratios, seen, model)
                g, ratios = _table(seen, prior, model)
                counted, waiting = done, []
            for symbol, i in enumerate(run):
                side = int(signs[i][position] > 0)
                s = sides[side]
                levels = [
                    256 * (2 * ranks[i][place] + 1) // sides[int(signs[i][place] > 0)]
                    for place in _around(kernel, position)[:2]
                    if place in signs[i]
                ]
                c = [1 + sum(levels) // len(levels) // 128 if levels else 0, min(len(signs[i]), 5) - 1]
                if area == 1:
                    c = [0, 0]
                v = list(g[side])
                if area > 1:
                    v = [x * ratios[0][c[0]][4 * j // s] * ratios[1][c[1]][4 * j // s] for j, x in enumerate(v)]
                f = [1 + x * (2**14 - s) // sum(v) for x in v]
                f[v.index(max(v))] += 2**14 - sum(f)
                ranks[i][position] = coded.symbol(symbol, 14, f)
                waiting.append((side, c, ranks[i][position]))
            done += len(run)
    _learn(sides, area, waiting, g, ratios, seen, model)
    for s, row in zip(sides, seen, strict=True):
        for j, count in enumerate(row):
            model.bins[16 * j // s] += count


def _table(seen: Any, prior: Any, model: Model) -> Any:
    g = []
    for o, q in zip(seen, prior, strict=True):
        w = [256 * x + y for x, y in zip(o, q, strict=True)]
        g.append([1 + 65536 * x // sum(w) for x in w])
    return g, [[[model.ratio(which, c, b) for b in range(4)] for c in range(5)] for which in (0, 1)]


def _learn(sides: list[int], area: int, decoded: Any, g: Any, ratios: Any, seen: Any, model: Model) -> None:
    for side, c, j in decoded:
        s = sides[side]
        seen[side][j] += 1
        if area > 1:
            for which in (0, 1):
                t = [0] * 4
                for i, x in enumerate(g[side]):
                    t[4 * i // s] += x * ratios[1 - which][c[1 - which]][4 * i // s]
                for b in range(4):
                    model.expected[which][c[which]][b] += 65536 * t[b] // sum(t)
                model.came[which][c[which]][4 * j // s] += 65536
