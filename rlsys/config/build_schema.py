"""Options of a policy that is built on the spot, for first runs and tests: the section `model.build`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rlsys.config.option import option


@dataclass
class TokenizerBuild:
    """Tokenizer of a policy built on the spot."""

    kind: str = option("chars", choices=("chars", "bpe"), help="one token per character, or BPE trained on `corpus`")
    alphabet: str = option(
        "", help="chars: the known characters (ASCII); empty: printable ASCII and newline", needs="kind = chars"
    )
    vocab_size: int = option(1024, ge=1, help="bpe: number of tokens", needs="kind = bpe")
    corpus: str | None = option(
        None, help="bpe: a source of text, as in `data.train`; null: the training rows", needs="kind = bpe"
    )


@dataclass
class Warmup:
    """Supervised steps for a policy built on the spot, so that reinforcement learning has something to start from."""

    max_steps: int = option(0, ge=0, help="most supervised steps; 0: none")
    target_accuracy: float = option(
        1.0, gt=0, le=1, help="stop when this share of held-out answers is greedily exact", needs="max_steps > 0"
    )
    batch_size: int = option(128, ge=1, help="rows per supervised step", needs="max_steps > 0")
    lr: float = option(1e-3, gt=0, help="learning rate of the supervised steps", needs="max_steps > 0")
    check_every: int = option(
        10, ge=1, help="supervised steps between measurements of the accuracy", needs="max_steps > 0"
    )
    answer_column: str = option("answer", help="column with the answer to learn", needs="max_steps > 0")
    data: Any = option(
        None,
        help="a source of other rows to learn from, as in `data.train`, with prompts that may be conversations; null: "
        "the training rows",
        needs="max_steps > 0",
    )


@dataclass
class ModelBuild:
    """A tiny policy built on the spot when `model.path` is null, and cached under `model.cache_dir`."""

    architecture: str = option("qwen2", choices=("qwen2", "qwen3", "llama"), help="model family")
    hidden_size: int = option(128, ge=1, help="width; `hidden_size / num_heads` must be a size that vLLM supports")
    num_layers: int = option(4, ge=1, help="number of layers")
    num_heads: int = option(4, ge=1, help="number of attention heads")
    num_kv_heads: int = option(2, ge=1, help="number of key and value heads; divides `num_heads`")
    intermediate_size: int = option(384, ge=1, help="width of the feed-forward layers")
    tie_word_embeddings: bool = option(True, help="share the weights of the embedding and the output layer")
    max_context: int = option(512, ge=1, help="longest sequence in tokens, prompt and response together")
    tokenizer: TokenizerBuild = field(default_factory=TokenizerBuild)
    warmup: Warmup = field(default_factory=Warmup)
