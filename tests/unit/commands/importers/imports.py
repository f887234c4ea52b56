"""What the tests of several dialects need: the recipes, and one call that translates one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlsys.commands.importers.choose import options_of
from rlsys.commands.importers.options import Dialect
from rlsys.commands.importers.recipe import RunSize
from rlsys.commands.importers.recipe_file import RecipeFile, read
from rlsys.commands.importers.translate import Translation, translate

RECIPES = Path(__file__).parent / "recipes"


def run(dialect: Dialect, tree: dict[str, Any] | str, rows: int | None = None, processes: int = 1) -> Translation:
    """Translate options, or the recipe of that name, with the dialect's default version."""
    source = read(RECIPES / tree) if isinstance(tree, str) else RecipeFile(tree)
    size = RunSize(num_processes=processes, num_rows=rows)
    return translate(options_of(source, dialect), dialect, dialect.default_version, size)
