"""A reward service on another machine, called over HTTP."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from circuitbreaker import CircuitBreaker, CircuitBreakerError

from rlsys.config.secrets import secret, without_secrets
from rlsys.errors import ConfigError
from rlsys.rewards import OPENRLHF_LABELS, Failed, Scores, openrlhf_labels, plain, register
from rlsys.types import FAILURES

MARGIN_S = 2.0  # how long before the process is killed the last try ends
MAX_WAIT_S = 10.0  # the longest wait between two tries
RETRIED = (408, 425, 429, 500, 502, 503, 504)  # status codes that may change; other errors stay the same when repeated


class RefusedError(Exception):
    """The service refused the request, and would refuse it again."""


class UnavailableError(Exception):
    """The service did not reply, or with an error that may be temporary."""


class OutOfTimeError(Exception):
    """The deadline of the call came before the service had `timeout_s` to reply."""


class _Breaker(CircuitBreaker):
    """A circuit breaker to which a try that ran out of time is neither a failure nor a sign of life."""

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        return False if kind is OutOfTimeError else bool(super().__exit__(kind, error, trace))


@register("http", imports=("httpx", "tenacity"), deadline_s=60.0)
class Http:
    """Scores from a service: `rlsys serve-reward`, or one for OpenRLHF's `remote_rm_url`.

    Rows are sent in batches, with a prompt's responses in one batch. A batch without a reply is sent again, after waits
    that are random and double each time; after the last try its rows are errors. After several failed tries in a row
    nothing is sent for a while (circuit breaker): a service that is down costs the run its rows, not minutes.

    Args:
        url: address to post to; with `rlsys serve-reward` it ends in `/score`.
        token_env: name of the environment variable with the bearer token; empty for none.
        protocol: `rlsys` sends prompts, completions, completion_ids and columns; `openrlhf` sends queries (prompt and
            completion as one text), prompts and labels (the column `label`, else `answer`).
        batch_size: rows per request; more if one prompt has more responses.
        num_parallel: requests at the same time.
        timeout_s: seconds per try; longer than the service's own deadline.
        max_tries: tries per batch; fewer if the deadline of the call comes first.
        wait_s: most seconds between the first two tries; waits are random, and this bound doubles after each try.
        breaker_failures: failed tries in a row after which nothing is sent.
        breaker_s: seconds for which nothing is sent then.
        columns: columns of the data that are sent; null for all.
    """

    def __init__(
        self,
        *,
        url: str,
        token_env: str = "",
        protocol: Literal["rlsys", "openrlhf"] = "rlsys",
        batch_size: int = 64,
        num_parallel: int = 4,
        timeout_s: float = 40.0,
        max_tries: int = 4,
        wait_s: float = 0.5,
        breaker_failures: int = 5,
        breaker_s: float = 30.0,
        columns: Sequence[str] | None = None,
    ) -> None:
        import httpx

        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"reward 'http': url must begin with http:// or https://, not with {url[:8]!r}")
        self._url, self._shown_url, self._protocol = url, without_secrets(url), protocol
        self._columns = columns
        self._batch_size, self._timeout_s = batch_size, timeout_s
        self._max_tries, self._wait_s = max_tries, wait_s
        # A token comes from the environment, not the configuration, which is written to the run's folder.
        token = secret(token_env, "reward 'http': token_env")
        self._client = httpx.Client(headers={"Authorization": f"Bearer {token}"} if token else {})
        self._executor = ThreadPoolExecutor(num_parallel)
        # Around each single try: the retries of all threads share the count of failures. A refusal (RefusedError) shows
        # that the service is there, so it resets the count.
        breaker = _Breaker(breaker_failures, breaker_s, UnavailableError, name=f"reward service {self._shown_url}")
        self._post_once = breaker.decorate(self._post)

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[list[int]],
        trainer_state: Any,
        deadline_s: float,
        log_metric: Any,
        log_extra: Any,
        **columns: Sequence[Any],
    ) -> Scores:
        """Return one score per completion; what a function behind `rlsys serve-reward` logged is logged here."""
        end = time.monotonic() + deadline_s - MARGIN_S  # then the rows are errors, not a killed process
        parts = batches(prompts, self._batch_size)
        sent = self._sendable(columns)
        bodies = [
            self._body(
                prompts[part],
                completions[part],
                completion_ids[part],
                {name: column[part] for name, column in sent.items()},
                trainer_state.global_step,
            )
            for part in parts
        ]
        replies = list(self._executor.map(lambda body: self._request(body, end), bodies))
        sizes = [len(completions[part]) for part in parts]
        log_metric("http/failed_batches", sum(isinstance(reply, Failed) for reply in replies) / len(replies))
        _log(replies, sizes, log_metric, log_extra)
        return [score for reply, size in zip(replies, sizes, strict=True) for score in _scores(reply, size)]

    def _sendable(self, columns: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Return the columns to send. Raises ValueError for one that cannot be written as JSON."""
        wanted = OPENRLHF_LABELS if self._protocol == "openrlhf" else columns
        names = [name for name in columns if name in wanted and (self._columns is None or name in self._columns)]
        chosen = {name: list(columns[name]) for name in names}
        for name, column in chosen.items():
            try:
                json.dumps(column, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"the column '{name}' cannot be sent as JSON ({error}): list only the columns that the service "
                    "needs in the option 'columns'"
                ) from error
        return chosen

    def _body(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[list[int]],
        columns: Mapping[str, list[Any]],
        step: int,
    ) -> dict[str, Any]:
        if self._protocol == "openrlhf":
            texts = [plain(prompt) for prompt in prompts]
            queries = [prompt + plain(completion) for prompt, completion in zip(texts, completions, strict=True)]
            return {"query": queries, "prompts": texts, "labels": openrlhf_labels(columns, len(texts))}
        return {
            "prompts": list(prompts),
            "completions": list(completions),
            "completion_ids": list(completion_ids),
            "columns": dict(columns),
            "step": step,
        }

    def _request(self, body: dict[str, Any], end: float) -> dict[str, Any] | Failed:
        """Send one batch with all its tries, until `end` on the monotonic clock, and return the service's reply."""
        import tenacity

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(UnavailableError),
            stop=tenacity.stop_any(
                tenacity.stop_after_attempt(self._max_tries),
                tenacity.stop_before_delay(max(end - time.monotonic(), 0.0)),
            ),
            wait=tenacity.wait_random_exponential(multiplier=self._wait_s, max=MAX_WAIT_S),
            reraise=True,
        )
        try:
            reply: dict[str, Any] = retrying(self._post_once, body, end)
        except CircuitBreakerError:
            return Failed(
                f"{self._shown_url} failed too often: nothing is sent to it for a while (circuit breaker open)"
            )
        except OutOfTimeError:
            return Failed(f"{self._shown_url}: no reply before the deadline of the call", "timeout")
        except UnavailableError as error:
            return Failed(f"{self._shown_url}: {error}, in {retrying.statistics['attempt_number']} tries")
        except RefusedError as error:
            return Failed(f"{self._shown_url}: {error}")
        return reply

    def _post(self, body: dict[str, Any], end: float) -> dict[str, Any]:
        """Send one batch once and return the reply."""
        import httpx

        left = end - time.monotonic()
        if left <= 0:
            raise OutOfTimeError
        try:
            response = self._client.post(self._url, json=body, timeout=min(self._timeout_s, left))
        except httpx.TransportError as error:
            if isinstance(error, httpx.TimeoutException) and left < self._timeout_s:
                raise OutOfTimeError from error
            raise UnavailableError(f"no reply ({type(error).__name__}: {error})") from error
        if response.status_code in RETRIED:
            raise UnavailableError(f"status {response.status_code}")
        if response.is_error:
            raise RefusedError(f"status {response.status_code}: {response.text[:200]}")
        try:
            reply: dict[str, Any] = response.json()
            rewards = reply["rewards"]
        except (ValueError, KeyError, TypeError) as error:
            raise RefusedError(f"the reply is not an object with 'rewards': {response.text[:200]!r}") from error
        size = len(body["prompts"])
        if not isinstance(rewards, list) or len(rewards) != size:
            raise RefusedError(f"the reply does not have one reward for each of {size} completions")
        return reply


