"""The layout of trajectories in a model's input: without padding, one copy of a prompt for all its responses.

Three layouts that compute the same:
    shared_prompt   one row of tokens; a group's responses follow one copy of their prompt
    packed          one row of tokens; every trajectory has a prompt of its own
    padded          one row per trajectory, zeros on the right; for models whose attention cannot be replaced

Example of two responses c d and e to the prompt a b:
    shared_prompt   a b c d e           positions 0 1 2 3 2, segments [a b] <- [c d], [a b] <- [e]
    packed          a b c d a b e       positions 0 1 2 3 0 1 2, segments [a b c d], [a b e]
    padded          a b c d / a b e 0
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from rlsys.models.kernels.segments import Segment, Segments, segments_of
from rlsys.models.padding import pad, split_microbatches

LAYOUTS = ("shared_prompt", "packed", "padded")
UNLIMITED = np.iinfo(np.int64).max


@dataclass(frozen=True)
class TokenRow:
    """One trajectory as input of a model. Rows of one `group` begin with the same prompt."""

    token_ids: np.ndarray  # [L] int
    loss_mask: np.ndarray  # [L] bool, the target tokens; never the first token, which has no prefix
    group: int = 0

    @property
    def num_prompt_tokens(self) -> int:
        """Number of tokens before the first target token; all of them when there is none."""
        return int(self.loss_mask.argmax()) if self.loss_mask.any() else len(self.loss_mask)


@dataclass(frozen=True)
class TokenBatch:
    """B trajectories laid out for one forward, with n target tokens in all.

    A packed input is [1, total] with `segments`, a padded one [B, T] with an attention mask. Results per target token
    are [n] and `spread` brings them to [B, T], one row per trajectory, whatever the layout of the input.
    """

    input_ids: torch.Tensor  # int64
    position_ids: torch.Tensor  # int64, continuing from the prompt in every response
    attention_mask: torch.Tensor | None  # [B, T] int64; None when `segments` decide which tokens see which
    segments: Segments | None
    loss_mask: torch.Tensor  # [B, T] bool
    targets: torch.Tensor  # [n] int64, the target tokens' ids
    prefixes: torch.Tensor  # [n] int64, the position in the flattened input of the token before each target
    rows: torch.Tensor  # [n] int64
    columns: torch.Tensor  # [n] int64

    def to(self, device: torch.device) -> TokenBatch:
        """Return the same batch on `device`."""
        moved: dict[str, Any] = {
            field.name: value.to(device)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), torch.Tensor | Segments)
        }
        return replace(self, **moved)

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """Bring values of target tokens [n] to [B, T], with 0 at all other tokens."""
        return values.new_zeros(self.loss_mask.shape).index_put((self.rows, self.columns), values)


def token_batch(rows: Sequence[TokenRow], layout: str) -> TokenBatch:
    """Lay out `rows`; their order is the order of the batch's rows."""
    loss_mask = pad([row.loss_mask for row in rows], torch.bool)
    where = loss_mask.nonzero(as_tuple=True)  # rows and columns of the n target tokens, in the order of rows
    if layout == "padded":
        input_ids = pad([row.token_ids for row in rows], torch.int64)
        mask = pad([np.ones(len(row.token_ids), dtype=np.int64) for row in rows], torch.int64)
        positions = torch.arange(input_ids.shape[1]).expand_as(input_ids)
        # Flattened [B, T]: the token before column c of row r is at r * T + c - 1.
        prefixes = where[0] * input_ids.shape[1] + where[1] - 1
        return TokenBatch(input_ids, positions, mask, None, loss_mask, input_ids[where], prefixes, *where)
    return _packed(rows, loss_mask, where, share=layout == "shared_prompt")


