"""One rollout worker: a vLLM engine inside a Ray process."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlsys.errors import WorkerError
from rlsys.rollout.finished_queue import FinishedQueue
from rlsys.rollout.served_adapters import Adapters
from rlsys.rollout.setup import LOADED_VERSION, EngineSetup
from rlsys.rollout.trajectory import Response, summary_of, trajectory_of
from rlsys.runtime.garbage import freeze_started
from rlsys.runtime.logs import FailureLog, log_worker
from rlsys.runtime.preload import remove_registrations
from rlsys.runtime.processes import cpu_seconds
from rlsys.runtime.spans import Span, SpanRecorder
from rlsys.types import Finished, GroupRequest, Sampling, Trajectory
from rlsys.weights.backend import engine_backend
from rlsys.weights.packed_adapter import PackedAdapter
from rlsys.weights.receipt import Receipt, Received

# Attempts to probe under one set of weights; an update that arrives in between spoils an attempt.
PROBE_TRIES = 3
# Seconds between two checks of a transfer that runs beside generation: an engine answers between its steps.
TRANSFER_POLL_S = 0.01

logger = logging.getLogger(__name__)


class RolloutWorker:
    """A Ray worker around one vLLM engine: token ids go in, token ids and log-probabilities come out.

    Callers `submit` requests and then call `finished` until every answer has arrived: the driver, or the workers that
    play episodes, each under a name of its own. Requests are refused when the
    weights are older than the caller expects, so a broadcast that did not arrive is noticed at once. Newer weights are
    accepted: they may change while requests run, and every token carries its policy version.
    """

    def __init__(self, index: int, setup: EngineSetup) -> None:
        log_worker()
        self._index = index
        self._setup = setup
        self._config = setup.rollout
        self._adapters: Adapters | None = None
        # Policy versions in the order in which they arrived; the last is current. With whole weights the index is the
        # scheduler's epoch. With adapters there is one epoch, and each request has its own version.
        self._versions = [LOADED_VERSION]
        self._probes = itertools.count()
        self._tasks: dict[tuple[str, int], set[asyncio.Task[None]]] = {}  # by caller and request id
        self._spans = SpanRecorder()
        self._finished: dict[str, FinishedQueue] = {}  # by caller
        self._failures = FailureLog(logger)

    async def start(self) -> None:
        """Build the engine and return once it can serve requests."""
        from vllm import EngineArgs
        from vllm.config.weight_transfer import WeightTransferConfig

        from rlsys.rollout.engine import norms
        from rlsys.rollout.engine.core import Engine

        config, slots = self._config, self._setup.slots
        on_cpu = self._setup.backend == "gloo"
        of_device: dict[str, Any] = {"gpu_memory_utilization": config.gpu_memory_utilization}
        if on_cpu:
            # The smallest block that the CPU's attention takes; vLLM's own is 128. Samples of a prompt share its whole
            # blocks, and the smaller the blocks, the less is left to copy, and to compute for kinds of attention that
            # copy nothing. (Kinds that take only one size get that one from vLLM.)
            of_device = {"kv_cache_memory_bytes": int(config.kv_cache_gib * 2**30), "block_size": 32}
            of_device |= {"ir_op_priority": norms.PRIORITY}
        arguments = EngineArgs(
            model=self._setup.model_path,
            # Prompts and responses are token ids; scoring workers decode. Without a tokenizer vLLM does not know the
            # end of a sequence, so `_params` gives every token that ends one.
            skip_tokenizer_init=True,
            dtype=config.dtype,
            tensor_parallel_size=config.tensor_parallel_size,
            trust_remote_code=self._setup.trust_remote_code,
            # The longest trajectory of this run: vLLM demands cache space for one request of this length.
            max_model_len=self._setup.max_tokens,
            max_num_seqs=config.max_num_seqs,
            enforce_eager=config.enforce_eager,
            # After a partial prefill vLLM rewinds the request's random generator, and CPU generators cannot rewind.
            enable_chunked_prefill=False if on_cpu and config.seeded else None,
            # Raw log-probabilities would ignore the sampling temperature.
            logprobs_mode="processed_logprobs",
            weight_transfer_config=WeightTransferConfig(backend=engine_backend(self._setup.backend)),
            # One rank computes in this process. Several are processes of this worker: in a placement group vLLM would
            # start them through Ray, which has no room for them, and which the CPU backend does not support.
            distributed_executor_backend="mp" if config.tensor_parallel_size > 1 else "uni",
            worker_extension_cls="rlsys.rollout.engine.process.EngineProcess",
            # Not the model's generation_config.json: its top_p or penalties would change the sampling distribution. Its
            # end tokens still count: they are among the setup's.
            generation_config="vllm",
            # With the same seed all engines would draw the same random numbers.
            seed=self._setup.seed + self._index,
            async_scheduling=not on_cpu,
            scheduler_cls=f"rlsys.rollout.engine.whole_responses.WholeResponse{'' if on_cpu else 'Async'}Scheduler",
            **of_device,
            **(slots.arguments() if slots is not None else {}),
        )
        self._engine = Engine(on_failure=self._leave)
        await self._engine.start(arguments)
        if slots is not None:
            self._adapters = Adapters(self._engine, f"rollout-{self._index}")
            if slots.loaded is not None:
                await self._adapters.load(Path(slots.loaded), LOADED_VERSION)
        logger.info("engine ready: %s in %s, up to %d tokens", arguments.model, config.dtype, self._setup.max_tokens)
        freeze_started()
        remove_registrations()

    async def join_weights(self, init_info: dict[str, Any]) -> None:
        """Open the weight channel and return once the learner has joined too."""
        await self._engine.collective_rpc("init_weight_transfer_engine", init_info=init_info)

    async def receive_weights(self, update_info: dict[str, Any], policy_version: int) -> Received:
        """Receive one weight broadcast; running requests continue under the new weights.

        With gloo the bytes arrive while the engine generates, and it pauses only to load them. An idle engine pauses at
        the first bucket instead, so that loading overlaps with the rest of the transfer.

        Returns: `stalled_s`, seconds without generation; `transfer_s`, seconds of the transfer; `reload_s`, seconds of
            loading without waiting for the transfer. With nccl and ipc the two are one, and both contain the other.
            And a receipt of each of the engine's processes.

        Raises:
            WorkerError: The engine could not load the weights. It stays paused until it has loaded a later broadcast,
                because its layers may now be a mix of two policy versions.
        """
        engine, keep = self._engine, self._config.inflight_kv == "keep"
        if self._setup.backend == "gloo":
            await self._begin_transfer(update_info)
        await engine.pause(clear_cache=not keep)
        paused = time.perf_counter()
        try:
            with self._spans.span("reload"):
                times = await self._load(update_info)
                receipts = [Receipt(**each) for each in await self._engine.collective_rpc("arrival")]
        except Exception as error:
            logger.exception("policy version %d could not be loaded", policy_version)
            raise WorkerError(
                f"rollout/{self._index} could not load policy version {policy_version}: {error}"
            ) from error
        self._versions.append(policy_version)  # before resuming: responses of the new epoch look it up
        await engine.resume()
        stalled_s = time.perf_counter() - paused
        logger.info("serves policy version %d; generation stood still for %.2f s", policy_version, stalled_s)
        return Received({"stalled_s": stalled_s, **times}, receipts)

    async def receive_adapter(self, adapter: PackedAdapter, policy_version: int) -> dict[str, float]:
        """Serve new requests with the policy of an adapter; running requests keep theirs.

        Returns: The same keys as `receive_weights`; generation does not pause.
        """
        assert self._adapters is not None
        started = time.perf_counter()
        with self._spans.span("reload"):
            await self._adapters.add(adapter, policy_version)
        self._versions.append(policy_version)
        logger.info("serves policy version %d to new requests", policy_version)
        return {"stalled_s": 0.0, "transfer_s": 0.0, "reload_s": time.perf_counter() - started}

    async def submit(self, requests: Sequence[GroupRequest], policy_version: int, caller: str = "") -> None:
        """Start sampling every request; the answers come through `finished`.

        While weights are loaded, and after that has failed until it succeeds, requests wait in the paused engine.

        Raises:
            WorkerError: The weights are older than `policy_version`.
        """
        who, version = f"rollout/{self._index}", self._versions[-1]
        if version < policy_version:
            raise WorkerError(f"{who} holds policy version {version}, but the request expects version {policy_version}")
        queue = self._queue(caller)
        for request in requests:
            for sample, sampling in request.missing.items():
                entropy = [self._setup.seed, request.stream, sample, *request.entropy]
                params = self._params(sampling, response_seed(*entropy) if self._config.seeded else None)
                self._start(caller, queue, request, sample, params)

    async def finished(
        self, max_wait_s: float, linger_s: float, caller: str = ""
    ) -> tuple[list[Finished], list[Trajectory | None]]:
        """Wait for answers as `FinishedQueue.take` does, and return them as two lists of the same length.

        The driver calls it with `num_returns=2`: it reads the first list, and the token arrays of the second (None for
        a failed request) stay in the object store.
        """
        answers = await self._queue(caller).take(max_wait_s, linger_s)
        return [finished for finished, _ in answers], [trajectory for _, trajectory in answers]

    async def probe(self, token_ids: np.ndarray) -> tuple[int, np.ndarray] | None:
        """Compute the log-probabilities of given tokens [L] at temperature 1.

        Returns: The policy version and its [L - 1] float32 log-probabilities from the second token on, or None when
            every attempt was interrupted by new weights.
        """
        from vllm import SamplingParams

        # The temperature is that of the one token that vLLM insists on sampling; prompt log-probabilities have none.
        params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        for _ in range(PROBE_TRIES):
            epoch = len(self._versions) - 1
            response, versions = await self._sampled(token_ids, params, f"{self._index}-probe-{next(self._probes)}")
            assert response.prompt_logprobs is not None
            if self._adapters is not None:  # a request keeps one adapter from beginning to end
                return versions[0], response.prompt_logprobs
            if epoch == len(self._versions) - 1:
                return self._versions[-1], response.prompt_logprobs
        return None

    async def prove_life(self) -> None:
        """Return once the engine has made progress, see `Engine.prove_life`."""
        await self._engine.prove_life()

    async def cpu_seconds(self) -> float:
        """Return the processor time that this process and its children have used."""
        return cpu_seconds()

    async def cancel(self, request_ids: Collection[int], caller: str = "") -> None:
        """Stop sampling for these requests and drop their results."""
        self._queue(caller).drop(set(request_ids))
        tasks = [task for request_id in request_ids for task in self._tasks.get((caller, request_id), ())]
        for task in tasks:
            task.cancel()  # which aborts the request in the engine
        await asyncio.gather(*tasks, return_exceptions=True)

    async def take_spans(self) -> list[Span]:
        """Return the spans recorded since the last call."""
        for queue in self._finished.values():
            if queue.num_running:  # its span would otherwise appear only when the last sample has ended
                queue.record_span()
        return self._spans.take()

    async def stop(self) -> None:
        """Stop the engine's processes."""
        engine = getattr(self, "_engine", None)  # None when `start` failed before there was one
        if engine is not None:
            await engine.stop()
            logger.info("engine stopped")
        if self._adapters is not None:
            self._adapters.close()

    def _leave(self) -> None:
        """End this process: its engine has failed, and the pool puts another in its place."""
        logger.error("this worker ends, because its engine has failed")
        logging.shutdown()
        os._exit(1)

    async def _begin_transfer(self, update_info: Mapping[str, Any]) -> None:
        """Start receiving and return once all bytes have arrived, or earlier once no request is running."""
        await self._engine.collective_rpc("begin_transfer", update_info)
        try:
            while any(queue.num_running for queue in self._finished.values()) and not all(
                await self._engine.collective_rpc("is_transfer_done")
            ):
                await asyncio.sleep(TRANSFER_POLL_S)
        except Exception as error:  # the engine still has its old weights and continues
            logger.exception("no weights were received")
            raise WorkerError(f"rollout/{self._index} received no weights: {error}") from error

    async def _load(self, update_info: Mapping[str, Any]) -> dict[str, float]:
        """Load one update into the paused engine and return its times in seconds."""
        started = time.perf_counter()
        await self._engine.collective_rpc("start_weight_update")
        await self._engine.collective_rpc("update_weights", update_info=dict(update_info))
        received_s = time.perf_counter() - started
        await self._engine.collective_rpc("finish_weight_update")
        loaded_s = time.perf_counter() - started
        if self._setup.backend != "gloo":
            return {"transfer_s": received_s, "reload_s": loaded_s}
        per_rank = await self._engine.collective_rpc("transfer_times")
        transfer_s, waited_s = (max(times) for times in zip(*per_rank, strict=True))
        return {"transfer_s": transfer_s, "reload_s": loaded_s - waited_s}

    def _queue(self, caller: str) -> FinishedQueue:
        return self._finished.setdefault(caller, FinishedQueue(self._spans))

    async def _answer(self, queue: FinishedQueue, name: str, request: GroupRequest, sample: int, params: Any) -> None:
        """Sample one response and queue it; a failure is queued as the answer."""
        key, started = (request.request_id, sample), time.time()
        try:
            response, versions = await self._sampled(request.token_ids, params, name)
            before = request.token_ids[:0] if request.is_turn else request.token_ids
            trajectory = trajectory_of(before, response, versions, self._index)
        except Exception as error:  # not CancelledError: nobody waits for the result of a cancelled sample
            # An engine that is broken fails every request.
            self._failures.add(f"request {key} failed", error, with_traceback=True)
            queue.put(Finished(*key, summary=None, error=f"{type(error).__name__}: {error}"), None)
        else:
            queue.put(Finished(*key, summary_of(trajectory, started, time.time())), trajectory)

    async def _sampled(self, token_ids: np.ndarray, params: Any, name: str) -> tuple[Response, Sequence[int]]:
        """Return the engine's response to a request, and the policy version of every epoch.

        A request with an adapter keeps one version from beginning to end, so it has one epoch.
        """
        if self._adapters is None:
            return await self._engine.generate(name, token_ids.tolist(), params), self._versions
        version, adapter = self._adapters.begin()
        try:
            return await self._engine.generate(name, token_ids.tolist(), params, adapter), [version]
        finally:
            await self._adapters.end(version)

    def _params(self, sampling: Sampling, seed: int | None = None) -> Any:
        from vllm import SamplingParams

        return SamplingParams(
            temperature=sampling.temperature,
            max_tokens=sampling.max_response_tokens,
            seed=seed,
            ignore_eos=sampling.ignore_eos,
            stop_token_ids=None if sampling.ignore_eos else list(self._setup.stop_token_ids),
            logprobs=0,
            detokenize=False,
        )

    def _start(self, caller: str, queue: FinishedQueue, request: GroupRequest, sample: int, params: Any) -> None:
        key = (caller, request.request_id)
        tasks = self._tasks.setdefault(key, set())
        name = "-".join(map(str, (self._index, *key, sample)))
        task = asyncio.create_task(self._answer(queue, name, request, sample, params))
        tasks.add(task)
        queue.started()

        def end(ended: asyncio.Task[None]) -> None:
            queue.ended()
            tasks.discard(ended)
            if not tasks:
                self._tasks.pop(key, None)

        task.add_done_callback(end)  # runs even when the task is cancelled before it begins


def response_seed(seed: int, stream: int, sample: int, *turn: int) -> int:
    """Return the seed of one response, or turn, independent of the engine that samples it and of its batch."""
    return int(np.random.SeedSequence([seed, stream, sample, *turn]).generate_state(1)[0])
