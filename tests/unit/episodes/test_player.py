"""The course of an episode: exact tokens, limits, typed ends, and tool calls. The policy says what a script says."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlsys.data.calls import CallFormat
from rlsys.data.chat import ChatTemplate, special_tokens
from rlsys.data.turns import Turns
from rlsys.environments.entry import EnvironmentSpec
from rlsys.episodes.player import Limits, Player, Reader
from rlsys.episodes.slots import Slots
from rlsys.errors import SampleError
from rlsys.types import Prompt, Sampling, Trajectory, VersionSpan
from tests.unit.data.templates import tokenizer_of

ENVS = str(Path(__file__).parents[1] / "environments" / "envs.py")
SAMPLING = Sampling(temperature=1.0, max_response_tokens=250, samples_per_prompt=8)
LIMITS = Limits(
    max_turns=4, max_tokens=4000, max_sampled_tokens=4000, max_calls=3, step_deadline_s=30.0, deadline_s=100.0
)
TOKENIZER = copy.deepcopy(tokenizer_of("qwen2.5"))
TOKENIZER.chat_template = (
    "{% for message in messages %}{% if message.role == 'oracle' %}{{ raise_exception('no such role') }}{% endif %}"
    "{% endfor %}" + TOKENIZER.chat_template
)
END = TOKENIZER.convert_tokens_to_ids("<|im_end|>")


class Script:
    """A policy that says one text after another, with log-probabilities and versions that can be told apart."""

    def __init__(self, *texts: str) -> None:
        self._texts = list(texts)
        self.prompts: list[list[int]] = []
        self.sampled: list[list[int]] = []

    async def __call__(self, ids: np.ndarray, sampling: Sampling, turn: int) -> Trajectory:
        assert (turn, sampling.samples_per_prompt) == (len(self.prompts), 1)  # of eight the shortest would come first
        self.prompts.append(ids.tolist())
        said = self._texts[turn]
        if said == "engine fails":
            raise SampleError("as told")
        whole = [*TOKENIZER(said, add_special_tokens=False)["input_ids"], END]
        tokens = np.array(whole[: sampling.max_response_tokens], dtype=np.int32)
        self.sampled.append(tokens.tolist())
        return Trajectory(
            token_ids=tokens,
            loss_mask=np.ones(len(tokens), dtype=bool),
            behavior_logprobs=-np.arange(1, len(tokens) + 1, dtype=np.float32) - 100 * turn,
            versions=(VersionSpan(turn, 0, len(tokens)),),
            finish_reason="stop" if len(tokens) == len(whole) else "length",
            engine=3,
        )


def play(
    script: Script, environment: Any = f"{ENVS}:Told", tools: Sequence[str] = (), limits: Limits = LIMITS, **row: Any
) -> Trajectory:
    spec = EnvironmentSpec.of(environment, [f"{ENVS}:{name}" for name in tools])
    template = ChatTemplate(TOKENIZER, {})

    async def run() -> Trajectory:
        slots = Slots(spec, 2)
        await slots.start()
        reader = Reader(
            decode=lambda ids: TOKENIZER.decode(list(ids), skip_special_tokens=False),
            special=special_tokens(TOKENIZER),
            stops=frozenset([END]),
            calls=CallFormat.of(template),
        )
        player = Player(slots, Turns(template, TOKENIZER), reader, limits, has_rewards=spec.gives_rewards)
        prompt = Prompt(0, [{"role": "user", "content": "what?"}], np.array([1, 2], dtype=np.int32), row)
        try:
            return await player.play(prompt, SAMPLING, script)
        finally:
            slots.close()

    return asyncio.run(run())


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def test_the_row_holds_what_was_sampled_and_each_prompt_begins_with_all_before_it() -> None:
    script = Script("one two", "three", "end 3")
    trajectory = play(script)
    ids = trajectory.token_ids.tolist()
    for turn, (prompt, sampled) in enumerate(zip(script.prompts, script.sampled, strict=True)):
        assert ids[: len(prompt)] == prompt
        assert ids[len(prompt) : len(prompt) + len(sampled)] == sampled
        place = slice(len(prompt), len(prompt) + len(sampled))
        assert trajectory.loss_mask[place].all()
        assert trajectory.behavior_logprobs[place][0] == -1 - 100 * turn
        assert trajectory.versions[turn] == VersionSpan(turn, place.start, place.stop)
    assert trajectory.loss_mask.sum() == sum(map(len, script.sampled))
    assert not trajectory.behavior_logprobs[~trajectory.loss_mask].any()
    whole = [
        *[{"role": "user", "content": "what?"}, {"role": "assistant", "content": "one two"}],
        *[{"role": "user", "content": "you said one two"}, {"role": "assistant", "content": "three"}],
        *[{"role": "user", "content": "you said three"}, {"role": "assistant", "content": "end 3"}],
    ]
    assert TOKENIZER.apply_chat_template(whole, tokenize=False).rstrip() == TOKENIZER.decode(ids)
    episode = trajectory.episode
    assert episode is not None
    assert [*episode.opening, *episode.messages] == whole
    assert (episode.end, episode.reward, episode.metrics) == ("completed", 3.5, {"said": 2.0, "ends": 1.0})
    assert [turn.reward for turn in episode.turns] == [0.25, 0.25, 3.0]
    assert (trajectory.engine, trajectory.finish_reason) == (3, "stop")


@pytest.mark.parametrize(
    ("texts", "changes", "row", "end", "reward", "num_turns"),
    [
        (["a", "b", "c", "d"], {}, {}, "max_turns", 1.0, 4),
        (["a", "b " * 300], {}, {}, "max_tokens", 0.25, 2),
        (["a", "b " * 30], {"max_sampled_tokens": 12}, {}, "max_tokens", 0.25, 2),
        (["a", "b"], {"max_sampled_tokens": 2}, {}, "max_tokens", 0.25, 1),
        (["a " * 50], {"max_tokens": 60}, {}, "context_overflow", 0.0, 1),
        ([], {"max_tokens": 5}, {}, "context_overflow", 0.0, 0),
        (["a", "unreadable"], {}, {}, "parse_error", 0.25, 2),
        (["raise"], {}, {}, "env_error", None, 1),
        (["die"], {}, {}, "env_error", None, 1),
        (["hang"], {"step_deadline_s": 5.0}, {}, "timeout", None, 1),
        (["a", "hang"], {"deadline_s": 8.0}, {}, "timeout", 0.25, 2),
        ([], {}, {"do": "raise"}, "env_error", None, 0),
        ([], {"step_deadline_s": 0.5}, {"do": "hang"}, "timeout", None, 0),
    ],
)
def test_ends_are_typed(
    texts: list[str], changes: dict[str, Any], row: dict[str, Any], end: str, reward: float | None, num_turns: int
) -> None:
    trajectory = play(Script(*texts), limits=dataclasses.replace(LIMITS, **changes), **row)
    episode = trajectory.episode
    assert episode is not None
    assert (episode.end, episode.reward, len(episode.turns)) == (end, reward, num_turns)
    assert bool(episode.detail) == (end in ("env_error", "timeout", "parse_error"))
    assert trajectory.num_tokens <= changes.get("max_tokens", 4000) or num_turns == 0
    assert (trajectory.finish_reason == "length") == (end in ("max_tokens", "context_overflow"))
    assert trajectory.loss_mask.any() == (num_turns > 0)


def test_an_environment_that_returns_something_else_is_an_error() -> None:
    for name, said in (("Silent", "returned no messages"), ("NoTurn", "returned dict, not Turn")):
        episode = play(Script("a"), f"{ENVS}:{name}").episode
        assert episode is not None
        assert episode.end == "env_error"
        assert said in episode.detail


def test_a_row_never_grows_beyond_its_limit() -> None:
    limits = dataclasses.replace(LIMITS, max_tokens=60)
    trajectory = play(Script("a", "b"), f"{ENVS}:Wordy", limits=limits)
    assert trajectory.episode is not None
    assert (trajectory.episode.end, len(trajectory.episode.turns)) == ("context_overflow", 1)
    assert trajectory.num_tokens <= 60
    assert trajectory.loss_mask[-1]  # nothing hangs behind what was sampled


def test_what_is_no_number_and_a_role_that_no_template_knows_end_the_episode_alone() -> None:
    for name, said in (("TextReward", "it must be a number"), ("OddRole", "roles")):
        episode = play(Script("a", "b"), f"{ENVS}:{name}").episode
        assert episode is not None
        assert episode.end == "env_error"
        assert said in episode.detail


def test_an_engine_s_failure_is_no_end_of_an_episode() -> None:
    with pytest.raises(SampleError, match="as told"):
        play(Script("a", "engine fails"))


def test_tools_are_called_all_at_once_and_their_results_are_one_turn() -> None:
    script = Script(call("double", number=4) + call("double", number=5), "8 and 10")
    trajectory = play(script, None, ["double", "blocks"])
    episode = trajectory.episode
    assert episode is not None
    assert [message["role"] for message in episode.messages] == ["assistant", "tool", "tool", "assistant"]
    assert [message["content"] for message in episode.messages] == ["", "8", "10", "8 and 10"]
    assert (episode.end, episode.num_calls, episode.reward) == ("completed", 2, None)
    assert '"name": "double"' in TOKENIZER.decode(script.prompts[0])
    between = script.prompts[1][len(script.prompts[0]) + len(script.sampled[0]) :]
    assert "<tool_response>\n8\n</tool_response>\n<tool_response>\n10\n</tool_response>" in TOKENIZER.decode(between)


def test_a_malformed_call_is_answered_and_the_others_are_executed() -> None:
    bad = '<tool_call>{"name": "double", "arguments": 4}</tool_call>'
    episode = play(Script(bad, bad + call("double", number=2), "4"), None, ["double"]).episode
    assert episode is not None
    tools = [message["content"] for message in episode.messages if message["role"] == "tool"]
    assert "no JSON object" in tools[0]
    assert "no JSON object" in tools[1]
    assert tools[2] == "4"
    assert episode.end == "completed"


def test_too_many_calls_are_an_end() -> None:
    episode = play(Script(call("double", number=1) * 4), None, ["double"]).episode
    assert episode is not None
    assert (episode.end, episode.num_calls) == ("max_turns", 4)


def test_an_environment_of_trl_gives_its_reward_at_any_end_of_the_policy_s() -> None:
    said = [call("add", number=2)] * 4
    cut, whole = play(Script(*said), f"{ENVS}:Counter"), play(Script(*said[:2], "done"), f"{ENVS}:Counter", begin=5)
    assert cut.episode is not None
    assert whole.episode is not None
    assert (cut.episode.end, cut.episode.reward, cut.episode.state) == ("max_turns", 6.0, {"value": 6})
    assert (whole.episode.end, whole.episode.reward, whole.episode.state) == ("completed", 9.0, {"value": 9})
    assert whole.episode.opening[-1]["content"] == "what? from 5"
