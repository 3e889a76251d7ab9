"""The command line: one thin file per command, loaded when it is asked for.

Nothing here or at the top of a command's file imports torch, onnxruntime or even numpy, so that `--help` is quick.
"""

import difflib
import importlib
import os
import sys
import time
import traceback
from collections.abc import Sequence

import click

from atmc_tool import __version__
from atmc_tool.cli.launch import is_first
from atmc_tool.errors import AtmcError, MissingEnvironmentError

COMMANDS = (
    *("train", "compress", "export", "verify", "bench", "unpack", "compare", "search", "inspect", "diff", "watch"),
    *("report", "selftest", "doctor", "quickstart"),
)
INTERRUPTED = 130


class LazyGroup(click.Group):
    """The group of `COMMANDS`: command NAME is the object `command` of module atmc_tool.cli.NAME."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """The commands in the order in which a user needs them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, its module imported now."""
        if cmd_name not in COMMANDS:
            near = difflib.get_close_matches(cmd_name, COMMANDS, n=1)
            ctx.fail(f"no command {cmd_name!r}" + (f", did you mean {near[0]}?" if near else ""))
        command: click.Command = importlib.import_module(f"atmc_tool.cli.{cmd_name}").command
        return command


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="The main job: atmc-tool compress model.pt, then atmc-tool export --onnx, then atmc-tool verify. "
    "Exit codes: 0 ok, 1 failure, 2 usage, 3 environment, 4 bad input, 5 gate failed, 6 budget infeasible, "
    "130 interrupted with the state saved. Sends nothing anywhere.",
)
@click.version_option(__version__, prog_name="atmc-tool")
def group() -> None:
    """Compress image classifiers that must stay robust; verify the exported file itself."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit; every error is one line on stderr and an exit code."""
    # OpenMP threads that spin while they wait make training on a busy machine 40 times slower; read at torch's import
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        sys.exit(_run(list(sys.argv[1:] if arguments is None else arguments)))
    except BrokenPipeError:
        # The reader of our output left (`| head`). Python would complain again as it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _run(arguments: list[str]) -> int:
    try:
        code = group.main(arguments, prog_name="atmc-tool", standalone_mode=False, obj=time.monotonic())
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return error.exit_code
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "atmc-tool"
        return _fail(f"{error.format_message().rstrip('.?')}. Hint: {path} --help", error.exit_code)
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    except click.Abort:
        return _fail("interrupted", INTERRUPTED)
    except AtmcError as error:
        return _fail(str(error), error.exit_code, _wants_traceback(arguments))
    except ModuleNotFoundError as error:
        message = f"the package {error.name} is not installed. Hint: atmc-tool doctor shows what is missing"
        return _fail(message, MissingEnvironmentError.exit_code, _wants_traceback(arguments), own=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        return _fail(str(error), 1, _wants_traceback(arguments), own=True)
    except Exception as error:
        hint = "" if _wants_traceback(arguments) else ". Hint: ATMC_DEBUG=1 shows the traceback; please report it"
        return _fail(f"internal: {type(error).__name__}: {error}{hint}", 1, _wants_traceback(arguments), own=True)
    return code if isinstance(code, int) else 0


def _fail(message: str, code: int, with_traceback: bool = False, *, own: bool = False) -> int:
    """Say what failed. Of several processes of one run only the first does, but for what is an `own` error of one."""
    if not (own or is_first()):
        return code
    if with_traceback:
        traceback.print_exc()
    click.echo(f"error: {' '.join(message.split())}", err=True)
    return code


def _wants_traceback(arguments: Sequence[str]) -> bool:
    return bool(os.environ.get("ATMC_DEBUG")) or not {"-v", "--verbose"}.isdisjoint(arguments)
