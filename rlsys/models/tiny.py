"""Tiny policies built on the spot: one of three architectures, random weights, a tokenizer with a chat template."""

from __future__ import annotations

import json
import string
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rlsys.config.build_schema import ModelBuild, TokenizerBuild
from rlsys.errors import ConfigError
from rlsys.runtime.fork_server import without_mlflow

PAD, END, USER, ASSISTANT, SYSTEM = "<pad>", "<end>", "<user>", "<assistant>", "<system>"
SPECIAL_TOKENS = [PAD, END, USER, ASSISTANT, SYSTEM]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] + '<end>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
ARCHITECTURES = {"qwen2": "Qwen2", "qwen3": "Qwen3", "llama": "Llama"}
PRINTABLE = string.printable[:95] + "\n"  # the default alphabet of a character tokenizer
MIN_HEAD_DIM = 32  # the smallest that vLLM's CPU attention supports


def build_tokenizer(config: TokenizerBuild, corpus: Iterable[str] = ()) -> Any:
    """Build a byte-level `Qwen2Tokenizer`: one token per character, or merges trained on `corpus`.

    The class is Qwen2's for every architecture: `AutoTokenizer` insists on it for Qwen2 models and accepts it for the
    others, so a saved folder gives the same ids everywhere.

    Raises:
        ConfigError: the alphabet of a character tokenizer is not ASCII.
    """
    from transformers import Qwen2Tokenizer

    if config.kind == "chars":
        vocab = _character_vocab(config.alphabet or PRINTABLE)
        merges: list[tuple[str, str]] = []
    else:
        assert config.kind == "bpe", config.kind
        vocab, merges = _train_bpe(corpus, config.vocab_size)
    tokenizer = Qwen2Tokenizer(
        vocab=vocab,
        merges=merges,
        unk_token=PAD,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=[USER, ASSISTANT, SYSTEM],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _character_vocab(alphabet: str) -> dict[str, int]:
    if not alphabet.isascii():
        raise ConfigError(
            "model.build.tokenizer.alphabet has characters outside ASCII, which kind=chars cannot give one token each; "
            "use model.build.tokenizer.kind=bpe"
        )
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    byte_level = bytes_to_unicode()  # GPT-2's alphabet: printable ASCII as itself, a space or a newline as another sign
    shown = [byte_level[ord(character)] for character in dict.fromkeys(alphabet)]
    return {token: index for index, token in enumerate([*SPECIAL_TOKENS, *shown])}


def _train_bpe(corpus: Iterable[str], vocab_size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    # The same normalizer and pre-tokenizer as Qwen2Tokenizer, which the merges are used in.
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def check_build(config: ModelBuild) -> None:
    """Raise ConfigError for a shape that torch cannot build or vLLM cannot run on CPUs."""
    if config.hidden_size % config.num_heads or config.num_heads % config.num_kv_heads:
        raise ConfigError(
            "model.build: hidden_size must be a multiple of num_heads, and num_heads a multiple of num_kv_heads; they "
            f"are {config.hidden_size}, {config.num_heads}, {config.num_kv_heads}"
        )
    if config.hidden_size // config.num_heads < MIN_HEAD_DIM:
        raise ConfigError(
            f"model.build: hidden_size / num_heads is {config.hidden_size // config.num_heads}, but the engine needs "
            f"heads of at least {MIN_HEAD_DIM} dimensions; raise hidden_size or lower num_heads"
        )


def build_model(config: ModelBuild, tokenizer: Any, seed: int) -> Any:
    """Build a randomly initialised `*ForCausalLM` in float32 with the tokenizer's vocabulary.

    The same seed gives the same weights, and torch's own generator is left as it was.
    """
    import torch
    import transformers

    check_build(config)
    name = ARCHITECTURES[config.architecture]
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.hidden_size // config.num_heads,
        "max_position_embeddings": config.max_context,
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": None,  # prompts begin with their first character
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**shape))
    return model.float()


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a folder that transformers and vLLM load."""
    folder.mkdir(parents=True, exist_ok=True)
    with without_mlflow():  # transformers imports DeepSpeed to see whether the model is wrapped in its engine
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
