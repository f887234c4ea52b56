"""Recipes of other projects turned into ours: `rlsys import FILE`.

`reading` turns a file of theirs into options by name, a `Dialect` (one small file each: `trl`, `open_r1`, `axolotl`,
`easyr1`, `openrlhf`) says what becomes of each option, `translate` applies it and accounts for every one, `writing`
makes the file that `rlsys train experiment=FILE` runs, and `display` prints the lists.

What our options mean, and whether they fit together, belongs to `config` and `preflight`.
"""
