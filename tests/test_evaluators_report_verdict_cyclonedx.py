"""The CycloneDX bill of materials is valid by the schema that CycloneDX's own library carries, whatever the names."""

import json
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from evaluators.gate import Check, judge
from evaluators.report.verdict_cyclonedx import to_cyclonedx
from evaluators.statistics import Proportion

HOSTILE = 'a|b\n<script>"x"</script>\x1b[31m\x00é'


def report(**changes: Any) -> dict[str, Any]:
    facts = {
        "atmc_tool": "0.1",
        "verdict": judge([Check("logits", True, "finite"), Check("gradients", False, HOSTILE)], 1000).to_json(),
        "artefact": {
            "name": "release/model.onnx",
            "bytes": 7408,
            "sha256": "ab" * 32,
            "source": {"source": "cd" * 32, "release/model.atmc": "cd" * 32},
        },
        "threat_model": {"norm": "linf", "eps": "8/255"},
        "images": {"split": "test", "sha256": "12" * 32},
        "data": {"name": "signs", "sha256": "34" * 32},
        "clean": Proportion(900, 1000).to_json(),
        "robust": Proportion(700, 1000).to_json(),
        "attacks": [{"name": "pgd-20 cross-entropy", **Proportion(700, 1000).to_json()}],
        "provenance": {"onnxruntime": "1.31.1", "numpy": "2.4.6", "python": "3.11.7"},
    }
    return {**facts, **changes}


def made(**changes: Any) -> dict[str, Any]:
    """The bill of materials, valid by the schema."""
    content = to_cyclonedx(report(**changes)).decode()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(content) is None
    bom: dict[str, Any] = json.loads(content)
    return bom


def test_file_and_numbers_are_in_it() -> None:
    bom = made()
    model = bom["metadata"]["component"]
    assert model["type"] == "machine-learning-model"
    assert model["hashes"] == [{"alg": "SHA-256", "content": "ab" * 32}]
    (ancestor,) = model["pedigree"]["ancestors"]
    assert (ancestor["name"], ancestor["hashes"][0]["content"]) == ("release/model.atmc", "cd" * 32)
    clean, pgd, worst = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert (clean["value"], clean["slice"]) == ("0.9", "test, n 1000")
    assert (pgd["type"], pgd["slice"]) == ("accuracy under pgd-20 cross-entropy", "test, n 1000, linf, eps 8/255")
    low, high = report()["robust"]["clopper_pearson_95"]
    assert worst["confidenceInterval"] == {"lowerBound": str(low), "upperBound": str(high)}
    properties = {each["name"]: each["value"] for each in model["properties"]}
    assert (properties["atmc-tool:verdict"], properties["atmc-tool:failed"]) == ("failed", "gradients")
    tools = {each["name"]: each["version"] for each in bom["metadata"]["tools"]["components"]}
    assert tools == {"atmc-tool": "0.1", "onnxruntime": "1.31.1", "numpy": "2.4.6", "python": "3.11.7"}


def test_equal_reports_give_equal_bytes_and_others_another_serial_number() -> None:
    assert to_cyclonedx(report()) == to_cyclonedx(report())
    assert made()["serialNumber"] != made(clean=Proportion(901, 1000).to_json())["serialNumber"]


@pytest.mark.parametrize("source", [{}, {"source": "cd" * 32}, {HOSTILE: "cd" * 32}])
def test_hostile_names_and_missing_facts_stay_valid(source: dict[str, str]) -> None:
    artefact = {"name": HOSTILE, "bytes": 1, "sha256": "ab" * 32, "source": source}
    bom = made(artefact=artefact, data={"name": HOSTILE, "sha256": "34" * 32}, clean=None, robust=None, attacks=[])
    assert len(bom["metadata"]["component"]["pedigree"]["ancestors"]) == len(source)
    assert "\x1b" not in json.dumps(bom, ensure_ascii=False)


@pytest.mark.parametrize("stated", ["no digest at all", "", "AB" * 32, "cd" * 33, "cd" * 32 + "\n"])
def test_what_is_no_digest_is_no_ancestor(stated: str) -> None:
    """A file's metadata, which anybody may write, made the bill of materials invalid."""
    artefact = {"name": "model.onnx", "bytes": 1, "sha256": "ab" * 32, "source": {"source": stated}}
    assert made(artefact=artefact)["metadata"]["component"]["pedigree"]["ancestors"] == []
