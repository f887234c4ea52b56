"""The oneDNN linear layer is `nn.Linear` with another kernel: the same values, the same gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rlsys.models.kernels import linear
from rlsys.models.kernels.linear import OneDnnLinear, use_onednn

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this PyTorch build has no oneDNN: nn.Linear is left alone"
)


@pytest.fixture(autouse=True)
def _faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use oneDNN whatever this processor has."""
    monkeypatch.setattr(linear, "IS_FASTER", True)


def pair(out_features: int, in_features: int, bias: bool) -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    plain = nn.Linear(in_features, out_features, bias=bias)
    fast = nn.Sequential(nn.Linear(in_features, out_features, bias=bias))
    fast.load_state_dict({f"0.{name}": value for name, value in plain.state_dict().items()})
    use_onednn(fast)
    assert isinstance(fast[0], OneDnnLinear)
    return plain, fast[0]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("shape", "out_features"),
    [((5, 7, 16), 48), ((5, 7, 48), 16), ((9, 16), 16), ((1, 16), 3)],
    ids=["wider", "narrower", "rows only", "one row"],
)
def test_values_and_gradients_are_those_of_nn_linear(shape: tuple[int, ...], out_features: int, bias: bool) -> None:
    plain, fast = pair(out_features, shape[-1], bias)
    data = torch.randn(shape)
    inputs = [data.clone().requires_grad_(), data.clone().requires_grad_()]
    outputs = [layer(given) for layer, given in zip((plain, fast), inputs, strict=True)]
    weights = torch.randn_like(outputs[0])
    for output in outputs:
        (output * weights).sum().backward()

    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(fast.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-5)


def test_a_gradient_that_is_one_number_repeated_is_multiplied_right() -> None:
    plain, fast = pair(6, 4, bias=True)
    data = torch.randn(3, 4)
    plain(data).sum().backward()  # sum() hands back an expanded scalar, whose strides are 0
    fast(data).sum().backward()
    torch.testing.assert_close(fast.weight.grad, plain.weight.grad)
    torch.testing.assert_close(fast.bias.grad, plain.bias.grad)


def test_frozen_weights_and_inputs_get_no_gradient() -> None:
    _, fast = pair(6, 4, bias=False)
    fast.weight.requires_grad_(False)
    given = torch.randn(3, 4, requires_grad=True)
    fast(given).sum().backward()
    assert fast.weight.grad is None
    assert given.grad is not None
    fast.weight.requires_grad_(True)
    fast(torch.randn(3, 4)).sum().backward()
    assert fast.weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_take_pytorchs_own_path(dtype: torch.dtype) -> None:
    plain, fast = pair(6, 4, bias=True)
    data = torch.randn(3, 4, dtype=dtype)
    assert torch.equal(fast.to(dtype)(data), plain.to(dtype)(data))


def test_no_rows_give_no_rows() -> None:
    _, fast = pair(6, 4, bias=True)
    output = fast(torch.randn(0, 4))
    assert output.shape == (0, 6)
    output.sum().backward()


def test_subclasses_are_left_alone() -> None:
    class Special(nn.Linear):
        pass

    model = nn.Sequential(Special(2, 2))
    use_onednn(model)
    assert type(model[0]) is Special


def test_processors_without_avx512_keep_what_is_faster_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "IS_FASTER", False)
    model = nn.Sequential(nn.Linear(4, 4))
    use_onednn(model)
    assert type(model[0]) is nn.Linear
