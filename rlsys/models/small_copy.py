"""A small random model of the same architecture as a large one, made from its configuration alone.

How a model computes (which tokens see which, what happens to logits, what train mode changes) depends on its code and
its configuration, not on its weights. The small copy shows it within a second, in float32, before a weight is loaded.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch

MAX_LAYERS = 8  # enough for one period of every known pattern of layers
MAX_EXPERTS = 64  # more than any router chooses
MAX_WIDTH = 16  # of feed-forward layers and experts
MIN_HIDDEN = 64
VOCAB_SIZE = 64
CHUNK = 16  # tokens that a state space layer computes together; it pads rows to whole chunks
WINDOW = 4  # tokens; shorter than the trial's rows, so that windows and chunks take effect
SOFTCAP = 1.0  # of attention scores; small, so that it takes effect
MAX_PARAMETERS = 2**28  # 1 GiB; a copy with more has widths that are not known here
GAIN = 1.5  # size of a matrix's products, as a multiple of their input's

# What attributes of configurations mean, under the names that architectures have for them.
_LAYERS = re.compile(r"(num_)?(hidden_|decoder_)?layers|n_layers?|depth|num_blocks")
_HEADS = re.compile(r".*(num|n)_(.*_)?(heads?|groups)|n_heads?")
_HIDDEN = re.compile(
    r"(attention_)?hidden_size|d_model|n_embd|embedding_dim|lru_width|.*d_ssm|dim_model_base|word_.*_dim"
)
_FEED_FORWARD = re.compile(r".*(intermediate|ffn|inner)_?(size|dim|hidden_size).*|ffn_dim|d_ff|n_inner")
_EXPERTS = re.compile(r"num_(local_|routed_)?experts|n_routed_experts|moe_num_experts")
_VOCABULARIES = re.compile(r"vocab_size.*")
_WINDOWS = re.compile(r"sliding_window|attention_chunk_size|attention_window_size|window_size")
_CHUNKS = re.compile(r"(mamba_)?chunk_size")
_SPECIAL_TOKENS = re.compile(r"(pad|bos|eos)_token_id")
_SOFTCAPS = re.compile(r"attn_.*soft_?cap.*")


def small_copy(config: Any, make: Callable[[Any], Any]) -> Any:
    """Build a small model in float32 and eval mode, with random weights as large as trained ones.

    Args:
        config: the large model's configuration, which stays as it is.
        make: builds a causal model from a configuration.

    Raises:
        ValueError: the copy would not be small.
    """
    small = small_config(config)
    with torch.device("meta"):  # without memory
        size = sum(parameter.numel() for parameter in make(small).parameters())
    if size > MAX_PARAMETERS:
        raise ValueError(f"its small copy would have {size:,} parameters")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hf = make(small).float().eval()
        with torch.no_grad():
            for parameter in hf.parameters():
                _randomize(parameter)
    return hf


def small_config(config: Any) -> Any:
    """Return a causal model's configuration with few layers, small widths and a short window."""
    small = copy.deepcopy(config)
    text = small.get_text_config()
    for part in _parts(small):
        if part is not text:
            _change(part, _LAYERS, lambda _: 1)  # towers for images and sound
        _change(part, _SPECIAL_TOKENS, lambda _: 0)
        if hasattr(part, "quantization_config"):
            del part.quantization_config
    _shrink_layers(text)
    _shrink_widths(text)
    _change(text, _WINDOWS, lambda value: min(value, WINDOW))
    _change(text, _CHUNKS, lambda value: min(value, CHUNK))
    _change(text, _SOFTCAPS, lambda value: min(value, SOFTCAP))
    return small


def _parts(config: Any) -> Iterator[Any]:
    """Yield a configuration and all those inside it."""
    from transformers import PreTrainedConfig

    yield config
    for value in list(vars(config).values()):
        if isinstance(value, PreTrainedConfig):
            yield from _parts(value)


def _shrink_layers(text: Any) -> None:
    total = text.num_hidden_layers
    # Such as `layer_types`: what each layer is.
    lists = {n: v for n, v in vars(text).items() if isinstance(v, list | tuple) and len(v) == total}
    firsts = [values.index(kind) for values in lists.values() for kind in values]  # where each kind occurs first
    layers = min(total, max([MAX_LAYERS, *(first + 1 for first in firsts)]))
    for name, values in lists.items():
        setattr(text, name, values[:layers])
    text.num_hidden_layers = layers


def _shrink_widths(text: Any) -> None:
    # All by one factor: the size of a head stays, and with it everything that is stated per head.
    counts = [value for name, value in _numbers(text) if _HEADS.fullmatch(name) and value > 1]
    factor = math.gcd(*counts, text.hidden_size)
    # Kernels for experts want rows that are multiples of 16 bytes.
    while factor > 1 and (text.hidden_size // factor < MIN_HIDDEN or text.hidden_size // factor % 8):
        factor = factor // 2 if factor % 2 == 0 else 1
    _change(text, _HEADS, lambda value: max(value // factor, 1))
    _change(text, _HIDDEN, lambda value: value // factor)
    _change(text, _FEED_FORWARD, lambda value: min(value, MAX_WIDTH))
    _change(text, _EXPERTS, lambda value: min(value, MAX_EXPERTS))
    _change(text, _VOCABULARIES, lambda value: min(value, VOCAB_SIZE))


def _numbers(config: Any) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in vars(config).items() if _is_positive(value)]


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _change(config: Any, names: re.Pattern[str], change: Callable[[Any], Any]) -> None:
    for name, value in list(vars(config).items()):
        if not names.fullmatch(name):
            continue
        if _is_positive(value):
            setattr(config, name, change(value))
        elif isinstance(value, list) and all(map(_is_positive, value)):  # one for each layer
            setattr(config, name, [change(one) for one in value])


def _randomize(parameter: torch.Tensor) -> None:
    """Fill a matrix so that its products are about as large as their input, and move a vector a little.

    Fresh weights are near zero: every layer would be nearly the identity, and no difference between two ways of
    computing it would show.
    """
    if parameter.dim() > 1:
        parameter.normal_(std=GAIN * parameter.shape[-1] ** -0.5)
    else:
        parameter += torch.randn_like(parameter) * 0.1
