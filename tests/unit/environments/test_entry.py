"""What `environment` and `tools` may name, and what is made of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from rlsys.environments.entry import EnvironmentSpec, absolute
from rlsys.errors import ConfigError

ENVS = str(Path(__file__).with_name("envs.py"))


def made(given: Any, tools: list[str] | None = None, **row: Any) -> Any:
    return EnvironmentSpec.of(given, [f"{ENVS}:{name}" for name in tools or []]).maker()(row)


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"id": name, "type": "function", "function": {"name": name, "arguments": arguments}}


def step(environment: Any, *calls: dict[str, Any]) -> Any:
    return asyncio.run(environment.step({"role": "assistant", "content": "", "tool_calls": list(calls)}))


def test_an_environment_is_a_name_an_entry_or_several_of_them() -> None:
    assert absolute("guess_number") == {"name": "guess_number"}
    assert absolute({"name": f"{ENVS}:Told", "greeting": "hi"}) == {"name": f"{ENVS}:Told", "greeting": "hi"}
    assert absolute({"a": "guess_number", "b": {"name": "x"}}) == {"a": {"name": "guess_number"}, "b": {"name": "x"}}
    for wrong in (3, [], {}, {"name": 3}, {"a": 3}, {"a": {"b": "c"}}):
        with pytest.raises(ConfigError, match="environment"):
            absolute(wrong)


def test_a_row_chooses_among_several() -> None:
    several = {"told": f"{ENVS}:Told", "count": f"{ENVS}:Counter"}
    assert type(made(several, environment="told")).__name__ == "Told"
    assert type(made(several, environment="count")).__name__ == "TrlEnvironment"
    with pytest.raises(ConfigError, match="column 'environment' is 'None'; `environment` has count, told"):
        made(several)


@pytest.mark.parametrize(
    ("environment", "tools", "said"),
    [
        ("gess_number", [], "did you mean 'guess_number'"),
        (f"{ENVS}:Nothing", [], "has no function 'Nothing'"),
        (f"{ENVS}:double", [], "must be a class"),
        ({"name": "guess_number", "limits": 3}, [], "did you mean 'limit'"),
        ("guess_number", ["double"], "`tools` cannot be beside it"),
        (f"{ENVS}:Untyped", [], "tool 'add'"),
        (None, ["bare"], "tool 'bare'"),
        (None, ["none"], "has no function 'none'"),
    ],
)
def test_what_cannot_work_is_refused(environment: Any, tools: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        made(environment, tools)


def test_tools_answer_calls_and_a_message_without_calls_is_the_end() -> None:
    tools = made(None, ["double", "blocks"])
    opening = asyncio.run(tools.start(prompt=[]))
    assert [tool["function"]["name"] for tool in opening.tools] == ["double", "blocks"]
    assert opening.tools[0]["function"]["parameters"]["properties"]["number"]["type"] == "integer"
    turn = step(tools, call("double", number=4), call("blocks", flag=True), call("doubel"), call("double", x=1))
    assert [message["content"] for message in turn.messages][:3] == [
        "8",
        "aTrue",
        "There is no tool 'doubel'; did you mean 'double'?",
    ]
    assert turn.messages[3]["content"].startswith("TypeError: ")
    assert (turn.messages[0]["tool_call_id"], turn.done, turn.metrics) == ("double", False, {"failed_calls": 2.0})
    assert step(tools).done


def test_an_environment_of_trl_works_as_it_is() -> None:
    environment = made(f"{ENVS}:Counter", ["double"])
    prompt = [{"role": "system", "content": "s"}, {"role": "user", "content": "count"}]
    opening = asyncio.run(environment.start(prompt=prompt, begin=2))
    assert opening.messages == [prompt[0], {"role": "user", "content": "count from 2"}]
    assert {tool["function"]["name"] for tool in opening.tools} == {"double", "add", "fail"}
    turn = step(environment, call("add", number=3), call("fail"))
    assert [message["content"] for message in turn.messages] == ["5", "RuntimeError: as asked"]
    end = step(environment)
    assert (end.done, end.reward, environment.state()) == (True, 5.0, {"value": 5})


def test_what_never_gives_a_reward_is_known() -> None:
    assert EnvironmentSpec.of(f"{ENVS}:Counter", []).gives_rewards
    assert EnvironmentSpec.of(f"{ENVS}:Told", []).gives_rewards
    assert not EnvironmentSpec.of(f"{ENVS}:Rewardless", []).gives_rewards
    assert not EnvironmentSpec.of(None, [f"{ENVS}:double"]).gives_rewards
    assert EnvironmentSpec.of(None, [f"{ENVS}:double"]).has_tools
    assert not EnvironmentSpec.of("guess_number", []).has_tools
