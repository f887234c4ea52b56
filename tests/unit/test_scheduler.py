"""Parts of a response become one output; nothing goes out before the last part."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.outputs import LogprobsLists

from rlsys.rollout.scheduler import _WholeResponses, joined


def part(request: str, tokens: list[int], *, last: bool = False) -> EngineCoreOutput:
    """The log-probability of token t is -t, its rank 10 + t."""
    ids = np.array(tokens, dtype=np.int32)
    logprobs = LogprobsLists(ids[:, None], -ids[:, None].astype(np.float32), 10 + ids)
    return EngineCoreOutput(request, tokens, logprobs, finish_reason=FinishReason.LENGTH if last else None)


class Steps:
    """Stands for vLLM's scheduler: gives out what the test says each step sampled."""

    def __init__(self) -> None:
        self.requests: dict[str, Any] = {"a": None, "b": None}

    def update_from_output(self, parts: list[EngineCoreOutput]) -> dict[int, EngineCoreOutputs]:
        return {0: EngineCoreOutputs(outputs=list(parts))}


class Whole(_WholeResponses, Steps):
    pass


def test_parts_are_joined_in_order() -> None:
    whole = joined([part("a", [5]), part("a", [6, 7]), part("a", [8], last=True)])
    assert whole.new_token_ids == [5, 6, 7, 8]
    assert whole.new_logprobs is not None
    assert whole.new_logprobs.logprobs.tolist() == [[-5.0], [-6.0], [-7.0], [-8.0]]
    assert whole.new_logprobs.sampled_token_ranks.tolist() == [15, 16, 17, 18]
    assert whole.finish_reason == FinishReason.LENGTH


def test_only_finished_responses_go_out() -> None:
    scheduler = Whole()
    assert scheduler.update_from_output([part("a", [1]), part("b", [2])])[0].outputs == []
    [finished] = scheduler.update_from_output([part("a", [3]), part("b", [4], last=True)])[0].outputs
    assert (finished.request_id, finished.new_token_ids) == ("b", [2, 4])
    [finished] = scheduler.update_from_output([part("a", [5], last=True)])[0].outputs
    assert (finished.request_id, finished.new_token_ids) == ("a", [1, 3, 5])


def test_an_aborted_request_is_forgotten() -> None:
    scheduler = Whole()
    scheduler.update_from_output([part("a", [1]), part("b", [2])])
    del scheduler.requests["a"]
    scheduler.update_from_output([part("b", [3])])
    assert list(scheduler._held) == ["b"]
