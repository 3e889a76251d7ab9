"""The verdict as a CycloneDX 1.6 bill of materials (ML-BOM): the file with its digest, and a model card of numbers."""

import json
import re
import uuid
from collections.abc import Mapping
from typing import Any

from evaluators.report.verdict_text import printable

SCHEMA = "http://cyclonedx.org/schema/bom-1.6.schema.json"
DIGEST = re.compile("[0-9a-f]{64}")  # of SHA-256, as the schema wants it
NAMESPACE = uuid.UUID("93ec050d-d6a5-4f7a-8c31-0d716296a4ce")  # of serial numbers
TOOLS = {"onnxruntime": "library", "numpy": "library", "python": "platform"}  # that measured → type of component
LIMITATION = "Robust accuracy is an upper bound under the attacks that ran, for images drawn like the test images."


def to_cyclonedx(report: Mapping[str, Any]) -> bytes:
    """The report's file as a component `machine-learning-model`, UTF-8 JSON; equal reports give equal bytes.

    Its pedigree is the model.atmc that it was made of, as far as known. The accuracies with their 95 % intervals are
    metrics of the model card, of whose slice n and the threat model are a part; verdict, grade and checks that failed
    are properties. What measured it stands in the BOM's tools, for none of it is part of the file.

    Source: https://cyclonedx.org/docs/1.6/json/
    """
    artefact, verdict, made_by = report["artefact"], report["verdict"], report["provenance"]
    failed = [check["name"] for check in verdict["checks"] if check["status"] == "failed"]
    threat_model = report["threat_model"]
    facts = {
        "verdict": "passed" if verdict["passed"] else "failed",
        "grade": verdict["grade"],
        "failed": ", ".join(failed),
        "norm": threat_model["norm"],
        "eps": str(threat_model["eps"]),
        "bytes": str(artefact["bytes"]),
    }
    model = {
        "type": "machine-learning-model",
        "bom-ref": f"sha256:{artefact['sha256']}",
        **_file(artefact["name"], artefact["sha256"]),
        "pedigree": {"ancestors": _ancestors(artefact.get("source", {}))},
        "modelCard": _card(report),
        "properties": [{"name": f"atmc-tool:{name}", "value": printable(value)} for name, value in facts.items()],
    }
    tools = [{"type": "application", "name": "atmc-tool", "version": report["atmc_tool"]}]
    tools += [{"type": kind, "name": name, "version": made_by[name]} for name, kind in TOOLS.items()]
    return _json(
        {
            "$schema": SCHEMA,
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "serialNumber": f"urn:uuid:{uuid.uuid5(NAMESPACE, _json(report).decode())}",
            "version": 1,
            "metadata": {"tools": {"components": tools}, "component": model},
        }
    )


def _ancestors(source: Mapping[str, str]) -> list[dict[str, Any]]:
    """The files of `source` (path → SHA-256), or what the file states of its origin where none of them is there.

    What is no digest is left out: the file may state anything.
    """
    source = {name: digest for name, digest in source.items() if DIGEST.fullmatch(digest)}
    there = {name: digest for name, digest in source.items() if name != "source"}
    found = there or ({"model.atmc": source["source"]} if "source" in source else {})
    return [{"type": "machine-learning-model", **_file(name, digest)} for name, digest in found.items()]


def _file(name: str, digest: str) -> dict[str, Any]:
    return {"name": printable(name), "version": digest[:12], "hashes": [{"alg": "SHA-256", "content": digest}]}


def _card(report: Mapping[str, Any]) -> dict[str, Any]:
    model, images, data = report["threat_model"], report["images"], report["data"]
    attacked = f"{model['norm']}, eps {model['eps']}"
    metrics = [("clean accuracy", "", report["clean"])]
    metrics += [(f"accuracy under {attack['name']}", attacked, attack) for attack in report["attacks"]]
    metrics.append(("robust accuracy, worst case over all attacks", attacked, report["robust"]))
    dataset = {
        "type": "dataset",
        "name": printable(data["name"]),
        "description": f"SHA-256 of the data set {data['sha256']}, of the images measured {images['sha256']}",
    }
    return {
        "modelParameters": {
            "task": "image classification",
            "datasets": [dataset],
            "inputs": [{"format": "float32 images (N, C, H, W) in [0, 1]"}],
            "outputs": [{"format": "float32 logits (N, classes)"}],
        },
        "quantitativeAnalysis": {
            "performanceMetrics": [
                _metric(kind, images["split"], under, found) for kind, under, found in metrics if found is not None
            ]
        },
        "considerations": {"technicalLimitations": [LIMITATION]},
    }


def _metric(kind: str, split: str, under: str, measured: Mapping[str, Any]) -> dict[str, Any]:
    low, high = (str(bound) for bound in measured["clopper_pearson_95"])
    return {
        "type": printable(kind),
        "value": str(measured["accuracy"]),
        "slice": ", ".join(part for part in (split, f"n {measured['n']}", under) if part),
        "confidenceInterval": {"lowerBound": low, "upperBound": high},
    }


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
