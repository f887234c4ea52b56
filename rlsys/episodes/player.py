"""The course of one episode: the policy's turns on one engine, and the environment's answers between them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from rlsys.data.calls import Call, CallFormat
from rlsys.data.turns import Turns, as_text
from rlsys.episodes.row import Row
from rlsys.episodes.slots import Slot, Slots, StepError, StepTimeoutError, UnreadableError
from rlsys.errors import ConfigError
from rlsys.types import EpisodeEnd, EpisodeRecord, Messages, Prompt, Sampling, Trajectory

CLOSE_S = 5.0  # for an environment to tidy up, and to say what reward functions see of it
# Samples one turn: all ids before it, how to sample, and the turn's number.
Generate = Callable[[np.ndarray, Sampling, int], Awaitable[Trajectory]]
# Ends by which a policy has failed, and not its environment: without a reward they count as 0.
POLICY_ENDS = ("max_turns", "max_tokens", "context_overflow", "parse_error")


@dataclass(frozen=True)
class Limits:
    """Limits of an episode; a turn's own is `rollout.max_response_tokens`."""

    max_turns: int
    max_tokens: int  # of the whole row
    max_sampled_tokens: int
    max_calls: int
    step_deadline_s: float
    deadline_s: float


@dataclass(frozen=True)
class Reader:
    """What reads the policy's tokens as a message."""

    decode: Callable[[Sequence[int]], str]  # with special tokens
    special: Mapping[int, str]  # special tokens, by id
    stops: frozenset[int]  # ids that end a turn
    calls: CallFormat | None = None  # None: no tools are offered
    is_thinking: bool = False  # whether the prompt opens a thought

    def message(self, sampled: np.ndarray) -> tuple[dict[str, Any], list[Call]]:
        """Return a sampled turn as a message, with the calls that can be executed, and all of its calls."""
        ids = sampled.tolist()
        text = self.decode(ids[:-1] if ids and ids[-1] in self.stops else ids)
        said, calls = (text, []) if self.calls is None else self.calls.find(text, is_thinking=self.is_thinking)
        for special in self.special.values():
            said = said.replace(special, "")
        message: dict[str, Any] = {"role": "assistant", "content": said}
        if calls:
            message["tool_calls"] = [call.as_json() for call in calls if call.problem is None]
        return message, calls


@dataclass
class _Course:
    """What has happened in an episode so far."""

    row: Row
    opening: Messages
    messages: Messages = field(default_factory=list)
    num_calls: int = 0
    problems: list[Call] = field(default_factory=list)  # calls of the last message that cannot be executed
    rewards: list[float] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)


