"""HARP as a search: rates of layers that are trained together with scores, read off the model that comes out."""

from dataclasses import replace

from atmc_tool.cli.compress import run_compression
from atmc_tool.cli.feasibility import check_feasible
from atmc_tool.cli.run_folder import RunFolder
from atmc_tool.cli.search_plan import SearchPlan
from atmc_tool.config import CompressConfig, ScheduleConfig, build_config
from atmc_tool.distributed import Ranks
from atmc_tool.errors import AtmcError
from atmc_tool.search.own_allocation import from_model
from exporters.atmc_file import read_atmc


def trained_rates(plan: SearchPlan, folder: RunFolder) -> tuple[float, ...]:
    """The rates of the slots that `compress --method harp` comes to, trained in `folder` where it has not been.

    All of its schedule (`compress.epochs` and the like) goes to the search of rates, none to the training that follows
    it there. Ctrl-C saves a checkpoint, from which it goes on.

    Raises: as `run_compression`.
    """
    if not folder.model.is_file():
        settings, stated = plan.settings, plan.start.config
        schedule = {name: getattr(stated.compress, name) for name in ScheduleConfig.model_fields}
        own = {"method": "harp", "keep": settings.keep, "structure": settings.structure, "search_share": 1.0}
        compress = CompressConfig.model_validate({**schedule, **own}).model_dump(mode="json")
        config = build_config({**stated.model_dump(mode="json"), "compress": compress, "run": str(folder.path)})
        start = replace(plan.start, config=config)
        if run_compression(start, check_feasible(start), folder, Ranks(), folder.config.is_file()) is None:
            raise AtmcError("HARP's training left no model")
    shares = from_model(read_atmc(folder.model).weights, plan.settings.structure).shares
    wall = plan.space.wall
    rates = wall.project([shares[layers[0].name] for layers in plan.space.decisions])
    return tuple(rates[slot[0]] for slot in wall.slots)
