"""A classifier trained on the spot, as the reward."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForSequenceClassification, RobertaConfig

from rlsys.config.schema import ScoringConfig
from rlsys.models.resolve import load_tokenizer
from rlsys.rewards.entry import bind_reward
from rlsys.rewards.reward_model import longest_text
from rlsys.scoring.call import RewardLog, RewardRequest, call_reward
from rlsys.scoring.decoder import decoder_of
from rlsys.scoring.worker import ScoringSetup, ScoringWorker

GOOD, BAD = ["yes", "oh yes", "yes yes yes", "say yes"], ["no", "oh no", "no no no no", "say nothing"]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """It likes 'yes': two layers, some dozen steps of logistic regression on eight sentences."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForSequenceClassification(config)
    batch = tokenizer([f"Well? {text}" for text in GOOD + BAD], padding=True, return_tensors="pt", padding_side="right")
    labels = torch.tensor([1.0] * len(GOOD) + [0.0] * len(BAD))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(**batch).logits[:, 0], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss) < 0.05
    folder = tmp_path_factory.mktemp("classifier")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def score(completions: list[Any], classifier: Path, prompt: Any = "Well? ", **options: Any) -> list[Any]:
    function = bind_reward({"name": "reward_model", "model": str(classifier), **options})
    count = len(completions)
    return call_reward(function, RewardRequest([prompt] * count, completions, [[1]] * count, {}, 1), RewardLog())


def test_it_tells_good_from_bad(classifier: Path) -> None:
    logits = score(GOOD + BAD, classifier)
    assert min(logits[: len(GOOD)]) > 0 > max(logits[len(GOOD) :])
    probabilities = score(GOOD + BAD, classifier, score="probability")
    assert probabilities == pytest.approx(torch.tensor(logits).sigmoid().tolist())


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_the_batch_changes_nothing(classifier: Path, batch_size: int) -> None:
    alone = [score([text], classifier)[0] for text in GOOD + BAD]
    assert score(GOOD + BAD, classifier, batch_size=batch_size) == pytest.approx(alone, abs=1e-5)


def test_a_configuration_with_another_padding_token_changes_nothing(classifier: Path, tmp_path: Path) -> None:
    shutil.copytree(classifier, tmp_path / "other")
    config = json.loads((classifier / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps({**config, "pad_token_id": 9}))
    assert score(GOOD + BAD, tmp_path / "other") == pytest.approx(score(GOOD + BAD, classifier), abs=1e-5)


def test_the_longest_text_that_a_classifier_takes(tokenizer: Any) -> None:
    qwen, roberta = Qwen2Config(max_position_embeddings=64), RobertaConfig(max_position_embeddings=514)
    unknown = SimpleNamespace(model_max_length=10**30)
    qwen.pad_token_id = 0
    assert longest_text(qwen, unknown) == 64
    assert longest_text(qwen, SimpleNamespace(model_max_length=50)) == 50
    assert longest_text(roberta, unknown) == 512


def test_conversations_go_through_the_template(classifier: Path, tokenizer: Any) -> None:
    prompt, answer = [{"role": "user", "content": "Well?"}], [{"role": "assistant", "content": "oh yes"}]
    (found,) = score([answer], classifier, prompt)
    model = Qwen2ForSequenceClassification.from_pretrained(classifier).eval()
    ids = tokenizer("<user>Well?<end><assistant>oh yes<end>", return_tensors="pt")
    with torch.no_grad():
        assert found == pytest.approx(float(model(**ids).logits), abs=1e-5)


def test_plain_and_conversational_prompts_in_one_call(classifier: Path, tmp_path: Path) -> None:
    """Many tokenizers begin every text with a token of their own; a chat template has written it already."""
    shutil.copytree(classifier, tmp_path / "begins")
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    tokenizer._tokenizer.post_processor = TemplateProcessing("<system> $A", special_tokens=[("<system>", 4)])
    tokenizer.save_pretrained(tmp_path / "begins")
    prompts: list[Any] = ["Well? ", [{"role": "user", "content": "Well?"}]] * 2
    completions: list[Any] = ["oh yes", [{"role": "assistant", "content": "oh yes"}]] * 2
    alone = [score([text], tmp_path / "begins", prompt)[0] for text, prompt in zip(completions, prompts, strict=True)]
    function = bind_reward({"name": "reward_model", "model": str(tmp_path / "begins")})
    request = RewardRequest(prompts, completions, [[1]] * 4, {}, 1)
    assert call_reward(function, request, RewardLog()) == pytest.approx(alone, abs=1e-5)
    assert alone[0] != pytest.approx(score(["oh yes"], classifier)[0], abs=1e-5)  # the token does count


def test_the_end_of_a_long_text_is_what_is_judged(classifier: Path) -> None:
    long = score(["no " * 60 + "yes"], classifier, max_tokens=9)
    assert long == pytest.approx(score(["no no yes"], classifier, prompt=""), abs=1e-5)


def test_a_label_that_is_not_there(classifier: Path) -> None:
    with pytest.raises(ValueError, match="label=1, but the model has 1"):
        score(["a"], classifier, label=1)


def test_mixed_with_a_function_by_weight(classifier: Path) -> None:
    """In a scoring worker, each in a process of its own."""
    specs = [
        {"name": "reward_model", "model": str(classifier), "score": "probability", "weight": 2.0},
        {"name": "exact_match", "weight": 0.5},
    ]
    worker = ScoringWorker(
        ScoringSetup(ScoringConfig(), specs, decoder_of(load_tokenizer(str(classifier)), str(classifier)))
    )
    worker.start()
    request = RewardRequest(["Well? "] * 2, ["oh yes", "no"], [[1], [1]], {"answer": ["oh yes", "x"]}, 1)
    rewards, _ = worker._score(request)
    expected = score(["oh yes", "no"], classifier, score="probability")
    assert [reward.total for reward in rewards] == pytest.approx([2 * expected[0] + 0.5, 2 * expected[1]], abs=1e-5)
    for process in worker._processes.values():
        process.close()
