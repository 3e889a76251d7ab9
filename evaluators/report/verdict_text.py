"""Names and reasons from a report, which may come from hostile files, made safe for other formats."""

MARKED = "\\`*_{}[]<>|#~"


def printable(text: str) -> str:
    """`text` on one line, with ? for what can't be shown: control characters are not allowed in XML either."""
    return "".join(character if character.isprintable() else "?" for character in " ".join(text.split()))


def as_markdown(text: str) -> str:
    """`text` that Markdown shows as it is, in a cell of a table too."""
    safe = printable(text).replace("&", "&amp;")
    return "".join(f"&#{ord(character)};" if character in MARKED else character for character in safe)
