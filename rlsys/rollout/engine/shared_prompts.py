"""A scheduler that computes a prompt once for all its samples.

vLLM lets requests share whole blocks of a prompt, and each of them computes what is left: of a prompt of 40 tokens in
blocks of 32 every sample of a group computes 8, of one of 32 all 32, as the last block would have to hold one token to
compute. Here the samples wait a step for the first one, share its whole blocks, and copy what it has in the last, which
vLLM can do for other purposes (a hit that ends within a block). Each then computes the last token of the prompt only.

For CPUs, where blocks are large and a token costs; on GPUs a block has 16 tokens, and the step costs more.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.request import Request


def blocks_of_all_tokens(manager: KVCacheManager) -> FullAttentionManager | None:
    """Return what holds a request's blocks where every layer attends to everything; None where others free some."""
    kinds = manager.coordinator.single_type_managers
    return kinds[0] if len(kinds) == 1 and type(kinds[0]) is FullAttentionManager else None


class SharedPromptScheduler(Scheduler):
    """vLLM's scheduler without steps scheduled ahead, which computes a prompt once."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._blocks = blocks_of_all_tokens(self.kv_cache_manager)
        # The requests that hold a prompt in the cache, or are about to.
        self._holders: dict[Hashable, list[Request]] = {}

    def _handle_blocked_waiting_request(self, request: Request) -> bool:
        """Return whether a waiting request may start in this step: not while another computes its prompt."""
        if not super()._handle_blocked_waiting_request(request):
            return False
        if not self._may_share(request):
            return True
        holders = self._living_holders(request)
        if request not in holders:
            if holders and not any(map(_has_prompt, holders)):
                return False
            holders.append(request)
        return True

    def _get_local_prefix_cache_hit(self, request: Request) -> tuple[KVCacheBlocks, int, int, bool]:
        """Return the blocks that a request finds in the cache, and how many tokens they hold for it."""
        found: tuple[KVCacheBlocks, int, int, bool] = super()._get_local_prefix_cache_hit(request)
        if self._blocks is None or not self._may_share(request):
            return found
        shared = request.num_prompt_tokens - 1  # the state behind the last token is computed by each
        holder = next((other for other in self._living_holders(request) if _has_prompt(other)), None)
        if holder is None or shared <= found[1]:
            return found
        blocks = self._blocks.req_to_blocks[holder.request_id][: -(-shared // self._blocks.block_size)]
        return KVCacheBlocks(blocks=(blocks,)), shared, *found[2:]

    def _may_share(self, request: Request) -> bool:
        return self._blocks is not None and bool(self.kv_cache_manager.prefix_cache_lookup_enabled(request))

    def _living_holders(self, request: Request) -> list[Request]:
        """Return the requests that hold the same prompt, computed by the same weights, as a list to add to."""
        adapter = request.lora_request.lora_name if request.lora_request is not None else None
        key = (request.cache_salt, adapter, tuple(request.prompt_token_ids or ()))
        if key not in self._holders and len(self._holders) > len(self.requests):  # prompts that are done with
            self._holders = {name: living for name, all_ in self._holders.items() if (living := self._living(all_))}
        self._holders[key] = holders = self._living(self._holders.get(key, []))
        return holders

    def _living(self, requests: list[Request]) -> list[Request]:
        # A request's name is never used twice.
        return [request for request in requests if request.request_id in self.requests]


def _has_prompt(request: Request) -> bool:
    """Return whether an earlier step has computed all of a request's prompt; a preempted request has nothing left."""
    return bool(request.num_computed_tokens >= request.num_prompt_tokens)
