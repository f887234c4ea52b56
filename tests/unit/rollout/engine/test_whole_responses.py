"""Parts of a response become one output, nothing goes out before the last, every token is credited to its epoch."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from vllm.v1.core.sched.interface import PauseState
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.outputs import LogprobsLists

from rlsys.rollout.engine.partial_response import PartialResponse
from rlsys.rollout.engine.whole_responses import _WholeResponses
from rlsys.rollout.trajectory import Response


def part(request: str, tokens: list[int], *, last: bool = False) -> EngineCoreOutput:
    """The log-probability of token t is -t, its rank 10 + t."""
    ids = np.array(tokens, dtype=np.int32)
    logprobs = LogprobsLists(ids[:, None], -ids[:, None].astype(np.float32), 10 + ids)
    return EngineCoreOutput(request, tokens, logprobs, finish_reason=FinishReason.LENGTH if last else None)


class Request:
    """Stands for vLLM's: hashes of blocks begin with the salt."""

    def __init__(self, salt: str | None = "0", computed: int = 0) -> None:
        self.cache_salt = salt
        self.num_computed_tokens = computed
        self.block_hashes = [f"{salt}-a", f"{salt}-b"]

    def update_block_hashes(self) -> None:
        assert self.block_hashes == []
        self.block_hashes += [f"{self.cache_salt}-a", f"{self.cache_salt}-b"]


class Steps:
    """Stands for vLLM's scheduler: gives out what the test says each step sampled."""

    pause_state = PauseState.UNPAUSED

    def __init__(self) -> None:
        self.requests: dict[str, Any] = {"a": Request(), "b": Request()}
        self.kv_cache_manager = SimpleNamespace(coordinator=SimpleNamespace(single_type_managers=()))

    def set_pause_state(self, pause_state: PauseState) -> None:
        self.pause_state = pause_state

    def update_from_output(self, scheduled: None, parts: list[EngineCoreOutput]) -> dict[int, EngineCoreOutputs]:
        return {0: EngineCoreOutputs(outputs=list(parts))}


class Whole(_WholeResponses, Steps):
    def step(self, *parts: EngineCoreOutput) -> list[Response]:
        nothing: Any = None  # what was scheduled: `Steps` does not look at it
        made: Any = list(parts)
        outputs: Any = self.update_from_output(nothing, made)[0].outputs
        return list(outputs)

    def update_weights(self, *in_flight: EngineCoreOutput) -> list[Response]:
        """A pause during which steps that were scheduled ahead still end."""
        self.set_pause_state(PauseState.PAUSED_ALL)
        outputs = self.step(*in_flight)
        self.set_pause_state(PauseState.UNPAUSED)
        return outputs


def test_parts_are_joined_in_order() -> None:
    held, last = PartialResponse(), part("a", [9], last=True)
    held.add(0, part("a", [5]))
    held.add(0, part("a", [6, 7]))
    held.add_token(2, 8, -8.0)
    held.add(2, last)
    whole = held.whole(last)
    assert whole.token_ids.tolist() == [5, 6, 7, 8, 9]
    assert whole.logprobs.tolist() == [-5.0, -6.0, -7.0, -8.0, -9.0]
    assert whole.finish_reason == "length"
    assert whole.epochs == ((0, 3), (2, 2))


def test_only_finished_responses_go_out() -> None:
    scheduler = Whole()
    assert scheduler.step(part("a", [1]), part("b", [2])) == []
    [finished] = scheduler.step(part("a", [3]), part("b", [4], last=True))
    assert (finished.request_id, finished.token_ids.tolist()) == ("b", [2, 4])
    [finished] = scheduler.step(part("a", [5], last=True))
    assert (finished.request_id, finished.token_ids.tolist(), finished.epochs) == ("a", [1, 3, 5], ((0, 3),))


def test_tokens_of_steps_in_flight_at_a_pause_belong_to_the_old_weights() -> None:
    scheduler = Whole()
    scheduler.step(part("a", [1]), part("b", [2]))
    [finished] = scheduler.update_weights(part("a", [3]), part("b", [4], last=True))
    assert finished.epochs == ((0, 2),)
    assert scheduler.update_weights() == []  # nothing was sampled between two updates
    scheduler.step(part("a", [5]))
    [finished] = scheduler.update_weights(part("a", [], last=True))
    assert finished.epochs == ((0, 2), (2, 1))


def test_only_resuming_begins_an_epoch() -> None:
    scheduler = Whole()
    scheduler.set_pause_state(PauseState.UNPAUSED)
    scheduler.set_pause_state(PauseState.PAUSED_ALL)
    scheduler.set_pause_state(PauseState.PAUSED_NEW)
    [finished] = scheduler.step(part("a", [1], last=True))
    assert finished.epochs == ((0, 1),)


def test_no_prefix_of_older_weights_is_found() -> None:
    scheduler = Whole()
    running, waiting = Request(computed=7), Request()
    scheduler.requests = {"running": running, "waiting": waiting}
    scheduler.update_weights()
    assert (running.cache_salt, running.block_hashes) == ("0", ["0-a", "0-b"])  # what it has computed is kept
    assert (waiting.cache_salt, waiting.block_hashes) == ("1", ["1-a", "1-b"])
    assert scheduler.salt == "1"  # of what is added from now on


def test_an_aborted_request_is_forgotten() -> None:
    scheduler = Whole()
    scheduler.step(part("a", [1]), part("b", [2]))
    del scheduler.requests["a"]
    scheduler.step(part("b", [3]))
    assert list(scheduler._held) == ["b"]
