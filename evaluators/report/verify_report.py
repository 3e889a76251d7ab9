"""The report of a verification: what verify.json says, and some adversarial images, as one HTML page.

verify.json may come from anywhere: text is escaped by the template, what should be a number and is none is left out,
and so is a section without data. The same facts give the same bytes.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from evaluators.report.advice import ADVICE, ELSEWHERE
from evaluators.report.charts import Point, bar, curve, interval, span
from evaluators.report.examples import Example
from evaluators.report.page import render
from evaluators.report.plain import mapping, number, objects, percent, share, shown
from evaluators.report.radius import like_stated, times_stated

MOST_CLASSES = 20  # with more, those are shown that lose most
LONGEST_EVIDENCE = 4000  # characters
NEAR = 5  # sizes that are dwarfed by the largest so many times are drawn once more without it
ATTACK_IN_WORDS = {
    "linf": "an attacker may change every pixel value by at most {eps} (pixels go from 0 to 1)",
    "l2": "an attacker may change the image by at most {eps} in Euclidean length (pixels go from 0 to 1)",
}
SIZE_IN_WORDS = {"nominal": "nominal: kept weights × bits, no positions, no graph"}
MARKS = {"passed": "✓", "failed": "✗", "warning": "!"}

Row = dict[str, str]


def verify_report(report: Mapping[str, Any], examples: Sequence[Example] = ()) -> bytes:
    """The page; see `page.render`. `report`: the object in verify.json."""
    verdict = mapping(report.get("verdict"))
    checks = [_check(entry) for entry in objects(verdict.get("checks"))]
    passed = verdict.get("passed") is True
    return render(
        "verify.html.j2",
        title=str(mapping(report.get("artefact")).get("name", "artefact")),
        state="passed" if passed else "failed",
        passed=passed,
        headline=_headline(report),
        smoke=verdict.get("grade") == "smoke",
        count=_count([check["status"] for check in checks]),
        troubles={status: [c for c in checks if c["status"] == status] for status in ("failed", "warning")},
        tiles=_tiles(report),
        sizes=_sizes(mapping(report.get("sizes"))),
        accuracies=_accuracies(report),
        threshold=share(mapping(report.get("policy")).get("min_robust")) is not None,
        comparison=_comparison(objects(report.get("comparison")), _stated_eps(report)),
        curve=_curve(report),
        classes=_classes(objects(report.get("classes"))),
        examples=[
            {"pictures": e.pictures(), "before": e.before, "after": e.after, "times": f"{e.amplification:.3g}"}
            for e in examples
        ],
        baseline=_baseline(report),
        paired=_paired(mapping(report.get("baseline"))),
        layers=_layers(objects(report.get("layers"))),
        checks=checks,
        provenance=_provenance(report),
        settings=_settings(report),
    )


def _count(statuses: Sequence[str]) -> dict[str, int]:
    found = {status: statuses.count(status) for status in ("passed", "failed", "warning")}
    return {**found, "other": len(statuses) - sum(found.values())}


def _headline(report: Mapping[str, Any]) -> list[str]:
    """What the verdict is about, in sentences for a stranger."""
    robust, model = mapping(report.get("robust")), mapping(report.get("threat_model"))
    value, n, correct = share(robust.get("accuracy")), number(robust.get("n")), number(robust.get("correct"))
    if value is None:
        return ["Robust accuracy could not be measured: no white-box attack ran on this file."]
    allowed = ATTACK_IN_WORDS.get(str(model.get("norm")), "the threat model is {norm}, eps {eps}")
    bounds = _bounds(robust)
    between = f" (95\N{NO-BREAK SPACE}% interval {_between(*bounds)})" if bounds else ""
    unset = mapping(report.get("policy")).get("min_robust") is None
    return [
        f"Robust accuracy: {percent(value)}{between}.",
        f"{shown(correct)} of {shown(n)} test images stay correctly classified under every attack that was tried, "
        f"where {allowed.format(eps=model.get('eps'), norm=model.get('norm'))}.",
        *(["No least robust accuracy was required, so this says nothing of whether it is enough."] if unset else []),
    ]


def _tiles(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is said first, in figures: (what, figure)."""
    robust, clean, artefact = (mapping(report.get(key)) for key in ("robust", "clean", "artefact"))
    model, data = mapping(report.get("threat_model")), mapping(report.get("data"))
    tiles = []
    for name, entry in (("robust accuracy", robust), ("clean accuracy", clean)):
        value = share(entry.get("accuracy"))
        if value is not None:
            tiles.append((name, percent(value)))
    tiles.append(("threat model", f"{model.get('norm', '–')}, eps {model.get('eps', '–')}"))
    tiles.append(("images", f"{shown(clean.get('n'))} of {data.get('name', '–')}"))
    tiles.append(("size of the file", f"{shown(artefact.get('bytes'))} bytes"))
    dense, own = number(mapping(report.get("sizes")).get("dense")), number(artefact.get("bytes"))
    if dense and own and dense > own > 0:
        tiles.append(("beside the dense weights", f"{dense / own:.1f} × smaller"))
    return tiles


