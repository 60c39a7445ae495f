"""The blocks of the documentation's pages, and how what they print compares with what is printed."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["ID", "Output", "blocks", "on_one_line"]

#: A task id.
ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")

#: What differs from one run to the next, and how it looks whenever: moments, ids, seconds, and how many runs.
_VARIES = (
    r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:\.\d+)?[+-]\d\d:\d\d",
    ID.pattern,
    r"\d+\.\d{3} s",
    r"\d+ (?:missed|runs)",
)


def blocks(page: Path, language: str) -> list[str]:
    """Return the blocks of code of a page that are in a language, in their order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def on_one_line(text: str) -> str:
    """Return a text without its line breaks: the pages wrap what they print."""
    return " ".join(text.split())


class Output:
    """What a page prints. Moments, ids, seconds and numbers of runs may be others.

    :param text: the block of the page.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._whole, *self._lines = (_pattern(on_one_line(part)) for part in (text, *text.splitlines()))

    def found_in(self, text: str) -> str | None:
        """Return the output as it is in a text, None when it is not there."""
        found = self._whole.search(on_one_line(text))
        return found and found[0]

    def lines_in(self, text: str) -> bool:
        """Return True when each line of the output is there, in their order, with others between them."""
        at, text = 0, on_one_line(text)
        for line in self._lines:
            found = line.search(text, at)
            if found is None:
                return False
            at = found.end()
        return True


def _pattern(text: str) -> re.Pattern[str]:
    parts = re.split(f"({'|'.join(_VARIES)})", text)
    # re.split puts what varies at the odd places.
    return re.compile("".join(_shape(part) if i % 2 else re.escape(part) for i, part in enumerate(parts)))


def _shape(value: str) -> str:
    return next(shape for shape in _VARIES if re.fullmatch(shape, value))
