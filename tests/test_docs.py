"""The documentation against the code: configuration keys, checks, exit codes, links, commands and their options."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from conftest import ROOT, Cli
from pydantic import BaseModel

from atmc_tool import errors
from atmc_tool.cli import COMMANDS, group
from atmc_tool.config import Config, build_config
from atmc_tool.models import resolve_architecture
from atmc_tool.settings import read_recipe, recipes
from evaluators.gate import CHECKS
from evaluators.policy import Policy, parse_policy

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "examples" / "README.md"])
CONFIGURATION, VERIFY, README = (ROOT / name for name in ("docs/configuration.md", "docs/verify.md", "README.md"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def defaults(model: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key → default as plain JSON, for every setting."""
    plain = model.model_dump(mode="json")
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from defaults(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", plain[name]


def rows(page: Path, head: str) -> list[list[str]]:
    """The cells of all rows of the tables whose first column is called `head`."""
    found, inside = [], False
    for line in page.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        inside = bool(cells) and (inside or cells[0] == head)
        if inside and cells[0] != head and not set(cells[0]) <= {"-"}:
            found.append(cells)
    return found


def code(cell: str) -> str:
    """What stands in the backquotes that the whole cell is."""
    assert cell.startswith("`"), cell
    assert cell.endswith("`"), cell
    return cell[1:-1]


def blocks(page: Path, language: str) -> list[str]:
    return [content for name, content in FENCE.findall(page.read_text()) if name == language]


def command_lines(page: Path) -> list[list[str]]:
    """The arguments of every `atmc-tool …` in a shell block, and of every one between backquotes."""
    text = page.read_text()
    shell = "\n".join(content for name, content in FENCE.findall(text) if name in ("sh", "console"))
    joined = re.sub(r"\\\n\s*", "", shell).splitlines()
    lines = [re.split(r"\s+(?:#|\|\|)", line)[0].removeprefix("$ ") for line in joined]
    lines += re.findall(r"`(atmc-tool [^`]+)`", FENCE.sub("", text))
    return [shlex.split(line)[1:] for line in lines if line.startswith("atmc-tool ")]


def test_every_setting_is_documented_with_its_default() -> None:
    documented = {code(key): yaml.safe_load(code(default)) for key, default, _ in rows(CONFIGURATION, "key")}
    expected = dict(defaults(Config())) | {f"policy.{name}": value for name, value in defaults(Policy())}
    assert documented == expected


@pytest.mark.parametrize("name", recipes())
def test_every_preset_is_valid_and_names_a_network(name: str) -> None:
    config = build_config(read_recipe(name))
    if name != "published":
        assert config.model.arch is not None
        resolve_architecture(config.model.arch)


def test_every_preset_is_documented() -> None:
    assert sorted(code(name) for name, _ in rows(CONFIGURATION, "preset")) == recipes()


def test_the_configuration_shown_is_valid() -> None:
    shown = blocks(CONFIGURATION, "yaml")
    assert shown
    for block in shown:
        parse_policy(build_config(yaml.safe_load(block)).policy)


def test_every_check_of_verify_is_documented() -> None:
    makers = (ROOT / "atmc_tool" / "cli" / f"{name}.py" for name in ("origin", "signature"))
    sources = [*(ROOT / "evaluators").glob("*.py"), *makers]
    made = re.compile(r'\b(?:Check|at_least|drop|small_enough|no_worse)\(\s*"([a-z-]+)"')
    names = {name for source in sources for name in made.findall(source.read_text())}
    assert sorted(names) == sorted(CHECKS)
    assert sorted(code(row[0]) for row in rows(VERIFY, "check")) == sorted(CHECKS)


def test_the_policies_shown_are_valid() -> None:
    shown = [yaml.safe_load(block) for block in blocks(VERIFY, "yaml")]
    shown = [block for block in shown if isinstance(block, dict)]
    shown.append(yaml.safe_load((ROOT / "examples" / "policy.yaml").read_text()))
    assert len(shown) == 2
    for settings in shown:
        assert parse_policy(settings).min_robust == 0.55


def test_every_exit_code_is_documented() -> None:
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    codes = {error.exit_code for error in classes if issubclass(error, errors.AtmcError)} | {0}
    assert {int(row[0]) for row in rows(README, "code")} == codes


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text())):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.is_relative_to(ROOT), target
        assert linked.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles], target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_exist(page: Path) -> None:
    for arguments in command_lines(page):
        command: click.Command = group
        if not arguments[0].startswith("-"):
            assert arguments[0] in COMMANDS, arguments
            found = group.get_command(click.Context(group), arguments[0])
            assert found is not None
            command = found
        known = {"--help", *(flag for parameter in command.params for flag in parameter.opts)}
        flags = (argument for argument in arguments[1:] if argument.startswith(("-", "[-")) and argument != "-")
        options = {flag.strip("[]") for flag in flags}
        assert options <= known, arguments


def test_commands_of_the_readme_have_an_example(cli: Cli, tmp_path: Path) -> None:
    listed = {code(row[0]).removeprefix("atmc-tool ") for row in rows(README, "command")}
    assert listed == set(COMMANDS)
    for name in listed:
        assert f"Example: atmc-tool {name}" in cli(f"{name} --help", tmp_path).out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(), re.MULTILINE)) <= targets
