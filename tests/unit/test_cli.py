"""The command line: what it prints and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from rlsys.cli import COMMANDS, execute, main
from rlsys.commands.train import folder_of
from rlsys.config.compose import Job
from rlsys.config.schema import Config
from rlsys.errors import ConfigError
from tests.planted import plant, planted_that_ran


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """The command line sets handlers of signals: give the tests' own back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Exit status of `rlsys arguments`."""
    monkeypatch.setattr(sys, "argv", ["rlsys", *arguments])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_cfg_job_prints_the_configuration(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "rlsys.cli", "train", "--cfg", "job", "train.num_steps=7"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    printed = OmegaConf.create(result.stdout)
    assert printed.train.num_steps == 7
    assert printed.model.build.max_context == 512  # the schema's: no experiment is chosen
    assert not list(tmp_path.iterdir())  # asking leaves nothing behind


@pytest.mark.parametrize("start", [["-m", "rlsys.cli"], ["-P", "-c", "from rlsys.cli import main; main()"]])
def test_a_file_of_the_working_directory_replaces_no_library(tmp_path: Path, start: list[str]) -> None:
    plant(tmp_path)
    for name in ("argparse", "pathlib", "typing"):  # of Python itself, which other commands import first
        (tmp_path / f"{name}.py").write_text("raise ImportError('the library comes first')\n")
    if "-P" in start:
        (tmp_path / "rlsys.py").write_text("raise ImportError('the library comes first')\n")
    (tmp_path / "recipe.yaml").write_text("model_name_or_path: x/y\nnum_generations: 8\nreward_funcs: [accuracy]\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    result = subprocess.run(
        [sys.executable, *start, "import", "recipe.yaml"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        timeout=60,
        text=True,
    )
    assert (result.returncode, planted_that_ran(tmp_path)) == (0, []), result.stderr


def test_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--help") == 0
    printed = capsys.readouterr().out
    assert all(command in printed for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert run(monkeypatch, command, "--help") == 0
    assert f"usage: rlsys {command}" in capsys.readouterr().out


def test_help_of_train_has_the_flags_of_hydra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from hydra._internal.utils import get_args_parser

    assert run(monkeypatch, "train", "--help") == 0
    printed = capsys.readouterr().out
    flags = [flag for action in get_args_parser()._actions for flag in action.option_strings]
    assert len(flags) > 20
    assert [flag for flag in flags if flag not in printed] == []


def test_a_command_s_module_is_imported_only_when_it_is_used() -> None:
    script = "import sys; from rlsys.cli import execute\ntry: execute(['watch', '-h'])\nexcept SystemExit: pass\n"
    script += "print(sorted(name for name in sys.modules if name.startswith('rlsys.commands')), 'ray' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "rlsys.commands.watch" in result.stdout
    assert not any(name in result.stdout for name in ("evaluate", "train", "importers", "True"))


@pytest.mark.parametrize("overrides", [[], ["train.num_steps=3", "algorithm=dapo"], ["~experiment"]])
def test_train_without_a_run_says_in_three_lines_what_to_give(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, overrides: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "train", *overrides) == 2
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 3
    assert "experiment=quickstart" in printed[1]
    assert "model.path=" in printed[2]
    assert "data.train=" in printed[2]
    assert not list(tmp_path.iterdir())


def test_eval_without_a_model_says_what_to_give(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "eval", "eval.num_samples=2") == 1
    assert "no model, run or experiment is given" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["train", "--no-such-flag"], ["watch", "a", "b"], ["eval", "x", "--stepp=3"]])
def test_an_unknown_argument(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert run(monkeypatch, *arguments) == 2
    assert f"rlsys {arguments[0]}: error: unrecognized arguments" in capsys.readouterr().err


def test_flags_may_stand_between_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(
        "rlsys.commands.train.compose_jobs", lambda *args, **options: given.append((args, options)) or []
    )
    execute(["train", "seed=0,1", "--multirun", "experiment=quickstart", "--resolve", "train.num_steps=1"])
    ((overrides,), options) = given[0]
    assert overrides == ["seed=0,1", "experiment=quickstart", "train.num_steps=1"]
    assert options == {"flags": ["--resolve", "--multirun"], "sweeps": True, "folders": []}


def test_hydra_s_flag_for_a_single_run(monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[Any] = []
    monkeypatch.setattr("rlsys.commands.train.train_job", trained.append)
    assert run(monkeypatch, "train", "--run", "experiment=quickstart") == 0
    assert [job.name for job in trained] == ["quickstart"]


def test_a_sweep_is_checked_before_its_first_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rlsys.commands.train.train_job", lambda job: pytest.fail("a run has started"))
    assert run(monkeypatch, "train", "--multirun", "experiment=quickstart", "learner.lr=1e-4,-1") == 1
    assert "learner.lr=-1.0: must be at least 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "said"), [(ConfigError("no room"), "no room"), (ZeroDivisionError("by 0"), "ZeroDivisionError: by 0")]
)
def test_a_failing_run_of_a_sweep_is_named_after_the_others_are_trained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, said: str
) -> None:
    trained: list[int] = []

    def fail_second(job: Any) -> None:
        trained.append(job.config.seed)
        if job.config.seed == 1:
            raise error

    monkeypatch.setattr("rlsys.commands.train.train_job", fail_second)
    assert run(monkeypatch, "train", "--multirun", "experiment=quickstart", "seed=0,1,2") == 1
    assert trained == [0, 1, 2]
    assert f"rlsys: 1 of 3 runs failed:\nrun 1 (seed=1): {said}\n" in capsys.readouterr().err


def test_ctrl_c_ends_a_sweep(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    trained: list[int] = []

    def interrupted(job: Any) -> None:
        trained.append(job.config.seed)
        raise KeyboardInterrupt

    monkeypatch.setattr("rlsys.commands.train.train_job", interrupted)
    assert run(monkeypatch, "train", "--multirun", "experiment=quickstart", "seed=0,1,2") == 130
    assert trained == [0]
    assert "interrupted; every process of this run has ended" in capsys.readouterr().err


def test_the_exit_code_of_a_command_that_is_interrupted_while_it_makes_a_dataclass(tmp_path: Path) -> None:
    """Python would end it by SIGINT, and who waits for it would take it for killed."""
    (tmp_path / "interrupted.py").write_text(
        "from rlsys import cli\ncli.execute = lambda _: exec('raise KeyboardInterrupt')\ncli.main()\n"
    )
    command = [sys.executable, "-m", "interrupted", "report"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert (result.returncode, result.stderr) == (130, "rlsys: interrupted\n")


def test_a_command_that_starts_no_process_does_not_speak_of_a_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def interrupted(path: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rlsys.run_folder.folder.RunFolder.open", interrupted)
    assert run(monkeypatch, "report", str(tmp_path)) == 130
    assert capsys.readouterr().err == "rlsys: interrupted\n"


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--cfg", "job", "-m"], 2, "not allowed with argument --cfg"),
        (["--info", "--cfg", "job"], 2, "not allowed with argument"),
        (["--shell-completion"], 1, "`rlsys --help` has the line for ours"),
        (["-sc", "install=bash"], 1, "`rlsys --help` has the line for ours"),
        (["--experimental-rerun", "nofile"], 2, "no such file: "),
        (["--config-dir=nofolder"], 2, "no such folder: "),
        (["--config-path", "nofolder"], 2, "no such folder: "),
    ],
)
def test_hydra_s_flags_that_do_not_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, said: str
) -> None:
    assert run(monkeypatch, "train", *arguments, "experiment=quickstart") == status
    printed = capsys.readouterr().err
    assert said in printed
    assert "Traceback" not in printed


def test_folders_of_presets_in_flags(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine" / "rollout").mkdir(parents=True)
    (tmp_path / "mine" / "rollout" / "wide.yaml").write_text("max_num_seqs: 7\n")
    (tmp_path / "mine" / "config.yaml").write_text("defaults: [schema, {rollout: null}, _self_]\n")
    for flag in ("--config-dir", "--config-path"):
        assert run(monkeypatch, "train", "--cfg", "job", f"{flag}=~/mine", "rollout=wide") == 0
        assert "max_num_seqs: 7" in capfd.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["eval", "runs/mine", "--output"],
        ["eval", "runs/mine", "--responses"],
        ["import", "recipe.yaml", "--output"],
        ["report", "runs/mine", "--output"],
        ["export", "runs/mine", "--output"],
        ["make-model"],
    ],
)
def test_what_cannot_be_written_is_refused_before_the_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert run(monkeypatch, *arguments, str(tmp_path / "file" / "x.yaml")) == 2
    assert "file" in capsys.readouterr().err
    if "--output" in arguments and arguments[0] != "export":
        assert run(monkeypatch, *arguments, str(tmp_path)) == 2
        assert "is a folder: name a file" in capsys.readouterr().err


