"""The layout that a model is computed in: its attention switched, and the states of a batch in that layout.

Packed layouts need attention that follows the segments in every layer, and no other layer that looks at neighbours.
"""

from __future__ import annotations

from typing import Any

from rlsys.errors import ConfigError
from rlsys.models.kernels import attention
from rlsys.models.packing import LAYOUTS
from rlsys.models.traits import Traits


def choose_layout(wanted: str, traits: Traits, *, key: str = "packing") -> str:
    """Return the layout to use; `auto` is shared_prompt where the model allows it, otherwise padded.

    Args:
        wanted: auto or a layout.
        traits: the model's.
        key: the option's name, for messages.

    Raises:
        ConfigError: a packed layout is asked for by name and the model cannot be computed in it.
    """
    if wanted == "padded" or traits.packing is None:
        return LAYOUTS[0] if wanted == "auto" else wanted
    if wanted == "auto":
        return "padded"
    raise ConfigError(f"{key}={wanted} is not possible with this model: {traits.packing}; use auto or padded")


def use_layout(hf: Any, wanted: str, traits: Traits) -> str:
    """Switch the attention of a transformers causal model for the layout `wanted`; return the layout to use."""
    layout = choose_layout(wanted, traits)
    obstacle = switch_attention(hf, traits.attention if layout == "padded" else attention.NAME)
    if obstacle is not None:
        raise ConfigError(f"{type(hf).__name__} cannot be computed in the layout {layout}: {obstacle}; use padded")
    return layout


def attention_of(hf: Any) -> str:
    """Return the name of the attention that the language model of `hf` uses."""
    return str(hf.config.get_text_config()._attn_implementation)


def switch_attention(hf: Any, name: str) -> str | None:
    """Switch the attention; return why that is not possible, or None when it is done."""
    if attention_of(hf) == name:
        return None
    attention.register()
    try:
        hf.set_attn_implementation(name)
    except (ValueError, ImportError) as error:
        return f"{type(error).__name__}: {error}"
    # transformers only warns where a model's file computes attention by itself.
    return None if attention_of(hf) == name else f"it computes attention itself, and cannot be switched to '{name}'"
