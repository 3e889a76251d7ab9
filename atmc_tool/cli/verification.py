"""One exported file, attacked and judged: what `verify` and `compare` report on it. Needs no torch."""

import platform
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from atmc_tool import __version__
from atmc_tool.cli.baseline import read_baseline, read_network
from atmc_tool.cli.data_source import data_folder, load_configured
from atmc_tool.cli.launch import threads
from atmc_tool.cli.origin import Origin, find_origin
from atmc_tool.cli.render import note, staged
from atmc_tool.cli.run_folder import MODEL
from atmc_tool.data import DataSet, test_subset
from atmc_tool.data.images import Images
from atmc_tool.errors import UsageError
from atmc_tool.files import read_bytes, sha256
from atmc_tool.machine import processor
from atmc_tool.settings import merge
from evaluators.attack_plan import AttackSettings
from evaluators.classifier import MAX_BYTES, RUNTIME, OrtClassifier, decoded_weights, parse_graph
from evaluators.gate import Check
from evaluators.held_out import check_held_out
from evaluators.onnx_adoption import adopted, softmax_input
from evaluators.parity import same_logits
from evaluators.policy import parse_policy
from evaluators.providers import check_providers, other_providers
from evaluators.report.examples import Example, fooled_examples
from evaluators.report.verdict_text import printable
from evaluators.undefended import check_undefended
from evaluators.verification import Artefact, Verification, verify
from exporters.atmc_file import describe
from exporters.dense import dense_bytes, gzip_dense_bytes

if TYPE_CHECKING:
    from atmc_tool.config import Config
    from atmc_tool.distributed import Ranks

COMPARED = 64  # images on which the file is compared with the network in model.atmc
SEED = 0  # of the choice of images and of the attacks, as at compression


def verify_file(
    path: Path,
    provider: str,
    ranks: "Ranks | None",
    resolve: "Callable[[Mapping[str, Any] | None], Config]",
    baseline: Path | None = None,
    logits: str = "",
    signature: Callable[[bytes], Check] | None = None,
    undefended: Path | None = None,
    others: Sequence[str] = (),
    surrogate: Path | None = None,
) -> tuple[dict[str, Any], Verification, list[Example]]:
    """The report on the exported file, what it rests on, and images that fool it; of several processes, each one's.

    resolve:  what files say → the configuration
    baseline: a dense network, or the report of an earlier verification, to compare with
    logits:   name of the value to judge, empty for the only output
    signature: tries whose signature the bytes of the file have; they are read once, for this and for all else
    undefended: a network trained without attacks, which the attack has to bring down
    surrogate: a network by whose gradient is attacked where the file has none
    others:   further providers, whose answers must be the same

    Raises:
        UsageError, InputError, MissingEnvironmentError: it can't be verified.
    """
    content = read_bytes(path, MAX_BYTES)
    signed = [] if signature is None else [signature(content)]
    model = parse_graph(content, str(path))
    own = resolve(None)
    origin = find_origin(path, model, own.run)
    config = resolve(_stated(path, origin, own))
    threat_model = config.threat_model.parse()
    if threat_model is None:
        raise UsageError("which threat model?", expected="--eps such as 8/255 or 0.1", hint=f"{path} states none")
    policy = parse_policy(config.policy)
    data = load_configured(config)
    if not logits and (inner := softmax_input(model)):
        name = shlex.quote(printable(inner))  # the file's word
        note(f"the outputs of {path} are probabilities; --logits {name} judges what they are made of")
    model = adopted(model, data.image_shape, logits)
    images = test_subset(data.test, config.evaluation.n, SEED)
    floats, labels = images.floats(), images.labels.astype(np.int64)
    first = OrtClassifier(model, provider, threads())
    also = other_providers(first, (OrtClassifier(model, name, threads()) for name in others))
    which = config.evaluation.attack
    settings = AttackSettings(
        attack="standard" if which == "comparison" else which,
        steps=config.evaluation.steps,
        restarts=config.evaluation.restarts,
        square_queries=config.evaluation.square_queries,
        seed=SEED,
    )
    twin = known = None
    if surrogate is not None:
        twin = read_network(surrogate, first.facts, provider, threads(), "surrogate")[0]
    if undefended is not None:
        known = (str(undefended), read_network(undefended, first.facts, provider, threads(), "undefended network")[0])
    with staged() as progress:
        verification = verify(
            lambda: OrtClassifier(model, provider, threads()),
            images.images,
            images.labels,
            threat_model,
            Artefact(str(path), len(content), sha256(content), origin.digests),
            image_shape=first.facts.image_shape,
            settings=settings,
            policy=policy,
            expected=origin.expected,
            decoded=None if origin.expected is None else decoded_weights(model, origin.expected.names),
            recorded=origin.metrics.get("compressed"),
            baseline=None if baseline is None else read_baseline(baseline, first.facts, provider, threads()),
            comparison=which == "comparison",
            progress=progress,
            spread=ranks,
            surrogate=twin,
        )
        control = check_undefended(
            lambda linear: OrtClassifier(linear, provider, threads()),
            floats,
            labels,
            threat_model,
            settings,
            known,
            progress,
            ranks,
        )
    compared: list[Check] = [check_held_out(images.images, _seen(data)), control, *signed]
    found, examples = verification.robustness, []
    stored = None if found is None else found.adversarial
    compared.append(check_providers(first, also, floats, stored, settings.batch_size))
    if origin.whole:
        whole = OrtClassifier(origin.whole, provider, threads())
        compared.append(same_logits(first, whole, floats[:COMPARED]))
    verification = verification.with_checks(*origin.checks, *compared)
    report = {
        "atmc_tool": __version__,
        "provider": first.provider,
        "provider_note": first.note,
        "data": {"name": data.name, "sha256": data.digest},
        "logits": first.facts.output_name,
        "dense": origin.metrics.get("dense"),
        **verification.to_json(data.class_names),
        **_made_of(origin, path, len(content)),
        "provenance": _provenance(first.provider),
    }
    if found is not None and found.robust is not None and found.adversarial is not None:
        examples = fooled_examples(
            first, images.images, images.labels, found.robust, found.adversarial, data.class_names
        )
    return report, verification, examples


