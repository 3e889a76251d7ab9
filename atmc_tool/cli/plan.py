"""What `compress --dry-run` shows: the configuration and what it means for the network, before any training."""

from collections.abc import Mapping

from atmc_tool.cli.compress import KEPT_WHOLE
from atmc_tool.cli.feasibility import Feasibility
from atmc_tool.cli.render import show_json, show_line, show_table
from atmc_tool.config import to_yaml
from atmc_tool.selection import layer_rate


def show_plan(feasibility: Feasibility, as_json: bool) -> None:
    """Show the configuration, what is feasible under it, and what every layer keeps."""
    config, table = feasibility.start.config, feasibility.table()
    if as_json:
        show_json({"config": config.model_dump(mode="json"), "feasibility": table})
        return
    show_line(to_yaml(config))
    sizes = table["sizes"]
    show_table(
        "What is feasible (estimated from the weights as they are; the network exports)",
        ["size", "kept", "share", "nominal bytes", "bytes of model.atmc"],
        [[name, s["kept"], f"{s['share']:.4%}", s["nominal_bytes"], s["file_bytes"]] for name, s in sizes.items()],
    )
    show_table(
        "Kept per layer",
        ["layer", "shape", *sizes],
        [
            [name, "×".join(map(str, shape)), *(size["layers"][name] for size in sizes.values())]
            for name, shape in table["layers"].items()
        ],
    )
    rates = {name: layer_rate(name, config.compress.layers) for name in table["layers"]}
    if all(rates.values()):
        show_table(
            "Strategy",
            ["layer", "keep", "bits", "rank"],
            [[name, f"{r.keep:.4%}", r.bits or "–", r.rank or "–"] for name, r in rates.items() if r],
        )
    if table["kept_whole"]:
        show_line(KEPT_WHOLE + ", ".join(table["kept_whole"]))
    _show_not_compressed(table["not_compressed"])


def _show_not_compressed(reasons: Mapping[str, str]) -> None:
    """The parameters that stay as they are, with the reason of each."""
    if not reasons:
        show_line("not compressed: nothing")
        return
    show_table("Not compressed", ["parameter", "why"], list(reasons.items()), figures=False)
