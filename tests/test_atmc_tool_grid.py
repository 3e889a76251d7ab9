"""Grids: what they may say, what each run gets of it, and that the guide says the same."""

import itertools
from typing import Any

import pytest
import yaml
from conftest import ROOT
from test_docs import blocks, code, rows

from atmc_tool.cli.settings import layered
from atmc_tool.errors import UsageError
from atmc_tool.grid import METHODS, Grid, build_grid

GUIDE = ROOT / "docs" / "compare.md"
SMALL: dict[str, Any] = {"methods": ["nap"], "keep": [0.1]}


def test_cells_come_method_by_method_and_name_their_folders() -> None:
    grid = build_grid({"methods": ["dense", "al0", {"a-8": {"method": "atmc", "bits": 8}}], "size": [9000, "20 KB"]})
    names = ["al0-size9000-seed3", "al0-size20KB-seed3", "a-8-size9000-seed3", "a-8-size20KB-seed3"]
    assert [cell.name for cell in grid.cells(3)] == names
    assert [entry.label for entry in grid.compressions] == ["al0", "a-8"]
    assert grid.shows_dense
    assert grid.seeds == (0,)


@pytest.mark.parametrize("method", METHODS)
def test_shared_settings_leave_a_method_what_it_is(method: str) -> None:
    shared = {"compress": {"bits": 4, "path": 0.3, "projection": "latent", "quantize_share": 0.25, "lr": 0.03}}
    own = {"own": {"method": method}}
    keep = 1.0 if method == "dense" else 0.125
    grid = build_grid({"base": "mnist", "settings": shared, "methods": [own], "keep": [keep]})
    (cell,) = grid.cells(7)
    config = layered(grid.layers(cell))
    alone = layered([{"compress": {"method": method, "keep": keep}}]).compress
    if method != "atmc":
        assert (config.compress.bits, config.compress.projection) == (alone.bits, alone.projection)
        assert config.compress.natural == alone.natural == (method == "nap")
    assert (config.compress.keep, config.compress.size, config.compress.lr) == (keep, None, 0.03)
    assert (config.compress.epochs, config.model.arch, config.seed) == (8, "lenet-relu", 7)


@pytest.mark.parametrize("method", METHODS)
def test_the_factors_of_a_published_recipe_are_of_atmc_alone(method: str) -> None:
    """Al0, AP and NAP of arXiv:1902.03538 prune W itself; alr, admm and hydra have no U V C at all."""
    grid = build_grid({"base": "atmc-mnist", "methods": [{"own": {"method": method}}], "keep": [1.0]})
    (cell,) = grid.cells(0)
    assert layered(grid.layers(cell)).compress.factors == ("uvc" if method == "atmc" else "none")


@pytest.mark.parametrize(
    "kinds", list(itertools.permutations([("keep", 0.5), ("size", "9KB"), ("nominal_size", "8KB")], 2))
)
def test_a_later_kind_of_budget_takes_back_the_earlier(kinds: list[tuple[str, float | str]]) -> None:
    config = layered([{"compress": {kind: value}} for kind, value in kinds]).compress
    stated = {key: value for key in ("keep", "size", "nominal_size") if (value := getattr(config, key)) is not None}
    assert stated == dict([kinds[1]])


def test_methods_with_budgets_of_their_own_need_none_of_the_grid() -> None:
    grid = build_grid({"methods": ["dense", {"al0": {"keep": [0.5]}}, {"nap": {"keep": [0.25, 0.125]}}]})
    assert [cell.name for cell in grid.cells(0)] == ["al0-keep0.5-seed0", "nap-keep0.25-seed0", "nap-keep0.125-seed0"]


