"""A repair of vLLM's layerwise reload for models that copy into their parameters themselves.

During a reload a layer's parameters have no memory. vLLM's loader functions put aside what arrives until the layer is
whole. A model that copies without such a function (GPT-OSS its experts and its attention sinks) would lose what it
copies and keep the old weights, and vLLM would only log that.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from vllm.model_executor.model_loader.reload import layerwise
from vllm.model_executor.model_loader.reload.meta import materialize_meta_tensor


class DirectLoads(TorchDispatchMode):
    """Inside this context, a copy into a parameter without memory gives it memory and is counted as loaded.

    To be entered between `initialize_layerwise_reload` and `finalize_layerwise_reload`.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self._is_counting = False
        # By storage, which a parameter shares with its `data` and its views.
        self._places = {
            tensor.untyped_storage()._cdata: (layer, name)
            for layer in model.modules()
            for name, tensor in layerwise.get_layer_tensors(layer).items()
            if tensor.is_meta
        }

    def __enter__(self) -> Self:
        self._counted = layerwise.get_numel_loaded
        layerwise.get_numel_loaded = self._count
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        layerwise.get_numel_loaded = self._counted

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.copy_.default and args[0].is_meta and not self._is_counting:
            place = self._places.get(args[0].untyped_storage()._cdata)
            if place is not None and not args[1].is_meta:
                self._load(*place, args[0], args[1])
        return func(*args, **(kwargs or {}))

    def _count(self, *args: Any) -> Any:
        """Do what vLLM does to count a loader function's elements: call it, with parameters that have no memory."""
        self._is_counting = True
        try:
            return self._counted(*args)
        finally:
            self._is_counting = False

    def _load(self, layer: torch.nn.Module, name: str, target: torch.Tensor, source: torch.Tensor) -> None:
        info = layerwise.get_layerwise_info(layer)
        if not info.can_load():  # the layer is whole already
            return
        parameter = getattr(layer, name)
        if parameter.is_meta:
            with info.restore_device:
                parameter = materialize_meta_tensor(parameter)
            setattr(layer, name, parameter)
        view = parameter.data.as_strided(target.size(), target.stride(), target.storage_offset())
        view.copy_(source)
        info.load_numel += source.numel()
        if info.load_numel >= info.load_numel_total:
            layerwise._layerwise_process(layer, info)
