"""One rollout worker: a vLLM `AsyncLLM` inside a Ray process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np

from rlsys.config import RolloutConfig
from rlsys.errors import WorkerError
from rlsys.runtime.garbage import freeze_started
from rlsys.types import Prompt, Sampling, Trajectory, TrajectorySummary, VersionSpan

LOADED_VERSION = -1
"""Policy version of weights read from `model.path`, before any broadcast."""


class RolloutWorker:
    """Token ids in, token ids and processed log-probabilities out.

    The engine refuses to sample under any policy version but the expected one, so weights that did not arrive cannot
    go unnoticed.
    """

    def __init__(
        self,
        index: int,
        config: RolloutConfig,
        model_path: str,
        max_tokens: int,
        backend: str,
        seed: int,
        trust_remote_code: bool = False,
    ) -> None:
        self._index = index
        self._config = config
        self._model_path = model_path
        self._max_tokens = max_tokens
        self._backend = backend
        self._seed = seed
        self._trust_remote_code = trust_remote_code
        self._version = LOADED_VERSION
        self._requests = 0
        self._running = 0

    async def start(self) -> None:
        """Build the engine; answers once it can serve."""
        from vllm import AsyncEngineArgs
        from vllm.config.weight_transfer import WeightTransferConfig
        from vllm.v1.engine.async_llm import AsyncLLM

        config = self._config
        on_cpu = self._backend == "gloo"
        memory: dict[str, Any] = {"gpu_memory_utilization": config.gpu_memory_utilization}
        if on_cpu:
            memory = {"kv_cache_memory_bytes": int(config.kv_cache_gib * 2**30)}
        arguments = AsyncEngineArgs(
            model=self._model_path,
            skip_tokenizer_init=True,
            dtype=config.dtype,
            tensor_parallel_size=config.tensor_parallel_size,
            trust_remote_code=self._trust_remote_code,
            # This run's longest trajectory: the engine insists on room in its cache for one of full length.
            max_model_len=self._max_tokens,
            max_num_seqs=config.max_num_seqs,
            enforce_eager=config.enforce_eager,
            # Raw log-probabilities would ignore the temperature that the tokens were sampled with.
            logprobs_mode="processed_logprobs",
            weight_transfer_config=WeightTransferConfig(backend=self._backend),
            worker_extension_cls="rlsys.weights.receiver.WeightReceiver",
            generation_config="vllm",
            seed=self._seed + self._index,
            disable_log_stats=True,
            async_scheduling=not on_cpu,
            scheduler_cls=f"rlsys.rollout.scheduler.WholeResponse{'' if on_cpu else 'Async'}Scheduler",
            **memory,
        )
        self._engine = AsyncLLM.from_engine_args(arguments)
        await self._engine.update_weight_version(str(LOADED_VERSION))
        model_config = self._engine.vllm_config.model_config.hf_config
        eos = getattr(model_config, "eos_token_id", None)
        self._eos = eos if isinstance(eos, list) else [] if eos is None else [eos]
        freeze_started()

    async def join_weights(self, init_info: dict[str, Any]) -> None:
        """Open the weight channel; returns once the learner's side has joined too."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        await self._engine.init_weight_transfer_engine(WeightTransferInitRequest(init_info=init_info))

    async def receive_weights(self, update_info: dict[str, Any], policy_version: int) -> None:
        """Take one broadcast: pause, receive, drop every cached prefix, resume."""
        if self._running:
            raise WorkerError(
                f"rollout/{self._index}: {self._running} prompts are still being answered; an update now would credit "
                "their responses to a policy that sampled only part of them"
            )
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        engine = self._engine
        await engine.pause_generation(mode="keep", clear_cache=True)
        await engine.start_weight_update()
        await engine.update_weights(WeightTransferUpdateRequest(update_info=update_info))
        await engine.finish_weight_update(weight_version=str(policy_version))
        if not await engine.reset_prefix_cache(reset_running_requests=True):
            raise WorkerError(f"rollout/{self._index}: the prefix cache could not be reset after a broadcast")
        await engine.resume_generation()
        self._version = policy_version

    async def generate(
        self, prompt: Prompt, sampling: Sampling, expected_version: int
    ) -> tuple[tuple[TrajectorySummary, ...], list[Trajectory]]:
        """Sample `sampling.samples_per_prompt` responses to one prompt."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        if self._version != expected_version:
            raise WorkerError(
                f"rollout/{self._index} holds policy version {self._version}, version {expected_version} was expected"
            )
        params = SamplingParams(
            n=sampling.samples_per_prompt,
            temperature=sampling.temperature,
            max_tokens=sampling.max_response_tokens,
            ignore_eos=sampling.ignore_eos,
            stop_token_ids=None if sampling.ignore_eos else self._eos,
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        self._requests += 1
        request = {"prompt_token_ids": prompt.token_ids.tolist(), "cache_salt": f"v{self._version}"}
        final = None
        self._running += 1
        try:
            async for output in self._engine.generate(request, params, request_id=f"{self._index}-{self._requests}"):
                final = output
        finally:
            self._running -= 1
        if final is None:
            raise WorkerError(f"rollout/{self._index}: the engine gave no output for prompt {prompt.index}")
        trajectories = [self._trajectory(prompt, sample) for sample in sorted(final.outputs, key=lambda o: o.index)]
        return tuple(_summary(trajectory) for trajectory in trajectories), trajectories

    async def stop(self) -> None:
        """Shut the engine's processes down."""
        engine = getattr(self, "_engine", None)
        if engine is not None:
            await asyncio.to_thread(engine.shutdown)

    def _trajectory(self, prompt: Prompt, sample: Any) -> Trajectory:
        response = np.asarray(sample.token_ids, dtype=np.int32)
        logprobs = np.asarray(_sampled_logprobs(sample), dtype=np.float32)
        if len(logprobs) != len(response):
            raise WorkerError(
                f"rollout/{self._index}: {len(response)} tokens but {len(logprobs)} log-probabilities for prompt "
                f"{prompt.index}"
            )
        start = len(prompt.token_ids)
        return Trajectory(
            token_ids=np.concatenate([prompt.token_ids, response]),
            loss_mask=np.arange(start + len(response)) >= start,
            behavior_logprobs=np.concatenate([np.zeros(start, dtype=np.float32), logprobs]),
            versions=self._spans(sample, start, len(response)),
            finish_reason="length" if sample.finish_reason == "length" else "stop",
            engine=self._index,
        )

    def _spans(self, sample: Any, start: int, length: int) -> tuple[VersionSpan, ...]:
        """The engine's own account of which policy version sampled which tokens."""
        spans = sample.weight_versions
        if not spans:
            return (VersionSpan(self._version, start, start + length),)
        return tuple(VersionSpan(int(span.version), start + span.start, start + span.end) for span in spans)


def _sampled_logprobs(sample: Any) -> Sequence[float]:
    """The sampled token's log-probability at each position; with `logprobs=0` it comes first at its position."""
    flat = sample.logprobs
    return [flat.logprobs[start] for start in flat.start_indices]


def _summary(trajectory: Trajectory) -> TrajectorySummary:
    return TrajectorySummary(
        num_tokens=trajectory.num_tokens,
        num_response_tokens=int(trajectory.loss_mask.sum()),
        finish_reason=trajectory.finish_reason,
        policy_version=min(span.policy_version for span in trajectory.versions),
        engine=trajectory.engine,
        is_finite=bool(np.isfinite(trajectory.behavior_logprobs).all()),
    )
