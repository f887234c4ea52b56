"""`rlsys make-model`: a tiny model and its tokenizer."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rlsys.config.schema import ModelBuild, TokenizerBuild
from rlsys.models.tiny import ARCHITECTURES, build_model, build_tokenizer, save_model


def make_model(arguments: Sequence[str]) -> None:
    """Parse, build, write."""

    defaults = ModelBuild()
    parser = argparse.ArgumentParser("rlsys make-model", description="Write a tiny model and its tokenizer.")
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument("--architecture", choices=sorted(ARCHITECTURES), default=defaults.architecture)
    parser.add_argument("--tied", action=argparse.BooleanOptionalAction, default=defaults.tie_word_embeddings)
    parser.add_argument("--corpus", type=Path, help="text file: a byte-level BPE tokenizer is trained on its lines")
    parser.add_argument("--vocab-size", type=int, default=TokenizerBuild().vocab_size, help="of the BPE tokenizer")
    parser.add_argument("--seed", type=int, default=0)
    sizes = ("hidden_size", "num_layers", "num_heads", "num_kv_heads", "intermediate_size", "max_context")
    for size in sizes:
        parser.add_argument(f"--{size.replace('_', '-')}", type=int, default=getattr(defaults, size))
    options = parser.parse_args(arguments)
    tokenizer_config = TokenizerBuild(kind="bpe" if options.corpus else "chars", vocab_size=options.vocab_size)
    lines = options.corpus.read_text(encoding="utf-8").splitlines() if options.corpus else []
    build = ModelBuild(
        architecture=options.architecture,
        tie_word_embeddings=options.tied,
        tokenizer=tokenizer_config,
        **{size: getattr(options, size) for size in sizes},
    )
    tokenizer = build_tokenizer(tokenizer_config, lines)
    model = build_model(build, tokenizer, options.seed)
    save_model(model, tokenizer, options.output)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{options.output}: {options.architecture}, {parameters:,} parameters, vocabulary {len(tokenizer)}")
