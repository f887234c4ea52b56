"""Grades from a language model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from rlsys.config.secrets import secret, without_secrets
from rlsys.config.templates import jinja_template, text_or_file
from rlsys.registry import fits
from rlsys.rewards import Failed, Scores, content, plain, register

INSTRUCTION = """Grade an answer from 0 (useless) to {{ max_score }} (perfect).

Question:
{{ prompt }}

{% if answer is defined and answer %}Reference answer:
{{ answer }}

{% endif %}Answer to grade:
{{ completion }}

Reply with a JSON object whose key "score" holds the grade, a whole number."""

KEY = "reward 'llm_judge', instruction"
MARGIN_S = 2.0  # how long before the process is killed waiting for grades ends


def _template(*, instruction: str, **_: Any) -> Any:
    """Return the instruction as a template. Raise ConfigError for one that does not show the judge what to grade."""
    return jinja_template(text_or_file(instruction, KEY, variable="completion"), KEY, variable="completion")


@register("llm_judge", imports=("openai", "jinja2"), paths=("instruction",), deadline_s=120.0, check=_template)
class LlmJudge:
    """The judge's grade divided by the highest grade, in [0, 1]. A reply without a grade is an error, not 0.

    Args:
        url: the endpoint; it ends in `/v1`.
        model: the judge's name at the endpoint.
        api_key_env: name of the environment variable with the key; empty for none.
        instruction: the judge's instruction, a jinja template or a file with one; its variables are `prompt`,
            `completion`, `max_score` and the columns of the data.
        max_score: the highest grade.
        is_constrained: whether the endpoint must restrict the reply to a JSON object with a grade (`response_format`).
        temperature: the judge's sampling temperature.
        max_tokens: the most tokens of a reply.
        timeout_s: seconds per try.
        max_tries: tries per response.
        num_parallel: requests at the same time.
    """

    def __init__(
        self,
        *,
        url: str,
        model: str,
        api_key_env: str = "",
        instruction: str = INSTRUCTION,
        max_score: int = 10,
        is_constrained: bool = True,
        temperature: float = 0.0,
        max_tokens: int = 256,
        timeout_s: float = 20.0,
        max_tries: int = 3,
        num_parallel: int = 16,
    ) -> None:
        # A variable that the data lack is an error: the judge must not grade a text with a gap.
        self._template = _template(instruction=instruction)
        self._url, self._shown_url = url, without_secrets(url)
        self._key = secret(api_key_env, "reward 'llm_judge': api_key_env") or "none"  # the client insists on one
        self._request: dict[str, Any] = {"model": model, "temperature": temperature, "max_tokens": max_tokens}
        if is_constrained:
            self._request["response_format"] = _format(max_score)
        self._max_score = max_score
        self._timeout_s, self._max_tries = timeout_s, max_tries
        self._num_parallel = num_parallel

    async def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], deadline_s: float, log_metric: Any, **columns: Any
    ) -> Scores:
        """Return one grade per completion; a row without a grade at the deadline is a timeout."""
        from openai import AsyncOpenAI

        # `columns` also holds arguments that are no columns, such as `trainer_state`.
        rows = [
            {name: column[index] for name, column in columns.items() if isinstance(column, list)}
            for index in range(len(completions))
        ]
        requests = [
            self._template.render(
                **{**row, "prompt": plain(prompt), "completion": content(completion), "max_score": self._max_score}
            )
            for row, prompt, completion in zip(rows, prompts, completions, strict=True)
        ]
        slots = asyncio.Semaphore(self._num_parallel)
        # The client retries connection errors and the statuses 408, 409, 429 and 5xx, after random waits that double.
        # A client per call: it belongs to the event loop, and no connection stays open between steps.
        async with AsyncOpenAI(
            base_url=self._url, api_key=self._key, timeout=self._timeout_s, max_retries=self._max_tries - 1
        ) as client:
            # Wait for all, but not longer than the deadline: rows that are done keep their grades.
            tasks = [asyncio.create_task(self._grade(client, slots, request)) for request in requests]
            await asyncio.wait(tasks, timeout=max(deadline_s - MARGIN_S, 0.0))
            scores = [_result(task, deadline_s) for task in tasks]
        log_metric("llm_judge/failed", sum(isinstance(score, Failed) for score in scores) / len(scores))
        return list(scores)

    async def _grade(self, client: Any, slots: asyncio.Semaphore, request: str) -> float | Failed:
        from openai import OpenAIError

        async with slots:
            try:
                reply = await client.chat.completions.create(
                    messages=[{"role": "user", "content": request}], **self._request
                )
            except OpenAIError as error:
                return Failed(f"{self._shown_url}: {type(error).__name__}: {error}")
        if not reply.choices:
            return Failed(f"{self._shown_url}: the reply has no choices")
        return self._score(reply.choices[0].message.content or "")

    def _score(self, reply: str) -> float | Failed:
        start, end = reply.find("{"), reply.rfind("}")  # text around the object is ignored
        try:
            score = json.loads(reply[start : end + 1])["score"]
        except (ValueError, KeyError, TypeError):
            return Failed(f"no grade in the judge's reply: {reply[:200]!r}")
        if not fits(score, float) or not 0 <= score <= self._max_score:
            return Failed(f"the judge's grade is {score!r}; it must be a number from 0 to {self._max_score}")
        return float(score) / self._max_score


def _result(task: asyncio.Task[float | Failed], deadline_s: float) -> float | Failed:
    if not task.done():
        task.cancel()
        return Failed(f"no grade within the {deadline_s:g} s of the call", "timeout")
    return task.result()


def _format(max_score: int) -> dict[str, Any]:
    score = {"type": "integer", "enum": list(range(max_score + 1))}
    schema = {
        "type": "object",
        "properties": {"score": score},
        "required": ["score"],
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": "grade", "schema": schema}}
