"""Command-line overrides, checked before Hydra composes them."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from rlsys.config.compose import compose_jobs, load_config
from rlsys.config.overrides import groups, keys_set, known_keys, names_a_run, normalise, parse, presets
from rlsys.errors import ConfigError


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.num_step=3", "unknown configuration key 'train.num_step': did you mean 'train.num_steps'?"),
        ("learner.learning_rate=1", "unknown configuration key 'learner.learning_rate'"),
        ("+rollout.temprature=1", "did you mean 'rollout.temperature'?"),
        ("~train.num_stepss", "did you mean 'train.num_steps'?"),
        ("experimet=quickstart", "did you mean 'experiment'?"),
        ("experiment=quikstart", "experiment=quikstart: did you mean 'quickstart'? (known: "),
        ("data=gsm9k", "data=gsm9k: did you mean 'gsm8k'? (known: gsm8k)"),
        ("rollout=default", "rollout=default: there are no presets"),
        ("reward=target_length,exact", "reward=exact: "),
        ("reward=choice(target_length,exact)", "reward=exact: "),
        ("experiment=null", "~experiment"),  # Hydra takes a group away so, and fails on null
        ("experiment=missing.yaml", "experiment=missing.yaml: no such file: "),
        ("~", "the override '~' has no key"),
        ("=3", "the override '=3' has no key"),
        ("train.num_steps", "the override 'train.num_steps' has no '='"),
    ],
)
def test_what_is_unknown_is_refused_with_the_nearest_match(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        normalise([override], sweeps=True)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("override", "at"),
    [
        (r"data.system_prompt=Put it in \boxed{}", "{"),
        ("data.system_prompt=it's", "'"),
        ("data.train=runs/lr=1e-6/rows.jsonl", "=1e-6"),
        ("model.path=models/tiny(copy)", "(copy)"),
        ("data.train=rows (copy).jsonl", ".jsonl"),
        ("data.train=données.jsonl", "é"),
        ("run_dir=~runs/mine", "~"),
        ("data.prompt_template={{ content }} = ?", "{"),
        ('data.system_prompt=say "x\\"', '"'),
        ("data.system_prompt=a # b", "#"),
        ("data.system_prompt=first line\nsecond line", ""),  # a newline is no text unless quoted
    ],
)
def test_what_hydra_cannot_read_is_shown_with_its_place_and_quoted(override: str, at: str) -> None:
    key, _, value = override.partition("=")
    with pytest.raises(ConfigError) as caught:
        parse(override)
    _, shown, caret, _, remedy = str(caught.value).split("\n", 4)
    assert shown.strip() in override
    assert shown[caret.index("^") :].startswith(at)
    (quoted,) = shlex.split(remedy)  # as a shell reads it
    assert (parse(quoted).key_or_group, parse(quoted).value()) == (key, value)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("run_dir=~/runs/mine", "~/runs/mine"),
        ("model.path=~/models/tiny(copy)", "~/models/tiny(copy)"),
        (
            "data.train=[~/a.jsonl,{name: ~/b-*.jsonl, weight: 2}]",
            ["~/a.jsonl", {"name": "~/b-*.jsonl", "weight": 2}],
        ),
        ('data.system_prompt="see [~/a]"', "see [~/a]"),
    ],
)
def test_a_path_in_the_home_folder_needs_no_quotes(override: str, value: object) -> None:
    assert parse(override).value() == value
    assert parse(normalise([override])[-1].lstrip("+")).value() == value


@pytest.mark.parametrize("override", ["train.num_steps=[1", "rewards=[{name: regex, pattern: a{1}}]", "data.train={a"])
def test_in_a_list_or_mapping_each_text_is_quoted(override: str) -> None:
    with pytest.raises(ConfigError, match="check its brackets, and quote each text") as caught:
        parse(override)
    example = shlex.split(str(caught.value).split("as in ")[1])[0]
    assert parse(example).value() == [{"name": "regex", "pattern": "^(a|b)$"}]


def test_a_comma_is_a_sweep_and_quoted_it_is_none() -> None:
    with pytest.raises(ConfigError, match="several values need `rlsys train --multirun`") as caught:
        normalise(["data.system_prompt=a, b"])
    assert "'data.system_prompt=\"a, b\"'" in str(caught.value)
    assert "data.system_prompt=[a, b]" in str(caught.value)
    assert load_config(['data.system_prompt="a, b"']).data.system_prompt == "a, b"
    assert normalise(["data.system_prompt=a, b"], sweeps=True) == ["data.system_prompt=a, b"]


@pytest.mark.parametrize(
    "override",
    [
        "train.num_steps=3",
        "train.num_steps=1,2,3",
        "train.num_steps=range(1,4)",
        "algorithm=glob(g*)",
        "++rollout.temperature=0.5",
        "learner.betas=[0.9,0.95]",
        "rewards=[{name: target_length, target: 9}]",
        "algorithm=grpo,dapo",
        "reward@_global_=target_length",
        "hydra.verbose=true",
        "hydra/job_logging=none",
        "~experiment",
        "~train.num_steps",
    ],
)
def test_what_is_known_passes_unchanged(override: str) -> None:
    assert normalise([override], sweeps=True) == [override]


def test_files_of_one_name_are_different_experiments(tmp_path: Path) -> None:
    files = [tmp_path / folder / "run.yaml" for folder in ("a", "b")]
    for seed, file in enumerate(files, start=1):
        file.parent.mkdir()
        file.write_text(f"# @package _global_\nseed: {seed}\n")
    assert [load_config([f"experiment={file}"]).seed for file in files] == [1, 2]
    swept = compose_jobs([f"experiment={files[0]},{files[1]},{files[0]}"], flags=["--multirun"], sweeps=True)
    assert [job.config.seed for job in swept] == [1, 2, 1]


def test_a_file_is_not_mistaken_for_a_preset_or_a_number(tmp_path: Path) -> None:
    presets, seeds = tmp_path / "presets", {"mine": 5, "123": 6, "null": 7}
    (presets / "experiment").mkdir(parents=True)
    (presets / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 77\n")
    for name, seed in seeds.items():
        (tmp_path / f"{name}.yaml").write_text(f"# @package _global_\nseed: {seed}\n")
        (override,) = normalise([f"experiment={tmp_path}/{name}.yaml"], folders=[str(presets)])
        assert override == f"experiment=file_{name}"
        assert load_config([f"experiment={tmp_path}/{name}.yaml"]).seed == seed


def test_options_of_functions_within_a_section() -> None:
    chosen = load_config(["algorithm={policy_loss: {clip_low: 0.1}, kl: {coef: 0.2}}"]).algorithm
    assert (chosen.policy_loss["clip_low"], chosen.kl.coef) == (0.1, 0.2)
    with pytest.raises(ConfigError, match="klx"):
        load_config(["algorithm={klx: {coef: 0.2}, policy_loss: {clip_low: 0.1}}"])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("learner={lrr: 3}", "unknown configuration key 'learner.lrr': did you mean 'learner.lr'?"),
        ("learner={lora: {rankk: 3}}", "'learner.lora.rankk': did you mean 'learner.lora.rank'?"),
        ("learner=3", "there are no presets; the options of this section are set one by one, as learner.num_workers="),
        ("checkpoint.q_q_q_q_q_q_q_q_q_q=1", "checkpoint.every, checkpoint."),
        (
            "qqqqqqqq=1",
            "known: alarms, algorithm, checkpoint, cluster, critic, data, environment, episodes, eval, experiment,",
        ),
        ("data=qqqqq", "data=qqqqq: no such preset (known: gsm8k)"),
        ("model=null", "options of this section are set one by one, as model.path=...; ~model takes away the one"),
        ("reward=null", "reward=null: choose a preset (math_answer, target_length); ~reward takes away"),
        ("a b=3", "the override 'a b=3' has a key that cannot be read"),
        ("train.num steps=3", "as train.num_steps; did you mean 'train.num_steps'?"),
    ],
)
def test_what_is_wrong_is_named(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config([override])
    assert said in str(caught.value)
    assert "append" not in str(caught.value)


def test_presets_in_a_package_are_left_to_hydra() -> None:
    assert normalise(["rollout=mine", "hydra.searchpath=[pkg://mine]"])[0] == "rollout=mine"


def test_a_function_is_named_with_its_options_in_one_mapping() -> None:
    chosen = load_config(["algorithm.advantage={name: grpo, eps: 1e-6}", "data.columns={answer: solution}"])
    assert chosen.algorithm.advantage == {"name": "grpo", "eps": 1e-6}
    assert chosen.data.columns == {"answer": "solution"}


@pytest.mark.parametrize("prefix", ["", "+", "++"])
@pytest.mark.parametrize(
    "option", ["algorithm.policy_loss.clip_low=0.1", "algorithm.advantage.name=grpo", "data.options.max_operand=9"]
)
def test_options_of_functions_are_additions_however_written(prefix: str, option: str) -> None:
    assert normalise([f"{prefix}{option}"]) == [f"++{option}"]


def test_known_keys_stop_at_a_function_s_own_options() -> None:
    known = known_keys()
    assert {"train", "train.num_steps", "model.build.tokenizer.kind", "algorithm.policy_loss", "rewards"} <= known
    assert not any(key.startswith("algorithm.policy_loss.") for key in known)


def test_the_groups_are_those_of_the_contract() -> None:
    assert groups() == ("model", "data", "reward", "algorithm", "rollout", "learner", "cluster", "experiment")
    assert presets("cluster") == ["local", "running"]


def test_a_source_replaces_another_wholly(tmp_path: Path) -> None:
    """Of two mappings Hydra would keep the keys of both, and refuse the second's new ones."""
    (tmp_path / "own.yaml").write_text(
        "# @package _global_\ndata:\n  train: {name: org/maths, subset: main}\n  eval: null\n"
    )
    given = "data.train={name: mine.jsonl, columns: {answer: gold}}"
    config = load_config([f"experiment={tmp_path}/own.yaml", given])
    assert config.data.train == {"name": "mine.jsonl", "columns": {"answer": "gold"}}
    several = load_config([f"experiment={tmp_path}/own.yaml", "data.train=[a.jsonl, {name: b, weight: 2}]"])
    assert several.data.train == ["a.jsonl", {"name": "b", "weight": 2}]
    assert load_config([f"experiment={tmp_path}/own.yaml", "data.train=a.jsonl"]).data.train == "a.jsonl"
    swept = compose_jobs([f"experiment={tmp_path}/own.yaml", given, "seed=0,1"], flags=["--multirun"], sweeps=True)
    assert [job.config.data.train for job in swept] == [config.data.train] * 2


