"""How trajectories lie in a model's input: one behind the other without padding, behind one copy of their prompt.

Three layouts, equal in what they compute:
    shared_prompt   one row of T tokens; the responses of a group stand behind one copy of their prompt
    packed          one row of T tokens; every trajectory with a prompt of its own
    padded          a row per trajectory, zeros on the right: for models whose attention is not ours to replace
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from rlsys.models.kernels.segments import Segments, Stretch, segments_of
from rlsys.models.padding import pad, split_microbatches

LAYOUTS = ("shared_prompt", "packed", "padded")


@dataclass(frozen=True)
class TokenRow:
    """One trajectory as a model sees it. Rows of one `group` begin with the same prompt."""

    token_ids: np.ndarray  # [L] int
    loss_mask: np.ndarray  # [L] bool: tokens that are asked for; never the first
    group: int = 0

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens before the first one asked for."""
        return int(self.loss_mask.argmax()) if self.loss_mask.any() else len(self.loss_mask)


@dataclass(frozen=True)
class TokenBatch:
    """Trajectories laid out for a forward. n tokens are asked for; what is said of them stands in [B, T] by trajectory.

    A packed input is [1, total] with `segments`, a padded one [B, T] with an attention mask.
    """

    input_ids: torch.Tensor  # int64
    position_ids: torch.Tensor  # int64, restarted behind every prompt
    attention_mask: torch.Tensor | None  # [B, T] int64; None where segments say who sees whom
    segments: Segments | None
    loss_mask: torch.Tensor  # [B, T] bool
    targets: torch.Tensor  # [n] int64, the tokens asked for
    prefixes: torch.Tensor  # [n] int64: where in the flattened input the state before each of them stands
    rows: torch.Tensor  # [n] int64
    columns: torch.Tensor  # [n] int64

    def to(self, device: torch.device) -> TokenBatch:
        """The same batch on `device`."""
        moved: dict[str, Any] = {
            field.name: value.to(device)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), torch.Tensor | Segments)
        }
        return replace(self, **moved)

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """[n] to [B, T], 0 where no token is asked for."""
        return values.new_zeros(self.loss_mask.shape).index_put((self.rows, self.columns), values)


def token_batch(rows: Sequence[TokenRow], layout: str) -> TokenBatch:
    """Lay out `rows`, whose order is the order of the batch's rows."""
    loss_mask = pad([row.loss_mask for row in rows], torch.bool)
    where = loss_mask.nonzero(as_tuple=True)
    if layout == "padded":
        input_ids = pad([row.token_ids for row in rows], torch.int64)
        mask = pad([np.ones(len(row.token_ids), dtype=np.int64) for row in rows], torch.int64)
        positions = torch.arange(input_ids.shape[1]).expand_as(input_ids)
        prefixes = where[0] * input_ids.shape[1] + where[1] - 1
        return TokenBatch(input_ids, positions, mask, None, loss_mask, input_ids[where], prefixes, *where)
    return _packed(rows, loss_mask, where, share=layout == "shared_prompt")


def microbatches(rows: Sequence[TokenRow], max_tokens: int, layout: str) -> list[list[int]]:
    """Indices of the rows of each forward, of at most `max_tokens` tokens of input, a single longer row alone.

    Packed: largest first into the first microbatch with room. Responses of a group stay behind one prompt as long as
    they fit.
    """
    if layout == "padded":
        return split_microbatches([len(row.token_ids) for row in rows], max_tokens)
    parts = units(rows, max_tokens, share=layout == "shared_prompt")
    filled: list[list[int]] = []
    room: list[int] = []
    for part in sorted(parts, key=lambda part: (-part.num_tokens, part.rows[0])):
        place = next((i for i, free in enumerate(room) if free >= part.num_tokens), len(filled))
        if place == len(filled):
            filled.append([])
            room.append(max_tokens)
        filled[place] += part.rows
        room[place] -= part.num_tokens
    return filled


@dataclass(frozen=True)
class Unit:
    """Rows that are laid out together, and how many tokens of input that takes."""

    rows: list[int]
    num_tokens: int


def units(rows: Sequence[TokenRow], max_tokens: int, *, share: bool) -> list[Unit]:
    """Rows that share a prompt, as many as fit into `max_tokens` together; alone when they share none."""
    found: list[Unit] = []
    open_units: dict[int, int] = {}
    for index, row in enumerate(rows):
        size, prompt = len(row.token_ids), row.num_prompt_tokens
        place = open_units.get(row.group) if share else None
        if place is not None:
            unit = found[place]
            behind = size - prompt
            if unit.num_tokens + behind <= max_tokens and _same_prompt(rows[unit.rows[0]], row):
                found[place] = Unit([*unit.rows, index], unit.num_tokens + behind)
                continue
        open_units[row.group] = len(found)
        found.append(Unit([index], size))
    return found


def _same_prompt(first: TokenRow, second: TokenRow) -> bool:
    size = first.num_prompt_tokens
    if size != second.num_prompt_tokens or size in (len(first.token_ids), len(second.token_ids)):
        return False
    return bool(np.array_equal(first.token_ids[:size], second.token_ids[:size]))


def _packed(rows: Sequence[TokenRow], loss_mask: torch.Tensor, where: Any, *, share: bool) -> TokenBatch:
    """One row of input. A shared prompt's last state predicts the first token of every response behind it."""
    ids: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    stretches: list[Stretch] = []
    place_of: list[np.ndarray] = [np.zeros(0, dtype=np.int64)] * len(rows)
    total = 0
    for unit in units(rows, np.iinfo(np.int64).max, share=share):
        root: int | None = None
        shared = rows[unit.rows[0]].num_prompt_tokens if len(unit.rows) > 1 else 0
        before = np.zeros(0, dtype=np.int64)
        if shared:
            root, before = len(stretches), np.arange(total, total + shared)
            ids.append(rows[unit.rows[0]].token_ids[:shared])
            positions.append(np.arange(shared))
            stretches.append(Stretch(total, total + shared, None))
            total += shared
        for index in unit.rows:
            own = rows[index].token_ids[shared:]
            end = total + len(own)
            ids.append(own)
            positions.append(np.arange(shared, shared + len(own)))
            stretches.append(Stretch(total, end, root))
            place_of[index] = np.concatenate([before, np.arange(total, end)])
            total = end
    asked = [places[:-1][row.loss_mask[1:]] for places, row in zip(place_of, rows, strict=True)]
    targets = [row.token_ids[row.loss_mask] for row in rows]
    return TokenBatch(
        input_ids=_flat(ids)[None],
        position_ids=_flat(positions)[None],
        attention_mask=None,
        segments=segments_of(stretches, total),
        loss_mask=loss_mask,
        targets=_flat(targets),
        prefixes=_flat(asked),
        rows=where[0],
        columns=where[1],
    )


def _flat(arrays: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([np.asarray(array, dtype=np.int64) for array in arrays]))
