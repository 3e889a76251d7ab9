"""`atmc-tool verify`: attack the exported file itself, and judge it. Needs no torch."""

import json
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from atmc_tool.cli.options import BYTES, EPS, PATH, as_json, config_sources, data, norm, run_folder, setting, verbosity
from atmc_tool.errors import GateFailedError, UsageError

if TYPE_CHECKING:
    from evaluators.verification import Verification

PROBABILITY = click.FloatRange(0, 1)
STDOUT = Path("-")


@click.command("verify", epilog="Example: atmc-tool verify --min-robust 0.6 --max-bytes 20KB")
@click.argument("artefact", metavar="[RUN|model.onnx]", type=PATH, required=False)
@data
@setting("threat_model.eps", "--eps", type=EPS, help="Radius of the ball of the norm; default: as compressed.")
@norm
@setting(
    "evaluation.attack",
    "--attack",
    type=click.Choice(["standard", "autoattack", "comparison"]),
    help="Which attacks; comparison: standard, and what papers report. Default standard.",
)
@setting("evaluation.steps", "--steps", type=click.IntRange(1), help="Steps of PGD; default 20.")
@setting("evaluation.restarts", "--restarts", type=click.IntRange(1), help="Starts of PGD; default 3.")
@setting("evaluation.n", "-n", type=click.IntRange(1), help="Test images; default 1000.")
@setting("policy.min_clean", "--min-clean", type=PROBABILITY, help="Lower 95 % bound of clean accuracy.")
@setting("policy.min_robust", "--min-robust", type=PROBABILITY, help="Lower 95 % bound of robust accuracy.")
@setting("policy.max_drop", "--max-drop", type=PROBABILITY, help="Fall below the numbers recorded at compression.")
@setting("policy.max_bytes", "--max-bytes", type=BYTES, help="Size of the file, such as 20KB.")
@setting(
    "source.policy",
    "--policy",
    type=PATH,
    help="What must hold, as YAML; in place of the policy in atmc.yaml and in model.atmc. Options win over it.",
)
@click.option("--baseline", type=PATH, help="A dense .onnx, or an earlier verify.json: compared image by image.")
@click.option("--signature", type=PATH, help="Of the file, by model-signing: it must be one by --public-key.")
@click.option("--public-key", type=PATH, help="PEM of the elliptic key that must have signed the file.")
@click.option("--undefended", type=PATH, help="A network (.onnx) trained without attacks: the attack has to break it.")
@click.option("--surrogate", type=PATH, help="A network (.onnx) to attack by where the file has no gradient: transfer.")
@click.option(
    "--provider",
    "providers",
    type=click.Choice(["auto", "cpu", "cuda"]),
    multiple=True,
    default=["auto"],
    show_default=True,
    help="Of onnxruntime; given again: one more, whose answers must be those of the first.",
)
@click.option("--logits", default="", metavar="NAME", help="Output to judge, or what the softmax at the end reads.")
@click.option("--offline", is_flag=True, help="Download nothing: data that are not on this machine are an error.")
@click.option("-o", "--output", type=PATH, help="Folder for the reports; default: where the artefact lies.")
@click.option("--junit", type=PATH, help="Write the checks as JUnit XML.")
@click.option("--cyclonedx", type=PATH, help="Write a CycloneDX 1.6 bill of materials, such as model.cdx.json.")
@click.option("--markdown", type=PATH, help="Write a summary as Markdown; - for stdout, in place of the tables.")
@run_folder
@config_sources
@as_json
@verbosity
def command(
    artefact: Path | None,
    baseline: Path | None,
    signature: Path | None,
    public_key: Path | None,
    undefended: Path | None,
    surrogate: Path | None,
    providers: tuple[str, ...],
    logits: str,
    offline: bool,
    output: Path | None,
    junit: Path | None,
    cyclonedx: Path | None,
    markdown: Path | None,
    as_json: bool,
) -> None:
    """Attack the exported file itself and judge it.

    Exits with 0 where every check passes and with 5 where one fails. verify.json and verify.html, for people, are
    written in both cases. Reports of an earlier verification are removed first.
    """
    from atmc_tool.cli.launch import is_first, joined, several
    from atmc_tool.cli.render import show_json
    from atmc_tool.cli.report_targets import check_targets, remove_targets
    from atmc_tool.cli.run_folder import ONNX, RunFolder, locate, manifest_name, report_name
    from atmc_tool.cli.settings import resolve
    from atmc_tool.cli.signature import check_signature
    from atmc_tool.cli.verdict import show_verdict
    from atmc_tool.cli.verification import verify_file
    from atmc_tool.data.download import no_downloads
    from atmc_tool.files import write_atomic
    from evaluators.report.verdict_cyclonedx import to_cyclonedx
    from evaluators.report.verify_report import verify_report

    if as_json and markdown == STDOUT:
        raise UsageError("--json and --markdown - both write to stdout", hint="name a file for one of them")
    own = resolve().run
    path = locate(artefact, own, ONNX)
    destination = (output or path.parent) / report_name(path)
    page, manifest = destination.with_suffix(".html"), destination.with_name(manifest_name(path))
    named = {"--junit": junit, "--cyclonedx": cyclonedx, "--markdown": None if markdown == STDOUT else markdown}
    targets = {"the report": destination, "its page": page, "the manifest": manifest}
    targets |= {name: target for name, target in named.items() if target is not None}
    replaced = {target.resolve() for target in (destination, page, manifest)}
    there = [file for folder in (path.parent, destination.parent, own) for file in RunFolder(folder).own()]
    kept = [file for file in (*there, baseline) if file is not None and file.resolve() not in replaced]
    given = [file for file in (signature, public_key, undefended, surrogate) if file is not None]
    check_targets(targets, [path, *given, *kept])
    if is_first():
        remove_targets(targets.values(), baseline)  # until there is a verdict
    with joined() if several() else nullcontext() as ranks, no_downloads() if offline else nullcontext():
        report, verification, examples = verify_file(
            path,
            providers[0],
            ranks,
            resolve,
            baseline,
            logits,
            signature=lambda content: check_signature(path, content, signature, public_key),
            undefended=undefended,
            others=providers[1:],
            surrogate=surrogate,
        )
    if is_first():
        made = {destination: (json.dumps(report, indent=2) + "\n").encode()}
        made[page] = verify_report(report, examples)
        if cyclonedx is not None:
            made[cyclonedx] = to_cyclonedx(report)
        for target, content in made.items():
            write_atomic(target, content)
        if verification.verdict.passed:
            _write_manifest(manifest, verification, made)
        _write_for_pipelines(report, junit, markdown)
        if as_json:
            show_json(report)
        elif markdown != STDOUT:
            show_verdict(report, verification, destination)
    failed = verification.verdict.failed
    if not verification.verdict.passed:
        reasons = "; ".join(f"{check.name}: {check.reason}" for check in failed) or "no check could be applied"
        raise GateFailedError(f"gate failed: {reasons}", hint=f"{destination} has the evidence")


def _write_manifest(target: Path, verification: "Verification", made: Mapping[Path, bytes]) -> None:
    """The digests of what was verified, and passed, and of the reports."""
    from atmc_tool.cli.digests import digest_list
    from atmc_tool.files import sha256, write_atomic

    artefact = verification.artefact
    read = {Path(artefact.name): artefact.sha256}
    read |= {Path(name): digest for name, digest in artefact.source.items() if name != "source"}
    written = {path: sha256(content) for path, content in made.items()}
    write_atomic(target, digest_list(target.parent, read | written))


def _write_for_pipelines(report: Mapping[str, Any], junit: Path | None, markdown: Path | None) -> None:
    from atmc_tool.files import write_atomic

    if junit is not None:
        from evaluators.report.verdict_junit import to_junit

        write_atomic(junit, to_junit(report))
    if markdown is not None:
        from evaluators.report.verdict_markdown import to_markdown

        text = to_markdown(report)
        if markdown == STDOUT:
            click.echo(text, nl=False)
        else:
            write_atomic(markdown, text.encode())
