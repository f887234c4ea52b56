"""Blocks that decode steps are spared from asking for are the ones that vLLM would not have given either."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed")

from vllm import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec, SlidingWindowSpec
from vllm.v1.request import Request

from rlsys.rollout.engine.whole_responses import spare_decodes

SIZE = 8  # tokens of a block


def manager(*specs: Any) -> KVCacheManager:
    groups = [KVCacheGroupSpec([f"layer {number}"], spec) for number, spec in enumerate(specs)]
    config = KVCacheConfig(num_blocks=40, kv_cache_tensors=[], kv_cache_groups=groups)
    return KVCacheManager(config, max_model_len=64, scheduler_block_size=SIZE, hash_block_size=SIZE)


def full() -> FullAttentionSpec:
    return FullAttentionSpec(block_size=SIZE, num_kv_heads=1, head_size=32, dtype=torch.float32)


class Run:
    """Requests that live in a manager, as the scheduler lets them."""

    def __init__(self, manager: KVCacheManager) -> None:
        init_none_hash(sha256)
        self.manager = manager
        self.requests: dict[str, Request] = {}
        self.given: list[Any] = []

    def add(self, name: str, prompt: list[int]) -> None:
        hasher = get_request_block_hasher(SIZE, sha256)
        request = Request(name, prompt, SamplingParams(max_tokens=64), None, block_hasher=hasher)
        computed, num_computed, _ = self.manager.get_computed_blocks(request)
        options = {"num_new_computed_tokens": num_computed, "new_computed_blocks": computed, "num_lookahead_tokens": 0}
        self._record(request, len(prompt) - num_computed, options)
        request.num_computed_tokens = len(prompt)
        self.requests[name] = request

    def decode(self, name: str, token: int) -> None:
        request = self.requests[name]
        request.append_output_token_ids(token)
        self._record(request, 1, {"num_lookahead_tokens": 0})
        request.num_computed_tokens += 1

    def _record(self, request: Request, num_new: int, options: dict[str, Any]) -> None:
        new = self.manager.allocate_slots(request, num_new, **options)
        assert new is not None
        self.given.append([[block.block_id for block in blocks] for blocks in new.blocks])
        self.given.append(self.manager.get_block_ids(request.request_id))
        self.given.append(self.manager.block_pool.get_num_free_blocks())

    def end(self, name: str) -> None:
        self.manager.free(self.requests.pop(name))


def live(run: Run, seed: int) -> list[Any]:
    """Prompts that share prefixes, decoded to random lengths, some ended while others run."""
    choose = random.Random(seed)
    for number in range(12):
        name = str(number)
        run.add(name, [choose.randrange(2)] * choose.randrange(1, 3 * SIZE))
        for _ in range(choose.randrange(0, 2 * SIZE)):
            for other in list(run.requests):
                if run.requests[other].num_tokens < 60:
                    run.decode(other, choose.randrange(2))
        if len(run.requests) > 4:
            run.end(choose.choice(sorted(run.requests)))
    return run.given


@pytest.mark.parametrize("seed", range(5))
def test_blocks_are_those_that_vllm_gives(seed: int) -> None:
    spared = Run(manager(full()))
    calls = []
    allocate = spared.manager.allocate_slots
    spared.manager.allocate_slots = lambda *args, **options: (calls.append(args), allocate(*args, **options))[1]
    spare_decodes(spared.manager)
    expected = live(Run(manager(full())), seed)
    assert live(spared, seed) == expected
    assert 0 < len(calls) < len(expected) / 3 / 2  # and most of the calls were spared


def test_managers_that_also_free_blocks_are_left_alone() -> None:
    window = SlidingWindowSpec(block_size=SIZE, num_kv_heads=1, head_size=32, dtype=torch.float32, sliding_window=16)
    for specs in ([window], [full(), window]):
        made = manager(*specs)
        spare_decodes(made)
        assert "allocate_slots" not in vars(made)
