"""What a comparison runs: its plan, checked before any training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from atmc_tool.cli.feasibility import Feasibility, check_feasible
from atmc_tool.cli.render import counted
from atmc_tool.cli.run_folder import REPORT, RunFolder
from atmc_tool.cli.settings import layered, portable
from atmc_tool.cli.start import Start, read_start, untrained_start, warn_of_missing_rules
from atmc_tool.cli.strategies import with_strategy
from atmc_tool.cli.watch import made
from atmc_tool.config import Config, build_config
from atmc_tool.cost import Cost, training_cost
from atmc_tool.devices import select_device
from atmc_tool.distributed import Ranks
from atmc_tool.errors import InfeasibleBudgetError, UsageError
from atmc_tool.files import sha256
from atmc_tool.grid import DENSE, NATURAL, Cell, Grid
from atmc_tool.settings import read_yaml
from atmc_tool.trackers import check_installed
from exporters.atmc_file import read_atmc

DECIDING = ("seed", "model", "data", "threat_model", "attack", "evaluation", "policy")  # and the run's own section
ELSE = "another folder (-o), or --overwrite, which starts all again"
NEEDED = {"threat_model": "{eps: 8/255}", "data": "{name: mnist}", "model": "{arch: lenet-relu}"}  # section → example


@dataclass(frozen=True)
class Job:
    """One run: the training of a network that compressions start from (no cell), or a compression.

    source: file of the network that a compression starts from
    result: what is there once the run is finished
    verify: a compression is exported, and the exported file attacked
    """

    name: str
    label: str
    seed: int
    config: Config
    folder: RunFolder
    result: Path
    cost: Cost
    cell: Cell | None = None
    source: Path | None = None
    feasibility: Feasibility | None = None
    verify: bool = False

    @property
    def title(self) -> str:
        """`al0 keep 0.01 seed 0`."""
        return " ".join([self.label, *([self.cell.budget.text] if self.cell else []), f"seed {self.seed}"])

    @property
    def section(self) -> str:
        """Of the configuration, which says how it trains."""
        return "compress" if self.cell else "train"

    @property
    def trained(self) -> bool:
        """Whether the network that it makes is there."""
        return made(self.folder.path) is not None

    @property
    def finished(self) -> bool:
        """Whether all that it makes is there."""
        return self.trained and (not self.verify or (self.folder.path / REPORT).is_file())

    def check_same(self, data: str) -> None:
        """Nothing where the run was not begun, or was begun with what it has here; `data` is their digest.

        Raises:
            UsageError: it was begun with other settings, or made of another network or other data.
        """
        if not self.folder.config.is_file():
            return
        then, now = (_deciding(config, self.section) for config in (_recorded(self.folder), self.config))
        different = [key for key in now if now[key] != then[key]]
        if different:
            raise UsageError(
                f"the run {self.folder.path} was begun with other settings: {', '.join(different)}",
                expected="the settings of the grid",
                hint=f"take the first grid, {ELSE}",
            )
        if self.cell is None or self.source is None or not (self.trained and self.source.is_file()):
            return
        digests = read_atmc(self.result).manifest.get("digests", {})
        if digests.get("model") != sha256(self.source.read_bytes()):
            what = f"the run {self.folder.path} was made of another network than {self.source}"
            raise UsageError(what, hint=f"take the first network, {ELSE}")
        if digests.get("data") != data:
            what = f"the run {self.folder.path} was made on other data than {self.config.data.name} is now"
            raise UsageError(what, hint=f"take the first data, {ELSE}")


@dataclass(frozen=True)
class Plan:
    """All runs of a grid, in their order; `start` is what is known before any training."""

    grid: Grid
    start: Start
    jobs: Sequence[Job]

    @property
    def measures_dense(self) -> bool:
        """Whether the given dense network is shown: one more run, which trains nothing."""
        return self.grid.dense is not None and self.grid.shows_dense

    @property
    def planned(self) -> int:
        """Number of runs."""
        return len(self.jobs) + self.measures_dense

    def table(self) -> list[dict[str, Any]]:
        """Facts of every job: sizes as estimated before training, its cost, and how far it is."""
        found: dict[tuple[str, str], dict[str, Any]] = {}
        rows = []
        for job in self.jobs:
            sizes: dict[str, Any] = {}
            if job.cell is not None and job.feasibility is not None:
                if job.cell.settings not in found:
                    found[job.cell.settings] = job.feasibility.asked()
                sizes = found[job.cell.settings]
            rows.append(
                {
                    "run": job.title,
                    "kept": sizes.get("kept"),
                    "nominal_bytes": sizes.get("nominal_bytes"),
                    "file_bytes": sizes.get("file_bytes"),
                    "steps": job.cost.steps,
                    "passes": job.cost.passes,
                    "passes_per_image": job.cost.per_image,
                    "state": "finished" if job.finished else "begun" if job.folder.config.is_file() else "new",
                }
            )
        return rows


def make_plan(grid: Grid, folder: Path) -> Plan:
    """The runs of `grid` in `folder`, after everything is checked that can be before a training.

    Raises:
        UsageError: settings that can't be, by the method whose they are.
        InputError: network or data are not there, damaged, or do not fit each other.
        InfeasibleBudgetError: names every method and budget that can't be met.
    """
    configs = {cell.name: _cell_config(grid, cell, None) for seed in grid.seeds for cell in grid.cells(seed)}
    start = _first_start(grid)
    check_installed(start.config.trackers)
    select_device(start.config.device, Ranks())
    warn_of_missing_rules(start.skeleton)
    feasible = _check_all_feasible(start, grid.cells(grid.seeds[0]), configs)
    jobs: list[Job] = []
    for seed in grid.seeds:
        cells = grid.cells(seed)
        natural = {cell.name for cell in cells if configs[cell.name].compress.natural}
        if grid.dense is None and (len(natural) < len(cells) or grid.shows_dense):
            jobs.append(_training(grid, start, folder, DENSE, seed))
        if natural:
            jobs.append(_training(grid, start, folder, NATURAL, seed))
        for cell in cells:
            source = _file(folder, NATURAL, seed) if cell.name in natural else grid.dense or _file(folder, DENSE, seed)
            jobs.append(_compression(grid, start, folder, cell, source, feasible[cell.settings]))
    return Plan(grid, start, jobs)


def _first_start(grid: Grid) -> Start:
    """What is known before any training: the given dense network, or one that is not trained yet."""
    layers = grid.shared(grid.seeds[0])
    if grid.dense is not None:
        return read_start(grid.dense, {}, False, lambda recorded: layered(layers, recorded))
    config = layered(layers)
    stated = {"threat_model": config.threat_model.eps, "data": config.data.name, "model": config.model.arch}
    for section, example in NEEDED.items():
        if stated[section] is None:
            expected = f"settings: {{{section}: {example}}}"
            raise UsageError(f"the grid states no {section.replace('_', ' ')}", expected=expected)
    return untrained_start(config)


def _facts(start: Start) -> dict[str, Any]:
    """What a network says of itself, as settings."""
    config = start.config.model_dump(mode="json")
    return {key: config[key] for key in ("model", "data", "threat_model")}


def _cell_config(grid: Grid, cell: Cell, start: Start | None) -> Config:
    try:
        return layered(grid.layers(cell), _facts(start) if start else None)
    except UsageError as error:
        raise UsageError(f"method {cell.entry.label}: {error}") from error


def _check_all_feasible(
    start: Start, cells: Sequence[Cell], configs: Mapping[str, Config]
) -> dict[tuple[str, str], Feasibility]:
    """What each method and budget means for the network; it does not depend on the seed."""
    found, wrong = {}, []
    with counted("checking budgets") as progress:
        for i, cell in enumerate(cells, 1):
            config = start.config.model_copy(update={"compress": configs[cell.name].compress})
            config = with_strategy(config, start.network, start.card.image_shape)
            try:
                found[cell.settings] = check_feasible(replace(start, config=config))
            except InfeasibleBudgetError as error:
                wrong.append(f"{cell.entry.label} {cell.budget.text}: {error}")
            progress(i, len(cells))
    if wrong:
        raise InfeasibleBudgetError(f"{len(wrong)} of {len(cells)} budgets can't be met: {'; '.join(wrong)}")
    return found


def _file(folder: Path, label: str, seed: int) -> Path:
    return folder / f"{label}-seed{seed}.pt"


def _training(grid: Grid, start: Start, folder: Path, label: str, seed: int) -> Job:
    own = {"train": {"objective": NATURAL}} if label == NATURAL else {}
    config = layered([*grid.shared(seed), own], _facts(start))
    output = _file(folder, label, seed)
    attacked = not config.train.natural and config.threat_model.parse() is not None
    cost = training_cost(config.train, config.attack, len(start.data.train), attacked=attacked)
    return Job(output.stem, label, seed, config, RunFolder(output.with_suffix(".train")), output, cost)


def _compression(grid: Grid, start: Start, folder: Path, cell: Cell, source: Path, feasibility: Feasibility) -> Job:
    run = RunFolder(folder / "runs" / cell.name)
    config = with_strategy(_cell_config(grid, cell, start), start.network, start.card.image_shape)
    config = config.model_copy(update={"run": run.path})
    attacked = not config.compress.natural
    cost = training_cost(config.compress, config.attack, len(start.data.train), attacked=attacked)
    return Job(
        cell.name, cell.entry.label, cell.seed, config, run, run.model, cost, cell, source, feasibility, grid.verify
    )


def _recorded(folder: RunFolder) -> Config:
    return build_config(read_yaml(folder.config))


def _deciding(config: Config, section: str) -> dict[str, Any]:
    """The settings that decide a run's result."""
    settings = portable(config)
    return {key: settings[key] for key in (*DECIDING, section)}
