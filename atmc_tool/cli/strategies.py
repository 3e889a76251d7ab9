"""Strategies on the command line: a file that says what every layer keeps, as settings of a compression."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import nn

from atmc_tool.cli.render import note
from atmc_tool.cli.run_folder import RunFolder
from atmc_tool.config import CompressConfig, Config, build_config
from atmc_tool.errors import InputError, UsageError
from atmc_tool.methods.alr import entries, rank_of_share
from atmc_tool.search.heracles import read_heracles
from atmc_tool.search.layers import Layer, cost_of, kept_units, layers_of
from atmc_tool.search.own_allocation import from_model
from atmc_tool.search.strategy import LayerRate, Strategy, check_fits, read_strategy
from evaluators.report.verdict_text import printable
from exporters.atmc_file import read_atmc


def with_strategy(config: Config, network: nn.Module, image_shape: Sequence[int]) -> Config:
    """`config` with the content of its strategy file in place of the file, so that a run does not depend on it later.

    Raises:
        UsageError: the strategy is for another structure, or the settings can't have one.
        InputError: the file is missing, damaged, or for another network.
    """
    compress = config.compress
    if compress.strategy is None:
        return config
    layers = layers_of(network, image_shape)
    strategy = find_strategy(compress.strategy, layers)
    if "#" in compress.strategy and "warning" in strategy.found:  # our own word, not that of a file
        note(f"warning: {printable(strategy.found['warning'])}")
    settings = _settings(compress, strategy, layers)
    built = build_config({"compress": {**compress.model_dump(mode="json"), "strategy": None, **settings}})
    return config.model_copy(update={"compress": built.compress})


def find_strategy(text: str, layers: Sequence[Layer]) -> Strategy:
    """The strategy that `text` names, for `layers`.

    text: a file of our own, `FILE.json#resnet18/weight/001_0` (a list of Heracles), or a model.atmc or its run folder,
          whose own allocation it is

    Raises: as `with_strategy`.
    """
    names = [layer.name for layer in layers]
    file, mark, selector = text.partition("#")
    path = Path(file)
    if mark:
        return read_heracles(path, selector, layers)
    if path.is_dir() or path.suffix == ".atmc":
        path = RunFolder(path).model if path.is_dir() else path
        model = read_atmc(path)
        try:
            structure = model.manifest.get("config", {}).get("compress", {}).get("structure", "irregular")
            strategy = from_model(model.weights, structure, {"file": str(path)})
        except (AttributeError, ValidationError) as error:
            raise InputError(
                f"{path} does not say what its layers keep together", hint="take a strategy file"
            ) from error
        check_fits(strategy, names, str(path))
        return strategy
    return read_strategy(path, names)


def _settings(compress: CompressConfig, strategy: Strategy, layers: Sequence[Layer]) -> dict[str, Any]:
    """Section `compress` that keeps exactly what the strategy says."""
    stated, total = compress.model_fields_set, sum(layer.weights for layer in layers)
    if compress.method == "alr":
        ranks = {layer.name: _rank(layer, strategy.layers[layer.name]) for layer in layers}
        shapes = {layer.name: (layer.shape[0], layer.weights // layer.shape[0]) for layer in layers}
        kept = {name: entries(*shapes[name], rank) for name, rank in ranks.items()}
        rates = {layer.name: {"keep": kept[layer.name] / layer.weights, "rank": ranks[layer.name]} for layer in layers}
        return {"layers": rates, "keep": _share(sum(kept.values()), total)}
    if "structure" in stated and compress.structure != strategy.structure:
        raise UsageError(
            f"the strategy {compress.strategy} is for the structure {strategy.structure}", got=compress.structure
        )
    if "scope" in stated and compress.scope == "global":
        raise UsageError("a strategy says what every layer keeps", expected="scope: layer", got="scope: global")
    if compress.factors != "none":
        raise UsageError("a strategy is about weights, not about factors U V C", hint="--set compress.factors=none")
    weights = cost_of(layers, strategy.structure, "weights")(
        [kept_units(layer, strategy.structure, strategy.layers[layer.name].keep) for layer in layers]
    )
    settings = {**strategy.settings(), "keep": _share(weights, total)}
    if "bits" in settings and not compress.quantize_share:
        settings["quantize_share"] = CompressConfig.model_fields["quantize_share"].default
    return settings


def _rank(layer: Layer, rate: LayerRate) -> int:
    m, n = layer.shape[0], layer.weights // layer.shape[0]
    return rank_of_share(m, n, rate.keep) if rate.rank is None else min(rate.rank, m, n)


def _share(kept: int, total: int) -> float:
    """A share of `total` of which ⌊share · total⌋ is `kept`."""
    share = kept / total
    return share if int(share * total) == kept else min(1.0, (kept + 0.5) / total)
