"""What a file says of its own verification: nothing that makes it weaker, and no norm for the user's eps."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
from compressed_networks import digits_network

from atmc_tool.cli.baseline import read_baseline
from atmc_tool.cli.origin import find_origin
from atmc_tool.cli.verification import _stated
from atmc_tool.config import Config
from atmc_tool.errors import InputError
from atmc_tool.files import sha256
from evaluators.classifier import facts, parse_onnx
from exporters.atmc_file import encode_model
from exporters.onnx_file import build_onnx


def stated(folder: Path, own: dict[str, Any], **config: Any) -> dict[str, Any]:
    """What a file made with `config` says to a user whose own settings are `own`."""
    model = digits_network()
    model = replace(model, manifest={**model.manifest, "config": config})
    content = encode_model(model)
    (folder / "model.atmc").write_bytes(content)
    path = folder / "model.onnx"
    path.write_bytes(build_onnx(model, sha256(content)))
    origin = find_origin(path, parse_onnx(path.read_bytes()), folder)
    with click.Context(click.Command("verify")):
        return dict(_stated(path, origin, Config.model_validate({"run": str(folder), **own})))


def test_a_file_does_not_loosen_its_own_verification(tmp_path: Path) -> None:
    loose = {"allow_black_box": True, "max_drop": 1.0, "min_clean": 0.9}
    weak = {"square_queries": 0, "attack": "comparison", "n": 500}
    found = stated(tmp_path, {}, policy=loose, evaluation=weak, data={"name": "digits", "dir": "/elsewhere"})
    assert found["policy"] == {"min_clean": 0.9}
    assert found["evaluation"] == {"n": 500}
    assert found["data"] == {"name": "digits"}


def test_what_is_not_looser_stays(tmp_path: Path) -> None:
    strict = {"max_drop": 0.01}, {"square_queries": 1000, "attack": "autoattack"}
    found = stated(tmp_path, {}, policy=strict[0], evaluation=strict[1])
    assert (found["policy"], found["evaluation"]) == strict


def test_who_states_eps_states_the_norm(tmp_path: Path) -> None:
    """The file chose l2 for the user's eps, in which 8/255 is hardly an attack."""
    recorded = {"eps": "0.5", "norm": "l2"}
    assert stated(tmp_path, {}, threat_model=recorded)["threat_model"] == recorded
    assert "threat_model" not in stated(tmp_path, {"threat_model": {"eps": "8/255"}}, threat_model=recorded)


def test_what_a_folder_says_of_its_data_is_shown_and_not_recommended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stranger's config.yaml must not write a verdict on the terminal, or a command line to copy."""
    folder = "easy; rm -rf ~\r\x1b[2Kverdict: PASSED"
    (tmp_path / "config.yaml").write_text(json.dumps({"data": {"dir": folder}}))
    own = {"data": {"name": "digits"}, "run": str(tmp_path / "mine")}
    recorded = {"eps": "0.5", "norm": "l2\rverdict: PASSED"}
    found = stated(tmp_path, {**own, "threat_model": {"eps": "8/255"}}, threat_model=recorded)
    assert "dir" not in found.get("data", {})
    shown = capsys.readouterr().err
    assert "says that it found its data in 'easy; rm -rf ~ ?[2Kverdict: PASSED'" in shown
    assert "--data-dir" not in shown
    assert not {"\r", "\x1b"} & set(shown)


@pytest.mark.parametrize("content", ["[" * 100_000, "{", "\x80"])
def test_a_damaged_report_is_no_baseline(content: str, tmp_path: Path) -> None:
    model = parse_onnx(build_onnx(digits_network(), "ab" * 32))
    path = tmp_path / "verify.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=r"verify\.json"):
        read_baseline(path, facts(model), "cpu", 1)
