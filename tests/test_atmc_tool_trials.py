"""Trials in processes of this machine and on a Ray cluster of this machine, both real."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trial_work as work
from conftest import ROOT

from atmc_tool.trials import Failure, Local, Pool, opened_pool, run_trials


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


def until(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("pool", [Local(), Local(2)], ids=str)
def test_every_trial_has_its_result_once(pool: Pool) -> None:
    found = dict(run_trials(partial(work.scaled, 10), range(6), pool))
    assert list(found) == sorted(found) or pool == Local(2)
    failed = {index: found.pop(index) for index in (3, 4)}
    assert found == {0: 0, 1: 10, 2: 20, 5: 50}
    assert isinstance(failed[3], Failure)
    assert isinstance(failed[4], Failure)
    assert (failed[3].text, failed[3].expected) == ("three is damaged", True)
    assert (failed[4].text, failed[4].expected) == ("ZeroDivisionError: four", False)
    assert 'raise ZeroDivisionError("four")' in failed[4].details


def test_one_worker_is_this_process_and_several_are_others() -> None:
    assert {pair[1] for _, pair in run_trials(work.square, [1, 2], Local())} == {os.getpid()}
    with opened_pool(work.square, Local(2)) as run:
        first = [pair[1] for _, pair in run(range(4))]
        second = [pair[1] for _, pair in run(range(4))]
        assert set(first) == set(second)
        assert len(set(first)) == 2
        assert os.getpid() not in first
    assert not any(map(alive, first))


def test_no_trials_start_no_process() -> None:
    assert list(run_trials(work.square, [], Local(2))) == []


def test_each_worker_has_its_share_of_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = len(os.sched_getaffinity(0))
    assert dict(run_trials(work.threads, [0], Local(2))) == {0: str(max(1, cores // 2))}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert dict(run_trials(work.threads, [0], Local(2))) == {0: "3"}


def test_a_process_that_ends_is_replaced_once(tmp_path: Path) -> None:
    said: list[str] = []
    found = dict(run_trials(partial(work.fatal, str(tmp_path)), range(5), Local(2), said.append))
    failed = found.pop(2)
    assert found == {0: 0, 1: 1, 3: 3, 4: 4}
    assert isinstance(failed, Failure)
    assert failed.text.startswith("the process of trial 3 ended by SIGKILL")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0-0", "1-0", "1-1", "2-0", "2-1", "3-0", "4-0"]
    assert len(said) == 2


def test_a_result_that_can_not_be_sent_is_a_failure() -> None:
    found = dict(run_trials(work.unsendable, [0], Local(2)))
    assert isinstance(found[0], Failure)
    assert found[0].text.startswith("the result can't be sent: ")


def test_closing_leaves_no_process_and_interrupts_what_runs(tmp_path: Path) -> None:
    with opened_pool(partial(work.patient, str(tmp_path)), Local(2)) as run:
        results = run([0, 1, 2])
        assert next(results) == (0, 0)  # it waits for nothing
        until(lambda: len(list(tmp_path.glob("*-begun"))) == 3)
        results.close()  # type: ignore[attr-defined]  # it is a generator
        assert {path.name for path in tmp_path.glob("*-saved")} == {"1-saved", "2-saved"}
    assert not any(alive(int(path.read_text())) for path in tmp_path.glob("*-begun"))


@pytest.fixture
def running(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process of its own that runs `patient` trials 1 and 2 in two others, both begun; on Ray where that is asked."""
    pool = getattr(request, "param", "Local(2)")
    script = f"""if True:
        import trial_work as work
        from functools import partial
        from atmc_tool.errors import InterruptedRunError
        from atmc_tool.trials import Local, Ray, run_trials
        if __name__ == "__main__":
            try:
                list(run_trials(partial(work.patient, {str(tmp_path)!r}), [1, 2], {pool}, print))
            except InterruptedRunError as error:
                print(error)
    """
    (tmp_path / "script.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    with subprocess.Popen(
        [sys.executable, "script.py"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        until(lambda: len(list(tmp_path.glob("*-begun"))) == 2)
        yield process
        process.kill()


def test_interrupted_workers_save_and_leave(running: subprocess.Popen[str], tmp_path: Path) -> None:
    running.send_signal(signal.SIGINT)
    out, _ = running.communicate(timeout=30)
    assert out.splitlines() == [
        "waiting for the workers to save their state … press Ctrl-C again to stop at once",
        "interrupted. Hint: the state is saved; go on with --resume",
    ]
    assert len(list(tmp_path.glob("*-saved"))) == len(list(tmp_path.glob("*-begun"))) == 2
    assert not any(alive(int(path.read_text())) for path in tmp_path.glob("*-begun"))


def test_workers_end_with_a_first_process_that_is_killed(running: subprocess.Popen[str], tmp_path: Path) -> None:
    running.kill()
    running.communicate(timeout=30)
    workers = [int(path.read_text()) for path in tmp_path.glob("*-begun")]
    until(lambda: not any(map(alive, workers)))
    assert not list(tmp_path.glob("*-saved"))


@pytest.mark.xdist_group("pools")
@pytest.mark.parametrize("running", ["Ray()"], indirect=True)
def test_interrupted_tasks_on_ray_are_stopped(running: "subprocess.Popen[str]", tmp_path: Path) -> None:
    running.send_signal(signal.SIGINT)
    out, _ = running.communicate(timeout=60)
    assert out == "interrupted. Hint: what is finished is kept; go on with --resume\n"
    workers = [int(path.read_text()) for path in tmp_path.glob("*-begun")]
    until(lambda: not any(map(alive, workers)))
