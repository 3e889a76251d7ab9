"""Reading what an artefact is compared with."""

import json
from pathlib import Path

from atmc_tool.errors import InputError
from atmc_tool.files import read_bytes, sha256
from evaluators.baseline import BaselineFile
from evaluators.classifier import MAX_BYTES, ClassifierFacts, OrtClassifier, parse_graph
from evaluators.onnx_adoption import adopted

EXPECTED = "a dense network (.onnx), or verify.json of an earlier verification"


def read_baseline(path: Path, artefact: ClassifierFacts, provider: str, threads: int | None) -> BaselineFile:
    """The baseline in the file `path`, which takes the images and gives the classes of the artefact.

    Raises:
        InputError: missing, damaged, of another kind, or of other images or classes.
    """
    if path.suffix == ".onnx":
        classifier, digest = read_network(path, artefact, provider, threads, "baseline")
        return BaselineFile(str(path), digest, classifier=classifier)
    content = read_bytes(path, MAX_BYTES)
    if path.suffix != ".json":
        raise InputError(f"{path} is no baseline", expected=EXPECTED)
    try:
        report = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged", expected="JSON", got=str(error)) from error
    if not isinstance(report, dict) or "verdict" not in report:
        raise InputError(f"{path} is no report of verify", expected=EXPECTED)
    return BaselineFile(str(path), sha256(content), report=report)


def read_network(
    path: Path, artefact: ClassifierFacts, provider: str, threads: int | None, role: str
) -> tuple[OrtClassifier, str]:
    """The network in the ONNX file `path`, which takes the images and gives the classes of the artefact; its digest.

    Raises:
        InputError: missing, damaged, or of other images or classes; `role` is what it is called.
    """
    content = read_bytes(path, MAX_BYTES)
    classifier = OrtClassifier(adopted(parse_graph(content, str(path)), artefact.image_shape), provider, threads)
    own, other = ((facts.image_shape, facts.n_classes) for facts in (artefact, classifier.facts))
    if own != other:
        what = "images {} and {} classes"
        raise InputError(
            f"the {role} {path} does not fit the artefact", expected=what.format(*own), got=what.format(*other)
        )
    return classifier, sha256(content)