def test_the_folder_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert folder_of(Job(Config(run_dir="~/mine"))) == tmp_path / "home" / "mine"
    assert folder_of(Job(Config(run_dir="mine"), number=3)) == tmp_path / "mine" / "3"
    assert folder_of(Job(Config(), name="dapo", started="20260102")) == tmp_path / "runs" / "dapo" / "20260102"
    monkeypatch.setenv("RLSYS_RUNS", "/data/runs")
    assert folder_of(Job(Config(), started="20260102")) == Path("/data/runs/run/20260102")
    monkeypatch.setenv("RLSYS_RUNS", "~/runs")
    assert folder_of(Job(Config(), started="20260102")) == tmp_path / "home" / "runs" / "run" / "20260102"


@pytest.mark.parametrize(
    ("line", "found", "missing"),
    [
        ("rlsys tr", ["train"], ["eval"]),
        ("rlsys train expe", ["experiment="], ["train"]),
        ("rlsys train experiment=qu", ["quickstart"], ["dapo_math"]),
        ("rlsys train learner.dtype=", ["auto", "float32", "bfloat16"], []),
        ("rlsys train data.shuffle=", ["true", "false"], []),
        ("rlsys train train.num_", ["train.num_steps="], ["train.seed"]),
        ("rlsys train train.num_steps=", ["200"], []),
        ("rlsys train --mu", ["--multirun"], ["--cfg"]),
        ("rlsys eval runs/mine data.ov", ["data.overlong="], []),
        ("rlsys simulate --roll", ["--rollout-workers"], []),
    ],
)
def test_completion_in_the_shell(tmp_path: Path, line: str, found: list[str], missing: list[str]) -> None:
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line))}
    asked |= {"_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "out"), "_ARGCOMPLETE_COMP_WORDBREAKS": " \t\n\"'><=;|&(:"}
    subprocess.run([sys.executable, "-m", "rlsys.cli"], env=os.environ | asked, check=True, timeout=60)
    completions = (tmp_path / "out").read_text().replace("\013", " ").split()
    assert set(found) <= set(completions)
    assert not set(missing) & set(completions)


