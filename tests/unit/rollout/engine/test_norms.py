"""The C++ norms of CPU engines compute what vLLM's composed ones do, where they are taken at all."""

from __future__ import annotations

import pytest
import torch
from vllm import ir
from vllm.platforms import current_platform

from rlsys.rollout.engine import norms, process  # noqa: F401, the second registers them


@pytest.fixture(autouse=True, scope="module")
def _kernels() -> None:
    current_platform.import_kernels()


@pytest.mark.parametrize("shape", [(128, 256), (1, 896), (7, 14, 64), (3, 48)])
def test_the_norms_are_the_composed_ones(shape: tuple[int, ...]) -> None:
    x, residual, weight = torch.randn(shape), torch.randn(shape), torch.rand(shape[-1]) + 0.5
    ops, whole = ir.ops, ir.ops.fused_add_rms_norm
    composed = ops.rms_norm.impls["native"].impl_fn(x, weight, 1e-6)
    torch.testing.assert_close(ops.rms_norm.impls[norms.NAME].impl_fn(x, weight, 1e-6), composed)
    wanted, total = whole.impls["native"].impl_fn(x, residual, weight, 1e-6)
    found = whole.impls[norms.NAME].impl_fn(x.clone(), residual.clone(), weight, 1e-6)
    torch.testing.assert_close(found, (wanted, total))


def test_other_formats_and_views_stay_with_the_composed_norm() -> None:
    x, weight = torch.randn(8, 64), torch.ones(64)
    assert norms.suits(x, weight, 1e-6)
    assert not norms.suits(x.bfloat16(), weight.bfloat16(), 1e-6)
    assert not norms.suits(x, weight.bfloat16(), 1e-6)
    assert not norms.suits(torch.randn(8, 128)[:, :64], weight, 1e-6)
    assert not norms.suits(x, None, 1e-6)
    assert not norms.suits(torch.randn(8, 100), torch.ones(100), 1e-6)
    assert not norms.suits(x, weight, 1e-6, variance_size=32)
    assert not norms.suits_sum(x, torch.randn(8, 128)[:, :64], weight, 1e-6)
    assert norms.suits_sum(x, x.clone(), weight, 1e-6)


def test_the_engine_takes_them() -> None:
    with ir.ops.rms_norm.set_priority(norms.PRIORITY["rms_norm"]):
        assert ir.ops.rms_norm.dispatch(torch.randn(8, 64), torch.ones(64), 1e-6).provider == norms.NAME
        assert ir.ops.rms_norm.dispatch(torch.randn(8, 64).half(), torch.ones(64), 1e-6).provider == "native"
