"""The policy: a causal language model that returns token log-probabilities."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from rlsys.config.learner_schema import LoraConfig
from rlsys.errors import ConfigError
from rlsys.models.folder import empty_model
from rlsys.models.kernels.head import use_token_head
from rlsys.models.kernels.linear import use_onednn
from rlsys.models.layout import use_layout
from rlsys.models.lora import add_adapters
from rlsys.models.packing import TokenBatch
from rlsys.models.rope import pin_rope
from rlsys.models.states import decoder_of, decoder_output, states_before_targets
from rlsys.models.traits import Traits
from rlsys.models.trial import folder_traits, traits_of

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class PolicyModel(nn.Module):
    """A Hugging Face causal model whose `forward` returns each target token's log-probability given its prefix.

    Only the states before target tokens go through the vocabulary projection. With long prompts and short responses
    that saves most of the work and of the memory.
    """

    def __init__(
        self, hf: Any, packing: str = "auto", lora: LoraConfig | None = None, traits: Traits | None = None
    ) -> None:
        super().__init__()
        self.traits = traits_of(hf.eval()) if traits is None else traits
        self.layout = use_layout(hf, packing, self.traits)
        # The output layer is switched while it is a plain linear layer: `modules_to_save` wraps a copy of it, class
        # included.
        use_token_head(hf, self.traits.logits)
        if lora is not None and lora.rank > 0:
            add_adapters(hf, lora)
        use_onednn(hf)  # after the adapters, so that their linear layers are switched too
        self.hf = hf
        self.balance_loss: torch.Tensor | None = None  # of the last forward, times its coefficient
        # What `forward` does not reach, such as a vision tower, has no gradient: it needs no optimizer state, and
        # weight decay must not change it.
        reached = {id(p) for module in (hf.get_decoder(), hf.get_output_embeddings()) for p in module.parameters()}
        for parameter in hf.parameters():
            if id(parameter) not in reached:
                parameter.requires_grad_(False)

    def forward(
        self, batch: TokenBatch, temperature: float, entropy_gradient: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute log-probability and entropy of the sampling distribution `softmax(logits / temperature)`.

        Args:
            batch: B trajectories in this model's `layout`.
            temperature: positive.
            entropy_gradient: whether the entropy carries a gradient; it costs a second pass over the logits.

        Returns: log-probabilities [B, T] float32 (with gradient) and entropies [B, T] float32; 0 outside the batch's
        loss mask.
        """
        balance = self.traits.balance if torch.is_grad_enabled() else None
        output = decoder_output(
            decoder_of(self.hf), batch, **({"output_router_logits": True} if balance is not None else {})
        )
        self.balance_loss = None
        if balance is not None:
            self.balance_loss = balance.coef * balance.loss(output.router_logits, batch.attention_mask)
        states = states_before_targets(output, batch)  # [n, H]
        logprobs, entropy = self.hf.get_output_embeddings()(states, batch.targets, temperature, entropy_gradient)
        return batch.spread(logprobs), batch.spread(entropy)


def load_policy(
    path: str,
    dtype: torch.dtype,
    *,
    max_tokens: int,
    packing: str = "auto",
    lora: LoraConfig | None = None,
    trust_remote_code: bool = False,
    loading: AbstractContextManager[None] | None = None,
) -> PolicyModel:
    """Load a causal model from a folder or hub id in `dtype`.

    It is in eval mode: with dropout the ratio of two forwards would be noise.

    Args:
        path: folder or hub id.
        dtype: of the weights.
        max_tokens: length of the longest trajectory, the engines' context.
        packing: the layout, or auto.
        lora: adapters to add.
        trust_remote_code: whether code of the folder may run.
        loading: a context to load the weights in. It is left out for a model whose traits only its weights show: those
            must be whole.

    Raises:
        ConfigError: the model cannot be trained as it is asked for.
    """
    from transformers import AutoModelForCausalLM

    traits = folder_traits(path, trust_remote_code=trust_remote_code)
    extra = {} if lora is None or lora.quantize_base is None else {"quantization_config": _quantization(lora, dtype)}
    with nullcontext() if loading is None or traits is None else loading:
        hf = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, trust_remote_code=trust_remote_code, **extra)
        pin_rope(hf, max_tokens)
        return PolicyModel(hf, packing, lora, traits).eval()


def empty_policy(
    path: str,
    dtype: torch.dtype,
    *,
    packing: str = "auto",
    lora: LoraConfig | None = None,
    trust_remote_code: bool = False,
) -> PolicyModel:
    """Return the policy that `load_policy` would load, on the meta device: shapes without memory.

    Raises:
        ConfigError: the model cannot be trained as it is asked for, or only its weights would show how.
    """
    traits = folder_traits(path, trust_remote_code=trust_remote_code)
    if traits is None:
        raise ConfigError(f"{path} has no small copy that shows how it has to be computed; only its weights would")
    hf = empty_model(path, trust_remote_code=trust_remote_code).to(dtype)
    with torch.device("meta"):
        return PolicyModel(hf, packing, lora, traits).eval()


def _quantization(lora: LoraConfig, dtype: torch.dtype) -> Any:
    """Return the settings that hold frozen weights in 4 bits, as the engines do (QLoRA, arXiv:2305.14314).

    Products are computed in `dtype`.
    """
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=lora.quantize_base,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
