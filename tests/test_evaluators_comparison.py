"""Means and deviations over seeds, and the files of results."""

import csv
import io
import json
import statistics
from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from evaluators.comparison import QUANTITIES, Outcome, Run, mean_sd, points, to_csv

OUTCOME = Outcome(10, 100, 400, 40, 90, 0.9, 0.5, "pgd", "linf", "8/255", 20, 3, 1000, 0, 7.5)
RUN = Run("a-keep0.1-seed0", "a", "atmc", "keep 0.1", 4, 0, 50, 6400, 4.0, OUTCOME)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=9))
def test_spread_is_mean_and_sample_deviation(values: list[float]) -> None:
    found = mean_sd(values)
    assert np.isclose(found.mean, np.mean(values), rtol=1e-12, atol=1e-15)
    assert found.sd == statistics.stdev(values)
    assert np.isclose(found.sd, np.std(values, ddof=1), rtol=1e-6, atol=1e-12)


def test_one_run_has_no_deviation() -> None:
    assert mean_sd([0.25]).sd is None
    assert mean_sd([0.25]).text == "0.25"
    assert mean_sd([0.25, 0.75]).text == "0.5 ± 0.35"


def test_points_group_seeds_and_leave_failed_runs_out() -> None:
    clean = (0.9, 0.8, 0.85)
    runs = [
        replace(RUN, seed=seed, outcome=replace(OUTCOME, clean_accuracy=value, file_bytes=90 + seed))
        for seed, value in enumerate(clean)
    ]
    other = replace(RUN, budget="keep 0.01", outcome=replace(OUTCOME, worst_case=0.4))
    failed = [replace(RUN, seed=3, outcome=None, error="diverged"), replace(RUN, label="b", outcome=None, error="x")]
    found = points([runs[0], other, *failed, *runs[1:]])
    assert [(point.label, point.budget, point.n) for point in found] == [("a", "keep 0.1", 3), ("a", "keep 0.01", 1)]
    assert found[0].values["clean_accuracy"].sd == statistics.stdev(clean)
    assert found[0].values["file_bytes"].mean == 91
    assert np.isclose(found[0].values["density"].mean, 0.1)
    assert set(found[0].values) == set(QUANTITIES) - {"validation_robust", "worst_case"}
    assert found[1].values["worst_case"].mean == 0.4
    assert found[0].to_json()["clean_accuracy"] == {"mean": statistics.fmean(clean), "sd": statistics.stdev(clean)}


def test_csv_and_json_say_the_same() -> None:
    given = replace(RUN, label='dense, "given"', budget=None, steps=None, passes=None, passes_per_image=None)
    runs = [RUN, replace(RUN, outcome=None, error='it "failed",\nbadly'), given]
    lines = list(csv.DictReader(io.StringIO(to_csv(runs))))
    assert len(lines) == 3
    for line, run in zip(lines, runs, strict=True):
        facts = json.loads(json.dumps(run.to_json()))
        assert line == {key: "" if value is None else str(value) for key, value in facts.items()}
    assert [line["state"] for line in lines] == ["finished", "failed", "finished"]
    assert to_csv([]).strip() == ""
