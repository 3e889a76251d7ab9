"""`atmc-tool inspect`."""

import click


@click.command("inspect")
def command() -> None:
    """Not there yet."""
    raise NotImplementedError
