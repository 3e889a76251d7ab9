"""The pipelines under examples/: their shell lines run against the real command, and the slim environment suffices."""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import click
import numpy as np
import onnx
import pytest
import yaml
from conftest import ROOT, environment_without, run_atmc
from onnx import numpy_helper

from atmc_tool.cli import group

EXAMPLES = ROOT / "examples"
ACTION: dict[str, Any] = yaml.safe_load((EXAMPLES / "github-action" / "action.yml").read_text())
JOB: dict[str, Any] = yaml.safe_load((EXAMPLES / "gitlab-ci.yml").read_text())["verify"]
ACTION_SCRIPTS = {step["name"]: step for step in ACTION["runs"]["steps"] if "run" in step}
VERIFY_SCRIPTS = [ACTION_SCRIPTS["Verify"]["run"], JOB["script"][-1]]
PASS, FAIL = "min_robust: 0.5\n", "min_robust: 1\n"
GRAPH = """<ir_version: 10, opset_import: ["": 21]>
g (float[N,1,4,4] image) => (float[N,4] logits) { f = Flatten(image) logits = MatMul(f, head) }"""
NOT_NEEDED = ("torch", "functorch", "matplotlib", "mpl_toolkits", "sklearn", "scikit_learn", "pooch", "onnxscript")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an ONNX file, labelled images, policies, and `atmc-tool` in bin/.

    The classes are those of four patterns far from each other; a linear network tells them apart.
    """
    folder = tmp_path_factory.mktemp("workspace")
    rng = np.random.default_rng(0)
    labels = np.arange(160) % 4
    patterns = np.repeat(np.eye(4), 4, axis=1).reshape(4, 1, 4, 4)
    images = np.clip(0.8 * patterns[labels] + 0.1 + rng.normal(0, 0.02, (160, 1, 4, 4)), 0, 1)
    pixels = np.rint(255 * images[:, 0]).astype(np.uint8)
    np.savez(folder / "images.npz", x_train=pixels[:40], y_train=labels[:40], x_test=pixels[40:], y_test=labels[40:])
    head = 8 * patterns.reshape(4, 16).T.astype(np.float32)
    model = onnx.parser.parse_model(GRAPH)
    model.graph.initializer.append(numpy_helper.from_array(head, "head"))
    onnx.save_model(model, folder / "model.onnx")
    (folder / "pass.yaml").write_text(PASS)
    (folder / "fail.yaml").write_text(FAIL)
    (folder / "bin").mkdir()
    tool = folder / "bin" / "atmc-tool"
    tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m atmc_tool "$@"\n')
    tool.chmod(0o755)
    return folder


def shell(script: str, workspace: Path, variables: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """What a runner does with the lines of a step."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PATH": f"{workspace / 'bin'}{os.pathsep}{os.environ['PATH']}",
        **variables,
    }
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
    return subprocess.run(command, cwd=workspace, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("policy", "code"), [("pass.yaml", 0), ("fail.yaml", 5)])
def test_the_action_verifies(policy: str, code: int, workspace: Path, tmp_path: Path) -> None:
    """Its inputs reach the command, its code is the step's, and reports and summary are there in both cases."""
    given = {"artefact": "model.onnx", "data": "images.npz", "eps": "0.05", "policy": policy, "options": "--steps 5"}
    given["report"] = str(tmp_path / "report")
    inputs = {name: given.get(name, facts.get("default", "")) for name, facts in ACTION["inputs"].items()}
    step = ACTION_SCRIPTS["Verify"]
    variables = {
        name: inputs[re.fullmatch(r"\$\{\{ inputs\.([\w-]+) \}\}", text)[1]]  # type: ignore[index]
        for name, text in step["env"].items()
    }
    summary = tmp_path / "summary.md"
    done = shell(step["run"], workspace, {**variables, "GITHUB_STEP_SUMMARY": str(summary)})
    assert done.returncode == code, done.stderr
    made = {path.name for path in (tmp_path / "report").iterdir()}
    assert {"verify.json", "verify.html", "junit.xml"} <= made
    assert ElementTree.parse(tmp_path / "report" / "junit.xml").findall(".//testcase")
    assert ("manifest.sha256" in made) == (code == 0)
    assert ("FAILED" if code else "PASSED") in summary.read_text().upper()


