"""Options that several commands share, each defined once, and the values they take."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from atmc_tool.cli.launch import is_first
from atmc_tool.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])
_META = "atmc_tool"


class Checked(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.2
    """Text that `check` accepts; it stays as the user typed it."""

    def __init__(self, name: str, check: Callable[[str], object]) -> None:
        self.name = name
        self.check = check

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """`value` itself; click's usage error where `check` raises UsageError."""
        try:
            self.check(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)
        return str(value)


def _check_eps(text: str) -> None:
    from atmc_tool.threat_model import parse_eps

    parse_eps(text)


def _check_size(text: str) -> None:
    from atmc_tool.units import parse_size

    parse_size(text)


class Duration(click.ParamType):  # type: ignore[type-arg]
    """`30m` → seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds."""
        from atmc_tool.units import parse_duration

        try:
            return parse_duration(str(value))
        except UsageError as error:
            self.fail(str(error), param, ctx)


class Bytes(click.ParamType):  # type: ignore[type-arg]
    """`20KB` → bytes."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """A number of bytes."""
        from atmc_tool.units import parse_size

        try:
            number, relative = parse_size(str(value))
        except UsageError as error:
            self.fail(str(error), param, ctx)
        if relative or number < 1:
            self.fail(f"expected bytes such as 20KB, got {value!r}", param, ctx)
        return int(number)


EPS = Checked("eps", _check_eps)
SIZE = Checked("size", _check_size)
DURATION = Duration()
BYTES = Bytes()
PATH = click.Path(path_type=Path)


def setting(key: str, *flags: str, **attributes: Any) -> Callable[[F], F]:
    """An option that sets configuration key `key` (`compress.keep`); `settings.resolve` collects what was given."""

    def store(ctx: click.Context, _: click.Parameter, value: Any) -> None:
        if value is not None:
            given(ctx)[key] = value

    name = key.replace(".", "_")
    return click.option(*flags, name, callback=store, expose_value=False, **attributes)


def given(ctx: click.Context) -> dict[str, Any]:
    """Configuration key → value of the options given on the command line; `source.…` are those of `config_sources`."""
    settings: dict[str, Any] = ctx.meta.setdefault(f"{_META}.settings", {})
    return settings


def _join(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    def decorate(command: F) -> F:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def config_sources(command: F) -> F:
    """`-c`, `--preset`, `--set`: where the configuration comes from, beneath the options."""
    return _join(
        setting("source.file", "-c", "--config", type=PATH, help="Settings as YAML; default: atmc.yaml, if here."),
        setting(
            "source.preset",
            "--preset",
            metavar="NAME",
            help="A recipe of the package, such as mnist; a wrong name lists all.",
        ),
        setting(
            "source.assignments",
            "--set",
            multiple=True,
            metavar="KEY=VALUE",
            help="Any setting, such as compress.lr=0.1; repeatable.",
        ),
    )(command)


def network_and_data(command: F) -> F:
    """`--arch`, `--data`, `--data-dir`, `--eps`, `--norm`, `--seed`, `--device`."""
    return _join(
        setting("model.arch", "--arch", metavar="NAME", help="Built-in network, pkg.mod:callable or file.py:callable."),
        data,
        setting("threat_model.eps", "--eps", type=EPS, help="Radius of the ball of the norm: 8/255 or 0.1."),
        norm,
        setting("seed", "--seed", type=click.IntRange(0, 2**31 - 1), help="Seed of everything random; default 0."),
        setting("device", "--device", metavar="NAME", help="auto (default), cpu or cuda:0."),
    )(command)


def data(command: F) -> F:
    """`--data`, `--data-dir`."""
    return _join(
        setting(
            "data.name",
            "--data",
            metavar="DATA",
            help="digits, mnist, fashion-mnist, cifar10, cifar100, svhn, a folder, .zip, .npz or mod:f.",
        ),
        setting("data.dir", "--data-dir", type=PATH, help="Where data sets lie; else ATMC_DATA_DIR."),
    )(command)


def schedule(section: str) -> Callable[[F], F]:
    """`--objective`, `--epochs`, `--max-steps`, `--time-limit` of configuration section `section`."""
    return _join(
        setting(
            f"{section}.objective",
            "--objective",
            type=click.Choice(["natural", "mixed", "pgd-at", "trades", "mart", "free", "fgsm-rs", "n-fgsm"]),
            help="What is trained for; default mixed: half clean, half under PGD.",
        ),
        setting(f"{section}.epochs", "--epochs", type=click.IntRange(1), help="Passes over the training set."),
        setting(f"{section}.max_steps", "--max-steps", type=click.IntRange(1), help="Steps at most."),
        setting(f"{section}.time_limit", "--time-limit", type=DURATION, help="Time at most: 90s, 30m, 1.5h."),
    )


def new_or_old(command: F) -> F:
    """`--resume`, `--overwrite`: what to do where the output is already there."""
    return _join(
        click.option("--resume", is_flag=True, help="Go on from the last checkpoint of an interrupted run."),
        click.option("--overwrite", is_flag=True, help="Replace what an earlier run left there."),
    )(command)


def verbosity(command: F) -> F:
    """`-q`, `-v`; whoever shows progress asks `is_quiet` and `is_verbose`."""

    def store(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        ctx.meta[f"{_META}.{param.name}"] = value

    return _join(
        click.option("-q", "--quiet", is_flag=True, callback=store, expose_value=False, help="No progress on stderr."),
        click.option(
            "-v",
            "--verbose",
            is_flag=True,
            callback=store,
            expose_value=False,
            help="More on stderr: every step of a training, and the traceback of an error.",
        ),
    )(command)


def is_quiet() -> bool:
    """Whether `-q` was given to the running command; or another process of the same run is the one that talks."""
    return not is_first() or bool(click.get_current_context().meta.get(f"{_META}.quiet"))


@contextmanager
def no_command() -> Iterator[None]:
    """In a process that runs no command: as with `-q`, from now on."""
    with click.Context(click.Command(_META), obj=time.monotonic()) as context:
        context.meta[f"{_META}.quiet"] = True
        yield


def seconds_running() -> float:
    """Seconds since the command line was called."""
    started: float = click.get_current_context().obj
    return time.monotonic() - started


def is_verbose() -> bool:
    """Whether `-v` was given to the running command."""
    return bool(click.get_current_context().meta.get(f"{_META}.verbose"))


norm = setting(
    "threat_model.norm", "--norm", type=click.Choice(["linf", "l2"]), help="Norm of the perturbation; default linf."
)
run_folder = setting("run", "--run", type=PATH, help="The run folder; default: atmc-run, or what atmc.yaml says.")
as_json = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout instead of a table.")
