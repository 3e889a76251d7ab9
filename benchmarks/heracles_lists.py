"""The lists of rates that Heracles published, their budgets recomputed; benchmarks/results/heracles_lists.json.

    python benchmarks/heracles_lists.py FOLDER

FOLDER holds the JSON files of the repositories (strategies/*.json), which are not part of this one: they have no
licence. Every list of kind `weight` or `channel` is read for the network that its key names, as `--strategy
FILE.json#network/kind/id` reads it. `stated` is the share of the weights that its id stands for (for channels the
square of the rate), `recomputed` what it keeps by Σ W·r (channels: Σ W·r², in and out), `entries` what is not zero
where input channels alone are dropped. `flagged`: it keeps over 2 % more than stated, or other than its order says.
Takes seconds.
"""

import argparse
import json
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
    flagged = (
        "over its budget" if found.misses else "meets its budget in order of execution only" if found.execution else ""
    )
    return {
        **row,
        "stated": found.stated,
        "recomputed": round(found.recomputed, 6),
        "entries": round(entries / sum(layer.weights for layer in layers), 6),
        "flagged": flagged or None,
    }


def main() -> None:
    """Read all lists of a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    layers = {
        name: layers_of(resolve_architecture(ours).build(n_classes), (3, 32, 32))
        for name, (ours, n_classes) in NETWORKS.items()
    }
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