def _sizes(sizes: Mapping[str, Any]) -> list[list[Row]]:
    """Bars of bytes: all of them, and once more without the largest where it dwarfs the others."""
    known = [(str(name), found) for name, value in sizes.items() if (found := number(value)) is not None and found > 0]
    if not known:
        return []
    order = sorted(known, key=lambda entry: -entry[1])
    groups = [known]
    if len(order) > 2 and order[0][1] > NEAR * order[1][1]:
        groups.append([entry for entry in known if entry != order[0]])
    return [
        [
            {
                "label": SIZE_IN_WORDS.get(name, name),
                "chart": bar(value / max(size for _, size in group)),
                "figure": f"{value:,.0f} bytes",
                "more": _times(order[0][1] / value) if group is known else "",
            }
            for name, value in group
        ]
        for group in groups
    ]


def _times(ratio: float) -> str:
    return f"{ratio:.1f} times smaller" if ratio > 1 else ""


def _bounds(entry: Mapping[str, Any]) -> tuple[float, float] | None:
    """The exact 95 % interval of a measured proportion."""
    bounds = entry.get("clopper_pearson_95")
    found = [share(bound) for bound in bounds] if isinstance(bounds, list | tuple) else []
    if len(found) != 2 or found[0] is None or found[1] is None or found[0] > found[1]:
        return None
    return found[0], found[1]


def _accuracies(report: Mapping[str, Any]) -> list[Row]:
    """Clean accuracy, that under each attack, and the worst case, which the threshold is about."""
    policy = mapping(report.get("policy"))
    rows = [_row("clean", mapping(report.get("clean")), share(policy.get("min_clean")))]
    rows += [_row(f"under {e.get('name', 'an attack')}", e) for e in objects(report.get("attacks"))]
    rows.append(_row("worst case over all attacks", mapping(report.get("robust")), share(policy.get("min_robust"))))
    return [row for row in rows if row is not None]


def _row(label: str, entry: Mapping[str, Any], threshold: float | None = None) -> Row | None:
    value = share(entry.get("accuracy"))
    if value is None:
        return None
    low, high = _bounds(entry) or (value, value)
    required = "" if threshold is None else f"; required: lower end at least {percent(threshold)}"
    return {
        "label": label,
        "chart": interval(value, low, high, threshold),
        "figure": percent(value),
        "more": f"{_between(low, high)}, n {shown(entry.get('n'))}{required}",
    }


def _comparison(entries: Sequence[Mapping[str, Any]], stated: str) -> list[Row]:
    """Accuracy under attacks that papers report, with how far their images are, in multiples of the `stated` eps."""
    rows = []
    for entry in entries:
        row = _row(f"under {entry.get('name', 'an attack')}", entry)
        mean = number(mapping(entry.get("distance")).get("mean"))
        if row is not None:
            away = None if mean is None else times_stated(mean, stated)
            rows.append({**row, "more": f"{row['more']}; {away or shown(mean)} away"})
    return rows


def _stated_eps(report: Mapping[str, Any]) -> str:
    return str(mapping(report.get("threat_model")).get("eps"))


def _between(low: float, high: float) -> str:
    return f"{100 * low:.1f} to {percent(high)}"


