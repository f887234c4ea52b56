"""Recipes of other projects turned into ours: `rlsys import FILE`.

`recipe_file` turns a file of theirs into options by name, and `choose` finds out whose it is. A `Dialect` (in
`dialects`) says what becomes of each option; `translate` applies it and accounts for every one. `experiment_file` makes
the file that `rlsys train experiment=FILE` runs, and `summary` prints the lists.

What our options mean, and whether they fit together, belongs to `config` and `preflight`.
"""
