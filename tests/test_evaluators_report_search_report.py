"""The report of searches: its numbers, and that the same searches give the same page."""

from evaluators.report.search_report import (
    SearchRecord,
    TrialPoint,
    best_so_far,
    by_algorithm,
    rates_per_layer,
    search_report,
)


def record(algorithm: str, seed: int, rewards: list[float | None]) -> SearchRecord:
    """Proposals with these rewards; one that is not measured on all images where there is None."""
    trials = [
        TrialPoint(n, 9.0 if r is None else r, 0.5, 0.25, 100 + n, r is not None, r == max(filter(None, rewards)))
        for n, r in enumerate(rewards)
    ]
    best = max(reward for reward in rewards if reward is not None)
    return SearchRecord(
        f"{algorithm}-{seed}", algorithm, seed, "weights", {"a": 0.1 * (seed + 1), "b": 1.0}, trials, best
    )


RECORDS = [record("tpe", 0, [0.2, None, 0.5, 0.4]), record("tpe", 1, [None, 0.6, 0.1, 0.7]), record("<b>", 0, [0.3])]


def test_the_best_so_far_is_of_whole_measurements() -> None:
    curve = best_so_far(RECORDS[:2])
    assert [(s.low, s.high) for s in curve] == [(0.2, 0.6), (0.2, 0.6), (0.5, 0.6), (0.5, 0.7)]
    assert curve[-1].middle == 0.6


def test_seeds_of_an_algorithm_are_one_line() -> None:
    groups = by_algorithm(RECORDS)
    assert list(groups) == ["tpe", "<b>"]
    rates = rates_per_layer(groups["tpe"])
    assert (rates["a"].low, rates["a"].high) == (0.1, 0.2)
    assert str(rates["b"]) == "1"


def test_the_same_searches_give_the_same_page() -> None:
    page = search_report("three", RECORDS, {"command": "atmc-tool search"})
    assert page == search_report("three", RECORDS, {"command": "atmc-tool search"})
    text = page.decode()
    assert text.count("<svg") == 3
    assert "<b>" not in text
    assert "least" in text
    assert search_report("one", RECORDS[:1], {}).decode().count("<svg") == 3
