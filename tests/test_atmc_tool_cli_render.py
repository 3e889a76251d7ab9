import re
from pathlib import Path

import pytest
from conftest import on_terminal
from hypothesis import given
from hypothesis import strategies as st

from atmc_tool.cli.render import _steps, show_table
from atmc_tool.training import Event


@given(st.integers(1, 500), st.integers(500, 1000), st.floats(0.01, 1e4), st.none() | st.floats(0.01, 1e4))
def test_steps_in_all_are_between_those_done_and_those_planned(
    step: int, steps: int, seconds: float, limit: float | None
) -> None:
    total = _steps(Event("step", step, steps, 1, 1, seconds, {}), limit)
    assert step <= total <= steps
    assert limit is not None or total == steps


def test_a_table_shows_cells_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    show_table("T", ["name", "value"], [["[red]x[/red]", 1234567], ["[0, 1]", 0.123456], ["none", None], ["b", True]])
    shown = capsys.readouterr().out
    for cell in ("[red]x[/red]", "1,234,567", "[0, 1]", "0.1235", "–", "yes"):
        assert cell in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize(("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_a_terminal_gets_a_bar_with_the_time_left(environment: dict[str, str], coloured: bool, tmp_path: Path) -> None:
    short = "--epochs 2 --set attack.steps=1 --set evaluation.n=20 --set evaluation.steps=1"
    shown = on_terminal(f"train --data digits --arch digits-cnn --eps 0.1 {short}", tmp_path, **environment)
    assert bool(re.search(r"\x1b\[[0-9;]*3[0-9]", shown)) == coloured
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
    assert re.search(r"train, epoch 2/2 .*20/20.* ETA .*robust", plain)
    assert "Traceback" not in plain