def test_the_gitlab_job_verifies(workspace: Path, tmp_path: Path) -> None:
    own = {"ARTEFACT": str(workspace / "model.onnx"), "DATA": str(workspace / "images.npz"), "EPS": "0.05"}
    variables = {**JOB["variables"], **own, "POLICY": str(workspace / "pass.yaml")}
    (tmp_path / "bin").symlink_to(workspace / "bin")
    done = shell(JOB["script"][-1], tmp_path, variables)
    assert done.returncode == 0, done.stderr
    for path in (*JOB["artifacts"]["paths"], JOB["artifacts"]["reports"]["junit"]):
        assert (tmp_path / path).exists()


@pytest.mark.parametrize("script", VERIFY_SCRIPTS)
def test_options_of_the_pipelines_exist(script: str) -> None:
    command = group.get_command(click.Context(group), "verify")
    assert command is not None
    known = {flag for parameter in command.params for flag in parameter.opts}
    own = script.replace("read -rd '' -a", "").replace("[ -n", "")
    assert set(re.findall(r"(?<=[\s(])--?[a-z][a-z-]*", own)) <= known


def test_options_of_the_action_may_stand_on_several_lines(tmp_path: Path) -> None:
    """All but the first line were dropped, thresholds too."""
    (reading,) = re.findall(r"^ *read .*$", "\n".join(VERIFY_SCRIPTS), re.MULTILINE)
    done = shell(
        f'set -e\n{reading}\nprintf "%s " "${{options[@]}}"', tmp_path, {"OPTIONS": "-n 2000\n--min-robust 0.55\n"}
    )
    assert done.stdout.split() == ["-n", "2000", "--min-robust", "0.55"]


def test_no_input_of_the_action_is_run_as_code() -> None:
    for step in ACTION_SCRIPTS.values():
        assert "${{" not in step["run"]
    used = set(re.findall(r"inputs\.([\w-]+)", yaml.safe_dump(ACTION["runs"])))
    assert used == set(ACTION["inputs"])


def test_what_the_action_installs_is_there() -> None:
    lines = ACTION_SCRIPTS["Install atmc-tool without torch"]["run"].splitlines()
    paths = [EXAMPLES / "github-action" / path for path in re.findall(r"\$ACTION/([^\"]+)", "\n".join(lines))]
    assert [path.resolve() for path in paths] == [EXAMPLES / "gate-requirements.txt", ROOT]


def requirements(lines: list[str]) -> dict[str, str]:
    """Name → the whole requirement without its marker."""
    plain = [line.partition(";")[0].strip() for line in lines if line and not line.startswith("#")]
    return {re.split(r"[<>=]", line)[0].lower(): line for line in plain}


def test_the_slim_environment_is_a_part_of_the_whole_one() -> None:
    """With the same versions; what is left out is named here, so that a new dependency is thought about."""
    whole = requirements(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])
    slim = requirements((EXAMPLES / "gate-requirements.txt").read_text().splitlines())
    assert {name: whole[name].lower() for name in slim} == {name: line.lower() for name, line in slim.items()}
    left_out = {"torch", "onnxscript", "onnxruntime-gpu", "scikit-learn", "pooch", "matplotlib"}
    assert set(whole) - set(slim) == left_out


def test_the_slim_environment_verifies(workspace: Path, tmp_path: Path) -> None:
    environment = environment_without(NOT_NEEDED, tmp_path / "site")
    for line in (
        "verify model.onnx --data images.npz --eps 0.05 --offline --min-robust 0.5 -o out",
        "inspect model.onnx",
        "report out/verify.json -o page.html",
    ):
        done = run_atmc(line.replace("out", str(tmp_path / "out")).replace("page", str(tmp_path / "page")), workspace,
                        environment)  # fmt: skip
        assert done.code == 0, f"{line}\n{done.err}"
