"""Turns formulas of the manual's pages into MathML as the site is built: $$...$$, and $`...`$ within a line."""

import re
from typing import Any

from latex2mathml.converter import convert

FENCE = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Returns a page with its formulas converted, those in blocks of code left alone."""
    parts = FENCE.split(markdown)
    return "".join(part if part.startswith("```") else with_formulas(part) for part in parts)


def with_formulas(text: str) -> str:
    """Converts the formulas of a text without blocks of code."""
    text = re.sub(r"\$\$(.+?)\$\$", lambda found: convert(found[1].strip(), display="block"), text, flags=re.DOTALL)
    return re.sub(r"\$`(.+?)`\$", lambda found: convert(found[1]), text)
