"""The TRL side of the startup benchmark: one GRPO step on sums with a model that rlsys built, and its own generation.

python -m benchmarks.startup_trl MODEL FOLDER
"""

import sys
from typing import Any

from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

PROMPTS, SAMPLES, TOKENS = 64, 8, 6  # as the quickstart has them


def exact_match(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    """Reward the right sum."""
    return [float(text.strip() == wanted) for text, wanted in zip(completions, answer, strict=True)]


class Report(TrainerCallback):
    """Prints the end of a step as rlsys does."""

    def on_step_end(self, *_: Any, **__: Any) -> None:
        print("step 1/1", flush=True)


def main() -> None:
    """Train one step."""
    sums = [{"prompt": f"{10 + a}+{10 + b}=", "answer": str(20 + a + b)} for a in range(20) for b in range(20)]
    config = GRPOConfig(
        output_dir=sys.argv[2],
        model_init_kwargs={"dtype": "float32"},
        use_vllm=False,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=PROMPTS * SAMPLES,
        num_generations=SAMPLES,
        max_steps=1,
        max_completion_length=TOKENS,
        beta=0.01,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    rows = Dataset.from_list(sums)
    trainer = GRPOTrainer(
        model=sys.argv[1], reward_funcs=exact_match, args=config, train_dataset=rows, callbacks=[Report()]
    )
    trainer.train()


if __name__ == "__main__":
    main()
