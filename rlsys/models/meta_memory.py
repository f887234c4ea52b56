"""Memory of a forward and backward, counted on the meta device: shapes and dtypes, no numbers and no allocation.

Every operation runs with its own shapes, so what autograd keeps and what lives only for a moment is what a real pass
keeps and needs. Kernels are called by their own operators, which know the shapes of their results on every device:
packed attention for GPUs is traced on a machine that has none. An allocation inside a kernel is not seen. Masks of
dropout have a byte per number, as on GPUs; on CPUs they have a number's size.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rlsys.models.kernels import attention
from rlsys.models.kernels.flash import VarlenFlash
from rlsys.models.kernels.segments import Segments
from rlsys.models.layout import switch_attention

aten = torch.ops.aten
# CUDA's caching allocator gives blocks of this size; on CPUs an allocation has the size that was asked for.
BLOCK_BYTES = {"cuda": 512, "cpu": 1}


class MetaMemory(TorchDispatchMode):
    """Counts the bytes of storages that operations make inside the context, until the last tensor of each is gone.

    What exists before is not counted, so the parameters of a model are not. The present `kind` is the name under which
    new storages are counted.

    Attributes:
        kind: name of what is made next.
        peak: bytes of each kind at the moment when their sum was largest.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.kind = ""
        self.peak: Counter[str] = Counter()
        self._block = BLOCK_BYTES[device]
        self._now: Counter[str] = Counter()
        self._known: set[int] = set()

    def exclude(self, module: nn.Module) -> None:
        """Do not count the parameters and buffers of `module`, nor views of them."""
        for tensor in (*module.parameters(), *module.buffers()):
            self._follow(tensor, lambda: None)

    def total(self) -> int:
        """Return the bytes that are alive."""
        return self._now.total()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is aten.nonzero.default:
            # Its size depends on numbers, which are not there: at most everything.
            found = args[0].new_empty((args[0].numel(), args[0].dim()), dtype=torch.int64)
        elif func is aten._local_scalar_dense.default and args[0].dtype == torch.bool:
            return False  # "is there no padding?" and the like, which choose a cheaper way
        else:
            found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf)
        return found

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._known:
            return
        size = -(-storage.nbytes() // self._block) * self._block  # rounded up
        kind = self.kind

        def free() -> None:
            self._now[kind] -= size

        self._follow(tensor, free)
        self._now[kind] += size
        if self._now.total() > self.peak.total():
            self.peak = Counter(self._now)

    def _follow(self, tensor: torch.Tensor, when_gone: Callable[[], None]) -> None:
        """Know a storage by its address, which another one may have once this one is gone."""
        storage = tensor.untyped_storage()
        address = storage._cdata
        self._known.add(address)

        def forget() -> None:
            self._known.discard(address)
            when_gone()

        weakref.finalize(storage, forget)


def use_kernels_of(hf: Any, device: str) -> None:
    """Switch the attention of a model on the meta device to the kernels that `device` ("cuda" or "cpu") has.

    Left alone it would look at its tensors' device and choose those for no device at all.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    present = hf.config.get_text_config()._attn_implementation
    if present not in (attention.NAME, "sdpa"):
        return  # products written out, the same on every device
    name = f"rlsys_traced_{present}_{device}"
    AttentionInterface.register(name, KERNELS[present, device])
    if present == "sdpa":
        AttentionMaskInterface.register(name, sdpa_mask)
    obstacle = switch_attention(hf, name)
    assert obstacle is None, obstacle


def _packed_on_gpu(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    segments: Segments,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute packed attention as a GPU with flash kernels does."""
    out = VarlenFlash.apply(query, key, value, segments, scaling or 1.0)
    # In float32 flex attention takes its place. It keeps tensors of the same shapes, and its output is copied once.
    return (out.clone() if out.dtype == torch.float32 else out), None


def _packed_on_cpu(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    segments: Segments,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    return attention.on_cpu(query, key, value, segments, scaling or 1.0), None


def _padded_on_gpu(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute padded attention by the kernel that PyTorch chooses on GPUs where there is a mask."""
    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    bias = None
    if attention_mask is not None:  # bool; the kernel adds numbers
        bias = torch.zeros_like(attention_mask, dtype=query.dtype).expand(-1, query.shape[1], -1, -1)
    out = aten._scaled_dot_product_efficient_attention(query, key, value, bias, True)[0]
    return out.transpose(1, 2).contiguous(), None


def _padded_on_cpu(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    bias = None if attention_mask is None else torch.zeros_like(attention_mask, dtype=query.dtype)
    out = aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, False, attn_mask=bias)[0]
    return out.transpose(1, 2).contiguous(), None


KERNELS: dict[tuple[str, str], Callable[..., Any]] = {
    (attention.NAME, "cuda"): _packed_on_gpu,
    (attention.NAME, "cpu"): _packed_on_cpu,
    ("sdpa", "cuda"): _padded_on_gpu,
    ("sdpa", "cpu"): _padded_on_cpu,
}
