"""The two sides of the rollout benchmark: the pool through Ray, and a bare vLLM engine with the same arguments."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.loop import wait
from benchmarks.sampling import sample
from benchmarks.workload import PROMPTS_PER_STEP, SAMPLES_PER_PROMPT, Workload, rlsys_config
from rlsys.build.placement import worker_demands
from rlsys.preflight.prepare import prepare
from rlsys.preflight.prepared import Prepared
from rlsys.types import Prompt

Measure = Callable[..., float]


def engine_env(workload: Workload, tokens: int) -> dict[str, str]:
    """Return the variables that rlsys sets before it starts an engine: threads, their binding, quiet libraries."""
    return dict(worker_demands(rlsys_config(workload, tokens))["rollout"][0].env)


@contextlib.contextmanager
def pool_side(workload: Workload, max_tokens: int) -> Iterator[Measure]:
    """Start one rollout worker through Ray, as a run starts it."""
    from rlsys.build.run import connect, start_rollout
    from rlsys.rollout.setup import LOADED_VERSION
    from rlsys.types import Sampling

    prepared = prepare(rlsys_config(workload, max_tokens))
    config = prepared.config
    wanted = worker_demands(config)["rollout"]
    with connect(config, {"rollout": wanted}) as cluster:
        pool = start_rollout(cluster, prepared, wanted)
        wait(pool.start(config.cluster.startup_deadline_s))

        def measure(batch: int, tokens: int) -> float:
            sampling = Sampling(config.rollout.temperature, tokens, SAMPLES_PER_PROMPT, ignore_eos=True)
            work = sample(pool, _prompts(prepared, batch), sampling, LOADED_VERSION)
            start = time.perf_counter()
            lengths = wait(cluster.calls.background.supervise(work))
            seconds = time.perf_counter() - start
            _check(lengths, tokens)
            return seconds

        yield measure
        wait(pool.stop(deadline_s=30.0))


@contextlib.contextmanager
def bare_side(workload: Workload, max_tokens: int) -> Iterator[Measure]:
    """Start `vllm.LLM` with the engine arguments of the rollout worker; the process has the same environment."""
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import RequestOutputKind

    prepared = prepare(rlsys_config(workload, max_tokens))
    config = prepared.config
    engine = LLM(
        model=prepared.model_path,
        skip_tokenizer_init=True,
        dtype=config.engine_dtype,
        max_model_len=prepared.max_tokens,
        max_num_seqs=config.rollout.max_num_seqs,
        enforce_eager=config.rollout.enforce_eager,
        kv_cache_memory_bytes=int(config.rollout.kv_cache_gib * 2**30),
        logprobs_mode="processed_logprobs",
        generation_config="vllm",
        seed=config.seed,
    )

    def measure(batch: int, tokens: int) -> float:
        params = SamplingParams(
            n=SAMPLES_PER_PROMPT,
            temperature=config.rollout.temperature,
            max_tokens=tokens,
            ignore_eos=True,
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        requests: list[Any] = [{"prompt_token_ids": p.token_ids.tolist()} for p in _prompts(prepared, batch)]
        start = time.perf_counter()
        outputs = engine.generate(requests, params, use_tqdm=False)
        seconds = time.perf_counter() - start
        _check([[len(sample.token_ids) for sample in output.outputs] for output in outputs], tokens)
        return seconds

    yield measure


def _prompts(prepared: Prepared, batch: int) -> Sequence[Prompt]:
    return prepared.train_prompts[batch * PROMPTS_PER_STEP : (batch + 1) * PROMPTS_PER_STEP]


def _check(lengths: list[list[int]], tokens: int) -> None:
    if lengths != [[tokens] * SAMPLES_PER_PROMPT] * PROMPTS_PER_STEP:
        wanted = f"{PROMPTS_PER_STEP} x {SAMPLES_PER_PROMPT} responses of {tokens} tokens"
        raise RuntimeError(f"the engine did not return {wanted}; lengths by prompt: {lengths}")