@pytest.mark.parametrize("arguments", [[], ["trian"]])
def test_no_command_or_an_unknown_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert run(monkeypatch, *arguments) == 2
    assert "usage: rlsys [-h] COMMAND" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.num_step=3"], "rlsys: unknown configuration key 'train.num_step': did you mean 'train.num_steps'?"),
        (["experiment=quik"], "rlsys: experiment=quik: "),
        (["experiment=quickstart", "learner.zero_stage=7", "logging.trackers=[]"], "rlsys: learner.zero_stage=7: "),
        (["experiment=quickstart", "train.num_steps=many"], "train.num_steps=many: must be a whole number"),
        (["train.num_steps=[1"], "rlsys: this override cannot be read:\n  train.num_steps=[1\n"),
        (["experiment=quickstart", "resume=auto"], "rlsys: resume=auto needs run_dir"),
        (["experiment=quickstart", "algorithm.policy_loss.clip_lo=0.1"], "accepted options: clip_high, clip_low"),
        (["experiment=quickstart", "model.path=/no/such/model"], "no such folder"),
        (["experiment=quickstart", "data.train=missing.jsonl", "data.eval=null"], "no such file"),
    ],
)
def test_an_error_has_no_traceback_and_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    overrides: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "train", *overrides) == 1
    printed = capsys.readouterr()
    assert said in printed.err
    assert "Traceback" not in printed.err
    assert "starting Ray" not in printed.out + printed.err
    assert not list(tmp_path.iterdir())


