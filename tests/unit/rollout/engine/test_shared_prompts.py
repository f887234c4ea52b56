"""A prompt is computed once for all its samples, and every request finds its own keys and values in the cache.

And every response is what was sampled for it.
"""

from __future__ import annotations

import random
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed")

from vllm import EngineArgs, SamplingParams
from vllm.lora.request import LoRARequest
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec, SlidingWindowSpec
from vllm.v1.outputs import LogprobsLists, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from rlsys.rollout.engine.whole_responses import WholeResponseScheduler
from rlsys.rollout.trajectory import Response

SIZE = 32  # tokens of a block
LONGEST = 120
STOP = 7  # a token that ends a response where it is asked for


class Run:
    """A scheduler, and a cache that knows of each place which tokens' keys it holds."""

    def __init__(self, folder: Path, num_blocks: int = 200, window: int | None = None, max_num_seqs: int = 16) -> None:
        arguments = EngineArgs(
            model=str(folder),
            skip_tokenizer_init=True,
            hf_overrides={"max_position_embeddings": LONGEST},
            max_model_len=LONGEST,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=LONGEST,
            block_size=SIZE,
            async_scheduling=False,
            enable_lora=True,
            max_loras=2,
            scheduler_cls="rlsys.rollout.engine.whole_responses.WholeResponseScheduler",
        )
        init_none_hash(sha256)
        config = arguments.create_engine_config()
        shape: dict[str, Any] = {"block_size": SIZE, "num_kv_heads": 1, "head_size": 32, "dtype": torch.float32}
        spec = FullAttentionSpec(**shape) if window is None else SlidingWindowSpec(**shape, sliding_window=window)
        cache = KVCacheConfig(num_blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)])
        config.cache_config.num_gpu_blocks = num_blocks
        self.scheduler = WholeResponseScheduler(config, cache, StructuredOutputManager(config), block_size=SIZE)
        self.held: dict[tuple[int, int], Any] = {}  # by block and place: the request's salt, and all tokens up to here
        self.computed: Counter[str] = Counter()  # tokens, by request
        self.sampled: dict[str, list[tuple[int, float, int]]] = {}  # by request: token, log-probability and epoch
        self.stops: dict[str, set[int]] = {}  # by request: the tokens that end its response
        self.most_copies = 0

    def add(self, name: str, prompt: list[int], tokens: int, **options: Any) -> None:
        sampling = {"logprobs": 0, "ignore_eos": True} | options.pop("sampling", {})
        params = SamplingParams(max_tokens=tokens, **sampling)
        self.stops[name] = set(sampling.get("stop_token_ids", []))
        salt = self.scheduler.salt
        hasher = get_request_block_hasher(SIZE, sha256)
        request = Request(name, prompt, params, None, cache_salt=salt, block_hasher=hasher, **options)
        self.scheduler.add_request(request)

    def step(self) -> list[str]:
        """Run one step; return the names of the requests that it has finished."""
        scheduler = self.scheduler
        output = scheduler.schedule()
        copies = output.kv_cache_block_copies or []
        self.most_copies = max(self.most_copies, len(copies))
        moved = {}
        for source, target in copies:
            moved |= {(target, place): self.held.get((source, place)) for place in range(SIZE)}
        self.held |= moved
        counts = output.num_scheduled_tokens
        for name, count in counts.items():
            self._compute(scheduler.requests[name], count)
        made = self._made([scheduler.requests[name] for name in counts])
        finished = [
            response for each in scheduler.update_from_output(output, made).values() for response in each.outputs
        ]
        for response in finished:
            self._check(response)
        return [response.request_id for response in finished]

    def _made(self, requests: list[Request]) -> ModelRunnerOutput:
        """Return what the model samples; a token depends on the request and its place, its log-probability on both."""
        sampled = [self._sample(request) for request in requests]
        logprobs = [-float(token_ids[0]) if token_ids else 0.0 for token_ids in sampled]
        for request, token_ids, logprob in zip(requests, sampled, logprobs, strict=True):
            epoch = int(self.scheduler.salt)
            self.sampled.setdefault(request.request_id, []).extend((token, logprob, epoch) for token in token_ids)
        rows = LogprobsLists(
            np.zeros((len(requests), 1), dtype=np.int32),
            np.array(logprobs, dtype=np.float32)[:, None],
            np.ones(len(requests), dtype=np.int32),
        )
        names = [request.request_id for request in requests]
        return ModelRunnerOutput(names, {name: row for row, name in enumerate(names)}, sampled, rows)

    def _check(self, response: Response) -> None:
        """Compare a response with what was sampled for it."""
        token_ids, logprobs, epochs = zip(*self.sampled[response.request_id], strict=True)
        assert response.token_ids.tolist() == list(token_ids)
        assert response.logprobs.tolist() == list(logprobs)
        assert response.epochs == tuple(Counter(epochs).items())
        assert response.finish_reason == ("stop" if token_ids[-1] in self.stops[response.request_id] else "length")
        assert not self.stops[response.request_id] & set(token_ids[:-1])

    def _compute(self, request: Request, count: int) -> None:
        """Write the keys of a request's next tokens, and look at all that its attention reads."""
        self.computed[request.request_id] += count
        blocks = self.scheduler.kv_cache_manager.get_block_ids(request.request_id)[0]
        end = request.num_computed_tokens  # those of this step included
        adapter = request.lora_request.lora_name if request.lora_request is not None else None
        for place in range(end):
            key = (blocks[place // SIZE], place % SIZE)
            meaning = (request.cache_salt, adapter, tuple(request.all_token_ids[: place + 1]))
            if place >= end - count:
                self.held[key] = meaning
            assert self.held[key] == meaning, (request.request_id, place)

    def _sample(self, request: Request) -> list[int]:
        is_done = request.num_computed_tokens == request.num_tokens
        return [zlib.crc32(f"{request.request_id} {request.num_tokens}".encode()) % 50] if is_done else []

    def finish(self) -> list[str]:
        """Run until nothing is left; return the names of the requests that finished."""
        finished = []
        for _ in range(3000):
            if not self.scheduler.requests:
                return finished
            finished += self.step()
        raise AssertionError(f"these requests never end: {sorted(self.scheduler.requests)}")


def adapter(number: int) -> LoRARequest:
    return LoRARequest(f"adapter {number}", number, "/nowhere")


@pytest.mark.parametrize("size", [1, 2, 31, 32, 33, 40, 64, 65, 100])
def test_samples_compute_the_prompt_once(model_folder: Path, size: int) -> None:
    run = Run(model_folder)
    for sample in range(8):
        run.add(str(sample), list(range(size)), tokens=40 if size < 80 else 20)
    run.finish()
    first = run.computed.pop("0")
    assert set(run.computed.values()) == {first - size + 1}  # the last token of the prompt, and the response
    assert run.most_copies == (7 if size > 1 and (size - 1) % SIZE else 0)


def test_what_may_not_be_shared_is_computed(model_folder: Path) -> None:
    run = Run(model_folder)
    prompt = list(range(20))
    run.add("first", prompt, 5)
    run.add("other prompt", [*prompt[:-1], 50], 5)
    run.add("adapter 1", prompt, 5, lora_request=adapter(1))
    run.add("adapter 2", prompt, 5, lora_request=adapter(2))
    run.add("prompt's log-probabilities", prompt, 5, sampling={"prompt_logprobs": 0})
    run.step()
    run.scheduler.set_pause_state(PauseState.PAUSED_ALL)
    run.scheduler.set_pause_state(PauseState.UNPAUSED)
    run.add("newer weights", prompt, 5)
    run.finish()
    assert set(run.computed.values()) == {20 + 4}


def test_models_with_windows_compute_as_before(model_folder: Path) -> None:
    run = Run(model_folder, window=64)
    for sample in range(3):
        run.add(str(sample), list(range(20)), tokens=5)
    run.finish()
    assert set(run.computed.values()) == {20 + 4}
    assert not run.most_copies


def test_a_sample_does_not_wait_for_one_that_has_gone(model_folder: Path) -> None:
    run = Run(model_folder)
    prompt = list(range(1, 51))
    run.add("other", list(range(110)), 2)
    run.add("first", prompt, 8)
    run.add("second", prompt, 8)
    run.step()
    assert "second" not in run.computed  # it waits
    run.scheduler.finish_requests("first", RequestStatus.FINISHED_ABORTED)
    run.finish()
    assert run.computed["second"] == 50 + 7


def test_prompts_that_are_done_with_are_forgotten(model_folder: Path) -> None:
    run = Run(model_folder)
    for number in range(20):
        run.add(str(number), [number, number], 3)
        run.finish()
        assert len(run.scheduler._holders) <= 2


def test_a_response_ends_at_the_longest_that_the_model_takes(model_folder: Path) -> None:
    run = Run(model_folder)
    run.add("long", list(range(110)), tokens=40)
    run.finish()
    assert len(run.sampled["long"]) == LONGEST - 110


@pytest.mark.parametrize("seed", range(8))
def test_any_life_of_requests(model_folder: Path, seed: int) -> None:
    """Groups that come, end, are aborted and preempted, under changing weights, in a cache that is too small."""
    choose = random.Random(seed)
    run = Run(model_folder, num_blocks=choose.choice([20, 30, 200]), max_num_seqs=choose.choice([3, 16]))
    prompts = [[choose.randrange(3) for _ in range(choose.randrange(1, 90))] for _ in range(6)]
    finished: set[str] = set()
    aborted: set[str] = set()
    for group in range(40):
        prompt = choose.choice(prompts)
        options: dict[str, Any] = {"lora_request": adapter(choose.choice([1, 2]))} if choose.random() < 0.3 else {}
        for sample in range(choose.randrange(1, 9)):
            sampling = {"stop_token_ids": [STOP]} if choose.random() < 0.5 else {}
            run.add(f"{group}-{sample}", prompt, choose.randrange(1, 30), sampling=sampling, **options)
        for _ in range(choose.randrange(0, 6)):
            finished |= set(run.step())
        if choose.random() < 0.3 and run.scheduler.requests:
            name = choose.choice(sorted(run.scheduler.requests))
            run.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)
            aborted.add(name)
        if choose.random() < 0.2:
            run.scheduler.set_pause_state(PauseState.PAUSED_ALL)
            run.scheduler.reset_prefix_cache(reset_running_requests=choose.random() < 0.5)
            run.scheduler.set_pause_state(PauseState.UNPAUSED)
    assert not (finished | set(run.finish())) & aborted
    pool = run.scheduler.kv_cache_manager.block_pool
    assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1  # but the null block, all are back
