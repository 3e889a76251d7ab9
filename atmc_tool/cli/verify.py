"""`atmc-tool verify`: attack the exported file itself, and judge it. Needs no torch."""

import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from atmc_tool.cli.options import BYTES, EPS, PATH, as_json, config_sources, data, run_folder, setting, verbosity
from atmc_tool.errors import GateFailedError, UsageError

if TYPE_CHECKING:
    from atmc_tool.config import Config
    from atmc_tool.distributed import Ranks
    from evaluators.statistics import Proportion
    from evaluators.verification import Verification

PROBABILITY = click.FloatRange(0, 1)
COMPARED = 64  # images on which a network without some channels is compared with the whole one
SEED = 0  # of the choice of images and of the attacks, as at compression


@click.command("verify", epilog="Example: atmc-tool verify --min-robust 0.6 --max-bytes 20KB")
@click.argument("artefact", metavar="[RUN|model.onnx]", type=PATH, required=False)
@data
@setting("threat_model.eps", "--eps", type=EPS, help="Radius of the l-infinity ball; default: as compressed.")
@setting("evaluation.steps", "--steps", type=click.IntRange(1), help="Steps of PGD; default 20.")
@setting("evaluation.restarts", "--restarts", type=click.IntRange(1), help="Starts of PGD; default 3.")
@setting("evaluation.n", "-n", type=click.IntRange(1), help="Test images; default 1000.")
@setting("policy.min_clean", "--min-clean", type=PROBABILITY, help="Lower 95 % bound of clean accuracy.")
@setting("policy.min_robust", "--min-robust", type=PROBABILITY, help="Lower 95 % bound of robust accuracy.")
@setting("policy.max_drop", "--max-drop", type=PROBABILITY, help="Fall below the numbers recorded at compression.")
@setting("policy.max_bytes", "--max-bytes", type=BYTES, help="Size of the file, such as 20KB.")
@click.option("--provider", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--logits", default="", metavar="NAME", help="Output to judge, or what the softmax at the end reads.")
@click.option("-o", "--output", type=PATH, help="Folder for verify.json; default: where the artefact lies.")
@run_folder
@config_sources
@as_json
@verbosity
def command(
    artefact: Path | None,
    provider: str,
    logits: str,
    output: Path | None,
    as_json: bool,
) -> None:
    """Attack the exported file itself and judge it.

    Exits with 0 where every check passes and with 5 where one fails; verify.json is written in both cases.
    """
    from atmc_tool.cli.launch import is_first, joined, several
    from atmc_tool.cli.render import show_json
    from atmc_tool.cli.run_folder import ONNX, REPORT, locate
    from atmc_tool.cli.settings import resolve
    from atmc_tool.files import write_atomic

    path = locate(artefact, resolve().run, ONNX)
    with joined() if several() else nullcontext() as ranks:
        report, verification = verify_file(path, provider, ranks, resolve, logits)
    destination = (output or path.parent) / REPORT
    if is_first():
        write_atomic(destination, (json.dumps(report, indent=2) + "\n").encode())
        if as_json:
            show_json(report)
        else:
            _show(report, verification, destination)
    failed = verification.verdict.failed
    if not verification.verdict.passed:
        reasons = "; ".join(f"{check.name}: {check.reason}" for check in failed) or "no check could be applied"
        raise GateFailedError(f"gate failed: {reasons}", hint=f"{destination} has the evidence")


def verify_file(
    path: Path,
    provider: str,
    ranks: "Ranks | None",
    resolve: "Callable[[Mapping[str, Any] | None], Config]",
    logits: str = "",
) -> tuple[dict[str, Any], "Verification"]:
    """The report on the exported file and what it rests on; of several processes, each one's.

    resolve: what files say → the configuration
    logits:  name of the value to judge, empty for the only output

    Raises:
        UsageError, InputError, MissingEnvironmentError: it can't be verified.
    """
    from atmc_tool import __version__
    from atmc_tool.cli.data_source import data_folder, load_configured
    from atmc_tool.cli.launch import threads
    from atmc_tool.cli.origin import find_origin
    from atmc_tool.cli.render import note, staged
    from atmc_tool.data import test_subset
    from atmc_tool.files import read_bytes, sha256
    from atmc_tool.settings import merge
    from evaluators.classifier import MAX_BYTES, OrtClassifier, decoded_weights, facts, parse_graph
    from evaluators.onnx_adoption import adopted, softmax_input
    from evaluators.parity import same_logits
    from evaluators.policy import parse_policy
    from evaluators.robustness import AttackSettings
    from evaluators.verification import Artefact, verify

    content = read_bytes(path, MAX_BYTES)
    model = parse_graph(content, str(path))
    origin = find_origin(path, model, resolve(None).run)
    config = resolve(merge(data_folder(path), origin.settings))
    threat_model = config.threat_model.parse()
    if threat_model is None:
        raise UsageError("which threat model?", expected="--eps such as 8/255 or 0.1", hint=f"{path} states none")
    data = load_configured(config)
    if not logits and (inner := softmax_input(model)):
        note(f"the outputs of {path} are probabilities; --logits {inner} judges what they are made of")
    model = adopted(model, data.image_shape, logits)
    judged = facts(model, str(path))
    images = test_subset(data.test, config.evaluation.n, SEED)
    first = OrtClassifier(model, provider, threads())
    artefact = Artefact(str(path), len(content), sha256(content), origin.digests)
    with staged() as progress:
        verification = verify(
            lambda: OrtClassifier(model, provider, threads()),
            images.images,
            images.labels,
            threat_model,
            artefact,
            image_shape=judged.image_shape,
            settings=AttackSettings(
                steps=config.evaluation.steps,
                restarts=config.evaluation.restarts,
                square_queries=config.evaluation.square_queries,
                seed=SEED,
            ),
            policy=parse_policy(config.policy),
            expected=origin.expected,
            decoded=None if origin.expected is None else decoded_weights(model, origin.expected.names),
            recorded=origin.metrics.get("compressed"),
            progress=progress,
            spread=ranks,
        )
    compared = []
    if origin.whole:
        some = images.floats()[:COMPARED]
        compared = [same_logits(first, OrtClassifier(origin.whole, provider, threads()), some)]
    verification = origin.judged(verification, *compared)
    report = {
        "atmc_tool": __version__,
        "provider": first.provider,
        "provider_note": first.note,
        "data": {"name": data.name, "sha256": data.digest},
        "logits": judged.output_name,
        "dense": origin.metrics.get("dense"),
        **verification.to_json(),
    }
    return report, verification


def _show(report: Mapping[str, Any], verification: "Verification", destination: Path) -> None:
    from atmc_tool.cli.render import note, show_line, show_table

    dense, recorded = report["dense"] or {}, report["recorded"] or {}
    rows: list[list[object]] = []
    if verification.clean is not None:
        rows.append(_row("clean", verification.clean, dense.get("clean_accuracy"), recorded.get("clean_accuracy")))
    attacks = () if verification.robustness is None else verification.robustness.attacks
    for index, attack in enumerate(attacks):
        before = [facts.get("robust_accuracy") if index == 0 else None for facts in (dense, recorded)]
        rows.append(_row(f"under {attack.name}", attack.accuracy, *before))
    if verification.robust is not None:
        rows.append(_row("worst case over all attacks", verification.robust, None, None))
    artefact, images = verification.artefact, report["data"]["name"]
    if report["provider_note"]:
        note(report["provider_note"])
    show_table(
        f"{artefact.name} ({artefact.bytes:,} bytes) on {images}, {verification.threat_model}, onnxruntime "
        f"{report['provider']}",
        ["accuracy", "here", "95 % interval", "n", "compressed, recorded", "dense, recorded"],
        rows,
    )
    checks = [[check.name, check.status, check.reason] for check in verification.verdict.checks]
    show_table("Checks", ["check", "status", "reason"], checks, figures=False)
    show_line(verdict_line(report), bold=True)
    show_line(f"report: {destination}")


def verdict_line(report: Mapping[str, Any]) -> str:
    """The verdict with the number it is about, what failed, and what no threshold judged."""
    verdict, robust = report["verdict"], report["robust"]
    failed = [check["name"] for check in verdict["checks"] if check["status"] == "failed"]
    words = "PASSED" if verdict["passed"] else f"FAILED ({', '.join(failed)})"
    model = report["threat_model"]
    number = f": robust accuracy {robust['accuracy']:.4g} ({model['norm']}, eps {model['eps']})" if robust else ""
    smoke = ", smoke test only: fewer than 512 images" if verdict["grade"] == "smoke" else ""
    unset = report["policy"].get("min_robust") is None and verdict["passed"]
    return f"verdict: {words}{number}{smoke}" + (", compared with compression only: no --min-robust" if unset else "")


def _row(name: str, measured: "Proportion", dense: float | None, compressed: float | None) -> list[object]:
    interval = measured.clopper_pearson
    if measured.balanced is not None:
        name += f" (mean over classes {measured.balanced:.4f})"
    return [name, measured.value, f"{interval.low:.4f} to {interval.high:.4f}", measured.n, compressed, dense]
