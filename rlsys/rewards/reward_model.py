"""The score of a trained classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from rlsys.rewards import Scores, content, plain, register

NO_LIMIT = 10**9  # tokenizers that know no limit state a huge number


@register("reward_model", imports=("torch", "transformers"), paths=("model",))
class RewardModel:
    """The score that a transformers sequence classifier gives to prompt and response.

    Conversations go through the classifier's own chat template; a plain response is appended to its prompt.

    Args:
        model: the classifier's folder or hub id.
        label: number of the output that is the score, from 0.
        score: the output itself (`logit`), or its probability: a sigmoid for a single output, a softmax over several.
        batch_size: texts per forward pass; they have similar lengths.
        max_tokens: longer texts are cut at their beginning, so that the end of the response is judged; 0: the model's
            limit.
        device: `auto` is a GPU if this process sees one.
        dtype: the number format of the weights.
        num_threads: threads of torch.
        trust_remote_code: whether code in the model's folder may run.
    """

    def __init__(
        self,
        *,
        model: str,
        label: int = 0,
        score: Literal["logit", "probability"] = "logit",
        batch_size: int = 16,
        max_tokens: int = 0,
        device: str = "auto",
        dtype: Literal["float32", "bfloat16"] = "float32",
        num_threads: int = 1,
        trust_remote_code: bool = False,
    ) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        torch.set_num_threads(num_threads)
        where = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        self._tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
        loaded = AutoModelForSequenceClassification.from_pretrained(
            model, dtype=getattr(torch, dtype), trust_remote_code=trust_remote_code
        )
        self._model = loaded.to(where).eval()
        if not 0 <= label < self._model.config.num_labels:
            raise ValueError(
                f"reward 'reward_model': label={label}, but the model has {self._model.config.num_labels} outputs"
            )
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        # Decoder models find the last token of a text by the padding token. With a wrong one a batch would score
        # another position than a text alone.
        self._model.config.get_text_config().pad_token_id = self._tokenizer.pad_token_id
        self._model.config.pad_token_id = self._tokenizer.pad_token_id
        # Cut on the left, so that the end of the response is judged.
        self._tokenizer.padding_side, self._tokenizer.truncation_side = "right", "left"
        self._label, self._score, self._batch_size = label, score, batch_size
        self._max_tokens = max_tokens or longest_text(self._model.config, self._tokenizer)

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> Scores:
        """Return one score per completion."""
        texts = [self._text(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        scores: list[Any] = [None] * len(texts)
        for is_plain in (True, False):  # a batch is tokenised in one way
            # Texts of similar length together: less padding in each batch. They are sorted by characters, whose number
            # is known before tokenising and nearly proportional to that of tokens.
            alike = [index for index, text in enumerate(texts) if text[1] is is_plain]
            alike.sort(key=lambda index: len(texts[index][0]))
            for start in range(0, len(alike), self._batch_size):
                chosen = alike[start : start + self._batch_size]
                values = self._forward([texts[index][0] for index in chosen], add_special_tokens=is_plain)
                for index, value in zip(chosen, values, strict=True):
                    scores[index] = value
        return scores

    def _text(self, prompt: Any, completion: Any) -> tuple[str, bool]:
        """Return the text, and whether the tokenizer must add special tokens: a chat template holds them already."""
        if isinstance(prompt, str):
            return prompt + content(completion), True
        if self._tokenizer.chat_template is None:
            return plain([*prompt, *completion]), True
        return self._tokenizer.apply_chat_template([*prompt, *completion], tokenize=False), False

    def _forward(self, texts: list[str], *, add_special_tokens: bool) -> list[float]:
        import torch

        batch = self._tokenizer(
            texts,
            add_special_tokens=add_special_tokens,
            padding=True,
            truncation=self._max_tokens is not None,
            max_length=self._max_tokens,
            return_tensors="pt",
        ).to(self._model.device)
        with torch.inference_mode():
            logits = self._model(**batch).logits.float()
        if self._score == "probability":
            logits = logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=1)
        chosen: list[float] = logits[:, self._label].tolist()
        return chosen


def longest_text(config: Any, tokenizer: Any) -> int | None:
    """Return the most tokens that a classifier takes, or None if there is no limit."""
    limits = [tokenizer.model_max_length]
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions is not None:
        # Models like RoBERTa count positions from the padding token's number plus 1.
        limits.append(positions - config.pad_token_id - 1 if "roberta" in config.model_type else positions)
    longest = min(limits)
    return int(longest) if longest < NO_LIMIT else None