@pytest.mark.parametrize(
    ("override", "source"),
    [
        ('data.train=["a].jsonl", b]', ["a].jsonl", "b"]),
        ('data.train={name: "m}x", weight: 1}', {"name": "m}x", "weight": 1}),
        ("data.train=['a,b.jsonl', c]", ["a,b.jsonl", "c"]),
    ],
)
def test_brackets_and_commas_in_quotes_are_text(override: str, source: object) -> None:
    assert load_config([override]).data.train == source


def test_an_experiment_is_a_file_of_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "# @package _global_\ntrain: {num_steps: 7}\n"
    for name in ("own.yaml", "données-1.yaml", "quickstart.yaml", "lr=1e-6.yaml"):
        (tmp_path / name).write_text(text)
        assert load_config([f'experiment="{tmp_path}/{name}"']).train.num_steps == 7
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_config(["experiment='~/own.yaml'"]).train.num_steps == 7


@pytest.mark.parametrize(
    ("text", "said"), [("a: [", "not YAML that can be read"), ("- a\n- b\n", "holds ListConfig, not a mapping")]
)
def test_an_experiment_that_is_no_mapping(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_config([f"experiment={tmp_path}/own.yaml"])


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ([], False),
        (
            [
                "train.num_steps=3",
                "algorithm=dapo",
                "data.shuffle=false",
                "run_dir=x",
                "~experiment",
                "model.cache_dir=x",
            ],
            False,
        ),
        (["experiment=quickstart"], True),
        (["+experiment=quickstart"], True),
        (["model.path=org/model"], True),
        (["model.build.num_layers=2"], True),
        (["data=gsm8k"], True),
        (["data@data=gsm8k"], True),
        (["data.train={name: x}"], True),
    ],
)
def test_what_names_a_run(overrides: list[str], named: bool) -> None:
    assert names_a_run(overrides) == named


def test_a_key_that_is_deleted_is_not_set() -> None:
    assert keys_set(["+a.b=1", "~model.path", "++c={d: 1}", "data@x=gsm8k"]) == {"a.b", "c", "data"}
