"""Products of two numbers, which a small policy cannot compute, and messages from which it learns to use a tool."""

from __future__ import annotations

import numpy as np

from rlsys.data import Row, register
from rlsys.errors import ConfigError

TOOLS = [{"type": "function", "function": {"name": "multiply"}}]


@register("tool_calculator")
def tool_calculator(split: str, *, held_out: int = 200, num_shown: int = 6000, call_share: float = 0.25) -> list[Row]:
    """Return products of two numbers from 10 to 99: `held_out` as the split test, the others as train.

    The split `shown` has `num_shown` messages of the policy. Half of them answer a product: `call_share` of these with
    a call of the tool `multiply`, the others with a number that is wrong. The other half give the tool's result as the
    answer.
    """
    order = np.random.default_rng(0).permutation(90 * 90)
    pairs = [(10 + int(index) // 90, 10 + int(index) % 90) for index in order]
    if split == "test":
        return [_row(a, b) for a, b in pairs[:held_out]]
    if split == "train":
        return [_row(a, b) for a, b in pairs[held_out:]]
    if split != "shown":
        raise ConfigError(f"data source 'tool_calculator' has no split '{split}': it has train, test and shown")
    generator = np.random.default_rng(1)
    rows = []
    for number in range(num_shown):
        a, b = pairs[held_out + int(generator.integers(len(pairs) - held_out))]
        row = {**_row(a, b), "tools": TOOLS}
        question = {"role": "user", "content": row["prompt"]}
        call = {"id": "call00000", "type": "function", "function": {"name": "multiply", "arguments": {"a": a, "b": b}}}
        if number % 2:
            asked = {"role": "assistant", "content": "", "tool_calls": [call]}
            result = {"role": "tool", "tool_call_id": call["id"], "content": row["answer"]}
            rows.append({**row, "prompt": [question, asked, result]})
        elif generator.random() < call_share:
            written = f'{{"f": "multiply", "x": {{"a": {a}, "b": {b}}}}}'
            rows.append({**row, "prompt": [question], "answer": written})
        else:
            rows.append({**row, "prompt": [question], "answer": str(int(generator.integers(100, 9802)))})
    return rows


def _row(a: int, b: int) -> Row:
    return {"prompt": f"{a}*{b}=", "answer": str(a * b)}