def _curve(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """Accuracy against eps, as a figure and as a table."""
    points, rows, stated = [], [], _stated_eps(report)
    for entry in objects(report.get("eps_curve")):
        value = share(entry.get("accuracy"))
        if value is None:
            continue
        low, high = _bounds(entry) or (value, value)
        eps, text = number(entry.get("eps")), str(entry.get("text", "–"))
        label = text if eps is None or text == stated else like_stated(eps, stated)
        points.append(Point(label, value, low, high))
        attack = str(entry.get("attack", "")) or "none"
        rows.append((label, percent(value), _between(low, high), shown(entry.get("n")), attack))
    if len(points) < 2:
        return None
    said = ", ".join(f"{percent(point.value)} at eps {point.label}" for point in points)
    marked = stated if any(point.label == stated for point in points) else None
    return {
        "svg": curve(points, "radius eps of the attack", marked),
        "text": f"Accuracy: {said}.",
        "marked": marked,
        "rows": rows,
    }


def _classes(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Clean and robust accuracy of each class, or of those that lose most."""
    known = []
    for entry in entries:
        clean, robust = share(entry.get("clean")), share(entry.get("robust"))
        if clean is not None and robust is not None:
            known.append((str(entry.get("name", "–")), clean, robust, shown(entry.get("n"))))
    if not known:
        return None
    kept = known
    if len(known) > MOST_CLASSES:
        kept = sorted(known, key=lambda entry: (entry[2], entry[0]))[:MOST_CLASSES]
    rows = [
        {
            "label": name,
            "chart": span(clean, robust),
            "figure": f"{percent(clean)} → {percent(robust)}",
            "more": f"n {n}",
        }
        for name, clean, robust, n in kept
    ]
    return {"rows": rows, "all": len(known), "shown": len(kept)}


def _baseline(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(network, clean, robust): this file beside the baseline and what was recorded at compression."""
    baseline, dense, recorded = (mapping(report.get(key)) for key in ("baseline", "dense", "recorded"))
    rows = [
        (f"baseline {baseline.get('name', '')}, measured here", baseline.get("clean"), baseline.get("robust")),
        ("dense network, at compression, under PGD alone", dense.get("clean_accuracy"), dense.get("robust_accuracy")),
        (
            "compressed network, at compression, under PGD alone",
            recorded.get("clean_accuracy"),
            recorded.get("robust_accuracy"),
        ),
    ]
    others = [row for row in rows if any(_accuracy(value) != "–" for value in row[1:])]
    own = [("this file, worst case of all attacks", report.get("clean"), report.get("robust"))] if others else []
    return [(label, _accuracy(clean), _accuracy(robust)) for label, clean, robust in own + others]


def _paired(baseline: Mapping[str, Any]) -> list[str]:
    """The comparison with the baseline, image by image, in sentences."""
    sentences = [str(baseline["problem"])] if baseline.get("problem") else []
    for what in ("clean", "robust"):
        facts = mapping(baseline.get(f"{what}_paired"))
        drop, bounds = number(facts.get("drop")), facts.get("bounds_95")
        found = [number(bound) for bound in bounds] if isinstance(bounds, list | tuple) and len(bounds) == 2 else [None]
        if drop is None or None in found:
            continue
        low, high = (_points(bound or 0) for bound in found)
        sentences.append(
            f"{what} accuracy: {shown(facts.get('lost'))} of {shown(facts.get('n'))} images lost, "
            f"{shown(facts.get('gained'))} gained; it falls by {_points(drop)} points (95 % bounds {low} and {high}), "
            f"exact McNemar p {shown(facts.get('mcnemar_p'))}"
        )
    return sentences


def _points(fraction: float) -> str:
    return f"{100 * fraction:.2f}".replace("-", "−")


def _accuracy(value: Any) -> str:
    found = share(mapping(value).get("accuracy") if isinstance(value, Mapping) else value)
    return "–" if found is None else percent(found)


def _layers(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Every layer: name, shape, kept weights, bits, bytes."""
    rows = []
    for entry in entries:
        kept, total = number(entry.get("kept")), number(entry.get("total"))
        density = kept / total if kept is not None and total and 0 <= kept <= total else None
        shape = entry.get("shape")
        rows.append(
            {
                "name": str(entry.get("name", "–")),
                "shape": " × ".join(map(str, shape)) if isinstance(shape, list | tuple) else "–",
                "kept": "–" if kept is None or total is None else f"{kept:,.0f} of {total:,.0f}",
                "density": "–" if density is None else percent(density),
                "chart": "" if density is None else bar(density),
                "bits": shown(entry.get("bits")),
                "bytes": shown(entry.get("bytes")),
            }
        )
    return rows


def _check(entry: Mapping[str, Any]) -> dict[str, str]:
    name, status = str(entry.get("name", "–")), str(entry.get("status", "–"))
    evidence = entry.get("evidence")
    text = json.dumps(evidence, indent=2, ensure_ascii=False, default=str) if evidence else ""
    if len(text) > LONGEST_EVIDENCE:
        text = f"{text[:LONGEST_EVIDENCE]}\n… verify.json has all of it"
    return {
        "name": name,
        "status": status,
        "mark": MARKS.get(status, "–"),
        "reason": str(entry.get("reason", "")),
        "advice": ADVICE.get(name, ELSEWHERE),
        "evidence": text,
    }


def _provenance(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, which): files, data and versions that the verdict is about."""
    artefact, data, images = (mapping(report.get(key)) for key in ("artefact", "data", "images"))
    baseline, provenance = mapping(report.get("baseline")), mapping(report.get("provenance"))
    digests = {digest: name for name, digest in mapping(artefact.get("source")).items() if isinstance(digest, str)}
    sources = [(f"made of {name}, SHA-256", digest) for digest, name in digests.items()]  # each file once
    rows: list[tuple[str, Any]] = [
        ("verified file", artefact.get("name")),
        ("its SHA-256", artefact.get("sha256")),
        *sources,
        ("baseline, SHA-256", baseline.get("sha256")),
        ("data set", data.get("name")),
        ("its SHA-256", data.get("sha256")),
        ("part of it", images.get("split")),
        ("images and labels, SHA-256", images.get("sha256")),
        ("execution provider", report.get("provider")),
        ("note", report.get("provider_note")),
        *provenance.items(),
    ]
    if "atmc_tool" not in provenance:
        rows.append(("atmc_tool", report.get("atmc_tool")))
    return [(what, _plain(value)) for what, value in rows if value not in (None, "", [], {})]


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {inner}" for name, inner in value.items())
    return str(value)


def _settings(report: Mapping[str, Any]) -> str:
    """How it was attacked and what the policy is, as JSON."""
    attacks = [{key: e.get(key) for key in ("name", "parameters")} for e in objects(report.get("attacks"))]
    stated = {key: report.get(key) for key in ("threat_model", "settings", "policy")}
    return json.dumps({**stated, "attacks": attacks}, indent=2, ensure_ascii=False, default=str)
