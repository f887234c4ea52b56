"""A report in a browser: it opens quickly and quietly, and its controls do what they say."""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlsys.cli import execute
from rlsys.config.build_schema import TokenizerBuild
from rlsys.models.tiny import build_tokenizer
from tests.integration.browser import Browser, find_chromium
from tests.run_folder import CONFIG, WORDS, Recipe, length_of, metrics, reward_of, write_lines, write_run
from tests.unit.commands.report.test_page import HOSTILE

WIDE, PHONE = (1280, 900), (390, 844)
RECIPE = Recipe(num_steps=5, num_groups=4, num_samples=4)
ROWS = [(step, group, sample) for step in range(1, 6) for group in range(4) for sample in range(4)]


@pytest.fixture(scope="module")
def chromium() -> str:
    executable = find_chromium()
    if executable is None:
        pytest.skip("no Chromium on the path (Debian: apt-get install chromium)")
    return executable


@pytest.fixture(scope="module")
def browser(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(chromium, tmp_path_factory.mktemp("profile")) as one:
        yield one


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer(TokenizerBuild(kind="bpe", vocab_size=500), [" ".join(WORDS)])


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    run = write_run(tmp_path_factory.mktemp("runs") / "run", RECIPE, tokenizer=tokenizer)
    execute(["report", str(run)])
    return run / "report.html"


@pytest.fixture
def opened(browser: Browser, page: Path) -> Browser:
    browser.size(*WIDE)
    browser.open(page)
    return browser


def choose(browser: Browser, name: str, value: str) -> None:
    """Set a control as a person does, and wait until the table has followed."""
    change = (
        f"(() => {{ const input = document.querySelector('.filters').elements[{name!r}];"
        f"if (input.type === 'checkbox') input.checked = {json.dumps(value == 'on')}; else input.value = {value!r};"
        "input.dispatchEvent(new Event('input', { bubbles: true })); })()"
    )
    browser.run(change)
    browser.wait("document.querySelector('.rows').getAttribute('aria-busy') === 'false'")


def counted(browser: Browser) -> str:
    text: str = browser.run("document.querySelector('.count').textContent")
    return text


def shown(browser: Browser) -> list[list[str]]:
    """Cells of the rows to be seen."""
    cells = "[...row.cells].map((cell) => cell.textContent)"
    rows: list[list[str]] = browser.run(f"[...document.querySelectorAll('tr[aria-expanded]')].map((row) => {cells})")
    return rows


def figure(name: str) -> str:
    """An expression for the plot of that name."""
    return f"Bokeh.documents.flatMap((one) => one.roots()).findLast((one) => one.name === {json.dumps(name)})"


def curve(browser: Browser, panel: str, name: str, column: str) -> list[float]:
    """What a plot draws under a name."""
    renderer = f"{figure(panel)}.renderers.find((one) => one.name === {json.dumps(name)})"
    found: list[float] = browser.run(f"Array.from({renderer}.data_source.data.{column})")
    return found


def draw_all(browser: Browser) -> int:
    """Scroll to every plot and wait for it; how many there are."""
    browser.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    plots = "document.querySelectorAll('.plot')"
    count: int = browser.run(f"{plots}.length")
    for place in range(count):
        browser.run(f"{plots}[{place}].scrollIntoView()")
        browser.wait(f"{plots}[{place}].dataset.drawn !== undefined")
    return count


def is_blank(picture: np.ndarray) -> bool:
    """Hardly any pixel differs from the commonest colour."""
    counts = np.bincount((picture.astype(np.int64) @ [1 << 16, 1 << 8, 1]).ravel())
    return np.count_nonzero(counts) < 50 or counts.max() > 0.97 * counts.sum()


def test_every_plot_is_drawn_without_complaint(opened: Browser) -> None:
    assert draw_all(opened) == 19
    lengths = f"{figure('timeline')}.renderers.map((one) => one.data_source.data.left?.length ?? 0)"
    assert sum(opened.run(lengths)) == 21  # four spans a step, and the first broadcast
    assert opened.complaints == []
    assert opened.run("document.getElementById('failure').hidden")


def test_curves_hold_the_runs_numbers_and_are_smoothed(opened: Browser) -> None:
    draw_all(opened)
    own, stages = "my/own_number", "Time per stage"
    assert curve(opened, own, own, "x") == [1, 2, 3, 4, 5]  # the evaluation before the first step has none
    assert curve(opened, own, own, "y") == [7, 14, 21, 28, 35]
    assert curve(opened, stages, "scoring", "x") == [1, 2, 3, 4, 5]
    below, above = curve(opened, stages, "scoring", "y1"), curve(opened, stages, "scoring", "y2")
    assert [high - low for low, high in zip(below, above, strict=True)] == pytest.approx([0.2] * 5)
    assert below == curve(opened, stages, "rollout", "y2")
    slider = "document.querySelector('input[name=smooth]')"
    opened.run(f"(() => {{ {slider}.value = 0.5; {slider}.dispatchEvent(new Event('input')); }})()")
    # (7 / 2 + 14) / (3 / 2), and (7 / 4 + 14 / 2 + 21) / (7 / 4)
    assert curve(opened, own, f"{own}, smoothed", "y")[:3] == [7, pytest.approx(11.6667), 17]
    assert opened.complaints == []


def test_a_plot_is_read_and_zoomed_by_pointer(opened: Browser) -> None:
    entropy = "document.querySelector('[data-panel=Entropy]')"
    opened.run(f"{entropy}.scrollIntoView({{ block: 'center' }})")
    opened.wait(f"{entropy}.dataset.drawn !== undefined")
    opened.run("new Promise((resolve) => setTimeout(resolve, 200))")  # until the canvas has its size
    left, top, width, height = opened.run(
        f"(() => {{ const box = {entropy}.getBoundingClientRect(); return [box.x, box.y, box.width, box.height]; }})()"
    )

    def at(share: float) -> tuple[float, float]:
        return left + share * width, top + 0.5 * height

    opened.point(*at(0.9))
    tooltip = "document.querySelector('.bk-Tooltip')?.shadowRoot.textContent ?? ''"
    opened.wait(f"({tooltip}).includes('step')")
    text = opened.run(tooltip)
    assert f"{metrics(RECIPE, 5)['policy/entropy']:.4g}" in text
    steps = f"(() => {{ const range = {figure('Entropy')}.x_range; return [range.start, range.end]; }})()"
    start, end = opened.run(steps)
    opened.drag(at(0.4), at(0.6))
    opened.wait(f"{steps}[1] - {steps}[0] < {0.5 * (end - start)}")
    opened.double_click(*at(0.5))
    opened.wait(f"Math.abs({steps}[0] - {start}) < 1e-6 && Math.abs({steps}[1] - {end}) < 1e-6")
    assert opened.complaints == []


def test_the_header_says_what_was_run(opened: Browser) -> None:
    text = opened.run("document.querySelector('header').textContent")
    for part in ("run", "Qwen/Qwen2.5-0.5B", "grpo advantages", "math_answer (weight 1.0)", "0.700", "best 0.700"):
        assert part in text


@pytest.mark.parametrize(
    ("controls", "wanted"),
    [
        ({"step-from": "2", "step-to": "3"}, [row for row in ROWS if 2 <= row[0] <= 3]),
        ({"reward-from": "0.6"}, [row for row in ROWS if (reward_of(*row) or 0) >= 0.6]),
        ({"reward-to": "0"}, [row for row in ROWS if reward_of(*row) == 0]),
        ({"length-from": "43", "length-to": "51"}, [row for row in ROWS if 43 <= length_of(row[0], row[2]) <= 51]),
        ({"outcome": "1"}, [row for row in ROWS if reward_of(*row) is None]),
        ({"ended": "1", "step-from": "5"}, [row for row in ROWS if row[2] == 3 and row[0] == 5]),
        ({"search": "ZEBRA"}, [row for row in ROWS if row[:2] == (4, 3)]),
        ({"search": "reason first"}, [row for row in ROWS if row[1] == 1]),
        ({"search": "giraffe"}, []),
    ],
)
def test_filters(opened: Browser, controls: dict[str, str], wanted: list[tuple[int, int, int]]) -> None:
    for name, value in controls.items():
        choose(opened, name, value)
    assert counted(opened) == f"{len(wanted)} of 80 rollouts"
    text = [(int(step), int(group), int(length)) for step, group, _, _, length, *_ in shown(opened)]
    expected = [(step, 4 * (step - 1) + group, length_of(step, sample)) for step, group, sample in wanted]
    assert text == expected[:25]
    opened.run("document.querySelector('.filters').reset()")
    opened.wait("document.querySelector('.count').textContent === '80 of 80 rollouts'")
    assert opened.complaints == []


def test_order_and_pages(opened: Browser) -> None:
    choose(opened, "order", "length-desc")
    assert [row[4] for row in shown(opened)[:8]] == ["53"] * 4 + ["52"] * 4
    choose(opened, "order", "reward-asc")
    turn = "[...document.querySelectorAll('.pager button')].at(-1)"
    for _ in range(3):
        opened.run(f"{turn}.click()")
    last = shown(opened)
    assert len(last) == 5  # of 80
    assert [row[2] for row in last] == ["1"] + ["–"] * 4  # what has no reward comes last
    assert opened.run(f"{turn}.disabled")


def test_a_row_opens_and_shows_its_group(opened: Browser) -> None:
    choose(opened, "search", "zebra")
    opened.run("document.querySelector('tr[data-row]').click()")
    opened.wait("document.querySelector('.detail .answer') !== null")
    detail = opened.run("document.querySelector('.detail').textContent")
    assert "how many zebras are left?" in detail
    assert "reward 0" in detail
    assert "policy version 3" in detail
    assert "math_answer0ok" in detail
    opened.run("document.querySelector('.detail button').click()")
    opened.wait("document.querySelectorAll('.detail .answer').length === 4")
    opened.run("document.querySelector('tr[data-row]').click()")
    assert opened.run("document.querySelector('.detail') === null")


def test_the_group_view(opened: Browser) -> None:
    choose(opened, "groups", "on")
    choose(opened, "outcome", "1")
    assert counted(opened) == "4 of 80 rollouts in 4 groups"
    # Rewards of the second: none, 1/4, 2/4, 3/4: mean 0.5, deviation sqrt(1/24) = 0.2041; tokens 20 to 23.
    assert shown(opened)[1][:6] == ["2", "5", "0.5", "0.2041", "21.5", "1 of 4"]
    opened.run("document.querySelectorAll('tr[data-group]')[1].click()")
    opened.wait("document.querySelectorAll('.detail .answer').length === 4")
    assert opened.run("document.querySelectorAll('.detail .answer.outside').length") == 3


def colours(browser: Browser) -> list[str]:
    text: list[str] = browser.run(
        "[...document.querySelectorAll('.detail .tokens span')].map((span) => getComputedStyle(span).backgroundColor)"
    )
    return text


def written_tokens(page: Path, row: int) -> dict[str, Any]:
    """Of a row of the first step."""
    lines = (page.parent / "rollouts" / "step-000001.jsonl").read_text().splitlines()
    tokens: dict[str, Any] = json.loads(lines[row])["tokens"]
    return tokens


def alpha(colour: str) -> float:
    """Of `rgba(1, 2, 3, 0.5)`; 1 where it is left out."""
    parts = colour.partition("(")[2].rstrip(")").split(",")
    return float(parts[3]) if len(parts) == 4 else 1.0


def largest_advantage(page: Path) -> float:
    """By size, of every rollout and every token."""
    found = [0.0]
    for path in (page.parent / "rollouts").glob("step-*.jsonl"):
        for row in map(json.loads, path.read_text().splitlines()):
            found += [row["advantage"] or 0.0, *row.get("tokens", {}).get("advantages", ())]
    return max(abs(value) for value in found)


def test_tokens_are_coloured_by_probability_and_by_advantage(opened: Browser, page: Path) -> None:
    row = 4  # the first of the first step's second group, whose tokens have advantages of their own
    opened.run(f"document.querySelectorAll('tr[data-row]')[{row}].click()")
    opened.wait("document.querySelector('.detail .tokens') !== null")
    tokens = written_tokens(page, row)
    visible = opened.run(
        "[...document.querySelectorAll('.detail [data-token]')].map((one) => Number(one.dataset.token))"
    )
    assert len(visible) == len(tokens["ids"]) - 4  # the é and the smile are several tokens, and one piece each
    expected = [0.75 * (1 - np.exp(tokens["logprobs"][i])) for i in visible]
    assert [alpha(colour) for colour in colours(opened)] == pytest.approx(expected, abs=0.005)
    choose(opened, "mode", "advantage")
    scale = largest_advantage(page)
    expected = [0.75 * min(abs(tokens["advantages"][i]) / scale, 1) for i in visible]
    found = colours(opened)
    assert [alpha(colour) for colour in found] == pytest.approx(expected, abs=0.005)
    signs = {tokens["advantages"][i] < 0: found[n].split(",")[0] for n, i in enumerate(visible) if expected[n] > 0.01}
    assert len(set(signs.values())) == 2  # one colour for better, one for worse
    token = visible[2]
    opened.run(f"document.querySelector('.detail [data-token=\"{token}\"]').click()")
    text = opened.run("document.querySelector('.detail .readout').textContent")
    assert text.startswith(f"Token {token} ")
    assert f"log-probability {tokens['logprobs'][token]:.4g}" in text
    choose(opened, "mode", "none")
    assert opened.run("document.querySelector('.detail .tokens') === null")
    assert opened.complaints == []


def test_a_response_without_tokens_says_so(opened: Browser) -> None:
    choose(opened, "search", "question 3 of step 1")
    opened.run("document.querySelector('tr[data-row]').click()")
    opened.wait("document.querySelector('.detail .answer') !== null")
    assert "written without its tokens" in opened.run("document.querySelector('.detail').textContent")


@pytest.mark.parametrize(("size", "dark"), [(WIDE, False), (WIDE, True), (PHONE, False)])
def test_it_is_to_be_seen_at_any_width(browser: Browser, page: Path, size: tuple[int, int], dark: bool) -> None:
    browser.size(*size, dark=dark)
    browser.open(page)
    for section in ("top", "curves", "timeline", "rollouts"):
        browser.run(f"document.getElementById('{section}').scrollIntoView()")
        browser.run("new Promise((resolve) => setTimeout(resolve, 150))")
        picture = browser.screenshot()
        assert picture.shape == (size[1], size[0], 3)
        assert not is_blank(picture), section
        assert (picture.mean() < 100) == dark
    assert browser.run("document.documentElement.scrollWidth") == size[0]
    browser.run("document.querySelector('tr[data-row]').click()")
    browser.wait("document.querySelector('.detail .answer') !== null")
    assert browser.run("document.documentElement.scrollWidth") == size[0]
    assert browser.complaints == []


def test_two_runs_are_overlaid_and_changed_over(browser: Browser, tmp_path: Path) -> None:
    first = write_run(tmp_path / "first", RECIPE)
    second = write_run(tmp_path / "second", Recipe(num_steps=3, num_groups=2, num_samples=2, seed=1))
    execute(["report", str(first), str(second), "--output", str(tmp_path / "both.html")])
    browser.size(*PHONE)
    browser.open(tmp_path / "both.html")
    assert browser.run("document.documentElement.scrollWidth") == PHONE[0]
    browser.size(*WIDE)
    browser.open(tmp_path / "both.html")
    assert browser.run("document.querySelector('h1').textContent") == "first against second"
    browser.run("document.querySelector('[data-panel=Entropy]').scrollIntoView()")
    browser.wait("document.querySelector('[data-panel=Entropy]').dataset.drawn !== undefined")
    assert curve(browser, "Entropy", "first", "x") == [1, 2, 3, 4, 5]
    assert curve(browser, "Entropy", "second", "x") == [1, 2, 3]
    assert browser.run("document.querySelectorAll('[data-timeline]').length") == 2
    assert counted(browser) == "80 of 80 rollouts"
    choose(browser, "run", "1")
    assert counted(browser) == "12 of 12 rollouts"
    choose(browser, "groups", "on")
    assert counted(browser) == "12 of 12 rollouts in 6 groups"
    assert browser.complaints == []


def test_the_first_run_with_rollouts_is_shown_under_its_name(browser: Browser, tmp_path: Path) -> None:
    bare = write_run(tmp_path / "bare", RECIPE)
    shutil.rmtree(bare / "rollouts")
    second = write_run(tmp_path / "second", Recipe(num_steps=3, num_groups=2, num_samples=2))
    execute(["report", str(bare), str(second), "--output", str(tmp_path / "both.html")])
    browser.open(tmp_path / "both.html")
    shown = "document.querySelector('select[name=run]').selectedOptions[0].textContent"
    assert (counted(browser), browser.run(shown)) == ("12 of 12 rollouts", "second")
    browser.run("document.querySelector('button[type=reset]').click()")
    browser.run("new Promise((resolve) => setTimeout(resolve, 200))")
    assert (counted(browser), browser.run(shown)) == ("12 of 12 rollouts", "second")
    assert browser.complaints == []


def test_what_a_model_wrote_cannot_run(browser: Browser, tmp_path: Path) -> None:
    config = {**CONFIG, "rewards": [{"name": HOSTILE}], "model": {"path": HOSTILE}}
    run = write_run(tmp_path / "<img src=x onerror='window.hacked=1'>", Recipe(num_steps=1), config)
    hostile = {"prompt": HOSTILE, "response": HOSTILE, "outcome": HOSTILE, "finish_reason": HOSTILE, "reward": 1.0}
    hostile |= {"group_id": 9, "parts": {HOSTILE: {"value": 1.0, "detail": HOSTILE}}, "extra": {"note": HOSTILE}}
    write_lines(run / "rollouts" / "step-000001.jsonl", [hostile])
    key = f"reward/{HOSTILE}/mean"
    write_lines(run / "metrics.jsonl", [{"step": 1, key: 1.0}, {"step": 2, key: 2.0, HOSTILE: 1.0}])
    execute(["report", str(run)])
    browser.size(*WIDE)
    browser.open(run / "report.html")
    assert draw_all(browser) == 3  # a panel, an unknown number, the timeline
    browser.run("document.querySelector('tr[data-row]').click()")
    browser.wait("document.querySelector('.detail .answer') !== null")
    assert browser.run("document.querySelector('.detail .response').textContent") == HOSTILE
    assert browser.run("document.querySelectorAll('img').length") == 0
    assert browser.run("window.hacked === undefined")
    assert browser.complaints == []


def test_a_run_of_which_little_is_known(browser: Browser, tmp_path: Path) -> None:
    write_lines(tmp_path / "metrics.jsonl", [{"step": 0, "eval/accuracy": 0.5}, {"step": 1, "policy/kl_ref": None}])
    execute(["report", str(tmp_path)])
    browser.size(*WIDE)
    browser.open(tmp_path / "report.html")
    text = browser.run("document.querySelector('main').textContent")
    assert "There are none to look at." in text
    assert "This run wrote no timeline." in text
    assert browser.complaints == []


def cold_ms(chromium: str, page: Path, profile: Path) -> float:
    """From navigation to ready in a browser that has shown nothing yet, whose every cache is empty."""
    with Browser(chromium, profile) as fresh:
        fresh.size(*WIDE)
        return fresh.open(page)


def test_ten_thousand_rollouts_open_within_two_seconds(
    chromium: str, browser: Browser, tmp_path: Path, tokenizer: Any
) -> None:
    recipe = Recipe(num_steps=50, num_groups=25, num_samples=8, num_words=80, token_groups=4)
    assert recipe.num_rollouts == 10_000
    run = write_run(tmp_path / "run", recipe, tokenizer=tokenizer)
    execute(["report", str(run)])
    times = [cold_ms(chromium, run / "report.html", tmp_path / f"profile-{turn}") for turn in range(3)]
    assert statistics.median(times) < 2000, times
    browser.size(*WIDE)
    browser.open(run / "report.html")
    assert counted(browser) == "10,000 of 10,000 rollouts"
    started = browser.run("performance.now()")
    choose(browser, "length-to", "100")
    assert counted(browser) == "1,825 of 10,000 rollouts"  # steps 1 to 9 whole, and each group's first of step 10
    assert browser.run("performance.now()") - started < 500
    assert browser.run("document.querySelectorAll('tr[aria-expanded]').length") == 25
    assert browser.complaints == []
