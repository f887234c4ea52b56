"""`rlsys make-model FOLDER`: writes a tiny model with random weights, and its tokenizer."""

from __future__ import annotations

import argparse

from rlsys.commands.libraries import quiet_libraries
from rlsys.commands.output import output_folder
from rlsys.config.bounds import check_values
from rlsys.config.build_schema import ModelBuild, TokenizerBuild
from rlsys.config.option import options as declared
from rlsys.config.paths import expand, read_text

SIZES = ("hidden_size", "num_layers", "num_heads", "num_kv_heads", "intermediate_size", "max_context")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the folder and the options of `model.build`, with the same defaults."""
    build = {option.key: option for option in declared(ModelBuild())}
    architecture = build["architecture"]
    parser.description = "Write a tiny model with random weights, and its tokenizer."
    parser.add_argument("output", type=output_folder, metavar="FOLDER", help="folder to write")
    parser.add_argument("--architecture", choices=architecture.rule.choices, default=architecture.value)
    parser.add_argument(
        "--tied",
        action=argparse.BooleanOptionalAction,
        default=build["tie_word_embeddings"].value,
        help=build["tie_word_embeddings"].rule.help,
    )
    parser.add_argument("--corpus", type=expand, metavar="FILE", help="train a byte-level BPE tokenizer on its lines")
    parser.add_argument("--vocab-size", type=int, default=build["tokenizer.vocab_size"].value, help="with --corpus")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights")
    for size in SIZES:
        parser.add_argument(
            f"--{size.replace('_', '-')}", type=int, default=build[size].value, help=build[size].rule.help
        )


def run(options: argparse.Namespace) -> None:
    """Build the model and the tokenizer, and write both."""
    quiet_libraries()
    from rlsys.models.tiny import build_model, build_tokenizer, save_model

    tokenizer_config = TokenizerBuild(kind="bpe" if options.corpus else "chars", vocab_size=options.vocab_size)
    lines = read_text(options.corpus, "--corpus").splitlines() if options.corpus else []
    build = ModelBuild(
        architecture=options.architecture,
        tie_word_embeddings=options.tied,
        tokenizer=tokenizer_config,
        **{size: getattr(options, size) for size in SIZES},
    )
    check_values(build)
    tokenizer = build_tokenizer(tokenizer_config, lines)
    model = build_model(build, tokenizer, options.seed)
    save_model(model, tokenizer, options.output)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{options.output}: {options.architecture}, {parameters:,} parameters, vocabulary {len(tokenizer)}")
