"""Which call of a script is the training, and what the others are."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlsys.commands.importers.recipe_file import read
from rlsys.errors import ConfigError


def script(folder: Path, text: str) -> Path:
    path = folder / "run.sh"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "others",
    [
        "trl vllm-serve --model m --port 8000 --a 1 --b 2 --c 3 &",
        "python -m openrlhf.cli.serve_rm --reward_pretrain m --port 5000 --bf16 --max_len 8192 &",
        "python prepare_data.py --out d --a 1 --b 2 --c 3",
        "python examples/preprocess.py --out d --a 1 --b 2 --c 3",
    ],
)
def test_the_training_is_found_by_what_it_runs(tmp_path: Path, others: str) -> None:
    source = read(script(tmp_path, f"{others}\naccelerate launch --num_processes 4 trl/scripts/grpo.py --beta 0.1\n"))
    assert source.tree == {"num_processes": 4, "beta": 0.1}
    assert source.program == "trl/scripts/grpo.py"
    (remark,) = source.remarks
    assert "read from `trl/scripts/grpo.py` in line 2; not read: `" in remark
    assert remark.endswith("` in line 1")


@pytest.mark.parametrize(
    ("command", "what"),
    [
        ("deepspeed --module openrlhf.cli.train_sft --max_len 2048", "supervised fine-tuning"),
        ("deepspeed --module openrlhf.cli.train_dpo --beta 0.1", "training on preferences"),
        ("deepspeed --module openrlhf.cli.train_rm --max_len 2048", "the training of a reward model"),
        ("python -m openrlhf.cli.serve_rm --port 5000", "a server"),
        ("trl sft --model_name_or_path m", "supervised fine-tuning"),
        ("trl dpo --model_name_or_path m", "training on preferences"),
        ("trl reward --model_name_or_path m", "the training of a reward model"),
        ("trl vllm-serve --model m", "a server"),
        ("trl rloo --model_name_or_path m", "reinforcement learning that is not GRPO"),
        ("vllm serve org/model --port 8000", "a server"),
        ("accelerate launch src/open_r1/sft.py --config c.yaml", "supervised fine-tuning"),
        ("torchrun -m verl.trainer.fsdp_sft_trainer data.train_files=d", "supervised fine-tuning"),
        ("python3 -m verl.trainer.main_generation data.path=d", "no training"),
    ],
)
def test_a_script_of_another_training_is_refused_as_what_it_is(tmp_path: Path, command: str, what: str) -> None:
    with pytest.raises(ConfigError, match=rf"in line 1 is {what}.*Only recipes of training by rewards are read"):
        read(script(tmp_path, command))


def test_several_trainings_are_refused_by_line(tmp_path: Path) -> None:
    text = "if [ $1 = a ]; then\n  trl grpo --beta 0.1\nelse\n  trl grpo --beta 0.2\nfi\n"
    with pytest.raises(ConfigError, match="`trl grpo` in line 2, `trl grpo` in line 4"):
        read(script(tmp_path, text))


@pytest.mark.parametrize(
    ("launcher", "processes"),
    [
        ("accelerate launch --num_processes 4", 4),
        ("accelerate launch --num-processes=4", 4),
        ("torchrun --nproc_per_node 4 --nnodes=2", 8),
        ("torchrun --nproc-per-node=4", 4),
        ("deepspeed --num_gpus 4", 4),
        ("accelerate launch --config_file zero3.yaml", 6),
        ("accelerate launch --config_file zero3.yaml --num_processes 4", 4),
        ("accelerate launch --config_file elsewhere.yaml", None),
        ("python", None),
    ],
)
def test_processes_are_those_of_the_launcher(tmp_path: Path, launcher: str, processes: int | None) -> None:
    (tmp_path / "zero3.yaml").write_text("num_processes: 6\nnum_machines: 1\n")
    tree = read(script(tmp_path, f"{launcher} train_grpo.py --beta 0.1\n")).tree
    assert tree.get("num_processes") == processes
