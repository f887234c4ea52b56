"""vLLM's loaders know every name on the wire, and an engine computes after a broadcast what the learner computes.

Each family gets an engine in a process of its own, without Ray. The reload is the one of a run; only the channel is
left out, its buckets come straight from the sender.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlsys.weights.change import EngineChange, Scored
from tests.fakes.workers import FORKED

COMMON: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 64}
GROUPS: dict[str, Any] = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
# vLLM has MLA kernels for 512 + 64.
RANKS = {"q_lora_rank": 32, "kv_lora_rank": 512}
HEADS = {**RANKS, "qk_rope_head_dim": 64, "qk_nope_head_dim": 64, "v_head_dim": 64}
NOAUX = {"topk_method": "noaux_tc", "scoring_func": "sigmoid"}  # in the hub's config.json; vLLM needs them
WINDOWS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 32}
FAMILIES: dict[str, dict[str, Any]] = {
    "Qwen2": {"tie_word_embeddings": True},
    # The engine pads the experts' 48 rows to 64.
    "Qwen3Moe": {"num_experts": 4, "head_dim": 32, **EXPERTS, "moe_intermediate_size": 48},
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 64},
    "DeepseekV3": {**GROUPS, **HEADS, **EXPERTS, "n_shared_experts": 1, **NOAUX},
    "Glm4Moe": {**GROUPS, **EXPERTS, "head_dim": 32, "n_shared_experts": 1},
    "GptOss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 32, "intermediate_size": 64, **WINDOWS},
}
LONG = ("Glm4Moe", "GptOss", "Mixtral")
TOKENS = list(range(2, 50))
PARAMS = [pytest.param(name, marks=[pytest.mark.long] if name in LONG else []) for name in FAMILIES]


class Pair:
    """A model in float32 and an engine that loaded it."""

    def __init__(self, family: str, folder: str) -> None:
        import torch
        import transformers
        from vllm import LLM

        torch.manual_seed(0)
        config = getattr(transformers, f"{family}Config")(**COMMON | FAMILIES[family])
        made = getattr(transformers, f"{family}ForCausalLM")(config).float()
        made.save_pretrained(folder)
        self.hf = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._llm = LLM(
            folder,
            worker_extension_cls="rlsys.rollout.engine.process.EngineProcess",  # with its repairs
            skip_tokenizer_init=True,
            dtype="float32",
            max_model_len=64,
            enforce_eager=True,
            kv_cache_memory_bytes=2**26,
            seed=0,
        )
        engine: Any = self._llm.llm_engine
        self.vllm_config = engine.vllm_config
        self.model = engine.model_executor.driver_worker.worker.model_runner.model
        self.engine = self._bucket_engine()

    def _bucket_engine(self) -> Any:
        import torch

        from rlsys.rollout.engine.receiver import BucketEngine, JoinInfo
        from rlsys.weights.sender import WeightSender

        sender = WeightSender(self.hf, torch.float32, 0, 2**16)

        class Direct(BucketEngine):
            """Buckets straight from the sender."""

            def _received(self, update_info: Any) -> Any:
                yield from sender._packed(None, [])

        engine = Direct(self.vllm_config.weight_transfer_config, self.vllm_config, torch.device("cpu"), self.model)
        engine.init_transfer_engine(JoinInfo(bucket_bytes=2**16, is_checked=True))
        return engine

    def broadcast(self) -> dict[str, Any]:
        """Send the model's weights to the engine, and return the engine's report."""
        import torch
        from vllm.config import set_current_vllm_config

        with set_current_vllm_config(self.vllm_config), torch.no_grad():
            self.engine.start_weight_update()
            self.engine.receive_weights(None)
            self.engine.finish_weight_update()
        self._llm.reset_prefix_cache()
        report: dict[str, Any] = self.engine.arrivals.report()
        return report

    def train(self, size: float) -> None:
        """Move every parameter a little."""
        import torch

        with torch.no_grad():
            for parameter in self.hf.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=size)

    def step(self, lr: float) -> None:
        """Take a step as Adam's first: every weight moves by the learning rate."""
        import torch

        self.hf.zero_grad()
        scores = self.hf(torch.tensor([TOKENS])).logits[0].log_softmax(-1)
        scores[:-1].gather(1, torch.tensor(TOKENS[1:])[:, None]).mean().backward()
        with torch.no_grad():
            for parameter in self.hf.parameters():
                parameter.add_(parameter.grad.sign(), alpha=lr)

    def ignore(self, part: str) -> None:
        """Let the layers whose name ends with `part` go on multiplying with their old packed copies."""
        # Taken before the reload: it packs each layer as soon as the layer's weights have arrived.
        kept = {module: module.cpu_linear for name, module in self.model.named_modules() if name.endswith(part)}
        assert kept
        whole = self.engine.finish_weight_update

        def finish() -> None:
            whole()
            for module, packed in kept.items():
                assert module.cpu_linear is not packed
                module.cpu_linear = packed

        self.engine.finish_weight_update = finish

    def difference(self) -> float:
        """Largest difference of log-probabilities between the model and the engine."""
        return float(np.abs(self.learned() - self.served()).max())

    def learned(self) -> np.ndarray:
        import torch

        with torch.no_grad():
            found = self.hf(torch.tensor([TOKENS])).logits[0].float().log_softmax(-1)
        return np.array([float(found[place, token]) for place, token in enumerate(TOKENS[1:])])

    def served(self) -> np.ndarray:
        from vllm import SamplingParams

        params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        (answer,) = self._llm.generate([{"prompt_token_ids": TOKENS}], params, use_tqdm=False)
        found: Any = answer.prompt_logprobs
        return np.array([found[place + 1][token].logprob for place, token in enumerate(TOKENS[1:])])


