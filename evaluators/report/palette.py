"""The colours of reports as CSS variables, each in a light and a dark scheme.

Contrast by WCAG 2 with every ground: at least 4.5 for text, 3 for lines. Lines differ in marker or dashes too.
"""

from collections.abc import Mapping
from types import MappingProxyType

LIGHT: Mapping[str, str] = MappingProxyType(
    {
        "page": "#ffffff",
        "card": "#f5f6f8",
        "text": "#1b1f24",
        "soft": "#57606a",
        "grid": "#c9cfd6",
        "line-1": "#0067a8",
        "line-2": "#b94700",
        "line-3": "#00795c",
        "line-4": "#a8217c",
        "line-5": "#7a6000",
        "line-6": "#6a3fb5",
        "line-7": "#c0182f",
        "line-8": "#4f5b66",
        "mark": "#8a2be2",
        "warn": "#fff4e5",
        "warn-edge": "#b94700",
        "pass": "#e6f4ec",
        "pass-edge": "#00795c",
        "fail": "#fdecee",
        "fail-edge": "#c0182f",
    }
)
DARK: Mapping[str, str] = MappingProxyType(
    {
        "page": "#14171b",
        "card": "#1e2329",
        "text": "#e6e9ed",
        "soft": "#a3adb8",
        "grid": "#47505a",
        "line-1": "#62b5ee",
        "line-2": "#f0a04b",
        "line-3": "#4cc9a0",
        "line-4": "#f28ac6",
        "line-5": "#d9c54a",
        "line-6": "#b79cff",
        "line-7": "#ff7a7a",
        "line-8": "#b4bec8",
        "mark": "#c89bff",
        "warn": "#33260f",
        "warn-edge": "#f0a04b",
        "pass": "#10291f",
        "pass-edge": "#4cc9a0",
        "fail": "#3a1a1d",
        "fail-edge": "#ff7a7a",
    }
)
