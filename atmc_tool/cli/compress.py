"""`atmc-tool compress`: a trained network under a budget, as model.atmc in a run folder."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from atmc_tool.cli.options import (
    PATH,
    SIZE,
    as_json,
    config_sources,
    network_and_data,
    new_or_old,
    schedule,
    setting,
    verbosity,
)
from atmc_tool.errors import InputError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from atmc_tool.cli.feasibility import Feasibility
    from atmc_tool.cli.run_folder import RunFolder
    from atmc_tool.cli.start import Start
    from atmc_tool.compressed import CompressedModel, CompressedWeight
    from atmc_tool.distributed import Ranks


KEPT_WHOLE = "kept whole, for the structure does not fit them: "
NAMED = 6  # parameters of a kind that are named at the end; --dry-run and --json name all


@click.command("compress", epilog="Example: atmc-tool compress model.pt --keep 0.05 --bits 4")
@click.argument("model", type=PATH)
@network_and_data
@setting(
    "compress.method",
    "--method",
    type=click.Choice(["atmc", "al0", "ap", "nap", "alr", "admm", "hydra", "harp", "lwm", "dense"]),
    help="What compresses; default atmc.",
)
@setting(
    "compress.keep",
    "--keep",
    type=click.FloatRange(0, 1, min_open=True),
    help="Share of the weights to keep; default 0.05.",
)
@setting("compress.size", "--size", type=SIZE, help="Bytes of model.atmc instead: 20KB, or 20x smaller than dense.")
@setting(
    "compress.strategy",
    "--strategy",
    metavar="FILE",
    help="What every layer keeps, instead of a budget: a file, FILE.json#net/weight/id, or a run folder.",
)
@setting(
    "compress.structure",
    "--structure",
    metavar="STRUCTURE",
    help="What goes together: irregular (single weights, the default), filter, column, channel, bn-filter or 2:4.",
)
@setting(
    "compress.bits",
    "--bits",
    type=click.Choice([*map(str, range(1, 9)), "auto"]),
    help="Bits of a stored value, or auto: each layer its own, under --size; default 4.",
)
@schedule("compress")
@click.option("--trust-pickle", is_flag=True, help="Load a whole pickled module, which runs code in the file.")
@click.option("--dry-run", is_flag=True, help="Show the resolved configuration and what is feasible; write nothing.")
@setting("run", "-o", "--output", "--run", type=PATH, help="The run folder; default: atmc-run, or what atmc.yaml says.")
@config_sources
@new_or_old
@as_json
@verbosity
def command(model: Path, trust_pickle: bool, dry_run: bool, resume: bool, overwrite: bool, as_json: bool) -> None:
    """Compress a trained network under a budget.

    Prunes and quantises while it trains against PGD, so that what ships meets the budget exactly.

    What the file knows (network, data, threat model) need not be said again. Ctrl-C saves the state.
    """
    from atmc_tool.cli.launch import joined, restarted, several
    from atmc_tool.cli.run_folder import RunFolder
    from atmc_tool.cli.settings import resolve
    from atmc_tool.config import to_yaml
    from atmc_tool.settings import read_yaml

    def check_there() -> None:
        if not model.is_file():
            raise InputError(
                f"{model} is not there", expected="a trained network", hint="make one with atmc-tool train"
            )

    def check_free() -> None:
        if not dry_run:
            folder.check_free(folder.model, resume=resume, overwrite=overwrite)

    folder = RunFolder(resolve().run)
    if not several():  # said at once: torch takes seconds to load
        check_there()
        check_free()
    with joined() as ranks:
        ranks.together(check_there)
        from atmc_tool.cli.feasibility import check_feasible
        from atmc_tool.cli.plan import show_plan
        from atmc_tool.cli.start import read_start, warn_of_missing_rules
        from atmc_tool.devices import select_device

        again = restarted(ranks) and not resume
        if not again:
            ranks.from_first(check_free)
        recorded = ranks.from_first(lambda: read_yaml(folder.config)) if resume else {}
        start = ranks.together(lambda: read_start(model, recorded, trust_pickle))
        ranks.together(lambda: select_device(start.config.device, ranks))
        if again:  # a run that was begun goes on
            resume = ranks.from_first(lambda: folder.was_begun_with(to_yaml(start.config)))
        if again and not resume:
            ranks.from_first(check_free)
        warn_of_missing_rules(start.skeleton)
        feasibility = check_feasible(start)
        report = None if dry_run else run_compression(start, feasibility, folder, ranks, resume)
        if dry_run and ranks.first:
            show_plan(feasibility, as_json)
    if report is not None:
        _show(report, as_json)


def run_compression(
    start: "Start",
    feasibility: "Feasibility",
    folder: "RunFolder",
    ranks: "Ranks",
    resume: bool,
    measured: Mapping[str, Any] | None = None,
) -> dict[str, Any] | None:
    """Train, measure, write model.atmc; what there is to report. None on every rank but the first, which writes.

    measured: facts of the dense network, where it was measured before

    Raises: as `run_training`.
    """
    import torch

    from atmc_tool.budget import compressible
    from atmc_tool.cli.measurement import measure
    from atmc_tool.cli.render import note
    from atmc_tool.cli.start import copied
    from atmc_tool.cli.subject import arrays, conclude, run_training, training_setup
    from atmc_tool.compressed import CompressedModel
    from atmc_tool.devices import select_device
    from atmc_tool.files import write_atomic
    from atmc_tool.methods import compression_method
    from atmc_tool.tied import own_state
    from evaluators.report.run_report import Results
    from exporters.atmc_file import encode_model

    config, network, data, card = start.config, start.network, start.data, start.card
    device = select_device(config.device, ranks)
    attacked = None if config.compress.natural else start.threat_model
    setup = training_setup(config, config.compress, network, card.mean, card.std, device, data, attacked, ranks)
    dense = copied(own_state(network), device)
    method = compression_method(network, config.compress, feasibility.budget, card.image_shape)
    run_training(config, "compress", setup, method, folder, select=False, resume=resume, model=start.digest)
    weights = method.compressed()
    rest = {name: array for name, array in arrays(own_state(network)).items() if name not in weights}
    if config.compress.bits is not None:
        rest = ranks.from_first(lambda: shipped_rest(start, feasibility, weights, rest, device))
    model = CompressedModel(weights, rest, start.skeleton, {})
    shipped = {name: torch.from_numpy(array).to(device) for name, array in model.state().items()}

    def facts(state: Mapping[str, torch.Tensor], name: str) -> dict[str, Any]:
        threat_model, evaluation = start.threat_model, config.evaluation
        return measure(network, state, card.mean, card.std, data, threat_model, evaluation, name, ranks)

    metrics = {
        "dense": facts(dense, "the dense network") if measured is None else dict(measured),
        "compressed": facts(shipped, "the compressed network"),
    }
    if not ranks.first:
        return None
    clean, n = metrics["compressed"]["clean_accuracy"], metrics["compressed"]["n"]
    if only_guesses(clean, n, data.n_classes):
        note(
            f"warning: the compressed network is no better than guessing (clean accuracy {clean:.3f}). "
            "Hint: a larger budget, more epochs, or another --method"
        )
    model = CompressedModel(weights, rest, start.skeleton, start.manifest(metrics))
    content = encode_model(model)
    write_atomic(folder.model, content)
    report = _report(model, content, folder, compressible(network)[1])
    kept = (report["kept"]["total"], report["kept"]["weights"])
    conclude(config, folder.path, Results(report["sizes"], report["metrics"], kept))
    return report


def shipped_rest(
    start: "Start",
    feasibility: "Feasibility",
    weights: Mapping[str, "CompressedWeight"],
    rest: Mapping[str, "NDArray[Any]"],
    device: "torch.device",
) -> dict[str, "NDArray[Any]"]:
    """What is not compressed, in half precision where that is harmless on images held out from training.

    Where a limit in bytes can't be met otherwise, in half precision in any case.
    """
    import torch

    from atmc_tool.compressed import CompressedModel
    from atmc_tool.data.loader import to_floats
    from atmc_tool.half_precision import half_rest, harmless
    from atmc_tool.torch_classifier import TorchClassifier
    from atmc_tool.validation import held_out

    rounded = half_rest(rest)
    start.network.eval()

    def classifier(rest: Mapping[str, "NDArray[Any]"]) -> TorchClassifier:
        state = CompressedModel(weights, rest, b"", {}).state()
        tensors = {name: torch.from_numpy(array).to(device) for name, array in state.items()}
        return TorchClassifier(start.network, tensors, start.card.mean, start.card.std)

    images = to_floats(held_out(start.data, device)[0])
    batch_size = start.config.compress.batch_size
    if harmless(classifier(rest), classifier(rounded), images, batch_size):
        return rounded
    return rounded if feasibility.exceeded_by(weights, rest) else dict(rest)


def only_guesses(clean_accuracy: float, n: int, n_classes: int) -> bool:
    """Whether accuracy on n images is not above that of guessing by three standard errors."""
    guessing = 1 / n_classes
    return clean_accuracy <= guessing + 3 * math.sqrt(guessing * (1 - guessing) / n)


def sizes(model: "CompressedModel", content: bytes) -> dict[str, int]:
    """What → bytes, of `model`, which is `content` as a file."""
    from exporters.atmc_file import describe
    from exporters.dense import dense_bytes, gzip_dense_bytes

    return {
        "dense": dense_bytes(model),
        "gzip of the pruned dense weights": gzip_dense_bytes(model),
        "nominal (kept · bits + codebooks)": -(-describe(content)["totals"]["nominal_bits"] // 8),
        "model.atmc": len(content),
    }


def _report(
    model: "CompressedModel", content: bytes, folder: "RunFolder", not_compressed: Mapping[str, str]
) -> dict[str, Any]:
    from atmc_tool.cli.feasibility import kept_whole
    from atmc_tool.files import sha256
    from exporters.atmc_file import describe

    described, compress = describe(content), model.manifest["config"]["compress"]
    totals = described["totals"]
    kept = {
        factor: sum(weight.factors[factor].kept for weight in model.weights.values() if factor in weight.factors)
        for factor in ("U", "V", "C")
    }
    return {
        "run": str(folder.path),
        "model": {"path": str(folder.model), "bytes": len(content), "sha256": sha256(content)},
        "sizes": sizes(model, content),
        "kept": {**kept, "total": totals["kept"], "weights": totals["weights"], "share": totals["density"]},
        "not_compressed": dict(not_compressed),
        "kept_whole": kept_whole(described, compress["structure"]),
        "factors": compress["factors"],
        "metrics": model.manifest["metrics"],
    }


def _show(report: dict[str, Any], as_json: bool) -> None:
    from atmc_tool.cli.render import show_json, show_line, show_table
    from atmc_tool.config import Config

    if as_json:
        show_json(report)
        return
    sizes, kept, metrics = report["sizes"], report["kept"], report["metrics"]
    show_table(
        "Size",
        ["what", "bytes", "times smaller"],
        [[name, n, f"{sizes['dense'] / n:.1f}"] for name, n in sizes.items()],
    )
    dense, compressed = metrics["dense"], metrics["compressed"]
    attack = f"PGD-{dense['steps']}, worst of {dense['restarts']}, eps {dense['eps']}"
    rows = [
        [name, dense[key], compressed[key]]
        for name, key in (
            ("clean", "clean_accuracy"),
            ("clean, mean over classes", "balanced_clean_accuracy"),
            (f"robust ({attack})", "robust_accuracy"),
            ("robust, mean over classes", "balanced_robust_accuracy"),
        )
        if key in dense
    ]
    show_table(f"Accuracy on {dense['n']} test images", ["accuracy", "dense", "compressed"], rows)
    factors = (
        ": " + ", ".join(f"{name} {kept[name]:,}" for name in ("U", "V", "C")) if report["factors"] != "none" else ""
    )
    show_line(f"kept {kept['total']:,} of {kept['weights']:,} weights ({kept['share']:.2%}){factors}")
    left: dict[str, list[str]] = {}
    for name, reason in report["not_compressed"].items():
        left.setdefault(reason, []).append(name)
    for reason, names in left.items():
        more = f" and {len(names) - NAMED} more (--json names all)" if len(names) > NAMED else ""
        show_line(f"not compressed, {reason}: {', '.join(names[:NAMED])}{more}")
    if report["kept_whole"]:
        show_line(KEPT_WHOLE + ", ".join(report["kept_whole"]))
    run = "" if report["run"] == str(Config().run) else f" {report['run']}"
    show_line(f"{report['model']['path']}   next: atmc-tool export{run} --onnx, then atmc-tool verify{run}")
