"""OpenRLHF's flags of what surrounds the training: data, evaluation, checkpoints, trackers, devices."""

from __future__ import annotations

from rlsys.commands.importers.dialects import openrlhf_rules as rules
from rlsys.commands.importers.dialects import shared
from rlsys.commands.importers.dialects.reasons import DEVICES, FOLDERS, KERNELS, OWN_LOG, TEXT_ONLY
from rlsys.commands.importers.options import (
    Condition,
    by_rule,
    computed,
    converted,
    ignored,
    needs,
    same,
    unsupported,
    without,
)
from rlsys.commands.importers.recipe import ABSENT

OWN_STATE = "checkpoints/step-N always holds DeepSpeed's state and the policy as a Hugging Face folder"
HAS_WANDB = needs("logger.wandb.key", "logger.wandb.key is not set")
EVALUATED = Condition(
    ("eval.dataset", "eval.steps"),
    lambda dataset, steps: bool(dataset) and int(steps) > 0,
    "there is no evaluation during training",
)
DATA = {
    "data.prompt_dataset": computed("data.train", None, rules.training_data, reads_none=True),
    "data.prompt_split": by_rule(default="train", also=("data.train",)),
    "data.prompt_probs": by_rule(default=None, also=("data.train",)),
    "data.input_key": same("data.prompt_column", "input"),
    "data.label_key": converted("data.columns", None, lambda key: ABSENT if key == "label" else {"label": str(key)}),
    "data.input_template": converted(
        "data.prompt_template",
        None,
        lambda template: str(template).replace("{}", "{{ content }}"),
        when=without("data.apply_chat_template", "data.apply_chat_template takes its place"),
    ),
    "data.apply_chat_template": same("data.chat_template", False),
    "eval.dataset": computed("data.eval", None, rules.held_out_data),
    "eval.split": by_rule(default="train", also=("data.eval",), when=EVALUATED),
    "eval.steps": converted("eval.every", -1, shared.at_least_0, when=needs("eval.dataset", "")),
    "eval.temperature": converted("eval.temperature", 0.6, float, when=EVALUATED),
    "eval.n_samples_per_prompt": converted(
        "eval.num_samples", 4, int, when=EVALUATED, note="rlsys also evaluates one greedy response per prompt"
    ),
    "data.max_images_per_prompt": unsupported(TEXT_ONLY, 0, (None, 0)),
    **dict.fromkeys(
        ("data.image_key", "data.disable_fast_tokenizer", "data.dataloader_num_workers"), ignored(TEXT_ONLY)
    ),
}
RUN = {
    "ckpt.save_steps": converted("checkpoint.every", -1, shared.at_least_0),
    "ckpt.max_num": same("checkpoint.keep", 3),
    **dict.fromkeys(("ckpt.path", "ckpt.output_dir", "ckpt.load_enable"), ignored(FOLDERS)),
    **dict.fromkeys(("ckpt.save_hf", "ckpt.disable_ds", "ckpt.max_mem", "ds.use_universal_ckpt"), ignored(OWN_STATE)),
    "ckpt.best_metric_key": unsupported(
        "checkpoint.keep_best=eval/... keeps the best by a metric of rlsys's own", "", (None, "")
    ),
    "logger.wandb.key": by_rule(
        "logging.trackers", default=None, note="the key is not written: W&B reads WANDB_API_KEY"
    ),
    "logger.wandb.project": by_rule(default="openrlhf_train_ppo", also=("logging.trackers",), when=HAS_WANDB),
    "logger.wandb.org": by_rule(default=None, also=("logging.trackers",), when=HAS_WANDB),
    "logger.wandb.group": unsupported("rlsys does not group runs"),
    "logger.wandb.run_name": ignored("rlsys names a run by its folder"),
    "logger.tensorboard_dir": computed(
        "logging.trackers",
        None,
        rules.trackers,
        reads_none=True,
        notes={None: "unset: nothing is written for TensorBoard"},
    ),
    "logger.logging_steps": ignored(OWN_LOG),
}
UNUSED = {
    DEVICES: (
        *(f"{role}.num_nodes" for role in ("actor", "critic", "ref", "reward")),
        *(f"{role}.num_gpus_per_node" for role in ("actor", "critic", "ref", "reward")),
        "train.colocate_all", "train.colocate_actor_ref", "train.colocate_critic_reward", "ref.offload",
        "reward.offload", "actor_init_on_gpu", "rollout_tasks_per_gpu", "local_rank", "perf"),
    KERNELS: ("ds.packing_samples", "ds.attn_implementation", "ds.experts_implementation", "ds.use_liger_kernel",
              "ds.deepcompile", "ds.ring_attn_head_stride"),
    "the option tunes DeepSpeed and does not change what is learned": (
        "ds.zpg", "ds.grad_accum_dtype", "ds.overlap_comm", "ds.enable_sleep", "fsdp2_enable_sleep"),
    "rlsys keeps no moving average of the policy": ("train.ema_beta",),
    "rlsys trains with AdamW": tuple(
        f"{role}.muon.{name}" for role in ("actor", "critic")
        for name in ("lr", "momentum", "ns_steps", "nesterov", "no_nesterov")),
    "rlsys loads models and data from the Hugging Face hub or a folder": ("use_ms",),
}  # fmt: skip
