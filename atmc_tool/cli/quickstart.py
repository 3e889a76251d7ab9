"""`atmc-tool quickstart`."""

import click


@click.command("quickstart")
def command() -> None:
    """Not there yet."""
    raise NotImplementedError
