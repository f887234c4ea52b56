"""What an engine's process finds out about a broadcast, with a loader that the test breaks."""

from __future__ import annotations

import pytest
import torch

from rlsys.weights.arrival import Arrivals
from rlsys.weights.checksum import checksum

Tensors = dict[str, torch.Tensor]


def weights(step: int) -> Tensors:
    """The learner's tensors: two layers with q and k, an embedding, and the tied model's only output layer."""
    generator = torch.Generator().manual_seed(step)
    names = [f"model.layers.{layer}.attn.{part}.weight" for layer in range(2) for part in ("q", "k")]
    return {name: torch.randn(4, 6, generator=generator) for name in ["model.embed.weight", *names]}


class Engine:
    """An engine that stacks q and k, and has a part of its own that no learner knows."""

    def __init__(self) -> None:
        self.arrivals = Arrivals()
        self.held = {"vision.blocks.0.weight": torch.ones(3), **self._stacked(weights(0))}

    def receive(self, sent: Tensors, *, unloaded: str = "nothing", unsent: str = "nothing") -> dict[str, object]:
        self.arrivals.begin(self.held)
        named = [(name, tensor) for name, tensor in sent.items() if not name.startswith(unsent)]
        loaded = self._stacked(dict(named))
        self.arrivals.add(named, loaded, checksum(torch.cat([t.view(-1).view(torch.uint8) for _, t in named])))
        self.held |= {name: tensor for name, tensor in loaded.items() if not name.startswith(unloaded)}
        self.arrivals.finish(self.held)
        return self.arrivals.report()

    @staticmethod
    def _stacked(sent: Tensors) -> Tensors:
        held = {name: tensor for name, tensor in sent.items() if ".attn." not in name}
        for layer in range(2):
            parts = [sent[n] for n in sent if f"layers.{layer}.attn." in n]
            if len(parts) == 2:
                held[f"model.layers.{layer}.attn.qk.weight"] = torch.cat(parts)
        return held


def test_a_whole_broadcast_is_found_again_in_the_parameters() -> None:
    engine = Engine()
    for step in (0, 1):
        report = engine.receive(weights(step))
        assert (report["missing"], report["different"], report["compared_fraction"]) == ([], [], 1.0)


@pytest.mark.parametrize("layer", ["model.layers.1.", "model.embed"])
def test_bytes_that_the_loader_did_not_use_are_found(layer: str) -> None:
    engine = Engine()
    engine.receive(weights(0))
    found = engine.receive(weights(1), unloaded=layer)["different"]
    assert found == ["layer 1" if "layers" in layer else "outside of the layers"]


def test_the_smallest_change_is_found() -> None:
    """Adam's step at a learning rate of 1e-6, in bfloat16: most weights do not change at all."""
    engine = Engine()
    before = {name: tensor.to(torch.bfloat16) for name, tensor in weights(0).items()}
    engine.receive(before)
    after = {name: (tensor + 1e-6).to(torch.bfloat16) for name, tensor in weights(0).items()}
    changed = sum(int((after[name] != before[name]).sum()) for name in after)
    assert changed < 3
    after["model.layers.0.attn.q.weight"] = before["model.layers.0.attn.q.weight"].clone()
    after["model.layers.0.attn.q.weight"][1, 1] *= 1 + 2**-7  # one number, by one unit in the last place
    assert engine.receive(after, unloaded="model.layers.0.")["different"] == ["layer 0"]


@pytest.mark.parametrize("name", ["model.layers.1.attn.q", "model.embed"])
def test_what_the_first_broadcast_loaded_must_be_loaded_again(name: str) -> None:
    engine = Engine()
    engine.receive(weights(0))
    missing = engine.receive(weights(1), unsent=name)["missing"]
    assert missing == ["model.layers.1.attn.qk.weight" if "layers" in name else "model.embed.weight"]


def test_a_layer_with_a_gap_is_found_in_the_first_broadcast() -> None:
    engine = Engine()
    engine.held["model.layers.1.norm.weight"] = torch.ones(3)
    assert engine.receive(weights(0))["missing"] == ["model.layers.1.norm.weight"]


def test_layers_that_the_engine_keeps_in_another_form_are_not_compared() -> None:
    """The CPU backend packs matrices and keeps nothing else of them."""
    engine = Engine()
    for step in (0, 1):
        engine.arrivals.begin(engine.held)
        sent = weights(step)
        engine.arrivals.add(list(sent.items()), engine._stacked(sent), torch.tensor(0))
        plain = {name: held for name, held in (engine.held | sent).items() if ".attn." not in name}
        engine.arrivals.finish(plain)
        report = engine.arrivals.report()
        assert (report["missing"], report["different"], report["compared_fraction"]) == ([], [], 0.2)


def test_a_loader_that_does_not_say_what_it_loaded_is_not_judged() -> None:
    engine = Engine()
    engine.arrivals.begin(engine.held)
    engine.arrivals.add(list(weights(0).items()), None, torch.tensor(0))
    engine.arrivals.finish(engine.held)
    report = engine.arrivals.report()
    assert (report["missing"], report["different"], report["compared_fraction"]) == ([], [], 0.0)


def test_a_layer_that_the_engine_pads_is_not_compared() -> None:
    """After a reload the padding is whatever was in that memory."""
    engine = Engine()
    for step in (0, 1):
        engine.arrivals.begin(engine.held)
        sent = weights(step)
        loaded = engine._stacked(sent)
        engine.arrivals.add(list(sent.items()), loaded, torch.tensor(0))
        padding = torch.full((2, 6), float(step))  # zeros after the first load
        loaded["model.layers.0.attn.qk.weight"] = torch.cat([loaded["model.layers.0.attn.qk.weight"], padding])
        engine.arrivals.finish(engine.held | loaded)
        report = engine.arrivals.report()
        assert (report["missing"], report["different"], report["compared_fraction"]) == ([], [], 0.6)


def test_a_layer_with_two_dtypes_is_compared() -> None:
    """A router is kept in float32 beside experts in bfloat16."""
    engine = Engine()
    for step, unloaded in ((0, "nothing"), (1, "nothing"), (2, "model.layers.1.gate")):
        sent = {name: tensor.to(torch.bfloat16) for name, tensor in weights(step).items()}
        sent["model.layers.1.gate.weight"] = weights(step)["model.embed.weight"]
        report = engine.receive(sent, unloaded=unloaded)
        assert report["different"] == ([] if unloaded == "nothing" else ["layer 1"])
        assert report["compared_fraction"] == (1.0 if unloaded == "nothing" else pytest.approx(3 / 7))
