"""The lists of rates that Heracles published, their budgets recomputed; benchmarks/results/heracles_lists.json.

    python benchmarks/heracles_lists.py FOLDER

FOLDER holds the JSON files of the repositories (strategies/*.json), which are not part of this one: they have no
licence. Every list of kind `weight` or `channel` is read for the network that its key names, as `--strategy
FILE.json#network/kind/id` reads it. `stated` is the share of the weights that the rate in its id keeps in every
layer, `loaded` what it keeps as the published loaders read it, shortcuts before their block, by Σ W·r
(channels: Σ W·r·r', in and out), `recomputed` as it is read here, `entries` what is not zero where input channels
alone are dropped. `flagged`: it keeps over 2 % more than stated (channels, whose count is a convention: 5 %), or does
as the loaders read it. Takes seconds.
"""

import argparse
import json
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from atmc_tool.errors import InputError
from atmc_tool.models import resolve_architecture
from atmc_tool.search.heracles import lists_in, read_rates
from atmc_tool.search.layers import Layer, cost_of, kept_units, layers_of
from atmc_tool.search.strategy import read_plain

RESULT = Path(__file__).parent / "results" / "heracles_lists.json"
NETWORKS = {  # their names → ours, number of classes
    "vgg16_bn": ("vgg16", 10),
    "resnet18": ("resnet18", 10),
    "resnet18_adv": ("resnet18", 10),
    "wrn_28_4": ("wrn-28-4", 10),
    "ResNet50": ("resnet50-imagenet", 1000),
}

VGG_LINEAR = (
    (256, 2048),
    (256, 256),
    (10, 256),
)  # their VGG-16 has no last pooling, and smaller linear layers than ours


def layers_for(network: str) -> list[Layer]:
    """The layers of a network under its name in the lists."""
    ours, n_classes = NETWORKS[network]
    layers = layers_of(resolve_architecture(ours).build(n_classes), (3, 32, 32))
    if network == "vgg16_bn":
        linear = [replace(layer, shape=shape) for layer, shape in zip(layers[-3:], VGG_LINEAR, strict=True)]
        return [*layers[:-3], *linear]
    return layers


def facts(where: str, key: tuple[str, str, str], rates: list[float], layers: list[Layer]) -> dict[str, Any]:
    """What is known of one list."""
    network, kind, name = key
    row: dict[str, Any] = {"file": where, "network": network, "kind": kind, "id": name, "rates": len(rates)}
    try:
        found = read_rates(kind, name, rates, layers)
    except InputError as error:
        return {**row, "flagged": str(error)}
    cost = cost_of(layers, found.structure, "weights")
    entries = cost([kept_units(layer, found.structure, found.shares[layer.name]) for layer in layers])
    flagged = "over its budget" if found.misses else "in order of execution" if found.execution else None
    return {
        **row,
        "stated": None if found.stated is None else round(found.stated, 6),
        "loaded": round(found.loaded, 6),
        "recomputed": round(found.recomputed, 6),
        "entries": round(entries / sum(layer.weights for layer in layers), 6),
        "flagged": flagged,
    }


def main() -> None:
    """Read all lists of a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    layers = {name: layers_for(name) for name in NETWORKS}
    rows = [
        facts(path.relative_to(arguments.folder).as_posix(), key, rates, layers[key[0]])
        for path in sorted(arguments.folder.rglob("*.json"))
        for key, rates in lists_in(read_plain(path), str(path)).items()
        if key[0] in layers
    ]
    for row in rows:
        if row["flagged"]:
            print({name: value for name, value in row.items() if name != "rates"})
    flagged = sum(row["flagged"] is not None for row in rows)
    print(f"{len(rows)} lists, {flagged} flagged")
    result = {"lists": len(rows), "flagged": flagged, "versions": {"torch": version("torch")}, "rows": rows}
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