def test_own_settings_win() -> None:
    grid = build_grid(
        {
            "settings": {"compress": {"bits": 4, "max_steps": 9}},
            "methods": ["atmc", {"atmc-32": {"method": "atmc", "bits": None, "max_steps": 5}}, {"alr": {"lr": 0.5}}],
            "size": ["20KB"],
        }
    )
    atmc, own, alr = (layered(grid.layers(cell)).compress for cell in grid.cells(0))
    assert (atmc.bits, atmc.max_steps, atmc.size) == (4, 9, "20KB")
    assert (own.bits, own.max_steps) == (None, 5)
    assert (alr.method, alr.bits, alr.lr, alr.max_steps) == ("alr", None, 0.5, 9)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"method": ["nap"]}, "unknown configuration key method. Hint: did you mean methods?"),
        ({}, "name at least one method"),
        ({"methods": ["nap"]}, "exactly one of keep and size"),
        ({**SMALL, "size": ["20KB"]}, "exactly one of keep and size"),
        ({"methods": ["dense"], "keep": [0.1]}, "dense alone takes no budget"),
        ({**SMALL, "methods": ["nip"]}, "no method 'nip'; known: atmc, al0"),
        ({**SMALL, "methods": [{"x": {"bits": 3}}]}, "no method 'x'"),
        ({**SMALL, "methods": ["nap", "nap"]}, "the label nap is there twice"),
        ({**SMALL, "methods": ["nap", {"nap": None}]}, "the label nap is there twice"),
        ({**SMALL, "methods": [{"../x": {"method": "nap"}}]}, "a label has letters"),
        ({**SMALL, "methods": [{"<script>": {"method": "nap"}}]}, "a label has letters"),
        ({**SMALL, "methods": [{"natural": {"method": "nap"}}]}, "is not 'natural'"),
        ({**SMALL, "methods": [{"nap": 3}]}, "a method is a name"),
        ({**SMALL, "methods": [{"dense": {"bits": 3}}]}, "takes no settings"),
        ({**SMALL, "keep": [0.1, 0]}, "every budget must be above 0"),
        ({**SMALL, "keep": [0.1, 0.1]}, "the budget 0.1 is there twice"),
        ({**SMALL, "seeds": [0, 0]}, "the seed 0 is there twice"),
        ({**SMALL, "seeds": []}, "at least one seed"),
        ({**SMALL, "seeds": [-1]}, "at least one seed"),
        ({"methods": ["nap"], "size": ["much"]}, "size is not understood"),
        ({**SMALL, "settings": {"seed": 1}}, "seed can't be set here; in its place stands seeds"),
        ({**SMALL, "settings": {"compress": {"keep": 0.1}}}, "in its place stands keep or size"),
        ({**SMALL, "methods": [{"nap": {"nominal_size": "1KB"}}]}, "compress.nominal_size can't be set here"),
        ({**SMALL, "methods": [{"nap": {"keep": [0.1, 0.1]}}]}, "the budget of nap, 0.1 is there twice"),
        ({**SMALL, "settings": {"train": {"time_limit": 5}}}, "train.time_limit can't be set here"),
        ({**SMALL, "methods": [{"nap": {"time_limit": 5}}]}, "compress.time_limit can't be set here"),
    ],
)
def test_what_cannot_be_is_one_line(content: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        build_grid(content)
    assert said in str(caught.value)


def test_the_guide_has_every_key_and_a_valid_grid() -> None:
    assert [code(key) for key, _ in rows(GUIDE, "grid key")] == list(Grid.model_fields)
    examples = [yaml.safe_load(block) for block in blocks(GUIDE, "yaml")]
    examples += [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "benchmarks" / "grids").glob("*.yaml"))]
    assert len(examples) >= 2
    for example in examples:
        grid = build_grid(example)
        for cell in grid.cells(0):
            layered(grid.layers(cell))


def test_a_method_may_have_budgets_of_its_own() -> None:
    grid = build_grid({"methods": ["al0", {"alr": {"keep": [0.3, 0.1]}}], "keep": [0.01]})
    assert [cell.name for cell in grid.cells(0)] == ["al0-keep0.01-seed0", "alr-keep0.3-seed0", "alr-keep0.1-seed0"]
    with pytest.raises(UsageError, match="keep"):
        build_grid({"methods": [{"alr": {"keep": [0.3, 7]}}], "keep": [0.01]})