class Player:
    """A player of episodes, each in a slot of its own."""

    def __init__(self, slots: Slots, turns: Turns, reader: Reader, limits: Limits, *, has_rewards: bool) -> None:
        """Play with these limits; `has_rewards` says whether an episode without a reward counts as 0."""
        self._slots = slots
        self._turns = turns
        self._reader = reader
        self._limits = limits
        self._has_rewards = has_rewards

    async def play(self, prompt: Prompt, sampling: Sampling, generate: Generate) -> Trajectory:
        """Play one episode and return its trajectory, however it ended; what `generate` raises goes on."""
        course = _Course(Row(prompt.token_ids), as_messages(prompt))
        end: EpisodeEnd
        detail, closing = "", {}
        try:
            async with self._slots.one() as slot:
                # Counted from here: an episode does not have to answer for how long it waits for its slot.
                end, detail = await self._played(course, slot, prompt, sampling, generate)
                if end != "timeout":  # a process that hangs would do so once more
                    closing = await _closed(slot, asks_reward=end in POLICY_ENDS)
        except StepError as error:  # no slot could be had
            end, detail = "env_error", str(error)
        if closing.get("reward") is not None:
            course.rewards.append(float(closing["reward"]))
        if not course.rewards and self._has_rewards and end in POLICY_ENDS:
            course.rewards.append(0.0)
        record = EpisodeRecord(
            end=end,
            opening=course.opening,
            messages=course.messages,
            turns=tuple(course.row.turns),
            reward=sum(course.rewards) if course.rewards else None,
            num_calls=course.num_calls,
            metrics=course.metrics,
            state=closing.get("state"),
            detail=detail,
        )
        return course.row.trajectory(record)

    async def _played(
        self, course: _Course, slot: Slot, prompt: Prompt, sampling: Sampling, generate: Generate
    ) -> tuple[EpisodeEnd, str]:
        """Play until the end; return which it is, and why where something failed."""
        try:
            async with asyncio.timeout(self._limits.deadline_s):
                return await self._course_of(course, slot, prompt, sampling, generate), ""
        except UnreadableError as error:
            return "parse_error", str(error)
        except StepTimeoutError as error:
            return "timeout", str(error)
        except (StepError, ConfigError) as error:  # the latter: messages that the chat template does not take
            return "env_error", str(error)
        except TimeoutError:
            return "timeout", f"the episode took longer than {self._limits.deadline_s:g} s"

    async def _course_of(
        self, course: _Course, slot: Slot, prompt: Prompt, sampling: Sampling, generate: Generate
    ) -> EpisodeEnd:
        limits = self._limits
        row = {**prompt.columns, "prompt": as_messages(prompt)}
        opening = await slot.call("start", row, limits.step_deadline_s)
        tools = opening["tools"]
        if tools and self._reader.calls is None:
            raise StepError("`start` offers tools, and the chat template shows no tool calls")
        if opening["messages"] is not None:
            course.opening = _checked(opening["messages"])
        ids = self._turns.opening(course.opening, tools)
        if len(ids) >= limits.max_tokens:
            return "context_overflow"
        course.row = Row(ids)
        for number in range(limits.max_turns):
            cut = await self._sample(course, sampling, generate, number)
            if cut is not None:
                return cut
            if course.num_calls > limits.max_calls:
                return "max_turns"
            before = [*course.opening, *course.messages[:-1]]
            answer = await self._answer(course, slot, course.messages[-1])
            if answer is None:
                return "completed"
            message, course.messages = course.messages[-1], [*course.messages, *answer]
            if number + 1 == limits.max_turns:
                break  # what would lead to another turn is no part of the row
            last = int(course.row.ids[-1])
            given = self._turns.between(before, message, answer, tools, last=last)
            if course.row.length + len(given) >= limits.max_tokens:
                return "context_overflow"  # the row, which the learner must hold, does without them
            course.row.add_given(given)
        return "max_turns"

    async def _sample(self, course: _Course, sampling: Sampling, generate: Generate, number: int) -> EpisodeEnd | None:
        """Let the policy say something; return the end of an episode that has no room for all of it."""
        limits, row = self._limits, course.row
        room, left = limits.max_tokens - row.length, limits.max_sampled_tokens - row.num_sampled
        budget = min(sampling.max_response_tokens, room, left)
        is_narrow = room < min(sampling.max_response_tokens, left)
        if budget < 1:
            return "context_overflow" if is_narrow else "max_tokens"
        started = time.perf_counter()
        sampled = await generate(row.ids, replace(sampling, max_response_tokens=budget, samples_per_prompt=1), number)
        row.add_sampled(sampled, time.perf_counter() - started)
        message, calls = self._reader.message(sampled.token_ids)
        course.messages.append(message)
        course.num_calls += len(calls)
        course.problems = [call for call in calls if call.problem is not None]
        if sampled.finish_reason == "length":
            return "context_overflow" if is_narrow else "max_tokens"
        return None

    async def _answer(self, course: _Course, slot: Slot, message: dict[str, Any]) -> Messages | None:
        """Return the messages that answer the policy's last one; None when the environment has ended the episode."""
        problems = [
            {"role": "tool", "tool_call_id": call.id, "name": call.name, "content": call.problem}
            for call in course.problems
        ]
        shown = [*message.get("tool_calls", ()), *(call.as_json() for call in course.problems)]
        if shown:
            course.messages[-1] = {**message, "tool_calls": shown}
        if problems and not message["tool_calls"]:  # there is nothing that the environment could do
            return problems
        started = time.perf_counter()
        turn = await slot.call("step", message, self._limits.step_deadline_s)
        reward = None if turn["reward"] is None else _number("reward", turn["reward"])
        course.row.note_answer(reward, time.perf_counter() - started)
        if reward is not None:
            course.rewards.append(reward)
        for name, value in turn["metrics"].items():
            course.metrics[name] = course.metrics.get(name, 0.0) + _number(f"metric {name}", value)
        if turn["done"]:
            course.messages += _checked(turn["messages"])
            return None
        answer = _checked(turn["messages"])
        if not answer and not problems:
            raise StepError("`step` returned no messages, and not done=True")
        return [*problems, *answer]


async def _closed(slot: Slot, *, asks_reward: bool) -> dict[str, Any]:
    """Return what an environment has to say at the end; nothing where it fails to, since the episode is over."""
    try:
        return await slot.call("close", {"asks_reward": asks_reward}, CLOSE_S)
    except (StepError, UnreadableError):
        return {}


def as_messages(prompt: Prompt) -> Messages:
    """Return a prompt as chat messages."""
    return [{"role": "user", "content": prompt.text}] if isinstance(prompt.text, str) else prompt.text


def _number(what: str, value: Any) -> float:
    if isinstance(value, bool | int | float):
        return float(value)
    raise StepError(f"the {what} is {str(value)[:100]!r}: it must be a number")


def _checked(messages: Any) -> Messages:
    """Return an environment's messages with their contents as text; raises StepError for other forms."""
    if not isinstance(messages, list) or not all(isinstance(one, dict) and "role" in one for one in messages):
        raise StepError(f"messages must be a list of mappings with `role` and `content`, not {str(messages)[:200]}")
    return [{**one, "content": as_text(one.get("content"))} for one in messages]
