"""The report's HTML file: markup, style, script and data together. It opens from disk and needs no network.

Everything that comes from a run, above all text that a model wrote, is in the page compressed (gzip, base64) and is
never markup. As a second line of defence the page's content security policy allows only the two scripts whose hashes it
lists: text that got into the markup all the same could neither run nor reach anything (https://www.w3.org/TR/CSP3/).
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from typing import Any

import jinja2
from bokeh.resources import Resources

import rlsys
from rlsys.commands.report.curves import choose_panels, columns
from rlsys.commands.report.facts import config_lines, facts, figures
from rlsys.commands.report.rollouts import Rollouts
from rlsys.commands.report.timeline import Window, windows
from rlsys.run_folder.folder import RunFolder

STYLES = ("style", "rollouts")
# In the order of the page: each script uses only those before it.
SCRIPTS = ("data", "dom", "plots", "header", "curves", "timeline", "filter", "tokens", "cards", "rollouts", "main")


def compressed_json(data: Any) -> str:
    """Return data as compressed JSON (see `compress`). Raises ValueError for NaN and infinity."""
    return compress(json.dumps(data, separators=(",", ":"), allow_nan=False))


def compress(text: str) -> str:
    """Return text compressed, in characters without a meaning in HTML. Equal texts give equal results."""
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


def render(runs: Sequence[RunFolder], rollouts: Sequence[Rollouts], notes: Sequence[Sequence[str]]) -> str:
    """Return the page of one run or two.

    Args:
        runs: the runs, in the order they are shown.
        rollouts: each run's rollouts.
        notes: each run's notes for the reader.
    """
    names = _names(runs)
    chunks: dict[str, str] = {}
    described = []
    for number, (run, shown) in enumerate(zip(runs, rollouts, strict=True)):
        timelines = windows(run.timelines)
        chunks |= _run_chunks(number, run, shown, timelines)
        described.append(_described(run, shown, timelines, names[number], notes[number]))
    chunks["head"] = compressed_json(
        {
            "runs": described,
            "panels": choose_panels(runs),
            "written": time.strftime("%Y-%m-%d %H:%M"),
            "version": rlsys.__version__,
        }
    )
    # One script in a function of its own: no global names, and one hash in the policy.
    script = '"use strict";\n(() => {\n' + "\n".join(_static(f"{name}.js") for name in SCRIPTS) + "\n})();\n"
    bokeh = plotting_script()
    chunks["bokeh"] = compress(bokeh)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(_static("page.html")).render(
        title=" and ".join(names),
        style="\n".join(_static(f"{name}.css") for name in STYLES),
        script=script,
        hashes=[_script_hash(script), _script_hash(bokeh)],
        chunks=chunks,
    )


def plotting_script() -> str:
    """Return BokehJS and its interface for scripts, as the package ships them."""
    components = ["bokeh", "bokeh-api"]
    # After them the package adds a line that sets the log level, which would be reported in the browser's console.
    return "\n".join(Resources(mode="inline", components=components).js_raw[: len(components)])


def _names(runs: Sequence[RunFolder]) -> list[str]:
    names = [run.name for run in runs]
    if len(set(names)) == len(names):
        return names
    longer = [f"{run.path.parent.name}/{run.path.name}" for run in runs]
    return longer if len(set(longer)) == len(names) else [f"{name} ({number})" for number, name in enumerate(names, 1)]


def _described(
    run: RunFolder, shown: Rollouts, timelines: Sequence[Window], name: str, notes: Sequence[str]
) -> dict[str, Any]:
    return {
        "name": name,
        "facts": facts(run),
        "figures": figures(run),
        "config": config_lines(run.options),
        "notes": list(notes),
        "rollouts": {
            "total": shown.total,
            "shown": len(shown.index.get("step", ())),
            "names": shown.names,
            "starts": shown.starts,
            "largest_advantage": shown.largest_advantage,
        },
        "timelines": [
            {"file": one.file, "shown": len(one.start), "spans": one.num_spans, "steps": [n for n, _ in one.steps]}
            for one in timelines
        ],
    }


def _run_chunks(number: int, run: RunFolder, shown: Rollouts, timelines: Sequence[Window]) -> dict[str, str]:
    chunks = {
        f"{number}-curves": compressed_json(columns(run)),
        f"{number}-index": compressed_json(shown.index),
        f"{number}-prompts": compressed_json(shown.prompts),
    }
    chunks |= {f"{number}-texts-{index}": chunk for index, chunk in enumerate(shown.chunks)}
    chunks |= {f"{number}-timeline-{index}": compressed_json(asdict(one)) for index, one in enumerate(timelines)}
    return chunks


def _static(name: str) -> str:
    return (files("rlsys.commands.report") / "static" / name).read_text(encoding="utf-8")


def _script_hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