def test_a_used_run_dir_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n')
    assert run(monkeypatch, "train", "experiment=quickstart", f"run_dir={tmp_path}") == 1
    assert "already holds a run" in capsys.readouterr().err
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 0}\n'


def test_make_model(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from transformers import AutoConfig

    sizes = ["--hidden-size", "64", "--num-layers", "1", "--num-heads", "2", "--num-kv-heads", "2", "--no-tied"]
    folder = tmp_path / "model"
    assert run(monkeypatch, "make-model", str(folder), "--architecture", "llama", *sizes) == 0
    config = AutoConfig.from_pretrained(folder)
    assert (config.model_type, config.hidden_size, config.num_hidden_layers) == ("llama", 64, 1)
    assert config.tie_word_embeddings is False
    # 101 tokens of 64, embedded and projected: 2 * 6464.  One layer: attention 4 * 64 * 64 = 16384, the gated
    # feed-forward 3 * 64 * 384 = 73728, two norms of 64; and the last norm of 64.  In all 103232.
    assert "llama, 103,232 parameters, vocabulary 101" in capsys.readouterr().out


def test_make_model_refuses_a_shape_that_no_engine_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(monkeypatch, "make-model", str(tmp_path / "model"), "--hidden-size", "64") == 1
    assert "hidden_size / num_heads is 16" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


@pytest.fixture
def small(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Overrides of a run that could start, but must not."""

    def start(*_: Any, **__: Any) -> None:
        raise AssertionError("a dry run starts nothing")

    monkeypatch.setattr("rlsys.build.run.open_run", start)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n')
    data = [f"data.train={tmp_path}/rows.jsonl", "data.eval=null"]
    return [f"model.path={model_folder}", *data, "rollout.max_response_tokens=8", f"run_dir={tmp_path}/run"]


def test_a_dry_run_shows_what_would_be_used_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], small: list[str], tmp_path: Path
) -> None:
    assert run(monkeypatch, "train", "--dry-run", *small) == 0
    printed = capsys.readouterr().out
    assert "what this run uses\nmodel " in printed
    assert "\nfirst prompt  '1+1='\n" in printed
    assert "dry run: everything that can be checked before Ray starts is in order" in printed
    assert not (tmp_path / "run").exists()


def test_a_dry_run_of_a_sweep_shows_every_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], small: list[str], tmp_path: Path
) -> None:
    assert run(monkeypatch, "train", "--multirun", *small, "rollout.temperature=0.5,0.9", "--dry-run") == 0
    printed = capsys.readouterr().out
    assert [f"what run {number} uses" in printed for number in (0, 1)] == [True, True]
    assert [f"temperature {value}, from all tokens" in printed for value in (0.5, 0.9)] == [True, True]
    assert not (tmp_path / "run").exists()


def test_a_dry_run_refuses_what_the_run_would(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], small: list[str], tmp_path: Path
) -> None:
    assert run(monkeypatch, "train", "--dry-run", *small, "train.samples_per_prompt=1") == 1
    assert "needs at least 2" in capsys.readouterr().err
    assert run(monkeypatch, "train", "--dry-run", "--cfg", "job", *small) == 1
    assert "keep one of them" in capsys.readouterr().err


def test_an_option_given_in_vain_is_a_warning_and_one_of_an_experiment_only_a_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], small: list[str], tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text("# @package _global_\nlearner: {lora: {dropout: 0.1}}\n")
    given = [*small, f"experiment={tmp_path}/mine.yaml", "learner.lora.alpha=8", "eval.temperature=0.5"]
    assert run(monkeypatch, "train", "--dry-run", *given) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "no effect learner.lora.alpha, learner.lora.dropout (without learner.lora.rank > 0); eval.temp" in printed
    assert "learner.lora.alpha is set on the command line and has no effect without learner.lora.rank > 0" in printed
    assert "eval.temperature is set on the command line and has no effect without eval.every > 0" in printed
    assert printed.count("is set on the command line") == 2
