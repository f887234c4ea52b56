"""One vLLM engine on a thread of its own inside the rollout worker's process.

vLLM's front ends put the engine's core (scheduler, model) into a second process, and talk to it by messages. That
process imports everything once more, which is half of an engine's start and a third of its memory. A rollout worker
already is a process of its own, and with whole responses (`whole_responses.py`) there is little to talk about, so the
core runs here, between the worker's event loop and its model.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from vllm import EngineArgs, SamplingParams
from vllm.distributed.parallel_state import destroy_distributed_environment, destroy_model_parallel
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.core import EngineCore
from vllm.v1.executor.abstract import Executor

from rlsys.errors import WorkerError
from rlsys.rollout.trajectory import Response
from rlsys.runtime.background import cancel

# Seconds between two looks whether the engine has made a step.
LIFE_POLL_S = 0.05

logger = logging.getLogger(__name__)
R = TypeVar("R")
Command = Callable[[], None]


class Engine:
    """An engine core and its thread; everything that touches the core runs on that thread, between two steps.

    All methods are called on the event loop. A failed step ends the engine: requests and calls then raise its error.
    """

    def __init__(self, on_failure: Callable[[], None] = lambda: None) -> None:
        """Start the thread; `on_failure` is called on the event loop once a step has failed."""
        self._on_failure = on_failure
        self._num_steps = 0
        self._num_proofs = 0
        self._is_paused = False
        self._core: EngineCore
        self._loop = asyncio.get_running_loop()
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._open: dict[str, asyncio.Future[Response]] = {}  # by the request's name
        self._failure: Exception | None = None
        self._is_stopped = False
        # A daemon: a worker that ends without `stop`, as after a failed start, must not wait for it.
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    async def start(self, arguments: EngineArgs) -> None:
        """Build the model and everything around it; called once, first."""

        def build() -> None:
            config = arguments.create_engine_config()
            self._core = EngineCore(config, Executor.get_class(config), log_stats=False)

        await self._on_thread(build)

    async def stop(self) -> None:
        """End the engine, its processes (tensor parallelism) and its thread."""

        def end() -> None:
            self._is_stopped = True
            if hasattr(self, "_core"):
                _shut_down(self._core)

        await self._on_thread(end, even_failed=True)

    async def generate(
        self, name: str, token_ids: Sequence[int], params: SamplingParams, adapter: Any = None
    ) -> Response:
        """Sample one response; a cancelled call ends the request.

        Args:
            name: of this request, never used twice.
            token_ids: the prompt.
            params: sampling parameters; the engine adds no tokens of its own to those that end a response.
            adapter: vLLM's `LoRARequest`, or None.

        Raises:
            WorkerError: the prompt leaves no room for a response, or the engine has failed.
        """
        limit = self._core.vllm_config.model_config.max_model_len
        if len(token_ids) >= limit:
            raise WorkerError(f"a prompt of {len(token_ids)} tokens leaves no room in an engine's {limit} tokens")
        self._check()
        answer = self._open[name] = self._loop.create_future()
        request = EngineCoreRequest(
            request_id=name,
            prompt_token_ids=list(token_ids),
            mm_features=None,
            sampling_params=params,
            pooling_params=None,
            arrival_time=time.time(),
            lora_request=adapter,
            cache_salt=None,  # given when the request is added
            data_parallel_rank=None,
        )
        self._commands.put(partial(self._add, request))
        try:
            return await answer
        except asyncio.CancelledError:
            self._commands.put(partial(self._abort, name))
            raise
        finally:
            del self._open[name]

    async def pause(self, *, clear_cache: bool) -> None:
        """Stop between two steps, once the results of all steps are in; requests stay, and continue afterwards.

        Args:
            clear_cache: drop the keys and values of running requests, which are then computed again.
        """
        self._is_paused = True

        def pause() -> None:
            self._core.scheduler.set_pause_state(PauseState.PAUSED_ALL)
            while self._has_work():  # steps that were scheduled ahead
                self._step()
            self._check()
            self._core.pause_scheduler("keep", clear_cache)

        await self._on_thread(pause)

    async def resume(self) -> None:
        """Continue after `pause`."""
        await self._on_thread(lambda: self._core.resume_scheduler())
        self._is_paused = False

    async def collective_rpc(self, method: str | Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
        """Return each rank's result of a method of vLLM's worker class, or of a function of the worker."""
        return await self._on_thread(lambda: self._core.collective_rpc(method, None, args, kwargs))

    async def add_lora(self, adapter: Any) -> None:
        """Load an adapter (a `LoRARequest`)."""
        await self._on_thread(lambda: self._core.add_lora(adapter))

    async def remove_lora(self, adapter_id: int) -> None:
        """Drop an adapter."""
        await self._on_thread(lambda: self._core.remove_lora(adapter_id))

    async def prove_life(self) -> None:
        """Return once the engine has made progress: a step while it is busy, a token while it is idle.

        A paused engine returns at once: it waits for weights, and whoever sends them has a deadline. So does one that
        was busy and has nothing left to do: its thread has ended the requests.
        """
        before, token = self._num_steps, None
        if self.num_unfinished == 0 and not self._is_paused:
            self._num_proofs += 1
            one = SamplingParams(temperature=0.0, max_tokens=1, logprobs=0, detokenize=False)
            token = asyncio.ensure_future(self.generate(f"life-{self._num_proofs}", [0], one))
        try:
            while not self._is_paused and self._num_steps == before:
                if token.done() if token is not None else self.num_unfinished == 0:
                    break
                await asyncio.sleep(LIFE_POLL_S)
        finally:
            if token is not None:
                await cancel([token])

    @property
    def num_unfinished(self) -> int:
        """Number of requests in the scheduler."""
        return len(self._core.scheduler.requests)

    def _check(self) -> None:
        if self._failure is not None:
            raise WorkerError(f"the engine has failed: {type(self._failure).__name__}: {self._failure}")

    async def _on_thread(self, work: Callable[[], R], *, even_failed: bool = False) -> R:
        if not even_failed:
            self._check()
        done: asyncio.Future[R] = self._loop.create_future()

        def settle(result: R | None, error: BaseException | None) -> None:
            if done.cancelled():
                return
            if error is None:
                done.set_result(result)  # type: ignore[arg-type]
            else:
                done.set_exception(error)

        def run() -> None:
            result: R | None = None
            error: BaseException | None = None
            try:
                result = work()
            except Exception as failed:
                error = failed
            self._loop.call_soon_threadsafe(settle, result, error)

        self._commands.put(run)
        return await done

    # What follows runs on the engine's thread.

    def _run(self) -> None:
        while not self._is_stopped:
            if not self._has_work():
                self._commands.get()()
            while not self._commands.empty():
                self._commands.get_nowait()()
            if self._has_work():
                self._step()

    def _has_work(self) -> bool:
        if self._failure is not None or self._is_stopped or not hasattr(self, "_core"):
            return False
        return self._core.scheduler.has_requests() or bool(self._core.batch_queue)

    def _step(self) -> None:
        try:
            outputs, was_executed = self._core.step_fn()
            self._core.post_step(was_executed)
            self._num_steps += 1
        except Exception as error:
            self._end_engine(error)
            return
        finished = [response for each in (outputs or {}).values() for response in each.outputs]
        if finished:
            self._loop.call_soon_threadsafe(self._deliver, finished)

    def _add(self, request: EngineCoreRequest) -> None:
        scheduler: Any = self._core.scheduler
        request.cache_salt = scheduler.salt
        try:
            self._core.add_request(*self._core.preprocess_add_request(request))
        except Exception as error:  # of this request alone
            self._loop.call_soon_threadsafe(self._fail, request.request_id, error)

    def _abort(self, name: str) -> None:
        try:
            self._core.abort_requests([name])
        except Exception as error:
            self._end_engine(error)

    def _end_engine(self, error: Exception) -> None:
        """Let requests and calls fail from now on: whatever the error is, vLLM's state is unknown."""
        logger.error("the engine failed", exc_info=error)
        self._failure = self._failure or error
        self._loop.call_soon_threadsafe(self._fail_all, error)

    # Called by the thread, on the event loop again.

    def _deliver(self, responses: Sequence[Response]) -> None:
        for response in responses:
            answer = self._open.get(response.request_id)
            if answer is not None and not answer.done():
                answer.set_result(response)

    def _fail(self, name: str, error: Exception) -> None:
        answer = self._open.get(name)
        if answer is not None and not answer.done():
            answer.set_exception(WorkerError(f"the engine failed: {type(error).__name__}: {error}"))

    def _fail_all(self, error: Exception) -> None:
        for name in list(self._open):
            self._fail(name, error)
        self._on_failure()


def _shut_down(core: EngineCore) -> None:
    """End an engine whose process ends with it.

    vLLM's `shutdown` would also free what another engine in this process could use, and for that walk all of its
    objects twice, which is nearly all of the time that it takes. An engine with processes of its own needs it, to end
    them.
    """
    if core.vllm_config.parallel_config.world_size > 1:
        core.shutdown()
        return
    core.collective_rpc("leave_broadcasts", None, (), {})
    destroy_model_parallel()
    destroy_distributed_environment()