def _stated(path: Path, origin: Origin, own: "Config") -> Mapping[str, Any]:
    """What the file and its folder say, of which the user's `own` settings leave standing what they do not touch.

    Who states eps states the threat model: a norm that the file chose would make another one of it. Who names the data
    does not mean those of a stranger's folder; where those lie is said, for the folder may be the user's own, as a word
    of the folder and not as advice.
    """
    stated = dict(origin.settings)
    recorded = stated.get("threat_model") or {}
    if own.threat_model.eps is not None and isinstance(recorded, Mapping):
        if recorded.get("norm", own.threat_model.norm) != own.threat_model.norm:
            stated_norm = shlex.quote(printable(str(recorded["norm"])))
            note(f"{path} states {stated_norm}; with your eps it is attacked in {own.threat_model.norm} (--norm)")
        stated.pop("threat_model", None)
    found = data_folder(path)
    elsewhere = own.data.name is not None and path.parent.resolve() != own.run.resolve()
    if elsewhere and found and own.data.dir is None:
        folder = shlex.quote(printable(found["data"]["dir"]))
        note(f"{path.parent} says that it found its data in {folder}; yours are not looked for there")
    return stated if elsewhere else merge(found, stated)


def _seen(data: DataSet) -> list[np.typing.NDArray[np.uint8]]:
    """The images that training and selection see, where they are in memory."""
    parts = [data.train, data.validation]
    return [part.images for part in parts if isinstance(part, Images)]


def _made_of(origin: Origin, path: Path, size: int) -> dict[str, Any]:
    """`sizes` in bytes and `layers` of the network, as far as its model.atmc is there."""
    if origin.compressed is None:
        return {"sizes": {path.name: size}, "layers": []}
    facts = describe(origin.content)
    sizes = {
        "dense": dense_bytes(origin.compressed),
        "gzip of the pruned dense weights": gzip_dense_bytes(origin.compressed),
        "nominal": -(-facts["totals"]["nominal_bits"] // 8),
        MODEL: len(origin.content),
        path.name: size,
    }
    layers = [
        {
            "name": layer["name"],
            "shape": layer["shape"],
            "kept": layer["kept"],
            "total": layer["weights"],
            "bits": max((factor["bits"] for factor in layer["factors"].values()), default=0),
            "bytes": sum(factor["stored_bytes"] for factor in layer["factors"].values()),
        }
        for layer in facts["layers"]
    ]
    return {"sizes": sizes, "layers": layers}


def _provenance(provider: str) -> dict[str, Any]:
    """What measured, and how it was called; no date, so that equal measurements give equal reports."""
    return {
        "atmc_tool": __version__,
        "onnxruntime": RUNTIME,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": {"system": platform.system(), "architecture": platform.machine(), **processor()},
        "provider": provider,
        "command": shlex.join(["atmc-tool", *sys.argv[1:]]),
    }