def _child(work: Callable[[Pair], Any], family: str, folder: str, pipe: Any) -> None:
    os.environ |= {
        "CUDA_VISIBLE_DEVICES": "",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    pipe.send(work(Pair(family, folder)))
    pipe.close()
    os._exit(0)  # vLLM's own threads would hold the process


def apart(work: Callable[[Pair], Any], family: str, folder: Path) -> Any:
    """Return `work(pair)`, done in a process of its own."""
    ours, theirs = FORKED.Pipe(duplex=False)
    child = FORKED.Process(target=_child, args=(work, family, str(folder), theirs))
    child.start()
    theirs.close()
    try:
        return ours.recv()
    finally:
        child.join(60.0)
        child.kill()


def _broadcasts(pair: Pair) -> list[tuple[float, float, dict[str, Any]]]:
    before = pair.learned()
    found: list[tuple[float, float, dict[str, Any]]] = []
    for size in (0.0, 0.02, 0.02):
        pair.train(size)
        report = pair.broadcast()
        found.append((pair.difference(), float(np.abs(pair.learned() - before).max()), report))
    return found


@pytest.mark.parametrize("family", PARAMS)
def test_an_engine_computes_what_it_was_sent(family: str, tmp_path: Path) -> None:
    found = apart(_broadcasts, family, tmp_path)
    bound = 1e-5
    assert max(difference for difference, _, _ in found) < bound
    # The weights moved: the agreement is not that of two models that never changed.
    assert min(moved for _, moved, _ in found[1:]) > 10 * bound
    for _, _, report in found:
        assert (report["missing"], report["different"]) == ([], [])
        assert 0 < report["compared_fraction"] < 1
        assert len(report["checksums"]) > 1


def _faulty(part: str, lr: float, pair: Pair) -> list[tuple[str | None, dict[str, Any]]]:
    change, found = EngineChange("float32"), []
    for version in range(4):
        if version == 3:
            pair.ignore(part)
        report = pair.broadcast()
        found.append((change.judge(Scored(version, pair.learned(), pair.served())), report))
        pair.step(lr)
    return found


# At 1e-6 the output layer changes a log-probability by 2e-4, the smallest matrix by 7e-6, which is near to rounding.
@pytest.mark.parametrize(
    ("part", "lr"), [("lm_head", 1e-6), pytest.param("layers.1.mlp.down_proj", 1e-5, marks=pytest.mark.long)]
)
def test_a_layer_that_keeps_its_old_copy_is_caught(part: str, lr: float, tmp_path: Path) -> None:
    """The bytes arrive and are loaded, but the packed copy that the engine multiplies with is old."""
    found = apart(partial(_faulty, part, lr), "Qwen2", tmp_path)
    assert [problem for problem, _ in found[:3]] == [None] * 3
    problem, report = found[3]
    assert "since version 2 " in str(problem)
    assert "it does not use all of the weights it received" in str(problem)
    assert (report["missing"], report["different"]) == ([], [])
