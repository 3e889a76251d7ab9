"""`atmc-tool selftest`: prove on a user's own artefact that the gate fails what it has to fail. Needs no torch."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from atmc_tool.cli.options import EPS, PATH, as_json, config_sources, data, run_folder, setting, verbosity
from atmc_tool.errors import AtmcError, GateFailedError

if TYPE_CHECKING:
    from atmc_tool.cli.planting import Outcome


@click.command("selftest", epilog="Example: atmc-tool selftest")
@click.argument("artefact", metavar="[RUN|model.onnx]", type=PATH, required=False)
@data
@setting("threat_model.eps", "--eps", type=EPS, help="Radius of the ball; default: as compressed.")
@setting("evaluation.steps", "--steps", type=click.IntRange(1), help="Steps of PGD; default 20.")
@setting("evaluation.restarts", "--restarts", type=click.IntRange(1), help="Starts of PGD; default 3.")
@setting("evaluation.n", "-n", type=click.IntRange(1), help="Test images; default 1000.")
@click.option("--provider", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@run_folder
@config_sources
@as_json
@verbosity
def command(artefact: Path | None, provider: str, as_json: bool) -> None:
    """Plant faults into copies of the exported file, and verify that the gate fails each for the right reason.

    Verifies the honest file first, which must pass, then one copy for each fault: gradients that are masked, noise, a
    softmax, a second normalisation, other weights, a model.atmc that was exchanged or changed. Takes as long as so many
    runs of verify. Exits with 0 where all are caught, with 5 where the honest file fails, and with 1 where a fault is
    missed. Changes nothing.
    """
    from atmc_tool.cli.planting import planted
    from atmc_tool.cli.render import show_json, show_line, show_table
    from atmc_tool.cli.run_folder import ONNX, locate
    from atmc_tool.cli.settings import resolve

    honest, outcomes = planted(locate(artefact, resolve().run, ONNX), provider, resolve)
    missed = [outcome for outcome in outcomes if outcome.caught is False]
    if as_json:
        show_json(
            {
                "passed": honest.passed and not missed and any(o.caught for o in outcomes),
                "honest": honest.to_json(),
                "faults": [asdict(outcome) for outcome in outcomes],
            }
        )
    else:
        rows = [[o.name, o.what, _words(o), ", ".join(o.right) or "–", o.reason] for o in outcomes]
        show_table("Planted faults", ["fault", "what was done", "gate", "by", "reason"], rows, figures=False)
        planted_faults = [outcome for outcome in outcomes if outcome.caught is not None]
        done = len(planted_faults) - len(missed)
        words = "passes" if honest.passed else "FAILS"
        left = f", {len(outcomes) - len(planted_faults)} not planted" if len(planted_faults) < len(outcomes) else ""
        show_line(f"selftest: the honest file {words}; {done} of {len(planted_faults)} faults caught{left}", bold=True)
    if not honest.passed:
        names = ", ".join(check.name for check in honest.failed)
        raise GateFailedError(f"the honest file does not pass: {names}", hint="see what atmc-tool verify says of it")
    if not any(outcome.caught for outcome in outcomes):
        raise AtmcError("no fault was caught", expected="at least one that can be planted into this file")
    if missed:
        names = ", ".join(outcome.name for outcome in missed)
        raise AtmcError(f"the gate did not catch {names}", hint="do not rely on its verdict on this network")


def _words(outcome: "Outcome") -> str:
    return {None: "not planted", True: "caught", False: "MISSED"}[outcome.caught]
