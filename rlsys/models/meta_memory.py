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
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rlsys.models.kernels import attention
from rlsys.models.kernels.flash import VarlenFlash
from rlsys.models.kernels.segments import Segments
from rlsys.models.layout import switch_attention

Kernel = Callable[..., torch.Tensor]
Attention = Callable[..., tuple[torch.Tensor, None]]

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
        elif func is aten.logaddexp.default:
            # Its own on the meta device is written in Python, and took half of a whole trace of packed attention.
            found = args[0].new_empty(torch.broadcast_shapes(args[0].shape, args[1].shape))
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


def _packed(kernel: Kernel) -> Attention:
    """Return packed attention by `kernel`, behind transformers' interface; factors do not matter here."""

    def attend(module: nn.Module, *tensors: Any, segments: Segments, **_: Any) -> tuple[torch.Tensor, None]:
        query, key, value, _mask = tensors
        return kernel(query, key, value, segments, 1.0), None

    return attend


def _packed_on_cpu(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, scale: float
) -> torch.Tensor:
    """Compute packed attention with one shared prompt of each shape: others allocate and free the same again."""
    kinds = {tuple(part.stop - part.start for part in (s.prompt, s.responses)): s for s in segments.shared}
    return attention.on_cpu(query, key, value, replace(segments, shared=tuple(kinds.values())), scale)


def _flash_on_gpu(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, scale: float
) -> torch.Tensor:
    out: torch.Tensor = VarlenFlash.apply(query, key, value, segments, scale)
    # In float32 flex attention takes its place. It keeps tensors of the same shapes, and its output is copied once.
    return out.clone() if out.dtype == torch.float32 else out


def _padded(kernel: Kernel) -> Attention:
    """Return padded attention by `kernel`, which gets as many heads of keys and values as of queries, and a bias."""

    def attend(module: nn.Module, *tensors: Any, **_: Any) -> tuple[torch.Tensor, None]:
        query, key, value, mask = tensors
        groups = query.shape[1] // key.shape[1]
        key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
        bias = None if mask is None else torch.zeros_like(mask, dtype=query.dtype)  # from bool to what is added
        return kernel(query, key, value, bias).transpose(1, 2).contiguous(), None

    return attend


def _efficient_on_gpu(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Compute attention by the kernel that PyTorch chooses on GPUs where there is a mask."""
    wide = None if bias is None else bias.expand(-1, query.shape[1], -1, -1)
    found: torch.Tensor = aten._scaled_dot_product_efficient_attention(query, key, value, wide, True)[0]
    return found


def _flash_on_cpu(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    call = aten._scaled_dot_product_flash_attention_for_cpu
    found: torch.Tensor = call(query, key, value, 0.0, False, attn_mask=bias)[0]
    return found


KERNELS = {
    (attention.NAME, "cuda"): _packed(_flash_on_gpu),
    (attention.NAME, "cpu"): _packed(_packed_on_cpu),
    ("sdpa", "cuda"): _padded(_efficient_on_gpu),
    ("sdpa", "cpu"): _padded(_flash_on_cpu),
}
