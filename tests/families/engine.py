"""Log-probabilities of given tokens from an engine on a folder: `python -m tests.families.engine FOLDER ROWS OUTPUT`.

ROWS is a file with a JSON list of lists of token ids. OUTPUT gets a JSON list of their log-probabilities, from the
second token of each on.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main() -> None:
    """Read the rows, start the engine, write the log-probabilities."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # starting two more processes took as long as all the rest
    from vllm import LLM, SamplingParams

    folder, rows_file, output = sys.argv[1:]
    rows = json.loads(Path(rows_file).read_text())
    engine = LLM(
        folder,
        skip_tokenizer_init=True,
        dtype="float32",
        max_model_len=128,
        enforce_eager=True,
        kv_cache_memory_bytes=2**27,
        generation_config="vllm",
        worker_extension_cls="rlsys.rollout.engine.process.EngineProcess",  # with its repairs
    )
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
    answers = engine.generate([{"prompt_token_ids": row} for row in rows], params, use_tqdm=False)
    logprobs = [
        [given[token].logprob for given, token in zip(answer.prompt_logprobs[1:], row[1:], strict=True)]
        for answer, row in zip(answers, rows, strict=True)
    ]
    Path(output).write_text(json.dumps(logprobs))


if __name__ == "__main__":
    main()
