"""One rollout worker: a vLLM `AsyncLLM` inside a Ray process."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlsys.errors import WorkerError
from rlsys.rollout.finished_queue import FinishedQueue
from rlsys.rollout.served_adapters import Adapters
from rlsys.rollout.setup import LOADED_VERSION, EngineSetup
from rlsys.rollout.trajectory import prompt_logprobs, summary_of, trajectory_of
from rlsys.runtime.garbage import freeze_started
from rlsys.runtime.logs import log_worker
from rlsys.runtime.spans import Span, SpanRecorder
from rlsys.types import Finished, GroupRequest, Sampling, Trajectory
from rlsys.weights.packed_adapter import PackedAdapter

PROBE_TRIES = 3
TRANSFER_POLL_S = 0.01
"""Between two looks at a transfer that goes on beside generation; an engine answers between its steps."""


class RolloutWorker:
    """Token ids in, token ids and processed log-probabilities out: `submit`, then `finished` until all is told.

    Requests are refused when the weights are older than the caller believes, so a broadcast that did not arrive cannot
    go unnoticed. A newer one is no fault: weights change while requests run, and every token has its version.
    """

    def __init__(self, index: int, setup: EngineSetup) -> None:
        log_worker()
        self._index = index
        self._setup = setup
        self._config = setup.rollout
        self._adapters: Adapters | None = None
        self._versions = [LOADED_VERSION]  # of every epoch, as the scheduler counts them; the last is served now
        self._probes = itertools.count()
        self._tasks: dict[int, set[asyncio.Task[None]]] = {}  # by request
        self._spans = SpanRecorder()
        self._finished = FinishedQueue(self._spans)
        self._failed_update: str | None = None

    async def start(self) -> None:
        """Build the engine; answers once it can serve."""
        from vllm import AsyncEngineArgs
        from vllm.config.weight_transfer import WeightTransferConfig
        from vllm.v1.engine.async_llm import AsyncLLM

        config, slots = self._config, self._setup.slots
        on_cpu = self._setup.backend == "gloo"
        memory: dict[str, Any] = {"gpu_memory_utilization": config.gpu_memory_utilization}
        if on_cpu:
            memory = {"kv_cache_memory_bytes": int(config.kv_cache_gib * 2**30)}
        arguments = AsyncEngineArgs(
            model=self._setup.model_path,
            skip_tokenizer_init=True,
            dtype=config.dtype,
            tensor_parallel_size=config.tensor_parallel_size,
            trust_remote_code=self._setup.trust_remote_code,
            # This run's longest trajectory: the engine insists on room in its cache for one of full length.
            max_model_len=self._setup.max_tokens,
            max_num_seqs=config.max_num_seqs,
            enforce_eager=config.enforce_eager,
            # Where only a part of a prompt is computed vLLM turns the request's generator back: CPUs' cannot be.
            enable_chunked_prefill=False if on_cpu and config.seeded else None,
            # Raw log-probabilities would ignore the temperature that the tokens were sampled with.
            logprobs_mode="processed_logprobs",
            weight_transfer_config=WeightTransferConfig(backend=self._setup.backend),
            worker_extension_cls="rlsys.weights.receiver.WeightReceiver",
            generation_config="vllm",
            seed=self._setup.seed + self._index,
            disable_log_stats=True,
            async_scheduling=not on_cpu,
            scheduler_cls=f"rlsys.rollout.whole_responses.WholeResponse{'' if on_cpu else 'Async'}Scheduler",
            **memory,
            **(slots.arguments() if slots is not None else {}),
        )
        self._engine = AsyncLLM.from_engine_args(arguments)
        if slots is not None:
            self._adapters = Adapters(self._engine, f"rollout-{self._index}")
            if slots.loaded is not None:
                await self._adapters.load(Path(slots.loaded), LOADED_VERSION)
        model_config = self._engine.vllm_config.model_config.hf_config
        eos = getattr(model_config, "eos_token_id", None)
        self._eos = eos if isinstance(eos, list) else [] if eos is None else [eos]
        freeze_started()

    async def join_weights(self, init_info: dict[str, Any]) -> None:
        """Open the weight channel; returns once the learner's side has joined too."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        await self._engine.init_weight_transfer_engine(WeightTransferInitRequest(init_info=init_info))

    async def receive_weights(self, update_info: dict[str, Any], policy_version: int) -> dict[str, float]:
        """Take one broadcast, also while requests run: they go on under the new weights.

        With gloo the bytes arrive while the engine generates. It pauses to load them, or, when there is nothing to
        generate, from the first bucket on, so that loading overlaps with the rest of the transfer.

        Returns: seconds that generation stood still, that the transfer took, and that loading took without waiting for
        the transfer (with nccl and ipc they are one, and counted as both).
        """
        engine, keep = self._engine, self._config.inflight_kv == "keep"
        if self._setup.backend == "gloo":
            await self._begin_transfer(update_info)
        # Not `pause_generation`: it sleeps for 20 ms after the engine has come to rest.
        await engine.engine_core.pause_scheduler_async(mode="keep", clear_cache=not keep)
        paused = time.perf_counter()
        try:
            with self._spans.span("reload"):
                times = await self._load(update_info)
        except Exception as error:
            # Old and new layers side by side: nothing may be sampled from them any more, so the engine stays paused.
            self._failed_update = f"{type(error).__name__}: {error}"
            raise WorkerError(
                f"rollout/{self._index} could not load policy version {policy_version}: {error}"
            ) from error
        self._versions.append(policy_version)  # before resuming: responses of the new epoch look it up
        await engine.resume_generation()
        return {"stalled_s": time.perf_counter() - paused, **times}

    async def receive_adapter(self, adapter: PackedAdapter, policy_version: int) -> dict[str, float]:
        """Serve the policy of an adapter from the next request on.

        Returns: seconds until it is loaded; generation goes on meanwhile.
        """
        assert self._adapters is not None
        started = time.perf_counter()
        with self._spans.span("reload"):
            await self._adapters.add(adapter, policy_version)
        self._versions.append(policy_version)
        return {"stalled_s": 0.0, "transfer_s": 0.0, "reload_s": time.perf_counter() - started}

    async def submit(self, requests: Sequence[GroupRequest], policy_version: int) -> None:
        """Start sampling every request; answers come through `finished`."""
        who, version = f"rollout/{self._index}", self._versions[-1]
        if self._failed_update is not None:
            raise WorkerError(f"{who} has no whole weights since an update failed: {self._failed_update}")
        if version < policy_version:
            raise WorkerError(f"{who} holds policy version {version}, version {policy_version} was expected")
        for request in requests:
            samplings = [sampling for sampling in request.plan for _ in range(sampling.samples_per_prompt)]
            for sample, sampling in enumerate(samplings):
                seed = response_seed(self._setup.seed, request.stream, sample) if self._config.seeded else None
                self._start(request, sample, self._params(sampling, seed))

    async def finished(self, max_wait_s: float, linger_s: float) -> tuple[list[Finished], list[Trajectory | None]]:
        """What has finished since the last call, as `FinishedQueue.take` waits for it; two lists of the same length.

        To be called for two objects: what the driver reads, and the token arrays it does not (None where a request
        failed).
        """
        answers = await self._finished.take(max_wait_s, linger_s)
        return [finished for finished, _ in answers], [trajectory for _, trajectory in answers]

    async def probe(self, token_ids: np.ndarray) -> tuple[int, np.ndarray] | None:
        """How probable given tokens [L] are, without temperature.

        Returns: a policy version, and log-probabilities under it, [L - 1] float32 from the second token on; None when
        weights came in between every time.
        """
        from vllm import SamplingParams

        params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, flat_logprobs=True, detokenize=False)
        for _ in range(PROBE_TRIES):
            epoch = len(self._versions) - 1
            answer, versions = await self._sampled(token_ids, params, f"{self._index}-probe-{next(self._probes)}")
            if self._adapters is not None:  # one version from beginning to end, whatever came meanwhile
                return versions[0], prompt_logprobs(answer)
            if epoch == len(self._versions) - 1:
                return self._versions[-1], prompt_logprobs(answer)
        return None

    async def cancel(self, request_ids: Collection[int]) -> None:
        """Stop sampling for these requests; their results are dropped."""
        self._finished.drop(set(request_ids))
        tasks = [task for request_id in request_ids for task in self._tasks.get(request_id, ())]
        for task in tasks:
            task.cancel()  # vLLM aborts the request in its engine
        await asyncio.gather(*tasks, return_exceptions=True)

    async def take_spans(self) -> list[Span]:
        """What this engine did since the last call."""
        if self._finished.num_running:
            self._finished.record_span()
        return self._spans.take()

    async def stop(self) -> None:
        """Shut the engine's processes down."""
        engine = getattr(self, "_engine", None)
        if engine is not None:
            await asyncio.to_thread(engine.shutdown)
        if self._adapters is not None:
            self._adapters.close()

    async def _begin_transfer(self, update_info: Mapping[str, Any]) -> None:
        """Returns when the bytes are there, or earlier when nothing is left to generate meanwhile."""
        await self._engine.collective_rpc("begin_transfer", args=(update_info,))
        try:
            while self._finished.num_running and not all(await self._engine.collective_rpc("is_transfer_done")):
                await asyncio.sleep(TRANSFER_POLL_S)
        except Exception as error:  # the engine has lost nothing: it goes on with the weights it has
            raise WorkerError(f"rollout/{self._index} received no weights: {error}") from error

    async def _load(self, update_info: Mapping[str, Any]) -> dict[str, float]:
        """The paused engine's part of an update."""
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        started = time.perf_counter()
        await self._engine.start_weight_update()
        await self._engine.update_weights(WeightTransferUpdateRequest(update_info=dict(update_info)))
        received_s = time.perf_counter() - started
        await self._engine.finish_weight_update()
        loaded_s = time.perf_counter() - started
        if self._setup.backend != "gloo":
            return {"transfer_s": received_s, "reload_s": loaded_s}
        per_rank = await self._engine.collective_rpc("transfer_times")
        transfer_s, waited_s = (max(times) for times in zip(*per_rank, strict=True))
        return {"transfer_s": transfer_s, "reload_s": loaded_s - waited_s}

    async def _answer(self, request: GroupRequest, sample: int, params: Any) -> None:
        """Sample one response and leave it in the queue; whatever goes wrong is the answer then."""
        key, started = (request.request_id, sample), time.time()
        try:
            name = f"{self._index}-{'-'.join(map(str, key))}"
            answer, versions = await self._sampled(request.token_ids, params, name)
            trajectory = trajectory_of(request.token_ids, answer, versions, self._index)
        except Exception as error:
            cause = error.__cause__ or error  # vLLM's own wrapper says nothing
            self._finished.put(Finished(*key, summary=None, error=f"{type(cause).__name__}: {cause}"), None)
        else:
            self._finished.put(Finished(*key, summary_of(trajectory, started, time.time())), trajectory)

    async def _sampled(self, token_ids: np.ndarray, params: Any, name: str) -> tuple[Any, Sequence[int]]:
        """The engine's last word on a request, and the policy version of every epoch: with adapters a request has one
        version from its beginning to its end, and there is one epoch."""
        if self._adapters is None:
            return await self._generated(token_ids, params, name, None), self._versions
        version, adapter = self._adapters.begin()
        try:
            return await self._generated(token_ids, params, name, adapter), [version]
        finally:
            await self._adapters.end(version)

    async def _generated(self, token_ids: np.ndarray, params: Any, name: str, adapter: Any) -> Any:
        from vllm.inputs import tokens_input

        # The salt keeps prefixes of other weights away; the scheduler knows better when an update comes in between.
        prompt = tokens_input(token_ids.tolist(), cache_salt=str(len(self._versions) - 1 if adapter is None else 0))
        final = None
        async for output in self._engine.generate(prompt, params, request_id=name, lora_request=adapter):
            final = output
        if final is None:
            raise WorkerError("the engine gave no output")
        return final

    def _params(self, sampling: Sampling, seed: int | None = None) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            temperature=sampling.temperature,
            max_tokens=sampling.max_response_tokens,
            seed=seed,
            ignore_eos=sampling.ignore_eos,
            stop_token_ids=None if sampling.ignore_eos else self._eos,
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _start(self, request: GroupRequest, sample: int, params: Any) -> None:
        tasks = self._tasks.setdefault(request.request_id, set())
        task = asyncio.create_task(self._answer(request, sample, params))
        tasks.add(task)
        self._finished.started()

        def end(ended: asyncio.Task[None]) -> None:
            self._finished.ended()
            tasks.discard(ended)
            if not tasks:
                self._tasks.pop(request.request_id, None)

        task.add_done_callback(end)  # also of a task that is cancelled before it begins


def response_seed(seed: int, stream: int, sample: int) -> int:
    """Return the seed of one response: the same whichever engine samples it, and beside whatever others."""
    return int(np.random.SeedSequence([seed, stream, sample]).generate_state(1)[0])
