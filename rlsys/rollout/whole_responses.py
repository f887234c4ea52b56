"""Engine schedulers that hand out a response once, when it is finished, and say which weights each token is of.

vLLM's send every token of every request to the front end as it is sampled: at small models that traffic (three arrays a
token, packed and unpacked, and a front end that wakes at every step, on a core the model computes on) costs a tenth of
the rollout. Nobody reads the tokens before the last one is there. Log-probabilities go past vLLM's own field, which the
front end would unpack number by number.

vLLM credits what arrives at the front end to the version the weights have then: with whole responses that is the last
one for every token. So the scheduler counts. Weights change only while generation is paused, and a pause is complete
only when the results of all steps are in, also of those that were scheduled ahead: what the scheduler takes in between
two resumptions was sampled under one set of weights, an epoch. The worker knows which policy version an epoch had.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.request import Request

from rlsys.rollout.trajectory import EPOCHS, LOGPROBS

Part = tuple[int, EngineCoreOutput]
"""What one step gave to a request, after the epoch of the step."""


class _WholeResponses:
    """Mixin: keeps the parts of a response until the last one, each with its epoch; and gives cache salts by epoch.

    A request's salt is the epoch in which its prefill began: it finds no prefix that was computed under older weights,
    also when it was sent before an update and had to wait. While it holds a cache it keeps its salt.
    """

    requests: dict[str, Request]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._held: dict[str, list[Part]] = {}
        self._epoch = 0

    def add_request(self, request: Request) -> None:
        """Take a request in; the front end's salt may be out of date by now."""
        _give_salt(request, self._epoch)
        super().add_request(request)  # type: ignore[misc]

    def set_pause_state(self, pause_state: PauseState) -> None:
        """Resuming begins the next epoch."""
        if pause_state == PauseState.UNPAUSED and self.pause_state != PauseState.UNPAUSED:  # type: ignore[attr-defined]
            self._epoch += 1
            for request in self.requests.values():
                if request.num_computed_tokens == 0:
                    _give_salt(request, self._epoch)
        super().set_pause_state(pause_state)  # type: ignore[misc]

    def update_from_output(self, *args: Any, **kwargs: Any) -> dict[int, EngineCoreOutputs]:
        """What the step gave, without the parts of responses that are not finished; nothing to tell is not told."""
        by_client: dict[int, EngineCoreOutputs] = super().update_from_output(*args, **kwargs)  # type: ignore[misc]
        for outputs in by_client.values():
            outputs.outputs = [whole for part in outputs.outputs if (whole := self._hold(part)) is not None]
        if len(self._held) > len(self.requests):  # aborted requests never finish
            self._held = {name: parts for name, parts in self._held.items() if name in self.requests}
        return {client: outputs for client, outputs in by_client.items() if _says_something(outputs)}

    def _hold(self, output: EngineCoreOutput) -> EngineCoreOutput | None:
        parts = self._held.setdefault(output.request_id, [])
        parts.append((self._epoch, output))
        return joined(self._held.pop(output.request_id)) if output.finished else None


class WholeResponseScheduler(_WholeResponses, Scheduler):
    """For CPUs, where scheduling ahead only competes with the model for the cores."""


class WholeResponseAsyncScheduler(_WholeResponses, AsyncScheduler):
    """For GPUs: the next step is scheduled while this one runs."""


def joined(parts: Sequence[Part]) -> EngineCoreOutput:
    """One output with the tokens and log-probabilities of all parts, in order; the rest is the last part's."""
    outputs = [output for _, output in parts]
    whole = outputs[-1]
    by_epoch = itertools.groupby(parts, key=lambda part: part[0])
    counts = [[epoch, sum(len(output.new_token_ids) for _, output in same)] for epoch, same in by_epoch]
    # With `logprobs=0` the sampled token's is the first, and only, one of its row.
    rows = [output.new_logprobs.logprobs[:, 0] for output in outputs if output.new_logprobs is not None]
    whole.kv_transfer_params = {
        **(whole.kv_transfer_params or {}),
        EPOCHS: [pair for pair in counts if pair[1]],
        LOGPROBS: np.concatenate(rows).astype(np.float32).tobytes() if rows else b"",
    }
    whole.new_token_ids = [token for output in outputs for token in output.new_token_ids]
    whole.new_logprobs = None
    whole.prefill_stats = outputs[0].prefill_stats
    return whole


def _says_something(outputs: EngineCoreOutputs) -> bool:
    return bool(outputs.outputs or outputs.finished_requests or outputs.scheduler_stats)


def _give_salt(request: Request, epoch: int) -> None:
    """Hashes of a request's blocks begin with its salt: a new one means to hash them again."""
    if request.cache_salt != str(epoch):
        request.cache_salt = str(epoch)
        request.block_hashes.clear()
        request.update_block_hashes()
