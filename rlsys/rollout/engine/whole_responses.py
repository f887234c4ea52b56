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

from dataclasses import replace
from typing import Any

from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request

from rlsys.rollout.engine.partial_response import PartialResponse
from rlsys.rollout.engine.shared_prompts import SharedPromptScheduler, blocks_of_all_tokens
from rlsys.rollout.trajectory import Response

DECODE = {"num_lookahead_tokens"}  # options of `allocate_slots` for a running request; others are of a prompt's


class _WholeResponses:
    """Mixin that keeps the parts of a response until the last one, each with its epoch, and salts the prefix cache.

    A request's salt is the epoch in which its prefill began, so it finds no prefix that was computed under older
    weights, even if it was sent before an update and had to wait. While it holds a cache it keeps its salt.
    """

    requests: dict[str, Request]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._held: dict[str, PartialResponse] = {}
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

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """Return the responses that the step has finished, in place of vLLM's parts."""
        left = self._take_decodes(scheduler_output, model_runner_output)
        by_client: dict[int, EngineCoreOutputs] = super().update_from_output(left, model_runner_output)  # type: ignore[misc]
        for outputs in by_client.values():
            finished: Any = [whole for part in outputs.outputs if (whole := self._hold(part)) is not None]
            outputs.outputs = finished  # `Engine` reads them; vLLM's front ends, which would not, are not used
        if len(self._held) > len(self.requests):  # aborted requests never finish
            self._held = {name: held for name, held in self._held.items() if name in self.requests}
        return by_client

    def _take_decodes(self, scheduled: SchedulerOutput, made: ModelRunnerOutput) -> SchedulerOutput:
        """Take what need not go through vLLM's own bookkeeping; return the rest of the step."""
        return scheduled

    def _hold(self, output: EngineCoreOutput) -> Response | None:
        held = self._held.setdefault(output.request_id, PartialResponse())
        held.add(self._epoch, output)
        return self._held.pop(output.request_id).whole(output) if output.finished else None


class WholeResponseScheduler(_WholeResponses, SharedPromptScheduler):
    """The scheduler for CPUs, where scheduling ahead would only compete with the model for the cores."""

    def _take_decodes(self, scheduled: SchedulerOutput, made: ModelRunnerOutput) -> SchedulerOutput:
        """Take the tokens that neither begin nor end a response: nearly all of them.

        vLLM makes an object of twenty fields of each, which would live until its response is whole. With a small model
        these took about a twentieth of the rollout.
        """
        if made.logprobs is None or not made.sampled_token_ids:
            return scheduled
        logprobs: list[float] = made.logprobs.logprobs[:, 0].tolist()
        left = {}
        for name, count in scheduled.num_scheduled_tokens.items():
            row = made.req_id_to_index[name]
            token_ids = made.sampled_token_ids[row]
            held, request = self._held.get(name), self.requests.get(name)
            # Without a first part it has a prompt, of which vLLM has more to tell. A request that was aborted meanwhile
            # is gone.
            if held is None or request is None or count != 1 or len(token_ids) != 1 or self._ends(request, *token_ids):
                left[name] = count
                continue
            request.num_in_flight_tokens -= 1
            request.append_output_token_ids(token_ids[0])
            held.add_token(self._epoch, token_ids[0], logprobs[row])
        return replace(scheduled, num_scheduled_tokens=left)

    def _ends(self, request: Request, token_id: int) -> bool:
        """Return whether the next token ends a request's response (`check_stop` of vLLM, for options that we set)."""
        return (
            request.num_output_tokens + 1 >= request.max_tokens
            or request.num_tokens + 1 >= self.max_model_len
            or token_id in (request.sampling_params.stop_token_ids or ())
        )


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


def _give_salt(request: Request, salt: str) -> None:
    """Set a request's salt. The hashes of its blocks begin with the salt, so they are computed again."""
    if request.cache_salt != salt:
        request.cache_salt = salt
        request.block_hashes.clear()
        request.update_block_hashes()
