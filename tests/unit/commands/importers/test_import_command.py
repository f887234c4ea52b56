"""`rlsys import` as a command, and experiments that are files outside configs/."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from rlsys.cli import execute
from rlsys.config.compose import load_config
from rlsys.config.overrides import config_dir, normalise
from rlsys.config.schema import Config
from rlsys.errors import ConfigError
from rlsys.preflight.prepare import prepare
from tests.unit.commands.importers.imports import RECIPES


@pytest.mark.parametrize("path", sorted(RECIPES.iterdir()), ids=lambda path: path.name)
def test_a_written_experiment_composes_and_passes_the_checks(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command itself composes and checks the file before it writes it."""
    output = tmp_path / "imported.yaml"
    execute(["import", str(path), "--output", str(output), "--num-rows", "10000"])
    text = output.read_text()
    assert text.startswith(f"# @package _global_\n# From {path.name}, ")
    assert OmegaConf.load(output).keys() <= OmegaConf.structured(Config).keys()
    printed = capsys.readouterr().out
    assert f"rlsys train experiment={output}" in printed
    for title in ("Translated", "Default differs", "Not supported", "Ignored"):
        assert title in printed


def write(folder: Path, text: str, name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


TRL = "per_device_train_batch_size: 8\nnum_generations: 4\nmodel_name_or_path: org/model\n"


def test_every_list_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    recipe = write(tmp_path, TRL + "top_p: 0.9\nlerning_rate: 1\nvllm_server_port: 8000\n")
    execute(["import", str(recipe), "--version", "1.8"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "trl (guessed: it sets num_generations; defaults of trl 1.8, as asked for)" in printed
    translated, rest = printed.split("Default differs")
    changed, rest = rest.split("Not supported")
    unsupported, rest = rest.split("Ignored")
    ignored, unknown = rest.split("Unknown")
    assert "model.path=org/model" in translated
    assert "train.prompts_per_step=2" in translated
    assert "loss_type │ dapo │ {name: sequence_mean} │ algorithm.aggregation={name: token_mean}" in changed
    assert "top_p │ 0.9" in unsupported
    assert "vllm_server_port │ 8000" in ignored
    assert "did you mean 'learning_rate'?" in unknown
    written = (tmp_path / "recipe.rlsys.yaml").read_text()  # beside the recipe
    assert "# - top_p: " in written
    assert "# - lerning_rate: unknown" in written


def test_a_recipe_that_cannot_run_is_not_written(tmp_path: Path) -> None:
    recipe = write(tmp_path, "worker:\n  rollout: {n: 1}\n")  # GRPO needs two samples
    with pytest.raises(ConfigError, match=r"nothing was written: train\.samples_per_prompt=1"):
        execute(["import", str(recipe)])
    assert list(tmp_path.iterdir()) == [recipe]


def test_a_value_of_the_wrong_kind_is_an_error(tmp_path: Path) -> None:
    recipe = write(tmp_path, TRL + "epsilon: narrow\n")
    with pytest.raises(ConfigError, match="epsilon='narrow': could not convert string to float"):
        execute(["import", str(recipe)])


def test_a_tracker_that_is_not_installed_here_is_written_with_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # what makes `import wandb` fail
    recipe = write(tmp_path, TRL + "report_to: [wandb, tensorboard]\n")
    execute(["import", str(recipe)])
    written = (tmp_path / "recipe.rlsys.yaml").read_text()
    assert OmegaConf.create(written).logging.trackers == ["wandb", "tensorboard"]
    assert "tracker 'wandb' cannot import wandb" in " ".join(written.replace("#", "").split())
    assert "tracker 'wandb' cannot import wandb" in " ".join(capsys.readouterr().out.split())


def test_what_only_this_machine_lacks_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlsys.preflight.checks._installed", dict)  # as without vLLM
    recipe = write(tmp_path, TRL + "use_peft: true\nload_in_4bit: true\nbf16: true\n")
    execute(["import", str(recipe)])
    written = tmp_path / "recipe.rlsys.yaml"
    assert OmegaConf.create(written.read_text()).learner.lora.quantize_base == "nf4"
    config = load_config([f"experiment={written}"])
    with pytest.raises(ConfigError, match="vLLM is not installed"):
        prepare(config)
    monkeypatch.setattr("rlsys.preflight.checks._installed", lambda: {"vllm": "0"})
    with pytest.raises(ConfigError, match=r"quantize_base=nf4 needs GPUs and bitsandbytes: cluster\.num_gpus is 0"):
        prepare(config)


@pytest.mark.parametrize("name", ["org/${x}", r"org/a\${x}"])
def test_a_dollar_sign_stays_text(tmp_path: Path, name: str) -> None:
    recipe = write(tmp_path, TRL + f"reward_funcs: ['{name}']\n")
    execute(["import", str(recipe)])
    assert load_config([f"experiment={tmp_path / 'recipe.rlsys.yaml'}"]).rewards[0]["model"] == name


def test_a_reference_is_resolved_where_the_project_has_them(tmp_path: Path) -> None:
    text = "data: {max_response_length: 77}\nworker:\n  rollout: {n: 4}\n  actor: {model: {model_path: '${x.y}'}}\n"
    with pytest.raises(ConfigError, match=r"recipe\.yaml: Interpolation key 'x.y' not found"):
        execute(["import", str(write(tmp_path, text))])
    recipe = write(tmp_path, f"{text}x: {{y: org/model}}\n")
    execute(["import", str(recipe)])
    assert OmegaConf.load(tmp_path / "recipe.rlsys.yaml").model.path == "org/model"


def test_what_the_environment_holds_stays_a_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOLDER", str(tmp_path / "hunter2"))
    (tmp_path / "hunter2").mkdir()
    (tmp_path / "hunter2/mine.py").write_text("def score(completions, **_):\n    return [0.0] * len(completions)\n")
    recipe = write(
        tmp_path,
        "algorithm: {adv_estimator: grpo}\nfolder: ${oc.env:FOLDER}\n"
        "actor_rollout_ref: {model: {path: '${folder}/model'}, rollout: {n: 4}}\n"
        "custom_reward_function: {path: '${oc.env:FOLDER}/mine.py', name: score}\n",
    )
    execute(["import", str(recipe), "--dialect", "verl", "--num-rows", "10000"])
    text, printed = (tmp_path / "recipe.rlsys.yaml").read_text(), capsys.readouterr().out
    assert "path: ${oc.env:FOLDER}/model" in text
    assert "function: ${oc.env:FOLDER}/mine.py:score" in text
    assert "hunter2" not in text + printed


def test_the_version_whose_defaults_were_taken_is_written(tmp_path: Path) -> None:
    recipe = write(tmp_path, TRL + "max_prompt_length: 64\n")
    execute(["import", str(recipe)])
    assert "recipe.yaml, trl (defaults of trl 0.27)" in (tmp_path / "recipe.rlsys.yaml").read_text()


def test_a_call_that_was_not_read_is_named_in_the_file(tmp_path: Path) -> None:
    text = "trl vllm-serve --model org/model &\ntrl grpo --model_name_or_path org/model --num_generations 4\n"
    execute(["import", str(write(tmp_path, text, "run.sh"))])
    assert "not read: `trl vllm-serve` in line 1" in (tmp_path / "run.rlsys.yaml").read_text()


def test_a_variable_that_a_condition_decides_is_refused_by_line(tmp_path: Path) -> None:
    text = "if [ $1 = a ]; then\n  B=0.1\nelse\n  B=0.2\nfi\ntrl grpo --model_name_or_path m --beta $B --run_name x$B\n"
    with pytest.raises(ConfigError, match=r"'beta' is '\$B': line 1 \(`if .*`\) decides \$B"):
        execute(["import", str(write(tmp_path, text, "run.sh"))])


def test_the_recipe_itself_is_never_overwritten(tmp_path: Path) -> None:
    recipe = write(tmp_path, TRL)
    with pytest.raises(ConfigError, match="is the recipe itself"):
        execute(["import", str(recipe), "--output", str(recipe)])
    assert recipe.read_text() == TRL


def test_an_option_under_two_names_is_an_error(tmp_path: Path) -> None:
    recipe = write(tmp_path, TRL + "dtype: float32\ntorch_dtype: bfloat16\n")
    with pytest.raises(ConfigError, match="'dtype' and 'torch_dtype' are the same option"):
        execute(["import", str(recipe)])


def test_an_experiment_may_lie_anywhere(tmp_path: Path) -> None:
    text = (
        "defaults:\n  - override /algorithm: dapo\ntrain: {num_steps: 3}\nalgorithm:\n  policy_loss: {clip_low: 0.1}\n"
    )
    path = write(tmp_path, text, "my-own.experiment.yaml")
    config = load_config([f"experiment={path}", "train.samples_per_prompt=4"])
    assert (config.train.num_steps, config.train.samples_per_prompt) == (3, 4)
    assert config.algorithm.policy_loss == {"name": "ppo_clip", "clip_low": 0.1, "clip_high": 0.28}
    assert config.algorithm.groups.zero_variance == "resample"


def test_a_file_named_like_an_experiment_of_ours_is_the_file(tmp_path: Path) -> None:
    assert (config_dir() / "experiment/quickstart.yaml").is_file()
    path = write(tmp_path, "seed: 77\n", "quickstart.yaml")
    assert load_config([f"experiment={path}"]).seed == 77
    assert load_config(["experiment=quickstart"]).seed == 0


def test_files_and_experiments_of_ours_make_one_sweep(tmp_path: Path) -> None:
    path = write(tmp_path, "seed: 1\n", "mine.yaml")
    assert normalise([f"experiment={path},quickstart"], sweeps=True) == ["experiment=mine,quickstart"]
    with pytest.raises(ConfigError, match="did you mean 'quickstart'"):
        normalise([f"experiment={path},quikstart"], sweeps=True)


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = write(tmp_path, "seed: 1\n")
    assert load_config([f"experiment={path}"]).seed == 1
    path.write_text("seed: 2\n")
    assert load_config([f"experiment={path}"]).seed == 2


@pytest.mark.parametrize(
    ("text", "said"), [(None, "no such file"), ("- 1\n", "holds ListConfig"), ("a: [\n", "is not YAML")]
)
def test_an_experiment_file_that_cannot_be_read_is_refused(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "x.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_config([f"experiment={path}"])
