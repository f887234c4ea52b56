"""One HTML file: markup, style, script and data together; it opens from disk and asks nothing of any network.

What comes of a run, above all text that a model wrote, stands in the page packed (gzip, base64) and is never markup.
The page's policy lets only the two scripts run whose sums it names, so that text which slipped into the markup all the
same could neither run nor reach anything (https://www.w3.org/TR/CSP3/).
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
from rlsys.commands.report.facts import facts, figures, flat
from rlsys.commands.report.rollouts import Rollouts
from rlsys.commands.report.timeline import Window, windows
from rlsys.run_folder.reading import RunFolder

STYLES = ("style", "rollouts")
SCRIPTS = ("data", "dom", "plots", "header", "curves", "timeline", "filter", "tokens", "cards", "rollouts", "main")
"""In the order of the page: each uses only what stands before it."""


def pack(data: Any) -> str:
    """JSON, compressed, in characters that mean nothing to HTML. Raises ValueError for NaN or infinity."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return pack_text(text)


def pack_text(text: str) -> str:
    """Text, compressed, in characters that mean nothing to HTML. The same text gives the same characters."""
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


def render(runs: Sequence[RunFolder], rollouts: Sequence[Rollouts], notes: Sequence[Sequence[str]]) -> str:
    """The page of one run or two. `notes` are sentences for the reader, of each run."""
    names = _names(runs)
    chunks: dict[str, str] = {}
    described = []
    for number, (run, kept) in enumerate(zip(runs, rollouts, strict=True)):
        timelines = windows(run.timelines)
        chunks |= _run_chunks(number, run, kept, timelines)
        described.append(_described(run, kept, timelines, names[number], notes[number]))
    chunks["head"] = pack(
        {
            "runs": described,
            "panels": choose_panels(runs),
            "written": time.strftime("%Y-%m-%d %H:%M"),
            "version": rlsys.__version__,
        }
    )
    script = '"use strict";\n(() => {\n' + "\n".join(_static(f"{name}.js") for name in SCRIPTS) + "\n})();\n"
    bokeh = plotting_script()
    chunks["bokeh"] = pack_text(bokeh)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(_static("page.html")).render(
        title=" and ".join(names),
        style="\n".join(_static(f"{name}.css") for name in STYLES),
        script=script,
        sums=[_sum(script), _sum(bokeh)],
        chunks=chunks,
    )


def plotting_script() -> str:
    """BokehJS and its interface for scripts, as the package ships them."""
    components = ["bokeh", "bokeh-api"]
    # Behind them stands a line that sets the level of its log, which it would tell the console.
    return "\n".join(Resources(mode="inline", components=components).js_raw[: len(components)])


def _names(runs: Sequence[RunFolder]) -> list[str]:
    names = [run.name for run in runs]
    if len(set(names)) == len(names):
        return names
    longer = [f"{run.path.parent.name}/{run.path.name}" for run in runs]
    return longer if len(set(longer)) == len(names) else [f"{name} ({place})" for place, name in enumerate(names, 1)]


def _described(
    run: RunFolder, kept: Rollouts, timelines: Sequence[Window], name: str, notes: Sequence[str]
) -> dict[str, Any]:
    return {
        "name": name,
        "facts": facts(run),
        "figures": figures(run),
        "config": flat(run.config),
        "notes": list(notes),
        "rollouts": {
            "total": kept.total,
            "shown": len(kept.index.get("step", ())),
            "names": kept.names,
            "starts": kept.starts,
            "largest_advantage": kept.largest_advantage,
        },
        "timelines": [
            {"file": one.file, "shown": len(one.start), "spans": one.num_spans, "steps": [n for n, _ in one.steps]}
            for one in timelines
        ],
    }


def _run_chunks(number: int, run: RunFolder, kept: Rollouts, timelines: Sequence[Window]) -> dict[str, str]:
    chunks = {
        f"{number}-curves": pack(columns(run)),
        f"{number}-index": pack(kept.index),
        f"{number}-prompts": pack(kept.prompts),
    }
    chunks |= {f"{number}-texts-{place}": packed for place, packed in enumerate(kept.chunks)}
    chunks |= {f"{number}-timeline-{place}": pack(asdict(one)) for place, one in enumerate(timelines)}
    return chunks


def _static(name: str) -> str:
    return (files("rlsys.commands.report") / "static" / name).read_text(encoding="utf-8")


def _sum(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
