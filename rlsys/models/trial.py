"""Trial forwards that show how a model has to be computed; a list of architectures would always lack the next one.

The yardstick is the model's own forward over one row at a time, with the attention of its own file (`eager`). Every
other way to the same numbers is compared with it: the output layer on the decoder's states, padded batches, packed rows
with prompts of their own and with a shared one, the mode in which activations are checkpointed, and the auxiliary loss
of a mixture of experts.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from rlsys.errors import ConfigError
from rlsys.models.balance import Balance, balance_of
from rlsys.models.checkpointing import checkpoint_activations
from rlsys.models.kernels import attention
from rlsys.models.kernels.logits import LogitTransform, candidate_transforms
from rlsys.models.layout import attention_of, switch_attention
from rlsys.models.packing import LAYOUTS, TokenRow, token_batch
from rlsys.models.small_copy import small_copy
from rlsys.models.states import decoder_of, prefix_states
from rlsys.models.traits import Traits

# Largest difference of logits, as a share of the largest logit. In float32 rounding makes 1e-7 to 2e-5 of it, and
# what a model really computes otherwise 1e-3 or more (tests/unit/models/test_trial.py measures both).
TOLERANCE = 1e-3
# Prompt and response lengths of the rows, in tokens; the first three share a prompt.
PROMPTS, RESPONSES = (5, 5, 5, 2), (3, 6, 4, 7)

logger = logging.getLogger(__name__)
_found: dict[tuple[type, str], Traits | None] = {}  # a process tries each architecture once


def traits_of(hf: Any) -> Traits:
    """Return the traits of a loaded causal model in eval mode; its weights stay as they are.

    Raises:
        ConfigError: the model cannot be trained.
    """
    found = traits_from_config(hf.config, lambda config: type(hf)._from_config(config, dtype=torch.float32))
    return _try_loaded(hf) if found is None else found


def folder_traits(path: str, *, trust_remote_code: bool) -> Traits | None:
    """Return the traits of a folder's or hub id's model before a weight is loaded; None where that does not work.

    Raises:
        ConfigError: the model cannot be trained.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    def make(config: Any) -> Any:
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=trust_remote_code)

    return traits_from_config(AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code), make)


def traits_from_config(config: Any, make: Callable[[Any], Any]) -> Traits | None:
    """Return the traits of an architecture, tried on a small copy; None where no copy can be built.

    Args:
        config: the configuration of a causal model.
        make: builds a causal model in float32 from a configuration.

    Raises:
        ConfigError: the model cannot be trained.
    """
    key = type(config), config.to_json_string(use_diff=False)
    if key not in _found:
        try:
            _found[key] = _try_copy(config, make)
        except ConfigError:
            raise
        except Exception as error:  # code of any origin, with a configuration that it never saw
            reason = f"{type(error).__name__}: {error}"
            logger.info("no small copy of %s can be tried (%s)", type(config).__name__, reason)
            _found[key] = None
    return _found[key]


def _try_copy(config: Any, make: Callable[[Any], Any]) -> Traits:
    small = small_copy(config, make)
    found = try_model(small)
    # A factor may be made of widths, and those of the copy are others.
    number = candidate_transforms(small.config).index(found.logits)
    return replace(found, logits=candidate_transforms(config)[number])


def _try_loaded(hf: Any) -> Traits:
    """Try the model itself, in float32 for the moment.

    Its windows may be longer than the trial's rows, which then show nothing about packing.
    """
    if any(hasattr(parameter, "ds_id") for parameter in hf.parameters()):
        raise ConfigError(
            f"{type(hf).__name__} can only be tried with its own weights, which ZeRO-3 has divided among the ranks: "
            "set zero_stage to 2 or less"
        )
    with _in_float32(hf):
        traits = try_model(hf)
    hf.eval()
    if traits.checkpointing is None:
        hf.gradient_checkpointing_disable()
    return replace(traits, packing="it has no small copy that could show what its layers do over long distances")


@contextlib.contextmanager
def _in_float32(hf: Any) -> Iterator[None]:
    """Hold every number of the model in float32 inside the context."""
    kept = [(tensor, tensor.data) for tensor in (*hf.parameters(), *hf.buffers()) if tensor.is_floating_point()]
    for tensor, data in kept:
        tensor.data = data.float()
    try:
        yield
    finally:
        for tensor, data in kept:
            tensor.data = data


@torch.no_grad()
def try_model(hf: Any) -> Traits:
    """Compute a few rows in every way and compare.

    Args:
        hf: a causal model in eval mode, float32, with weights that are not near zero. Its attention and its mode may be
            others afterwards.

    Raises:
        ConfigError: no way that rlsys knows gives the model's own logits, so it cannot be trained.
    """
    default = attention_of(hf)
    if switch_attention(hf, "eager") is not None:
        switch_attention(hf, default)
    trial = _Trial.of(hf)
    padded = _padded_attention(trial, [default, attention_of(hf)])
    balance = _balance(trial)
    checkpointing = _checkpointing(trial)
    return Traits(padded, trial.transform, _packing(trial), checkpointing, balance)


