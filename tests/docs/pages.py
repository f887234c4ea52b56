"""The pages of the documentation, taken apart: fenced blocks, links, headings and code spans."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]
GENERATED = ("docs/configuration.md",)  # its own command and test keep it current

FENCE = re.compile(r"^```(\w*)[ \t]*([^\n]*)\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
CODE_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")
RULE = re.compile(r"\|(?: *:?-+:? *\|)+ *")  # between a table's header and its rows
HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)

# Why a block with this word behind its language is not run with the others. docs/development.md has the same table.
NOT_RUN = {
    "long": "trains or samples for a minute or more: run with -m long, each training cut to two steps",
    "gpu": "needs a GPU with CUDA: its configuration is checked, and the first run of README.md is repeated on the CPU",
    "network": "downloads a model or a data set from the Hugging Face Hub: its configuration is checked",
    "cluster": "needs a running Ray cluster: tests/cluster runs launch/ray_job.sh against one",
    "service": "runs until it is interrupted: tests/unit/commands/serve/test_serve.py starts the same service",
    "install": "installs software",
    "suite": "runs the tests themselves",
    "benchmark": "measures for minutes to hours on a machine that does nothing else: the module must exist",
    "form": "shown for its form, with names that stand for yours: its configuration is checked",
    "fragment": "shows a part of a file or of an output",
}
FAILS = "fails"  # a block that ends with an error, on purpose
OUTPUT = "output"  # a text block: every line of it is printed by the block before it; `...` stands for any lines


@dataclass(frozen=True)
class Block:
    """One fenced block. `words` are what stands behind the language, such as `long` or `file=my_rewards.py`."""

    page: str
    line: int
    language: str
    words: tuple[str, ...]
    text: str

    @property
    def where(self) -> str:
        """File and line, for messages."""
        return f"{self.page}, line {self.line}"

    @property
    def file(self) -> str | None:
        """The name under which the block's text is written before it is used; None for a block that is no file."""
        return next((word.removeprefix("file=") for word in self.words if word.startswith("file=")), None)

    @property
    def marker(self) -> str | None:
        """Why the block is not run with the others; None for one that is."""
        return next((word for word in self.words if word in NOT_RUN), None)

    def commands(self) -> Iterator[list[str]]:
        """The words of each command in a bash block; a backslash at the end of a line continues it."""
        for line in self.text.replace("\\\n", " ").splitlines():
            for part in re.split(r" && ", line):
                words = shlex.split(part, comments=True)
                if words:
                    yield words


@dataclass(frozen=True)
class Page:
    """One Markdown file, by its path from the root."""

    name: str

    @cached_property
    def text(self) -> str:
        """The whole file."""
        return (ROOT / self.name).read_text(encoding="utf-8")

    @cached_property
    def prose(self) -> str:
        """The file without its fenced blocks."""
        return FENCE.sub("", self.text)

    @cached_property
    def blocks(self) -> list[Block]:
        """The fenced blocks, in order."""
        return [
            Block(self.name, self.text.count("\n", 0, match.start()) + 1, match[1], tuple(match[2].split()), match[3])
            for match in FENCE.finditer(self.text)
        ]

    @property
    def code_spans(self) -> list[str]:
        """What stands between single backquotes."""
        return CODE_SPAN.findall(self.prose)

    @property
    def tables(self) -> list[list[list[str]]]:
        """Every table as its rows of cells, the header first; a `|` between backquotes divides no cells."""
        found: list[list[list[str]]] = []
        is_inside = False
        for line in self.prose.splitlines():
            if not line.startswith("|"):
                is_inside = False
                continue
            if not is_inside:
                found.append([])
            is_inside = True
            if not RULE.fullmatch(line):
                found[-1].append(_cells(line))
        return found

    @property
    def links(self) -> list[str]:
        """Targets of links."""
        return LINK.findall(CODE_SPAN.sub("", self.prose))

    @property
    def anchors(self) -> set[str]:
        """What a link's part behind `#` may be, as GitHub makes it from headings."""
        return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in HEADING.findall(self.prose)}


def _cells(row: str) -> list[str]:
    parts = re.split(r"(`[^`]*`)", row.strip())  # code spans at odd places
    text = "".join(part if index % 2 == 0 else part.replace("|", "\0") for index, part in enumerate(parts))
    return [cell.strip().replace("\0", "|") for cell in text.strip("|").split("|")]


def pages() -> list[Page]:
    """README, CONTRIBUTING, docs/ and the results of the benchmarks."""
    found = ["README.md", "CONTRIBUTING.md", "benchmarks/results/README.md"]
    found += sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
    return [Page(name) for name in found]


def written_pages() -> list[Page]:
    """Those that people write."""
    return [page for page in pages() if page.name not in GENERATED]
