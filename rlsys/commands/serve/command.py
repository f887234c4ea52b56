"""The command line of `rlsys serve-reward`."""

from __future__ import annotations

import argparse
import ipaddress
from collections.abc import Sequence
from typing import Any, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlsys.commands.numbers import at_least, positive
from rlsys.config.secrets import secret
from rlsys.errors import ConfigError
from rlsys.preflight.rewards import check_options
from rlsys.rewards.entry import absolute, deadline_of

# Seconds per request if neither the command line nor the reward's registration gives another number.
DEADLINE_S = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the function, its options and the address."""
    parser.description = "Serve a reward function over HTTP: POST /score, GET /health."
    parser.add_argument("reward", help="a registered name, module:function or path.py:function")
    parser.add_argument(
        "options", nargs="*", metavar="option=value", help="the function's options; secrets as ${oc.env:NAME}"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=8300, help="port to listen on (8300)")
    parser.add_argument("--token-env", metavar="NAME", help="environment variable with the bearer token to ask for")
    parser.add_argument("--processes", type=at_least(1), default=2, help="calls that are scored at once")
    parser.add_argument(
        "--deadline",
        type=positive,
        metavar="S",
        help="seconds per request, with retries of its rows (default: 30, or more if the reward needs it)",
    )
    parser.add_argument(
        "--whole-groups",
        action="store_true",
        help="the function compares a prompt's completions: keep them together when a call is retried",
    )


def run(given: argparse.Namespace) -> None:
    """Serve until interrupted."""
    token = check_token(given.host, given.token_env)
    spec = absolute({"name": given.reward, **_options(given.options)})
    check_options(spec)

    import uvicorn

    from rlsys.commands.serve.app import CALL, Processes, build_app
    from rlsys.commands.serve.connections import MAX_CONNECTIONS, Impatient

    deadline_s = given.deadline or max(DEADLINE_S, deadline_of(spec, 0.0) / CALL)
    processes = Processes(spec, given.processes, deadline_s, whole_groups=given.whole_groups)
    try:
        print(
            f"rlsys: serving {given.reward} on http://{given.host}:{given.port}/score with at most {deadline_s:g} s "
            "per request; set timeout_s of its clients to more",
            flush=True,
        )
        uvicorn.run(
            build_app(processes, token, deadline_s),
            host=given.host,
            port=given.port,
            log_level="warning",
            http=Impatient,
            ws="none",
            limit_concurrency=MAX_CONNECTIONS,
        )
    finally:
        processes.close()


def check_token(host: str, token_env: str | None) -> str | None:
    """Return the token that clients must send, or None if there is none and only this machine is served.

    Raises:
        ConfigError: the address can be reached from other machines and there is no token.
    """
    token = secret(token_env or "", "--token-env") or None
    if token is None and not is_loopback(host):
        raise ConfigError(
            f"--host {host} can be reached from other machines, so a token is required: put one in an environment "
            "variable and name it with --token-env NAME"
        )
    return token


def is_loopback(host: str) -> bool:
    """Return whether an address can be reached only from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _options(pairs: Sequence[str]) -> dict[str, Any]:
    for pair in pairs:
        if "=" not in pair:
            raise ConfigError(f"'{pair}' must have the form option=value")
    try:
        return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.from_dotlist(list(pairs)), resolve=True))
    except OmegaConfBaseException as error:
        raise ConfigError(f"the options {', '.join(pairs)}: {error}".partition("\n")[0]) from error
