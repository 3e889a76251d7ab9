"""Structures and budgets as projections: in the set, nearest, idempotent, exact counts."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from atmc_tool.errors import UsageError
from atmc_tool.selection import Selection, layer_shares
from atmc_tool.structure_names import parse_n_of_m
from atmc_tool.structures import batch_norms, entries_of, n_of_m_mask, unit_norms

SHAPE = torch.Size((2, 3, 1, 2))  # a 2 × 6 matrix: 12 entries, 2 filters, 6 columns, 3 channels
values = st.lists(st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0]), min_size=12, max_size=12)
STRUCTURES = {"irregular": 12, "filter": 2, "column": 6, "channel": 3}


def selection(structure: str, *, scope: str = "layer", shares: tuple[float | None, ...] = (None,)) -> Selection:
    return Selection(structure, scope, [SHAPE] * len(shares), shares, 12 * len(shares), 0)  # type: ignore[arg-type]


def units(structure: str) -> list[Tensor]:
    """Every unit as a mask of entries, written out by hand over (filter, channel, row, column)."""
    groups: dict[object, list[int]] = {}
    for position, (f, c, y, x) in enumerate(itertools.product(range(2), range(3), range(1), range(2))):
        key = {"irregular": position, "filter": f, "column": (c, y, x), "channel": c}[structure]
        groups.setdefault(key, []).append(position)
    masks = []
    for members in groups.values():
        mask = torch.zeros(12, dtype=torch.bool)
        mask[members] = True
        masks.append(mask.reshape(2, 6))
    return masks


@settings(max_examples=60)
@given(values, st.sampled_from(list(STRUCTURES)), st.integers(1, 12))
def test_nearest_of_all_that_keep_so_many_units(numbers: list[float], structure: str, kept: int) -> None:
    tensor = torch.tensor(numbers).reshape(2, 6)
    (mask,) = selection(structure).masks([tensor], kept)
    count = max(1, round(kept / 12 * STRUCTURES[structure]))
    all_units = units(structure)
    assert sum(bool(mask[unit].all()) for unit in all_units) == count
    assert int(mask.sum()) == count * 12 // STRUCTURES[structure]
    error = float((tensor - tensor * mask).square().sum())
    for chosen in itertools.combinations(all_units, count):
        candidate = torch.stack(chosen).any(0)
        assert error <= float((tensor - tensor * candidate).square().sum()) + 1e-6
    once = tensor * mask
    assert torch.equal(once * selection(structure).masks([once], kept)[0], once)


@settings(max_examples=60)
@given(values, st.integers(0, 12), st.sampled_from([(1, 2), (2, 3), (1, 4)]))
def test_n_of_m_is_nearest_among_all_supports(numbers: list[float], kept: int, pattern: tuple[int, int]) -> None:
    """N:M and a budget together: by trying every support."""
    n, m = pattern
    tensor = torch.tensor(numbers).reshape(2, 6)
    (mask,) = selection(f"{n}:{m}", scope="global").masks([tensor], kept)
    support = mask.reshape(2, 3, 2)
    assert mask.sum() <= kept
    for start in range(0, 3, m):
        assert (support[:, start : start + m].sum(1) <= n).all()
    best = 0.0  # the largest Σ of squares that a valid support can keep: groups are independent but for the budget
    squares = tensor.square().reshape(2, 3, 2)
    allowed: list[float] = []
    for row, column in itertools.product(range(2), range(2)):
        for start in range(0, 3, m):
            allowed += squares[row, start : start + m, column].sort(descending=True).values[:n].tolist()
    best = sum(sorted(allowed, reverse=True)[:kept])
    assert float((tensor * mask).square().sum()) == pytest.approx(best)
    once = tensor * mask
    assert torch.equal(once * selection(f"{n}:{m}", scope="global").masks([once], kept)[0], once)


def test_n_of_m_counts_along_the_input_channels() -> None:
    torch.manual_seed(0)
    for shape in [(5, 8), (5, 8, 3, 3), (5, 6, 2), (4, 3, 3, 3)]:
        weight = torch.randn(shape)
        kept = n_of_m_mask(weight.flatten(1), shape, 2, 4).reshape(shape)
        for start in range(0, shape[1], 4):
            group = kept[:, start : start + 4]
            assert (group.sum(1) == min(2, group.shape[1])).all()


def test_ties_go_to_the_first() -> None:
    ones = torch.ones(2, 6)
    assert n_of_m_mask(ones, (2, 6), 1, 3).tolist() == [[True, False, False, True, False, False]] * 2
    assert selection("filter").masks([ones], 6)[0].tolist() == [[True] * 6, [False] * 6]


def test_a_layer_keeps_its_own_share_and_at_least_one_unit() -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(2, 6) for _ in range(3)]
    chosen = Selection("irregular", "layer", [SHAPE] * 3, [None, 0.5, 1.0], 36, kept=6)
    assert [int(mask.sum()) for mask in chosen.masks(tensors, 6)] == [2, 6, 12]
    assert [int(mask.sum()) for mask in chosen.masks(tensors, 36)] == [12, 12, 12]  # the path begins dense
    assert [int(mask.sum()) for mask in chosen.masks(tensors, 21)] == [7, 9, 12]
    assert [int(mask.sum()) for mask in chosen.masks(tensors, 0)] == [1, 6, 12]


def test_shares_by_pattern() -> None:
    shapes = {
        "conv1.weight": torch.Size((8, 3, 3, 3)),
        "conv2.weight": torch.Size((8, 8, 3, 3)),
        "fc.weight": torch.Size((10, 8)),
    }
    assert layer_shares(shapes, "irregular", {}, {}) == [None, None, None]
    assert layer_shares(shapes, "filter", {}, {}) == [None, None, 1.0]
    assert layer_shares(shapes, "channel", {}, {}) == [1.0, None, 1.0]
    assert layer_shares(shapes, "bn-filter", {}, {"conv2.weight": "bn.weight"}) == [1.0, None, 1.0]
    assert layer_shares(shapes, "filter", {"conv*": 0.5, "conv1.weight": 0.25, "fc*": 0.1}, {}) == [0.25, 0.5, 0.1]
    with pytest.raises(UsageError, match="conv9"):
        layer_shares(shapes, "filter", {"conv9*": 0.5}, {})


@pytest.mark.parametrize("structure", ["filter", "column", "channel", "bn-filter"])
def test_a_structure_that_would_prune_nothing_is_refused(structure: str) -> None:
    linear = {"fc1.weight": torch.Size((10, 64)), "fc2.weight": torch.Size((10, 10))}
    with pytest.raises(UsageError, match=f"{structure} would prune nothing"):
        layer_shares(linear, structure, {}, {})
    assert layer_shares(linear, structure, {"fc1.weight": 0.5}, {}) == [0.5, 1.0]


def test_norms_and_entries_fit_each_other() -> None:
    torch.manual_seed(1)
    weight = torch.randn(SHAPE)
    slices = {
        "filter": [weight[f] for f in range(2)],
        "column": [weight[:, c, 0, x] for c in range(3) for x in range(2)],
        "channel": [weight[:, c] for c in range(3)],
    }
    for structure, parts in slices.items():
        norms = unit_norms(weight.flatten(1), SHAPE, structure)
        torch.testing.assert_close(norms, torch.stack([part.norm() for part in parts]))
        for i in range(len(parts)):
            one = torch.zeros(len(parts), dtype=torch.bool)
            one[i] = True
            mask = entries_of(one, SHAPE, structure)
            torch.testing.assert_close((weight.flatten(1) * mask).norm(), norms[i])


def test_patterns() -> None:
    assert parse_n_of_m("2:4") == (2, 4)
    assert [parse_n_of_m(text) for text in ("4:2", "4:4", "0:4", "irregular", "2:4:8", "-1:2")] == [None] * 6


class _Blocks(nn.Module):
    """A batch norm right behind one convolution, one behind a sum, one before a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second, self.after = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.norm.weight.data.uniform_()

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        return torch.as_tensor(self.after(x + self.second(x)).mean((2, 3)))


def test_batch_norms_that_stand_right_behind_a_convolution() -> None:
    network = _Blocks().train()
    before = {name: t.clone() for name, t in network.state_dict().items()}
    assert batch_norms(network, (3, 8, 8)) == {"first.weight": "norm.weight"}
    assert network.training
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())
