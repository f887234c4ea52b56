"""A response while it grows: its tokens, each with its log-probability and its epoch."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
from vllm.v1.engine import EngineCoreOutput

from rlsys.rollout.trajectory import Response


class PartialResponse:
    """The tokens that a request has sampled so far."""

    def __init__(self) -> None:
        self._token_ids = array("i")
        self._logprobs = array("f")  # empty for a request that asks for none
        self._epochs: dict[int, int] = {}  # number of tokens, in the order of tokens
        self._prompt_logprobs: list[Any] = []

    def add_token(self, epoch: int, token_id: int, logprob: float) -> None:
        """Add one token."""
        self._token_ids.append(token_id)
        self._logprobs.append(logprob)
        self._epochs[epoch] = self._epochs.get(epoch, 0) + 1

    def add(self, epoch: int, output: EngineCoreOutput) -> None:
        """Add what a step gave to the request; a last part may carry no token, only the end."""
        self._token_ids.extend(output.new_token_ids)
        # With `logprobs=0` the sampled token's is the first, and only, one of its row; so is the prompt's token's.
        if output.new_logprobs is not None:
            self._logprobs.extend(output.new_logprobs.logprobs[:, 0].tolist())
        if output.new_prompt_logprobs_tensors is not None:
            self._prompt_logprobs.append(output.new_prompt_logprobs_tensors.logprobs[:, 0])
        if output.new_token_ids:
            self._epochs[epoch] = self._epochs.get(epoch, 0) + len(output.new_token_ids)

    def whole(self, last: EngineCoreOutput) -> Response:
        """Return the response, `last` being the part that ended it."""
        prompt = [part.float().numpy() for part in self._prompt_logprobs]
        return Response(
            request_id=last.request_id,
            token_ids=np.array(self._token_ids, dtype=np.int32),
            logprobs=np.array(self._logprobs, dtype=np.float32),
            epochs=tuple(self._epochs.items()),
            finish_reason=str(last.finish_reason),
            prompt_logprobs=np.concatenate(prompt) if prompt else None,
        )