def microbatches(rows: Sequence[TokenRow], max_tokens: int, layout: str) -> list[list[int]]:
    """Divide rows over forwards of at most `max_tokens` tokens of input; return the rows' indices per forward.

    A single longer row gets a forward of its own. In packed layouts the largest units go first, each into the first
    microbatch with enough room (first-fit decreasing). Responses of a group stay with one copy of their prompt as long
    as they fit.
    """
    if layout == "padded":
        return split_microbatches([len(row.token_ids) for row in rows], max_tokens)
    parts = units(rows, max_tokens, share=layout == "shared_prompt")
    filled: list[list[int]] = []
    free: list[int] = []  # tokens left in each microbatch
    # Ties are ordered by the first row, so that the packing is the same in every run.
    for part in sorted(parts, key=lambda part: (-part.num_tokens, part.rows[0])):
        number = next((i for i, room in enumerate(free) if room >= part.num_tokens), len(filled))
        if number == len(filled):
            filled.append([])
            free.append(max_tokens)
        filled[number] += part.rows
        free[number] -= part.num_tokens
    return filled


@dataclass(frozen=True)
class Unit:
    """Rows that are laid out together, and the number of tokens of input that they take."""

    rows: list[int]
    num_tokens: int


def units(rows: Sequence[TokenRow], max_tokens: int, *, share: bool) -> list[Unit]:
    """Join rows that share a prompt, as many as fit into `max_tokens` together; other rows are units of their own."""
    found: list[Unit] = []
    open_units: dict[int, int] = {}  # group -> index of the unit that its next row may join
    for index, row in enumerate(rows):
        size, prompt = len(row.token_ids), row.num_prompt_tokens
        number = open_units.get(row.group) if share else None
        if number is not None:
            unit = found[number]
            response = size - prompt  # the prompt is already in the unit
            if unit.num_tokens + response <= max_tokens and _same_prompt(rows[unit.rows[0]], row):
                found[number] = Unit([*unit.rows, index], unit.num_tokens + response)
                continue
        # The new unit takes the place of one that is full or has another prompt: the group's next rows may join it.
        open_units[row.group] = len(found)
        found.append(Unit([index], size))
    return found


def _same_prompt(first: TokenRow, second: TokenRow) -> bool:
    # A row without a response would leave an empty segment behind the prompt.
    size = first.num_prompt_tokens
    if size != second.num_prompt_tokens or size in (len(first.token_ids), len(second.token_ids)):
        return False
    return bool(np.array_equal(first.token_ids[:size], second.token_ids[:size]))


def _packed(rows: Sequence[TokenRow], loss_mask: torch.Tensor, where: Any, *, share: bool) -> TokenBatch:
    """Lay out all rows one after another in a single row of input."""
    ids: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    segments: list[Segment] = []
    # For each trajectory, where its tokens are in the packed row, [L]. Trajectories with a shared prompt have the
    # prompt's indices in common, so the prompt's last state predicts the first token of every response.
    indices_of: list[np.ndarray] = [np.zeros(0, dtype=np.int64)] * len(rows)
    total = 0
    # Without a limit: `microbatches` has bounded the rows already. Where first-fit has put two parts of a group
    # together again, they share one copy of the prompt here.
    for unit in units(rows, UNLIMITED, share=share):
        prompt: int | None = None
        # A single row is one causal segment; a segment of its own for the prompt would change nothing.
        shared = rows[unit.rows[0]].num_prompt_tokens if len(unit.rows) > 1 else 0
        prompt_indices = np.arange(total, total + shared)
        if shared:
            prompt = len(segments)
            ids.append(rows[unit.rows[0]].token_ids[:shared])
            positions.append(np.arange(shared))
            segments.append(Segment(total, total + shared, None))
            total += shared
        for index in unit.rows:
            own = rows[index].token_ids[shared:]
            end = total + len(own)
            ids.append(own)
            positions.append(np.arange(shared, shared + len(own)))
            segments.append(Segment(total, end, prompt))
            indices_of[index] = np.concatenate([prompt_indices, np.arange(total, end)])
            total = end
    # The state before token t is at the index of token t - 1: drop the last index, and the mask's first entry.
    prefixes = [indices[:-1][row.loss_mask[1:]] for indices, row in zip(indices_of, rows, strict=True)]
    targets = [row.token_ids[row.loss_mask] for row in rows]
    return TokenBatch(
        input_ids=_flat(ids)[None],
        position_ids=_flat(positions)[None],
        attention_mask=None,
        segments=segments_of(segments, total),
        loss_mask=loss_mask,
        targets=_flat(targets),
        prefixes=_flat(prefixes),
        rows=where[0],
        columns=where[1],
    )


def _flat(arrays: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([np.asarray(array, dtype=np.int64) for array in arrays]))
