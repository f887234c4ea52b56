"""The command line of the reward service."""

from __future__ import annotations

import argparse
import ipaddress
from collections.abc import Sequence
from typing import Any, cast

from omegaconf import OmegaConf

from rlsys.config.secrets import secret
from rlsys.errors import ConfigError
from rlsys.preflight.rewards import check_options
from rlsys.rewards.entry import absolute, deadline_of

DEADLINE_S = 30.0
"""Of a request, where neither the command line nor the reward asks for another."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the function, its options and the address."""
    parser.description = "Serve a reward function over HTTP: POST /score, GET /health."
    parser.add_argument("reward", help="a registered name, module:function or path.py:function")
    parser.add_argument("options", nargs="*", metavar="option=value", help="the function's options")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=8300, help="port to listen on (8300)")
    parser.add_argument("--token-env", metavar="NAME", help="environment variable with the bearer token to ask for")
    parser.add_argument("--processes", type=int, default=2, help="calls that are scored at once")
    parser.add_argument(
        "--deadline",
        type=float,
        metavar="S",
        help="seconds that one request may take, with retries of its rows (default: 30, or what the reward needs)",
    )
    parser.add_argument(
        "--whole-groups", action="store_true", help="the function compares a prompt's completions: never part them"
    )


def run(given: argparse.Namespace) -> None:
    """Serve until interrupted."""
    token = checked_token(given.host, given.token_env)
    spec = absolute({"name": given.reward, **_options(given.options)})
    check_options(spec)

    import uvicorn

    from rlsys.commands.serve.app import CALL, Processes, build_app

    deadline_s = given.deadline or max(DEADLINE_S, deadline_of(spec, 0.0) / CALL)
    processes = Processes(spec, given.processes, deadline_s, whole_groups=given.whole_groups)
    try:
        print(
            f"rlsys: serving {given.reward} on http://{given.host}:{given.port}/score, {deadline_s:g} s a request at "
            "most: the timeout_s of its clients is to be longer",
            flush=True,
        )
        uvicorn.run(build_app(processes, token, deadline_s), host=given.host, port=given.port, log_level="warning")
    finally:
        processes.close()


def checked_token(host: str, token_env: str | None) -> str | None:
    """The token to ask for; None where only this machine is served. Raises ConfigError rather than serve others
    without one."""
    token = secret(token_env or "", "--token-env") or None
    if token is None and not is_loopback(host):
        raise ConfigError(
            f"--host {host} serves other machines, which takes a token: put one in an environment variable and name it "
            "with --token-env NAME"
        )
    return token


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _options(pairs: Sequence[str]) -> dict[str, Any]:
    for pair in pairs:
        if "=" not in pair:
            raise ConfigError(f"'{pair}' is not of the form option=value")
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.from_dotlist(list(pairs))))
