"""Every option of a run: the single source of defaults, bounds, choices and help, registered with Hydra as `schema`.

Files under `configs/` hold differences from these defaults and nothing else. Durations end in `_s` (seconds). Checks
that relate several options are in `rlsys/preflight/`; large sections are in the `*_schema.py` beside this file, and
docs/configuration.md is generated from all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rlsys.config.alarm_schema import AlarmsConfig
from rlsys.config.algorithm_schema import AlgorithmConfig
from rlsys.config.build_schema import ModelBuild
from rlsys.config.episodes_schema import EpisodesConfig
from rlsys.config.learner_schema import (
    DTYPES,
    NUM_CPUS_HELP,
    NUM_THREADS_HELP,
    PER_LENGTH,
    CriticConfig,
    LearnerConfig,
    ReferenceConfig,
)
from rlsys.config.option import option


@dataclass
class ModelConfig:
    """The policy to train or evaluate."""

    path: str | None = option(None, help="a folder or hub id; null: build the tiny model that `model.build` describes")
    build: ModelBuild = field(default_factory=ModelBuild, metadata={"needs": "path = null"})
    cache_dir: str = option("~/.cache/rlsys/models", help="folder for models built on the spot")
    trust_remote_code: bool = option(False, help="run Python code that the model's repository brings")
    chat_template: str | None = option(None, help="a jinja file, or a template, that replaces the tokenizer's own")
    adapter: str | None = option(None, help="folder of a peft adapter for `path`, to start from or to evaluate")


@dataclass
class DataConfig:
    """Prompts for training and evaluation.

    A source is a name (a jsonl, json, csv, parquet or txt file, a `datasets` name, a registered source, a
    `module:function` or `path.py:function`) or a mapping with the fields of `rlsys.data.sources.Source`, such as
    `{name: openai/gsm8k, subset: main, weight: 2}`.
    """

    train: Any = option("addition", help="a source, or a list of them, to train on")
    eval: Any = option("addition", help="a source, or a list of them, with held-out rows; null: no evaluation")
    train_split: str = option("train", help="split of training sources that name none")
    eval_split: str = option("test", help="split of evaluation sources that name none", needs="eval != null")
    eval_limit: int | None = option(200, ge=1, help="held-out prompts used per source; null: all", needs="eval != null")
    prompt_column: str = option("prompt", help="column with the prompt: text, or chat messages")
    columns: dict[str, str] = option({}, help="renames columns, as {answer: gold}: rewards read `gold` as `answer`")
    prompt_template: str | None = option(None, help="a jinja file, or a template, around a plain prompt, its `content`")
    chat_template: bool = option(False, help="turn plain prompts into user messages (chat messages always use it)")
    chat_template_options: dict[str, Any] = option({}, help="variables for the chat template")
    continue_final_message: bool = option(
        False, help="let the response continue a prompt's last message if that is the assistant's; else it is refused"
    )
    system_prompt: str | None = option(None, help="system message before the prompt; needs chat messages")
    max_prompt_tokens: int | None = option(None, ge=1, help="longest prompt; null: what the context leaves for it")
    overlong: str = option("refuse", choices=("refuse", "filter"), help="what to do with prompts that are too long")
    shuffle: bool = option(True, help="shuffle the training prompts anew in each epoch")
    options: dict[str, Any] = option({}, help="options of the registered source, or of `datasets.load_dataset`")


@dataclass
class StopConfig:
    """Early stopping: the run ends, with a checkpoint, once evaluations no longer improve."""

    metric: str | None = option(
        None, help="an eval/ metric, as eval/accuracy, or -NAME where lower is better; null: no early stopping"
    )
    patience: int = option(
        3, ge=1, help="end after this many evaluations in a row without a better value", needs="metric != null"
    )
    threshold: float = option(0.0, ge=0, help="only more than this counts as better", needs="metric != null")


@dataclass
class TrainConfig:
    """Size and number of training steps, and how far sampling may run ahead."""

    num_steps: int = option(200, ge=1, help="training steps in all; each makes one policy version")
    prompts_per_step: int = option(64, ge=1, help="prompts per step")
    samples_per_prompt: int = option(8, ge=1, help="responses per prompt (the group size)")
    max_staleness: int = option(0, ge=0, help="steps that sampling may run ahead of training; 0: synchronous")
    minibatches_per_step: int = option(1, ge=1, help="parts of a step's prompts, one optimizer update each")
    updates_per_step: int = option(1, ge=1, help="passes over a step's experience (mu)")
    old_logprobs: str = option(
        "learner",
        choices=("learner", "engine", "none"),
        help="policy that the ratio is taken to: the learner's before the step, the engine's, or none (the ratio is 1)",
    )
    critic_warmup_steps: int = option(0, ge=0, help="steps at the start that train the critic alone")
    max_nonfinite_steps: int = option(
        3, ge=1, help="steps in a row that met NaN or infinity, and were not applied, until `alarms.nonfinite`"
    )
    stop: StopConfig = field(default_factory=StopConfig)


@dataclass
class RolloutConfig:
    """Rollout workers: vLLM engines that sample the responses."""

    num_workers: int = option(1, ge=1, help="number of engines")
    tensor_parallel_size: int = option(1, ge=1, help="ranks (GPUs, or CPU processes) per engine")
    # vLLM samples at 0.01 when asked for less, and the learner would compute probabilities at another temperature.
    temperature: float = option(1.0, ge=0.01, help="sampling temperature in training; evaluation is greedy by itself")
    max_response_tokens: int = option(64, ge=1, help="longest response in tokens")
    ignore_eos: bool = option(False, help="always sample `max_response_tokens` tokens")
    stop: list[Any] = option(
        [],
        help="tokens that end a response, besides the model's own: each its text, as '<|im_end|>', or its id",
        needs="ignore_eos = false",
    )
    seeded: bool = option(
        False, help="one random stream per response, so that synchronous runs repeat; a little slower"
    )
    inflight_kv: str = option(
        "recompute", choices=("recompute", "keep"), help="cache of responses that run across a weight update"
    )
    dtype: str | None = option(None, choices=DTYPES, help="number format of the engines; null: as learner.dtype")
    max_num_seqs: int = option(256, ge=1, help="sequences that an engine decodes at the same time")
    kv_cache_gib: float = option(
        1.0, gt=0, help="CPU: size of an engine's cache of keys and values in GiB", needs="cluster.num_gpus = 0"
    )
    gpu_memory_utilization: float = option(
        0.85, gt=0, le=1, help="GPU: share of the memory that an engine takes", needs="cluster.num_gpus > 0"
    )
    enforce_eager: bool = option(True, help="run without CUDA graphs and compilation")
    num_cpus: float = option(1.0, ge=0, help=NUM_CPUS_HELP)
    num_threads: int | None = option(None, ge=1, help=NUM_THREADS_HELP)
    preload: bool = option(
        True,
        help="CPU: start engines with Intel's OpenMP and tcmalloc where they are installed",
        needs="cluster.num_gpus = 0",
    )
    max_in_flight: int | None = option(None, ge=1, help="most trajectories in one engine; null: twice `max_num_seqs`")
    linger_s: float = option(0.2, ge=0, help="seconds that an engine gathers finished responses before it returns them")
    deadline_s: float = option(
        900.0, gt=0, help=f"most seconds without a response that is finished or scored, {PER_LENGTH}"
    )

    @property
    def cap(self) -> int:
        """The most trajectories that one engine holds, running and waiting."""
        return self.max_in_flight or 2 * self.max_num_seqs


@dataclass
class ScoringConfig:
    """Scoring workers: they call the reward functions."""

    num_workers: int = option(1, ge=1, help="number of workers")
    function_deadline_s: float = option(30.0, gt=0, help="deadline for one call of a function, which is then killed")
    row_deadline_s: float = option(5.0, gt=0, help="deadline for one row when a failed call is retried row by row")
    on_error: str = option(
        "mask", choices=("mask", "drop_group", "raise"), help="what happens to a trajectory whose reward failed"
    )
    max_unscored_steps: int = option(3, ge=1, help="steps in a row without a valid reward until `alarms.unscored`")
    whole_groups: bool = option(False, help="score a prompt's responses together, not each as soon as it is finished")
    skip_special_tokens: bool | None = option(
        None, help="leave special tokens out of what rewards see; null: all but the tags that the rewards look for"
    )
    num_cpus: float = option(1.0, ge=0, help=NUM_CPUS_HELP)
    num_gpus: float = option(0.0, ge=0, help="GPUs per worker, or a share of one: for reward models")
    deadline_s: float = option(900.0, gt=0, help="deadline for one call of a worker, retries included")


@dataclass
class WeightsConfig:
    """The way of new weights from the learner to the engines, and its check."""

    backend: str = option(
        "auto", choices=("auto", "nccl", "gloo", "ipc"), help="channel; auto: nccl on GPUs, gloo on CPUs"
    )
    verify: bool = option(True, help="stop the run when engines do not have, or do not use, the learner's weights")
    bucket_mib: int = option(256, ge=1, help="size of the buckets that parameters are packed into, in MiB")
    share_memory: bool = option(
        True,
        help="gloo: engines on the learner's machine read the packed buckets in memory",
        needs="cluster.num_gpus = 0",
    )
    deadline_s: float = option(120.0, gt=0, help="deadline for one broadcast")


@dataclass
class EvalConfig:
    """Evaluation on held-out prompts."""

    every: int = option(0, ge=0, help="steps between evaluations; 0: never; else also before training and at the end")
    accuracy_from: str | None = option(
        None, help="label of the reward that decides what is correct; null: those that judge answers, else the total"
    )
    correct_at: float = option(1.0, any_number=True, help="value of that reward from which on a response is correct")
    num_samples: int = option(
        0, ge=0, help="responses drawn per prompt besides the greedy one, for mean@k and pass@k", needs="every > 0"
    )
    temperature: float = option(
        1.0, ge=0.01, help="sampling temperature of the drawn responses", needs="every > 0 and num_samples > 0"
    )
    confidence: float = option(0.95, gt=0, le=0.9999, help="confidence of the intervals", needs="every > 0")
    max_response_tokens: int | None = option(None, ge=1, help="longest response; null: as rollout.max_response_tokens")


@dataclass
class CheckpointConfig:
    """Checkpoints: when they are written, and how many are kept."""

    every: int = option(0, ge=0, help="steps between checkpoints; 0: by time alone, see every_s")
    every_s: float = option(
        900.0, ge=0, help="most seconds of training since the last checkpoint; then the step's end writes one; 0: any"
    )
    last: bool = option(True, help="write a checkpoint after the last step")
    keep: int = option(2, ge=1, help="number of checkpoints that are kept, the newest ones")
    keep_best: str | None = option(
        None,
        help="an eval/ metric, as eval/accuracy, or -NAME where lower is better: a new best writes a checkpoint, and "
        "the best is kept beside the newest",
    )
    rescue_s: float = option(
        300.0, ge=0, help="most seconds that a run which fails or is interrupted takes for a last checkpoint; 0: none"
    )
    mirror: str | None = option(
        None,
        help="a folder or fsspec URL (s3://..., gs://...) to which checkpoints are copied, and from which resume=auto "
        "takes the newest where run_dir has none as new",
    )
    dtype: str | None = option(
        None,
        choices=DTYPES,
        help="number format of saved weights; null: the base model's own, an adapter's the learner's",
    )


@dataclass
class ClusterConfig:
    """The Ray cluster."""

    address: str | None = option(
        None,
        help="local: a Ray of the run's own; auto: the cluster already running; HOST:PORT: this one; null: what the "
        "environment variable RAY_ADDRESS says, else local",
    )
    num_gpus: int = option(0, ge=0, help="GPUs used in all; 0: everything runs on CPUs")
    startup_deadline_s: float = option(600.0, gt=0, help="deadline for the start of every worker")
    max_restarts: int = option(
        5,
        ge=0,
        help="how often within an hour a worker that was lost is replaced, and the run started again from its newest "
        "checkpoint where that does not help",
    )
    log_to_driver: bool = option(False, help="show the workers' output in the terminal instead of their log files")


@dataclass
class LoggingConfig:
    """Output of a run besides `metrics.jsonl`."""

    trackers: list[Any] = option(
        ["tensorboard"], help="tensorboard, wandb, mlflow, trackio, jsonl; each a name or {name: ..., option: value}"
    )
    rollouts_every: int = option(1, ge=0, help="steps between files under rollouts/; 0: none")
    token_groups: int = option(
        8,
        ge=0,
        help="groups per such file that are written with tokens and log-probabilities",
        needs="rollouts_every > 0",
    )
    replay: bool = option(
        False,
        help="keep the batches of the steps after a checkpoint, and what they came to, for `rlsys replay`; as many as "
        "checkpoints",
    )
    timeline: bool = option(False, help="write timeline.json, which shows in Perfetto what each worker did when")


@dataclass
class Config:
    """A run."""

    seed: int = option(0, ge=0, lt=2**31, help="seed of data order, sampling and new weights")
    run_dir: str | None = option(None, help="the run's folder; null: $RLSYS_RUNS or runs, then EXPERIMENT/TIME")
    resume: str = option("never", choices=("never", "auto"), help="auto: continue from `run_dir`'s newest checkpoint")
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    critic: CriticConfig = field(default_factory=CriticConfig, metadata={"needs": "algorithm.advantage.name = gae"})
    reference: ReferenceConfig = field(
        default_factory=ReferenceConfig, metadata={"needs": "algorithm.kl.coef > 0 and learner.lora.rank = 0"}
    )
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    rewards: list[dict[str, Any]] = option(
        [{"name": "exact_match", "weight": 1.0}],
        help="reward functions, each {name: ..., weight: 1.0, deadline_s: ..., option: value}; the total is their "
        "weighted sum",
    )
    environment: Any = option(
        None,
        help="what answers the policy's messages, turn by turn: a name, {name: ..., option: value}, or a mapping of "
        "such entries, from which the column `environment` chooses; null: one response, unless there are tools",
    )
    tools: list[str] = option([], help="functions that the policy may call, each path.py:function or module:function")
    episodes: EpisodesConfig = field(
        default_factory=EpisodesConfig, metadata={"needs": "environment != null or tools != []"}
    )
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    alarms: AlarmsConfig = field(default_factory=AlarmsConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    @property
    def has_episodes(self) -> bool:
        """Whether an environment or tools answer the policy."""
        return self.environment is not None or bool(self.tools)

    @property
    def deadline_factor(self) -> float:
        """How often deadlines count that are given for responses of up to 1,024 tokens."""
        return max(1.0, self.rollout.max_response_tokens / 1024)

    @property
    def rollout_deadline_s(self) -> float:
        """`rollout.deadline_s` for responses of the configured length."""
        return self.rollout.deadline_s * self.deadline_factor

    @property
    def engine_dtype(self) -> str:
        """The dtype that engines compute in."""
        return self.rollout.dtype or self.learner.dtype
