"""HTML pages from the templates in this folder; what is put in is escaped."""

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from atmc_tool import __version__
from evaluators.report.palette import DARK, LIGHT


def render(template: str, **facts: Any) -> bytes:
    """The page in UTF-8. It needs no network, no script and no other file; the same facts give the same bytes."""
    page = _environment().get_template(template).render(version=__version__, light=LIGHT, dark=DARK, **facts)
    return page.encode(errors="replace")  # names of files may hold what is no Unicode


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("evaluators.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