def batches(prompts: Sequence[Any], size: int) -> list[slice]:
    """Divide the rows into batches of about `size` that never part a prompt's responses: a service may compare them."""
    found: list[slice] = []
    start = 0
    for _, same in itertools.groupby(prompts):
        end = start + len(list(same))
        if found and end - found[-1].start <= size:  # this prompt's rows still fit
            found[-1] = slice(found[-1].start, end)
        else:
            found.append(slice(start, end))
        start = end
    return found


def _scores(reply: dict[str, Any] | Failed, size: int) -> Scores:
    if isinstance(reply, Failed):
        return [reply] * size
    return [_score(entry) for entry in reply["rewards"]]


def _log(replies: Sequence[dict[str, Any] | Failed], sizes: Sequence[int], log_metric: Any, log_extra: Any) -> None:
    """Log what the service sent besides the scores: means, and columns with one entry per row."""
    sent = [reply if isinstance(reply, dict) else {} for reply in replies]
    for reply in sent:
        for name, value in (reply.get("metrics") or {}).items():
            if isinstance(value, int | float):  # NaN arrives as null
                log_metric(name, value)
    names = {name for reply in sent for name in (reply.get("extra") or {})}
    for name in sorted(names):
        columns = [(reply.get("extra") or {}).get(name) for reply in sent]
        # Batches that failed or sent a column of another length have no entries for their rows.
        rows = [c if c and len(c) == size else [None] * size for c, size in zip(columns, sizes, strict=True)]
        log_extra(name, [value for column in rows for value in column])


def _score(entry: Any) -> float | Failed | None:
    """Return the score of an entry: a number, null, or `{value, outcome, detail}` as `rlsys serve-reward` sends."""
    if isinstance(entry, dict):
        if entry.get("outcome") in FAILURES:
            return Failed(str(entry.get("detail") or "the service gave no reason"), entry["outcome"])
        entry = entry.get("value")
    if entry is None or (isinstance(entry, int | float) and not isinstance(entry, bool)):
        return None if entry is None else float(entry)
    return Failed(f"the service sent {entry!r} as a reward; it must be a number or null")
