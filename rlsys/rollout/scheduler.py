"""Engine schedulers that hand out a response once, when it is finished.

vLLM's send every token of every request to the front end as it is sampled: at small models that traffic (three arrays a
token, packed and unpacked) costs a tenth of the rollout. Nobody reads the tokens before the last one is there.

A response is credited to the policy version at its end, so none may run across a weight update: RolloutWorker sees to
that.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import LogprobsLists


class _WholeResponses:
    """Mixin: keeps the parts of a response until the last one."""

    requests: dict[str, Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._held: dict[str, list[EngineCoreOutput]] = {}

    def update_from_output(self, *args: Any, **kwargs: Any) -> dict[int, EngineCoreOutputs]:
        """What the step gave, without the parts of responses that are not finished."""
        by_client: dict[int, EngineCoreOutputs] = super().update_from_output(*args, **kwargs)  # type: ignore[misc]
        for outputs in by_client.values():
            outputs.outputs = [whole for part in outputs.outputs if (whole := self._hold(part)) is not None]
        if len(self._held) > len(self.requests):  # aborted requests never finish
            self._held = {name: parts for name, parts in self._held.items() if name in self.requests}
        return by_client

    def _hold(self, part: EngineCoreOutput) -> EngineCoreOutput | None:
        parts = self._held.setdefault(part.request_id, [])
        parts.append(part)
        return joined(self._held.pop(part.request_id)) if part.finished else None


class WholeResponseScheduler(_WholeResponses, Scheduler):
    """For CPUs, where scheduling ahead only competes with the model for the cores."""


class WholeResponseAsyncScheduler(_WholeResponses, AsyncScheduler):
    """For GPUs: the next step is scheduled while this one runs."""


def joined(parts: list[EngineCoreOutput]) -> EngineCoreOutput:
    """One output with the tokens and log-probabilities of all parts, in order; the rest is the last part's."""
    whole = parts[-1]
    whole.new_token_ids = [token for part in parts for token in part.new_token_ids]
    rows = [part.new_logprobs for part in parts if part.new_logprobs is not None]
    if rows:
        whole.new_logprobs = LogprobsLists(
            np.concatenate([row.logprob_token_ids for row in rows]),
            np.concatenate([row.logprobs for row in rows]),
            np.concatenate([row.sampled_token_ranks for row in rows]),
        )
    whole.prefill_stats = parts[0].prefill_stats
    return whole
