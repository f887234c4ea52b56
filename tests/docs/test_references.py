"""What the documentation names exists: pages, files, options, commands, metrics; and the pages keep their sizes."""

from __future__ import annotations

import ast
import functools
import importlib.util
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from rlsys.config.compose import load_config
from rlsys.config.overrides import config_dir, known_keys
from rlsys.errors import RlsysError
from rlsys.preflight.checks import check_config
from tests.docs.pages import FAILS, NOT_RUN, OUTPUT, ROOT, Block, Page, pages, written_pages

PAGES = written_pages()
IN_THE_TREE = re.compile(r"(?<![\w./~-])(?:rlsys|configs|launch|benchmarks|tests|docs)/[\w./*-]*[\w*/]")
README_BYTES = 10_000
VALUE = "\0"  # in place of an f-string's value
SHORTEST = 4  # characters of a quoted message that are looked for
FILES = (".jsonl", ".json", ".yaml", ".py", ".md")
KEY = re.compile(r"[a-z_]+(?:\.[a-z_0-9]+)*")
# `rlsys eval` and what follows the benchmarks' own arguments take overrides as `rlsys train` does.
TAKE_OVERRIDES = [
    ["rlsys", "train"],
    ["rlsys", "eval"],
    ["bash", "launch/quickstart.sh"],
    ["bash", "launch/ray_job.sh"],
]
# What the scripts put before the overrides of the command line.
SCRIPTS = {"launch/quickstart.sh": ["experiment=quickstart"], "launch/ray_job.sh": ["cluster=running"]}


def by_name(page: Page) -> str:
    return page.name


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_links_lead_to_pages_and_headings_that_exist(page: Page) -> None:
    anchors = {other.name: other.anchors for other in pages()}
    for target in page.links:
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        found = (ROOT / page.name).parent / path if path else ROOT / page.name
        assert found.exists(), f"{page.name} links to {target}, which does not exist"
        if anchor:
            name = found.resolve().relative_to(ROOT).as_posix()
            assert anchor in anchors[name], f"{page.name} links to {target}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_files_and_folders_that_are_named_exist(page: Page) -> None:
    for name in IN_THE_TREE.findall(page.text):
        pattern = name.rstrip("/")
        assert list(ROOT.glob(pattern)), f"{page.name} names {name}, which does not exist"


def test_every_page_is_reached_from_the_readme() -> None:
    linked = set(Page("README.md").links)
    for page in pages():
        if page.name != "README.md":
            assert page.name in linked, f"README.md does not link to {page.name}"


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_tables_have_headers_and_as_many_cells_in_every_row(page: Page) -> None:
    for header, *rows in page.tables:
        assert all(header), f"{page.name}: an empty cell in the header {header}"
        for row in rows:
            assert len(row) == len(header), f"{page.name}: {len(row)} cells under {len(header)} headers: {row}"


@pytest.mark.parametrize("name", ["docs/metrics.md", "docs/troubleshooting.md"])
def test_tables_to_look_things_up_have_no_empty_cells(name: str) -> None:
    for header, *rows in Page(name).tables:
        for row in rows:
            assert all(row), f"{name}: an empty cell under {header}: {row}"


def test_the_readme_is_short() -> None:
    size = (ROOT / "README.md").stat().st_size
    assert size < README_BYTES, f"README.md has {size} bytes: move something to docs/"


def blocks(*languages: str) -> list[Block]:
    return [block for page in pages() for block in page.blocks if block.language in languages]


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_blocks_have_a_language_and_known_words(page: Page) -> None:
    for block in page.blocks:
        assert block.language, f"{block.where}: no language behind ```"
        unknown = [
            word for word in block.words if word not in (*NOT_RUN, FAILS, OUTPUT) and not word.startswith("file=")
        ]
        assert not unknown, f"{block.where}: {unknown}; known: {', '.join([*NOT_RUN, FAILS, OUTPUT])}, file=NAME"


def test_the_reasons_why_blocks_are_not_run_are_documented() -> None:
    text = Page("docs/development.md").text
    for marker, reason in NOT_RUN.items():
        assert f"| `{marker}` | {reason} |" in text, f"docs/development.md lacks the row of '{marker}': {reason}"


def overrides_of(words: list[str]) -> list[str] | None:
    """The overrides of a command that takes some, with those that its script adds; None for any other command."""
    if words[:2] == ["python", "-m"] and "--write" in words:
        return [word for word in words[3:] if "=" in word]
    if words[:2] not in TAKE_OVERRIDES:
        return None
    return [*SCRIPTS.get(words[1], ()), *given(words)]


def given(words: list[str]) -> list[str]:
    return [word for word in words[2:] if not word.startswith("-") and ("=" in word or word.startswith("~"))]


def with_overrides() -> Iterator[tuple[Block, list[str], list[str]]]:
    for block in blocks("bash"):
        if block.marker == "fragment" or FAILS in block.words:
            continue
        for words in block.commands():
            while re.fullmatch(r"[A-Z_]+=.*", words[0]):  # variables of the environment
                words = words[1:]
            if (found := overrides_of(words)) is not None:
                yield block, words, found


