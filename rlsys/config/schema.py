"""Every option of a run with its default: the single source, registered with Hydra as `schema`.

Files under `configs/` hold differences from these defaults and nothing else. Durations end in `_s` (seconds).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class TokenizerBuild:
    """Tokenizer of a policy built on the spot: `chars` (one token per character) or `bpe` trained on `corpus`."""

    kind: str = "chars"
    alphabet: str = ""  # chars: the characters known; empty means printable ASCII and newline
    vocab_size: int = 1024  # bpe
    corpus: str | None = None  # bpe: a jsonl, json, csv, parquet or text file, or a data source


@dataclass
class Warmup:
    """Supervised steps that give a policy built on the spot something to start from; `max_steps=0` is none."""

    max_steps: int = 0
    target_accuracy: float = 1.0  # stop as soon as this share of held-out answers is greedily exact
    batch_size: int = 128
    lr: float = 1e-3
    check_every: int = 10
    answer_column: str = "answer"


@dataclass
class ModelBuild:
    """A tiny policy made on the spot when `model.path` is not given, cached under `model.cache_dir`."""

    architecture: str = "qwen2"  # qwen2 | qwen3 | llama
    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    intermediate_size: int = 384
    tie_word_embeddings: bool = True
    max_context: int = 512
    tokenizer: TokenizerBuild = field(default_factory=TokenizerBuild)
    warmup: Warmup = field(default_factory=Warmup)


@dataclass
class ModelConfig:
    path: str | None = None  # a folder or hub id; null builds `build`
    build: ModelBuild = field(default_factory=ModelBuild)
    cache_dir: str = "~/.cache/rlsys/models"
    trust_remote_code: bool = False
    chat_template: str | None = None  # a jinja file, or the template itself, in place of the tokenizer's own
    adapter: str | None = None  # a peft folder of low-rank adapters on top of `path`, to start from or to evaluate


@dataclass
class DataConfig:
    """`train` and `eval` are a source or a list of them. A source is a name (a jsonl, json, csv or parquet file, a
    `datasets` name, a registered source), or a mapping with the keys of `rlsys.data.sources.Source`."""

    train: Any = "addition"
    eval: Any = "addition"
    train_split: str = "train"
    eval_split: str = "test"
    eval_limit: int | None = 200  # held-out prompts used of each source; null is all
    prompt_column: str = "prompt"
    columns: dict[str, str] = field(default_factory=dict)  # renames: the name that rewards ask for, to the data's own
    prompt_template: str | None = None  # a jinja file or text around a plain prompt, which it calls `content`
    chat_template: bool = False  # a plain prompt becomes a user message; chat messages always use the template
    chat_template_options: dict[str, Any] = field(default_factory=dict)  # variables of the template
    system_prompt: str | None = None
    max_prompt_tokens: int | None = None  # null: what the context leaves beside the response
    overlong: str = "refuse"  # refuse | filter: prompts of more tokens
    shuffle: bool = True
    options: dict[str, Any] = field(default_factory=dict)  # of the registered source, or of datasets.load_dataset


@dataclass
class TrainConfig:
    num_steps: int = 200
    prompts_per_step: int = 64
    samples_per_prompt: int = 8
    max_staleness: int = 0  # steps that sampling may run ahead of training; 0 is synchronous
    minibatches_per_step: int = 1  # parts of a step's prompts, one optimizer update each
    updates_per_step: int = 1  # passes over a step's experience (mu)
    old_logprobs: str = "learner"  # learner | engine | none: what the ratio is taken to; none: it is 1 (on policy)
    critic_warmup_steps: int = 0  # steps at the start that train the critic alone
    max_nonfinite_steps: int = 3  # steps in a row that met NaN or infinity, were not applied, and end the run


@dataclass
class RolloutConfig:
    num_workers: int = 1
    tensor_parallel_size: int = 1
    temperature: float = 1.0
    max_response_tokens: int = 64
    ignore_eos: bool = False  # always sample max_response_tokens
    seeded: bool = False  # a random stream for each response: a synchronous run samples the same again; a little slower
    inflight_kv: str = "recompute"  # recompute | keep: the cache of responses that run across a weight update
    dtype: str | None = None  # null: as learner.dtype
    max_num_seqs: int = 256
    kv_cache_gib: float = 1.0  # CPU; on GPUs gpu_memory_utilization decides
    gpu_memory_utilization: float = 0.85
    enforce_eager: bool = True
    num_cpus: float = 1.0  # reserved with Ray
    num_threads: int | None = None  # null: the machine's cores over the workers of this role
    preload: bool = True  # CPUs: start engines with Intel's OpenMP and tcmalloc where they are installed
    max_in_flight: int | None = None  # trajectories that an engine is given at once; null: twice max_num_seqs
    linger_s: float = 0.1  # an engine gathers what finishes for this long before it hands it on
    deadline_s: float = 900.0  # for one step's groups, sampled and scored


@dataclass
class LoraConfig:
    """Low-rank adapters (arXiv:2106.09685) by peft: they alone are trained."""

    rank: int = 0  # 0: no adapters, every parameter is trained
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: Any = "all-linear"  # a list of module names, or a regular expression over whole names
    modules_to_save: list[str] = field(default_factory=list)  # trained whole
    use_rslora: bool = False  # scaled by alpha / sqrt(rank), arXiv:2312.03732
    use_dora: bool = False  # magnitude and direction, arXiv:2402.09353
    quantize_base: str | None = None  # nf4: the frozen weights in 4 bits, by bitsandbytes on GPUs (QLoRA)

    @property
    def syncs_adapter_only(self) -> bool:
        """Whether engines can be given the adapter without the model: vLLM serves neither DoRA nor whole modules."""
        return self.rank > 0 and not self.use_dora and not self.modules_to_save


@dataclass
class LearnerConfig:
    num_workers: int = 1
    zero_stage: int = 1
    offload_optimizer: bool = False  # the optimizer's state and step on the CPU; ZeRO 1 to 3
    dtype: str = "float32"  # float32 | bfloat16
    lr: float = 1e-6
    lr_schedule: str = "constant"  # constant | linear | cosine, after `warmup_steps` updates of linear warm-up
    warmup_steps: int = 0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    max_grad_norm: float = 1.0
    microbatch_tokens: int = 8192  # input tokens of one forward; at least one whole trajectory
    packing: str = "auto"  # shared_prompt | packed | padded; auto: the first that the model allows, or padded
    gradient_checkpointing: bool = False
    lora: LoraConfig = field(default_factory=LoraConfig)
    num_cpus: float = 1.0
    num_threads: int | None = None
    deadline_s: float = 1800.0  # for one update


@dataclass
class CriticConfig(LearnerConfig):
    """A second learner group, started when the advantage estimator needs values (gae)."""

    lr: float = 1e-5
    value_clip: float | None = 0.2  # how far a value may move in one step
    whiten: bool = True  # advantages to zero mean and unit variance over the step's tokens


@dataclass
class ReferenceConfig:
    num_workers: int = 1
    microbatch_tokens: int = 8192
    packing: str = "auto"
    num_cpus: float = 1.0
    num_threads: int | None = None
    deadline_s: float = 600.0


@dataclass
class ScoringConfig:
    num_workers: int = 1
    function_deadline_s: float = 30.0  # one call of one reward function; past it the process is killed
    row_deadline_s: float = 5.0  # one row, when a failed call is retried row by row
    on_error: str = "mask"  # mask | drop_group | raise: what becomes of a trajectory whose reward failed
    max_unscored_steps: int = 3  # in a row without one valid reward, which trained nothing, and end the run
    whole_groups: bool = False  # a function sees a prompt's responses together, not each as it finishes
    num_cpus: float = 1.0
    num_gpus: float = 0.0  # of each worker, or a share of one: for reward models
    deadline_s: float = 900.0  # of one call of a worker, with every retry in it


@dataclass
class KlConfig:
    coef: float = 0.0  # 0: no reference worker is started; the preset `grpo` of configs/algorithm has 0.04
    name: str = "k3"
    apply_to: str = "loss"  # loss | reward: there summed over the response, of the policy that sampled
    unbiased: bool = False  # in the loss: weighed by the ratio, so that k3's gradient is the KL's
    target: float | None = None  # KL a token that an adaptive coefficient aims at; null keeps `coef`
    horizon: int = 10000  # trajectories over which it adapts


@dataclass
class EntropyConfig:
    coef: float = 0.0  # of the bonus, a mean over all tokens
    target: float | None = None  # an adaptive one: applied, and growing, while the entropy a token is at most this
    delta: float = 0.005  # its change a step
    max_coef: float = 1.0
    top_quantile: float = 1.0  # share of tokens, those of highest entropy, that the policy gradient uses


@dataclass
class GroupsConfig:
    zero_variance: str = "keep"  # keep | drop | resample: groups whose rewards are all equal
    oversample: float = 1.0  # resample: prompts drawn at once, over those still missing
    max_tries: int = 10  # resample: prompts drawn a step, over those asked for; then it trains on what it has
    mask_truncated: bool = False  # responses cut at max_response_tokens count for the baseline but are not trained


@dataclass
class RefreshConfig:
    every: int = 0  # steps between `ref = alpha * policy + (1 - alpha) * ref`; 0: never
    alpha: float = 0.6  # 1 is a hard refresh


@dataclass
class AlgorithmConfig:
    """`advantage`, `policy_loss`, `aggregation` and each correction are a name and that function's own options.

    `corrections` null: none, but `truncate` where sampling runs ahead of training.
    """

    advantage: dict[str, Any] = field(default_factory=lambda: {"name": "grpo"})
    policy_loss: dict[str, Any] = field(default_factory=lambda: {"name": "ppo_clip"})
    aggregation: dict[str, Any] = field(default_factory=lambda: {"name": "token_mean"})
    corrections: list[dict[str, Any]] | None = None
    kl: KlConfig = field(default_factory=KlConfig)
    entropy: EntropyConfig = field(default_factory=EntropyConfig)
    groups: GroupsConfig = field(default_factory=GroupsConfig)
    refresh: RefreshConfig = field(default_factory=RefreshConfig)


@dataclass
class WeightsConfig:
    backend: str = "auto"  # auto | nccl | gloo | ipc
    verify: bool = True  # stop the run when engines and learner disagree on trained tokens
    max_logprob_diff: float | None = None  # null: 1e-3 in float32, 1.0 in bfloat16
    bucket_mib: int = 256
    share_memory: bool = True  # gloo: engines on the learner's machine read what it packs; others are sent the bytes
    deadline_s: float = 120.0


@dataclass
class EvalConfig:
    every: int = 0  # steps; 0: never. With every > 0 also before training and after the last step
    correct_at: float = 1.0  # a response counts as accurate when its total reward reaches this
    num_samples: int = 0  # responses drawn of each prompt beside the greedy one, for mean@k and pass@k
    temperature: float = 1.0  # of those
    confidence: float = 0.95  # of the intervals
    max_response_tokens: int | None = None  # null: as rollout.max_response_tokens


@dataclass
class CheckpointConfig:
    every: int = 0  # steps; 0: none on the way
    last: bool = True  # one after the last step
    keep: int = 2


@dataclass
class ClusterConfig:
    address: str | None = None  # null: a local Ray of this run's own; "auto": the running cluster
    num_gpus: int = 0  # devices used in all; 0 runs everything on CPUs
    startup_deadline_s: float = 600.0
    log_to_driver: bool = False


@dataclass
class LoggingConfig:
    trackers: list[Any] = field(default_factory=lambda: ["tensorboard"])  # names, or {name: ..., options ...}
    rollouts_every: int = 1  # steps between files under rollouts/; 0: none
    token_groups: int = 8  # groups in such a file that are written with their tokens and log-probabilities
    timeline: bool = False  # timeline.json: who did what when; it opens in Perfetto


@dataclass
class Config:
    seed: int = 0
    run_dir: str | None = None  # null: <RLSYS_RUNS or runs>/<experiment>/<time>
    resume: str = "never"  # never | auto: continue from the newest checkpoint in run_dir
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    rewards: list[dict[str, Any]] = field(default_factory=lambda: [{"name": "exact_match", "weight": 1.0}])
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)


OPEN_NODES = (
    "algorithm.advantage",
    "algorithm.policy_loss",
    "algorithm.aggregation",
    "data.options",
    "data.columns",
    "data.chat_template_options",
)
"""Nodes whose keys are a function's own options, checked against its signature instead of this file."""
