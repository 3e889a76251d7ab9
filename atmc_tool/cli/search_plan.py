"""What a search works on: the network, its layers, the space of their rates, and how an evaluation is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path

from torch import Tensor

from atmc_tool.cli.render import counted
from atmc_tool.cli.search_work import Task, file_size, prepare
from atmc_tool.cli.settings import portable
from atmc_tool.cli.start import Start, read_start
from atmc_tool.errors import UsageError
from atmc_tool.search.allocations import ALLOCATIONS
from atmc_tool.search.budget_wall import BudgetWall
from atmc_tool.search.evaluation import LEAST_IMAGES, Evaluator, held_out_parts, unit_masks
from atmc_tool.search.layers import Cost, Layer, cost_of, layers_of, units_of, whole_cost
from atmc_tool.search.sensitivity import RATES, by_sensitivity
from atmc_tool.search.settings import SEARCHES, SearchSettings
from atmc_tool.search.space import Space
from atmc_tool.search.strategy import StrategyBudget, strategy_of

SMALL, LARGE = 0.2, 50.0  # of the uniform rate: the bounds of a layer's rate where none are given


@dataclass(frozen=True)
class SearchPlan:
    """A search before it begins. uniform: the rate of every layer that just meets the budget."""

    settings: SearchSettings
    start: Start
    layers: tuple[Layer, ...]
    space: Space
    uniform: float
    task: Task

    @property
    def can_confirm(self) -> bool:
        """Whether there are held-out images that strategies are not chosen by, enough to say something."""
        n = self.settings.scoring.images
        return len(held_out_parts(self.start.data.validation.labels, n)[1]) >= LEAST_IMAGES

    def evaluator(self) -> Evaluator:
        """The evaluator of this process, with the network and the data that were read for the plan."""
        return prepare(self.task, self.start.network, self.start.data)


def make_plan(model: Path, trust_pickle: bool, settings: SearchSettings) -> SearchPlan:
    """Read network and data and see that the budget can be met.

    Raises:
        UsageError: the lowest rate is above the highest.
        InfeasibleBudgetError: the lowest rates exceed the budget, or there is nothing to prune.
        InputError, AtmcError: as `read_start`.
    """
    with_bytes, trains = settings.measure == "bytes", settings.algorithm == "harp"
    if trains and settings.measure != "weights":
        raise UsageError("harp has its budget in weights", expected="--measure weights", got=settings.measure)
    start = read_start(model, {}, trust_pickle, skeleton=None if with_bytes or trains else b"-")
    layers = tuple(layers_of(start.network, start.card.image_shape))
    cost, total = _cost(start, layers, settings)
    limit = int(settings.keep * total)
    free = BudgetWall(layers, settings.structure, cost, limit)
    if not free.slots:
        what = f"the structure {settings.structure} would prune nothing in this network"
        raise UsageError(what, hint="take another --structure")
    sizes = [sum(layers[index].weights for index in slot) for slot in free.slots]
    largest = free.slots[sizes.index(max(sizes))][0]
    uniform = free.project([1.0] * len(free.slots))[largest]  # the least rounded one
    searches = settings.algorithm in SEARCHES
    lower = (SMALL * uniform if searches else 0.0) if settings.lower is None else settings.lower
    upper = (min(1.0, LARGE * uniform) if searches else 1.0) if settings.upper is None else settings.upper
    if lower > upper:
        raise UsageError("the lowest rate is above the highest", expected=f"at most {upper:.4g}", got=f"{lower:.4g}")
    budget = StrategyBudget(measure="bytes", limit=limit)
    if not with_bytes:
        budget = StrategyBudget(measure=settings.measure, share=settings.keep)
    space = Space(BudgetWall(layers, settings.structure, cost, limit, lower, upper), budget)
    task = Task(
        model=model.absolute(),
        trust_pickle=trust_pickle,
        config=start.config.model_dump(mode="json"),
        scoring=settings.scoring.model_dump(mode="json"),
        skeleton=start.skeleton if with_bytes else b"",
    )
    return SearchPlan(settings, start, layers, space, uniform, task)


def identity(plan: SearchPlan) -> dict[str, object]:
    """All that decides what the search finds, as plain values."""
    return {
        "search": plan.settings.model_dump(mode="json"),
        "bounds": [plan.space.wall.lower, plan.space.wall.upper],
        "digests": {"model": plan.start.digest, "data": plan.start.data.digest},
        "config": {key: value for key, value in portable(plan.start.config).items() if key not in ("train", "policy")},
    }


def _cost(start: Start, layers: tuple[Layer, ...], settings: SearchSettings) -> tuple[Cost, int]:
    """What kept units cost, as the search measures it, and what `keep` is a share of.

    Bytes are a share of those of the dense weights, 4 for each.
    """
    structure, measure = settings.structure, settings.measure
    if measure != "bytes":
        cost = cost_of(layers, structure, measure)
        return cost, whole_cost(layers, structure, cost)
    parameters = dict(start.network.named_parameters())
    weights: dict[str, Tensor] = {layer.name: parameters[layer.name].detach().clone() for layer in layers}
    size_of = file_size(start.network, start.skeleton, start.config)

    @cache
    def size(kept: tuple[int, ...]) -> int:
        shares = {la.name: k / units_of(la, structure) for la, k in zip(layers, kept, strict=True)}
        masks = unit_masks(weights, structure, shares)
        return size_of({name: weights[name] * mask for name, mask in masks.items()})

    return lambda kept: size(tuple(kept)), 4 * sum(layer.weights for layer in layers)


def probes(plan: SearchPlan) -> int:
    """Evaluations that `sensitivity` takes before it proposes anything."""
    return 1 + len(RATES) * len(plan.space.wall.slots) if plan.settings.algorithm == "sensitivity" else 0


def built_in(plan: SearchPlan) -> tuple[float, ...]:
    """The rates of the slots that the plan's built-in allocation gives.

    `sensitivity` measures every slot alone at several rates, one evaluation each, in this process.
    """
    wall, structure = plan.space.wall, plan.settings.structure
    if plan.settings.algorithm == "sensitivity":
        evaluator = plan.evaluator()
        names = [layer.name for layer in plan.layers]
        with counted("measuring the sensitivity of layers") as progress:
            done = count(1)

            def loss(shares: Sequence[float]) -> float:
                outcome = evaluator.evaluate(strategy_of(dict(zip(names, shares, strict=True)), structure))
                progress(next(done), probes(plan))
                return -outcome.reward

            rates = by_sensitivity(wall, loss)
    else:
        parameters = dict(plan.start.network.named_parameters())
        weights = {layer.name: parameters[layer.name].detach() for layer in plan.layers}
        rates = ALLOCATIONS[plan.settings.algorithm](wall, weights)
    return tuple(rates[slot[0]] for slot in wall.slots)