def write_files(page: Page) -> None:
    """Write the page's blocks that are files into the working directory."""
    for block in page.blocks:
        if block.file is not None:
            Path(block.file).write_text(block.text, encoding="utf-8")


@pytest.mark.parametrize(
    ("block", "words", "overrides"),
    [pytest.param(*found, id=f"{found[0].where}: {' '.join(found[2])[:60]}") for found in with_overrides()],
)
def test_the_overrides_of_commands_compose_and_pass_the_checks(
    block: Block, words: list[str], overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_files(Page(block.page))
    if "--multirun" in words or any("recipe.rlsys.yaml" in override for override in overrides):
        pytest.skip("a sweep, or a file that an earlier command writes: the test of the page's commands runs it")
    try:
        config = load_config(overrides)
        trains = words[1] in ("train", *SCRIPTS)
        if trains and block.page != "docs/lora.md":  # 4-bit weights need libraries that tests go without
            check_config(config)
    except RlsysError as error:
        pytest.fail(f"{block.where}: {error}")


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_options_that_are_named_exist(page: Page) -> None:
    known = set(known_keys())
    roots = {key for key in known if "." not in key} | {path.name for path in config_dir().iterdir()}
    for span in page.code_spans:
        key, _, value = span.partition("=")
        if not KEY.fullmatch(key) or key.split(".")[0] not in roots or span.endswith(("=", *FILES)):
            continue
        if not value and ("." not in key or key in known):
            continue
        refusal = refused(span if value else f"{key}=null")  # an option of a function, which no list has
        assert refusal is None, f"{page.name} names {span}: {refusal}"


@functools.cache  # many pages name the same
def refused(override: str) -> str | None:
    """Say why an override does not compose, if it does not. Composing reads no file that a page writes."""
    try:
        load_config([override])
    except RlsysError as error:
        return str(error)
    return None


def test_the_modules_of_the_benchmarks_exist() -> None:
    for block in blocks("bash"):
        for words in block.commands():
            if words[:2] == ["python", "-m"]:
                assert importlib.util.find_spec(words[2]) is not None, f"{block.where}: no module {words[2]}"
    for span in Page("benchmarks/results/README.md").code_spans:
        if span.startswith("python -m "):
            assert importlib.util.find_spec(span.split()[2]) is not None, f"no module for {span}"


@functools.cache
def texts() -> str:
    """Every text in the package's code, an f-string's values left out, and the scripts under launch/."""
    found = []
    for path in [*ROOT.glob("rlsys/**/*.py"), *ROOT.glob("benchmarks/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append(_joined(node))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join([*found, *(path.read_text(encoding="utf-8") for path in ROOT.glob("launch/*.sh"))])


def _joined(node: ast.JoinedStr) -> str:
    return "".join(str(part.value) if isinstance(part, ast.Constant) else VALUE for part in node.values)


def test_messages_that_are_quoted_stand_in_the_code() -> None:
    """In the tables of symptoms a quoted message is cut at `...` and at its numbers (`N`, `M`)."""
    text, tables = texts(), Page("docs/troubleshooting.md").text
    quoted = [re.findall(r"`([^`]+)`", line)[0] for line in tables.splitlines() if line.startswith("| `")]
    parts = [part.strip(" :'") for whole in quoted for part in re.split(r"\.\.\.|\b[NM]\b|rollout/0|'\w+'", whole)]
    assert [part for part in parts if len(part) >= SHORTEST and part not in text] == []


def test_presets_registered_functions_and_experiments_are_documented() -> None:
    algorithms = Page("docs/algorithms.md").text
    for preset in (config_dir() / "algorithm").glob("*.yaml"):
        assert f"`{preset.stem}`" in algorithms, f"docs/algorithms.md lacks the preset {preset.stem}"
    for kind in ("advantages", "policy_losses", "aggregation", "corrections", "kl"):
        for name in registered(f"rlsys.algorithms.{kind}"):
            assert f"`{name}`" in algorithms, f"docs/algorithms.md lacks {name}, of {kind}"
    rewards = Page("docs/rewards.md").text
    for name in registered("rlsys.rewards"):
        assert f"`{name}`" in rewards, f"docs/rewards.md lacks the reward {name}"
    for name in registered("rlsys.metrics.trackers"):
        assert f"`{name}`" in Page("docs/observability.md").text, f"docs/observability.md lacks the tracker {name}"
    for experiment in (config_dir() / "experiment").glob("*.yaml"):
        pages = Page("docs/importing.md").text + Page("docs/environments.md").text
        assert f"`{experiment.stem}`" in pages or f"experiment={experiment.stem}" in pages, experiment.stem
    environments = Page("docs/environments.md").text
    for name in registered("rlsys.environments"):
        assert f"`{name}`" in environments, f"docs/environments.md lacks the environment {name}"


# The tables of docs/algorithms.md that list functions, and the registry of each.
FUNCTIONS = {
    "Advantages": "advantages",
    "Policy losses": "policy_losses",
    "Aggregation": "aggregation",
    "Corrections": "corrections",
}


@pytest.mark.parametrize("heading", FUNCTIONS)
def test_the_options_of_algorithms_stand_with_their_defaults(heading: str) -> None:
    registry = importlib.import_module(f"rlsys.algorithms.{FUNCTIONS[heading]}").registry
    section = Page("docs/algorithms.md").text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    for name in registry.names():
        row = next((row for row in rows if f"`{name}`" in row.split(" | ")[0]), None)
        assert row is not None, f"docs/algorithms.md, {heading}: no row for `{name}`"
        row = row.rpartition(" | ")[2] if row.count(" | ") == 2 else row  # the last of three cells has the options
        for option, parameter in inspect.signature(registry.get(name)).parameters.items():
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                assert f"`{option}`" in row, f"docs/algorithms.md: the row of `{name}` lacks `{option}`"
                if parameter.default is not inspect.Parameter.empty:
                    shown = re.findall(rf"`{option}` \(([^)]*)\)", row)
                    assert shown, f"docs/algorithms.md: the row of `{name}` lacks the default of `{option}`"
                    assert _loaded(shown[0]) == parameter.default, f"`{name}`: `{option}` is {parameter.default}"


def _loaded(text: str) -> object:
    try:
        return float(text)
    except ValueError:
        return yaml.safe_load(text)


def test_presets_with_a_kl_penalty_are_named() -> None:
    presets = [path.stem for path in (config_dir() / "algorithm").glob("*.yaml")]
    with_kl = [f"`{name}`" for name in presets if load_config([f"algorithm={name}"]).algorithm.kl.coef > 0]
    sentence = re.search(r"The presets with a KL penalty are (.*?);", Page("docs/algorithms.md").text, re.DOTALL)
    assert sentence is not None
    assert sorted(re.findall(r"`\w+`", sentence[1])) == sorted(with_kl)


def test_presets_that_are_recommended_exist() -> None:
    section = Page("docs/algorithms.md").text.partition("\n## Which preset when\n")[2].partition("\n## ")[0]
    presets = {path.stem for path in (config_dir() / "algorithm").glob("*.yaml")}
    for line in section.splitlines():
        if line.startswith("| ") and not line.startswith("| you"):
            for name in re.findall(r"`(\w+)`", line.split(" | ")[1]):
                assert name in presets, f"docs/algorithms.md recommends the preset {name}, which does not exist"


def test_estimators_that_take_single_responses_are_named() -> None:
    registry = importlib.import_module("rlsys.algorithms.advantages").registry
    single = [f"`{name}`" for name in registry.names() if registry.fact(name, "min_group_size", 1) < 2]
    sentence = re.search(r"All but (.*?)\s+compare the responses", Page("docs/algorithms.md").text, re.DOTALL)
    assert sentence is not None
    assert sorted(re.findall(r"`\w+`", sentence[1])) == sorted(single)


def test_scripts_and_variables_of_the_environment_are_documented() -> None:
    text = "\n".join(page.text for page in PAGES)
    for script in (ROOT / "launch").glob("*.sh"):
        sourced = script.name == "env.sh"
        assert sourced or f"launch/{script.name}" in text, f"no page names launch/{script.name}"
    code = [*(ROOT / "launch").glob("*.sh"), *ROOT.glob("configs/**/*.yaml")]
    for name in {name for path in code for name in re.findall(r"\bRLSYS_[A-Z_]+\b", path.read_text("utf-8"))}:
        assert name in text, f"no page explains the variable {name}"


def test_the_versions_that_are_named_are_those_of_the_package() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = Page("docs/install.md").text.partition("\n## What is installed\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \| ([\d.]+) \|", section, re.MULTILINE)
    assert rows
    for names, version in rows:
        for name in re.findall(r"`([\w-]+)`", names):
            assert re.search(rf'"{name}(\[\w+\])?=={re.escape(version)}"', project), (
                f"pyproject.toml: no {name} {version}"
            )


def registered(package: str) -> list[str]:
    names: list[str] = importlib.import_module(package).registry.names()
    return names


def test_the_lock_holds_what_the_package_asks_for() -> None:
    import tomllib

    locked = dict(
        line.split("==")
        for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    )
    names = {re.sub(r"[-_.]+", "-", name).lower(): version.partition("+")[0] for name, version in locked.items()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["cpu"]]
    for requirement in asked:
        name, _, exact = requirement.partition("==")
        plain = re.split(r"[\[<>=]", name)[0].lower()
        assert plain in names, f"requirements.lock lacks {plain}: see docs/development.md"
        assert not exact or names[plain] == exact, f"requirements.lock has {plain} {names[plain]}, not {exact}"
