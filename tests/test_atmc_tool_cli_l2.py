"""From training to `verify` in l2, and what the table shows beside what was recorded in it."""

import json
import re
from pathlib import Path

from conftest import Cli

from atmc_tool.models.reading import read_model

SHORT = "--set attack.steps=1 --set evaluation.n=20 --set evaluation.steps=2 --set evaluation.restarts=1"
RECORDED = re.compile(r"│ under ([^│(]*?) *(?:\([^│]*)?│[^│]*│[^│]*│[^│]*│ +([\d.]+|–) +│ +([\d.]+|–) +│")


def recorded(table: str) -> dict[str, bool]:
    """Attack → whether recorded numbers stand beside it."""
    rows = RECORDED.findall(table.split("For comparison only")[0])
    assert all((compressed == "–") == (dense == "–") for _, compressed, dense in rows)
    assert rows[0][0] == "pgd-2 cross-entropy"
    return {name: compressed != "–" for name, compressed, _ in rows}


def test_l2_all_the_way(cli: Cli, tmp_path: Path) -> None:
    assert (
        cli(f"train --data digits --arch digits-cnn --norm l2 --eps 0.5 {SHORT} --max-steps 8 -q", tmp_path).code == 0
    )
    card = read_model(tmp_path / "model.pt").card
    assert card is not None
    assert (card.norm, card.eps, card.metrics["norm"]) == ("l2", "0.5", "l2")
    assert cli(f"compress model.pt {SHORT} --max-steps 4 -q", tmp_path).code == 0
    assert cli("export --onnx -q", tmp_path).code == 0

    (tmp_path / "atmc.yaml").write_text("evaluation: {square_queries: 5}\n")
    done = cli("verify --max-drop 0.1 -q", tmp_path)
    assert done.code in (0, 5), done.err
    others = dict.fromkeys(("pgd-2 margin", "apgd-t", "fab-t", "square"), False)
    assert recorded(done.out) == {"pgd-2 cross-entropy": True, **others}
    report = json.loads((tmp_path / "atmc-run" / "verify.json").read_text())
    assert report["threat_model"] == {"norm": "l2", "eps": "0.5", "box": [0, 1]}
    assert {attack["parameters"]["norm"] for attack in report["attacks"]} == {"l2"}
    checks = {check["name"]: check for check in report["verdict"]["checks"]}
    assert checks["robust-drop"]["status"] == "passed", checks["robust-drop"]
    assert checks["perturbations"]["status"] == "passed"
    assert 0.4 < checks["perturbations"]["evidence"]["pgd-2 cross-entropy"]["largest"] <= 0.5 + 1e-6
    assert report["comparison"] == []

    other = cli("verify --norm linf --eps 0.05 --attack comparison -q", tmp_path)
    assert not any(recorded(other.out).values())
    assert "For comparison only" in other.out
    page = (tmp_path / "atmc-run" / "verify.html").read_text()
    assert "<h2>For comparison only</h2>" in page
    assert "under mi-fgsm-10" in page
    assert not any(recorded(cli("verify --eps 0.4 -q", tmp_path).out).values())
