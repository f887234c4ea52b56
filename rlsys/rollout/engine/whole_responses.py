"""Schedulers that hand out a response once, when it is finished, with the weights of each token.

vLLM's own schedulers give every token of every request to the front end as it is sampled. At small models that traffic
costs a tenth of the rollout, and nobody reads the tokens before the last one is there.

vLLM credits a token to the version that the weights have when it arrives at the front end. With whole responses that
would be the last version for every token, so the scheduler counts itself. Weights change only while generation is
paused, and a pause is complete only when the results of all steps are in, those scheduled ahead included. So everything
the scheduler receives between two resumptions was sampled under one set of weights: an epoch. The worker knows which
policy version an epoch had.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.request import Request

from rlsys.rollout.engine.shared_prompts import SharedPromptScheduler, blocks_of_all_tokens
from rlsys.rollout.trajectory import Response

DECODE = {"num_lookahead_tokens"}  # options of `allocate_slots` for a running request; others are of a prompt's
Part = tuple[int, EngineCoreOutput]  # the epoch of a step, and what the step gave to a request


class _WholeResponses:
    """Mixin that keeps the parts of a response until the last one, each with its epoch, and salts the prefix cache.

    A request's salt is the epoch in which its prefill began, so it finds no prefix that was computed under older
    weights, even if it was sent before an update and had to wait. While it holds a cache it keeps its salt.
    """

    requests: dict[str, Request]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._held: dict[str, list[Part]] = {}
        self._epoch = 0
        spare_decodes(self.kv_cache_manager)  # type: ignore[attr-defined]

    @property
    def salt(self) -> str:
        """The salt of requests that are added now."""
        return str(self._epoch)

    def set_pause_state(self, pause_state: PauseState) -> None:
        """Begin the next epoch when generation resumes."""
        if pause_state == PauseState.UNPAUSED and self.pause_state != PauseState.UNPAUSED:  # type: ignore[attr-defined]
            self._epoch += 1
            for request in self.requests.values():
                # It holds no cache: it still waits, or the pause has preempted it (rollout.inflight_kv=recompute).
                if request.num_computed_tokens == 0:
                    _give_salt(request, self.salt)
        super().set_pause_state(pause_state)  # type: ignore[misc]

    def update_from_output(self, *args: Any, **kwargs: Any) -> dict[int, EngineCoreOutputs]:
        """Return the responses that the step has finished, in place of vLLM's parts."""
        by_client: dict[int, EngineCoreOutputs] = super().update_from_output(*args, **kwargs)  # type: ignore[misc]
        for outputs in by_client.values():
            finished: Any = [whole for part in outputs.outputs if (whole := self._hold(part)) is not None]
            outputs.outputs = finished  # `Engine` reads them; vLLM's front ends, which would not, are not used
        if len(self._held) > len(self.requests):  # aborted requests never finish
            self._held = {name: parts for name, parts in self._held.items() if name in self.requests}
        return by_client

    def _hold(self, output: EngineCoreOutput) -> Response | None:
        parts = self._held.setdefault(output.request_id, [])
        parts.append((self._epoch, output))
        return join_parts(self._held.pop(output.request_id)) if output.finished else None


class WholeResponseScheduler(_WholeResponses, SharedPromptScheduler):
    """The scheduler for CPUs, where scheduling ahead would only compete with the model for the cores."""


class WholeResponseAsyncScheduler(_WholeResponses, AsyncScheduler):
    """The scheduler for GPUs: it schedules the next step while this one runs."""


def spare_decodes(manager: KVCacheManager) -> None:
    """Let a decode step whose token fits into its request's last block ask for no blocks.

    vLLM asks for every token of every request, and finds in nearly all cases that there is nothing to do. That took a
    twelfth of the rollout of a small model.
    """
    blocks = blocks_of_all_tokens(manager)
    if blocks is None:
        return
    size, allocate, nothing = blocks.block_size, manager.allocate_slots, manager.empty_kv_cache_blocks

    def allocate_slots(request: Request, num_new_tokens: int, **options: Any) -> KVCacheBlocks | None:
        place = request.num_computed_tokens % size
        # The first token of a block needs the block; the last one completes it, and it enters the prefix cache.
        if num_new_tokens == 1 and 0 < place < size - 1 and options.keys() <= DECODE and not any(options.values()):
            return nothing
        return allocate(request, num_new_tokens, **options)

    manager.allocate_slots = allocate_slots


def join_parts(parts: Sequence[Part]) -> Response:
    """Return the response that consists of all parts, in order."""
    outputs = [output for _, output in parts]
    by_epoch = itertools.groupby(parts, key=lambda part: part[0])
    counts = [(epoch, sum(len(output.new_token_ids) for _, output in same)) for epoch, same in by_epoch]
    # With `logprobs=0` the sampled token's is the first, and only, one of its row; so is the prompt's token's.
    rows = [output.new_logprobs.logprobs[:, 0] for output in outputs if output.new_logprobs is not None]
    prompt = [tensors.logprobs[:, 0] for output in outputs if (tensors := output.new_prompt_logprobs_tensors)]
    return Response(
        request_id=outputs[-1].request_id,
        token_ids=np.array([token for output in outputs for token in output.new_token_ids], dtype=np.int32),
        logprobs=np.concatenate(rows).astype(np.float32) if rows else np.zeros(0, dtype=np.float32),
        # A last part may carry no token, only the finish; then its epoch has no entry.
        epochs=tuple(pair for pair in counts if pair[1]),
        finish_reason=str(outputs[-1].finish_reason),
        prompt_logprobs=np.concatenate([part.float().numpy() for part in prompt]) if prompt else None,
    )


def _give_salt(request: Request, salt: str) -> None:
    """Set a request's salt. The hashes of its blocks begin with the salt, so they are computed again."""
    if request.cache_salt != salt:
        request.cache_salt = salt
        request.block_hashes.clear()
        request.update_block_hashes()
