"""The attacks that papers report: labelled, with their distances, and without a say in the verdict."""

import json
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pytest
from numpy_classifiers import BlackBox, digits, fit
from test_evaluators_verification import run

from atmc_tool.threat_model import parse_threat_model
from evaluators.attack_comparison import ComparisonRow, compare_attacks
from evaluators.attack_plan import AttackSettings

SETTINGS = AttackSettings(steps=5, restarts=1, square_queries=0, batch_size=64)
NAMES = ["noise", "fgsm", "bim-10", "mi-fgsm-10", "pgd-7", "pgd-50", "cw-20", "wrm-15"]
T = TypeVar("T")


def compared(eps: str = "0.05", norm: Any = "linf", **options: Any) -> dict[str, ComparisonRow]:
    images, labels = digits()
    rows = compare_attacks(
        fit(),
        images[1200:1300].astype(np.float32) / 255,
        labels[1200:1300],
        parse_threat_model(eps, norm),
        SETTINGS,
        **options,
    )
    return {row.name: row for row in rows}


@pytest.mark.parametrize(("eps", "norm"), [("0.05", "linf"), ("0.4", "l2")])
def test_rows_of_papers(eps: str, norm: str) -> None:
    rows = compared(eps, norm)
    assert list(rows) == NAMES
    accuracy = {name: row.accuracy.value for name, row in rows.items()}
    assert accuracy["noise"] > accuracy["fgsm"] + 0.1
    assert accuracy["fgsm"] >= accuracy["bim-10"] >= accuracy["pgd-50"] - 0.02
    assert all(0 < row.mean <= row.largest <= float(eps) + 1e-6 for name, row in rows.items() if name != "wrm-15")
    assert rows["wrm-15"].largest > 2 * float(eps)
    assert rows["wrm-15"].parameters["eps"] is None
    stated = [row.to_json() for row in rows.values()]
    assert {entry["label"] for entry in stated} == {"for comparison only"}
    json.dumps(stated, allow_nan=False)


class Halves:
    """Two processes, one after the other: the second one joins what both have found."""

    def __init__(self, second: bool, found: list[Any]) -> None:
        self.second, self.found = second, found

    def share(self, n: int) -> slice:
        return slice(n // 2, n) if self.second else slice(0, n // 2)

    def each(self, value: T) -> list[T]:
        if not self.second:
            self.found.append(value)
            return [value, value]
        return [self.found.pop(0), value]


def test_progress_and_shares() -> None:
    seen: list[tuple[str, int, int]] = []
    whole = compared(progress=lambda *done: seen.append(done))
    assert [name for name, done, total in seen if done == total] == NAMES
    found: list[Any] = []
    compared(spread=Halves(False, found))
    joined = compared(spread=Halves(True, found))
    for name, row in whole.items():
        assert abs(joined[name].accuracy.successes - row.accuracy.successes) <= 1
        assert joined[name].largest == pytest.approx(row.largest, rel=1e-3)
    assert joined["noise"] == whole["noise"]


def test_they_have_no_say_in_the_verdict() -> None:
    settings = replace(SETTINGS, square_queries=20)
    without, beside = (run(n=60, settings=settings, comparison=wanted) for wanted in (False, True))
    assert without.comparison == ()
    assert [row.name for row in beside.comparison] == NAMES
    assert beside.verdict == without.verdict
    facts = beside.to_json()
    assert [row["name"] for row in facts.pop("comparison")] == NAMES
    before = without.to_json()
    assert before.pop("comparison") == []
    assert facts == before
    assert run(lambda: fit(BlackBox), n=60, settings=settings, comparison=True).comparison == ()