@dataclass(frozen=True)
class _Trial:
    """The rows of a trial and the logits that every way of computing them must give."""

    hf: Any
    rows: list[TokenRow]
    transform: LogitTransform
    expected: torch.Tensor  # [n, V] float32, the logits before each target token

    @classmethod
    def of(cls, hf: Any) -> _Trial:
        """Compute the model's own logits row by row, and find what it does to those of its output layer."""
        rows = _rows(hf.get_input_embeddings().weight.shape[0])
        batches = [token_batch([row], "padded").to(hf.device) for row in rows]
        own = [hf(input_ids=b.input_ids, use_cache=False).logits.flatten(0, 1)[b.prefixes] for b in batches]
        expected = torch.cat(own).float()
        if not expected.isfinite().all() or not expected.any():
            raise ConfigError(f"{type(hf).__name__} cannot be trained: its logits of a few trial tokens are not finite")
        head = hf.get_output_embeddings()
        plain = torch.cat([head(prefix_states(decoder_of(hf), batch)) for batch in batches]).float()
        errors = {t: _difference(t(plain), expected) for t in candidate_transforms(hf.config)}
        best = min(errors, key=lambda transform: errors[transform])
        if not errors[best] < TOLERANCE:
            raise ConfigError(
                f"{type(hf).__name__} cannot be trained: its logits are not those of its output layer, nor these times "
                f"a factor or under a soft cap that config.json names (they differ by {errors[best]:.1e} of the "
                "largest), so the learner would train another distribution than the engines sample from"
            )
        return cls(hf, rows, best, expected)

    def difference(self, layout: str) -> float:
        """Return how far the logits of all rows in one batch are from those of separate rows."""
        states = prefix_states(decoder_of(self.hf), token_batch(self.rows, layout).to(self.hf.device))
        return _difference(self.transform(self.hf.get_output_embeddings()(states).float()), self.expected)


def _padded_attention(trial: _Trial, names: list[str]) -> str:
    """Return the first attention that computes padded batches right.

    Faster ones leave out what they do not know, without an error: `sdpa` has no soft cap (Gemma 2).
    """
    found = []
    for name in names:
        if switch_attention(trial.hf, name) is None:
            found.append(trial.difference("padded"))
            if found[-1] < TOLERANCE:
                return name
    raise ConfigError(
        f"{type(trial.hf).__name__} cannot be trained: rows give other logits in a padded batch than alone (they "
        f"differ by {min(found):.1e} of the largest)"
    )


def _packing(trial: _Trial) -> str | None:
    """Return why packed rows would be computed wrongly, or None when they are right."""
    obstacle = switch_attention(trial.hf, attention.NAME)
    if obstacle is not None:
        return obstacle
    for layout in LAYOUTS[:2]:
        try:
            difference = trial.difference(layout)
        except Exception as error:  # a model of any origin may fail in any way; the failure itself is the obstacle
            return f"{type(error).__name__}: {error}"
        if not difference < TOLERANCE:
            return (
                "a layer other than attention carries state from one trajectory into the next, or attention looks at "
                f"more than rlsys' does (logits differ by {difference:.1e} of the largest)"
            )
    return None


def _checkpointing(trial: _Trial) -> str | None:
    """Return why activations cannot be checkpointed, or None; the model is padded, and checkpoints afterwards."""
    try:
        checkpoint_activations(trial.hf)
        difference = trial.difference("padded")
    except Exception as error:  # as in `_packing`
        return f"{type(error).__name__}: {error}"
    if difference < TOLERANCE:
        return None
    return (
        f"its layers compute something else in train mode, such as dropout (logits differ by {difference:.1e} of the "
        "largest); set rates of dropout in config.json to 0"
    )


def _balance(trial: _Trial) -> Balance | None:
    """Return the auxiliary loss that the model adds to its own, or None where it adds none."""
    hf, text = trial.hf, trial.hf.config.get_text_config()
    if not getattr(text, "output_router_logits", False):
        return None
    batch = token_batch(trial.rows, "padded").to(hf.device)
    ids, mask = batch.input_ids, batch.attention_mask
    try:
        output = hf(input_ids=ids, attention_mask=mask, use_cache=False, output_router_logits=True)
        own, asked = getattr(output, "aux_loss", None), balance_of(text)
        if not isinstance(own, torch.Tensor):  # transformers has none for this architecture, or no layer has experts
            return None
        difference = float("inf") if asked is None else _difference(asked.loss(output.router_logits, mask), own)
    except Exception as error:  # as in `_packing`
        raise ConfigError(_other_balance(hf, f"{type(error).__name__}: {error}")) from error
    if not difference < TOLERANCE:
        raise ConfigError(_other_balance(hf, "the model's is another one, or config.json names its parts otherwise"))
    return asked


def _other_balance(hf: Any, why: str) -> str:
    return (
        f"{type(hf).__name__} cannot be trained with the auxiliary loss that its config.json asks for: rlsys only has "
        f"that of arXiv:2101.03961, with router_aux_loss_coef and num_experts_per_tok ({why}). Set "
        "output_router_logits to false in config.json to train without it"
    )


def _difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def _rows(vocabulary: int) -> list[TokenRow]:
    generator = np.random.default_rng(0)
    shared = generator.integers(1, vocabulary, size=max(PROMPTS))
    rows = []
    for number, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        is_first = prompt == len(shared)
        start = shared if is_first else generator.integers(1, vocabulary, size=prompt)
        ids = np.concatenate([start, generator.integers(1, vocabulary, size=response)])
        rows.append(TokenRow(ids, np.arange(len(ids)) >= prompt, 0 if is_first else number))
    return rows
