"""What has to be known about a model to compute its log-probabilities as the model itself does."""

from __future__ import annotations

from dataclasses import dataclass

from rlsys.models.balance import Balance
from rlsys.models.kernels.logits import LogitTransform


@dataclass(frozen=True)
class Traits:
    """How a model has to be computed.

    Attributes:
        attention: the attention of padded batches, by transformers' name.
        logits: what the model does to the output layer's logits.
        packing: why packed rows would be computed wrongly; None when they are right.
        checkpointing: why activations cannot be checkpointed; None when they can.
        balance: the auxiliary loss that config.json asks for; None where it asks for none, or transformers has none.
    """

    attention: str
    logits: LogitTransform
    packing: str | None
    checkpointing: str | None
    balance: Balance | None = None
