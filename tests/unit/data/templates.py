"""Chat templates of common model families, rebuilt from their documented formats, with tiny tokenizers."""

# ruff: noqa: E501  (a line break in a template would be text)

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

HERMES_CALLS = """{%- for call in message.tool_calls %}{% if message.content or not loop.first %}{{ '\\n' }}{% endif -%}
<tool_call>{{ '\\n' }}{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}{{ '\\n' -}}
</tool_call>{%- endfor -%}"""
CHATML_TOOLS = """{%- if tools %}<|im_start|>system{{ '\\n' }}{% if messages[0].role == 'system' %}{{ messages[0].content -}}
{{ '\\n\\n' }}{% endif %}# Tools{{ '\\n' }}<tools>{% for tool in tools %}{{ '\\n' }}{{ tool | tojson }}{% endfor %}{{ '\\n' -}}
</tools>{{ '\\n' }}Answer with <tool_call> and JSON.<|im_end|>{{ '\\n' }}{% elif messages[0].role == 'system' -%}
<|im_start|>system{{ '\\n' + messages[0].content }}<|im_end|>{{ '\\n' }}{% endif -%}"""
# A run of results is one message of the user.
CHATML_RESULT = """{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}<|im_start|>user{% endif %}{{ '\\n' -}}
<tool_response>{{ '\\n' + message.content + '\\n' }}</tool_response>{% if loop.last or messages[loop.index0 + 1].role != 'tool' -%}
<|im_end|>{{ '\\n' }}{% endif -%}"""
QWEN25 = f"""{CHATML_TOOLS}{{%- for message in messages %}}{{% if message.role == 'tool' %}}{CHATML_RESULT}
{{%- elif message.role != 'system' or not loop.first %}}<|im_start|>{{{{ message.role + '\\n' + (message.content or '') }}}}
{{%- if message.tool_calls %}}{HERMES_CALLS}{{% endif %}}<|im_end|>{{{{ '\\n' }}}}{{% endif %}}{{% endfor -%}}
{{% if add_generation_prompt %}}<|im_start|>assistant{{{{ '\\n' }}}}{{% endif %}}"""
# Thoughts are shown behind the last question alone.
QWEN3 = f"""{CHATML_TOOLS}{{%- set ns = namespace(last=0) %}}{{% for message in messages %}}{{% if message.role == 'user' -%}}
{{% set ns.last = loop.index0 %}}{{% endif %}}{{% endfor %}}{{% for message in messages %}}{{% if message.role == 'tool' %}}{CHATML_RESULT}
{{%- elif message.role == 'assistant' %}}<|im_start|>assistant{{{{ '\\n' }}}}{{% set content = message.content or '' %}}
{{%- if '</think>' in content and loop.index0 < ns.last %}}{{% set content = content.split('</think>')[-1].lstrip('\\n') %}}{{% endif %}}
{{{{- content }}}}{{% if message.tool_calls %}}{HERMES_CALLS}{{% endif %}}<|im_end|>{{{{ '\\n' }}}}
{{%- elif message.role != 'system' or not loop.first %}}<|im_start|>{{{{ message.role + '\\n' + message.content }}}}<|im_end|>{{{{ '\\n' }}}}
{{%- endif %}}{{% endfor %}}{{% if add_generation_prompt %}}<|im_start|>assistant{{{{ '\\n' }}}}{{% if enable_thinking is defined and enable_thinking is false -%}}
<think>{{{{ '\\n\\n' }}}}</think>{{{{ '\\n\\n' }}}}{{% endif %}}{{% endif %}}"""
LLAMA3 = """<|begin_of_text|>{% for message in messages %}{% set role = 'ipython' if message.role == 'tool' else message.role -%}
<|start_header_id|>{{ role }}<|end_header_id|>{{ '\\n\\n' }}{% if loop.first and tools %}Answer with JSON of the form {"name": ..., "parameters": ...}.
{%- for tool in tools %}{{ '\\n' }}{{ tool | tojson }}{% endfor %}{{ '\\n\\n' }}{% endif %}{% if message.tool_calls -%}
{% if message.tool_calls | length > 1 %}{{ raise_exception('only one call at a time') }}{% endif -%}
{% set call = message.tool_calls[0].function %}{"name": "{{ call.name }}", "parameters": {{ call.arguments | tojson }}}
{%- elif message.role == 'tool' %}{{ message.content | tojson }}{% else %}{{ message.content | trim }}{% endif %}<|eot_id|>{% endfor -%}
{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>{{ '\\n\\n' }}{% endif %}"""
GEMMA = """<bos>{% for message in messages %}{% if message.role not in ('user', 'assistant') %}{{ raise_exception('no such role') }}{% endif -%}
{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif -%}
<start_of_turn>{{ 'model' if message.role == 'assistant' else 'user' }}{{ '\\n' + message.content | trim }}<end_of_turn>{{ '\\n' }}{% endfor -%}
{% if add_generation_prompt %}<start_of_turn>model{{ '\\n' }}{% endif %}"""
MISTRAL = """<s>{% for message in messages %}{% if message.role == 'user' %}{% if tools and loop.index0 == 0 -%}
[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}[INST] {{ message.content }}[/INST]{% elif message.tool_calls -%}
[TOOL_CALLS] [{% for call in message.tool_calls %}{% if call.id | length != 9 %}{{ raise_exception('ids have 9 characters') }}{% endif -%}
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}, "id": "{{ call.id }}"}{% if not loop.last %}, {% endif %}{% endfor -%}
]</s>{% elif message.role == 'assistant' %} {{ message.content | trim }}</s>{% elif message.role == 'tool' -%}
{% if not messages[loop.index0 - 1].tool_calls and messages[loop.index0 - 1].role != 'tool' %}{{ raise_exception('a result without a call') }}{% endif -%}
{% if message.tool_call_id | length != 9 %}{{ raise_exception('ids have 9 characters') }}{% endif -%}
[TOOL_RESULTS] {"content": {{ message.content }}, "call_id": "{{ message.tool_call_id }}"}[/TOOL_RESULTS]{% endif %}{% endfor %}"""
PHI4 = """{% for message in messages %}<|{{ message.role }}|>{% if loop.first and tools -%}
{{ message.content if message.role == 'system' else '' }}<|tool|>{{ tools | tojson }}<|/tool|>{% if message.role != 'system' %}{{ message.content }}{% endif -%}
{% elif message.tool_calls %}<|tool_call|>[{% for call in message.tool_calls -%}
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}{% if not loop.last %}, {% endif %}{% endfor %}]<|/tool_call|>
{%- else %}{{ message.content }}{% endif %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""
SMOLLM3 = f"""<|im_start|>system{{{{ '\\n' }}}}Reasoning: off{{% if tools %}}{{{{ '\\n' }}}}### Tools{{% for tool in tools %}}{{{{ '\\n' }}}}{{{{ tool | tojson }}}}{{% endfor %}}{{% endif -%}}
<|im_end|>{{{{ '\\n' }}}}{{% for message in messages %}}{{% if message.role == 'tool' %}}<|im_start|>user{{{{ '\\n' + message.content }}}}<|im_end|>{{{{ '\\n' }}}}
{{%- elif message.role != 'system' %}}<|im_start|>{{{{ message.role + '\\n' + (message.content or '') }}}}{{% if message.tool_calls %}}{HERMES_CALLS}{{% endif -%}}
<|im_end|>{{{{ '\\n' }}}}{{% endif %}}{{% endfor %}}{{% if add_generation_prompt %}}<|im_start|>assistant{{{{ '\\n' }}}}{{% endif %}}"""
R1_CALL = """<｜tool▁call▁begin｜>{{ call.type }}<｜tool▁sep｜>{{ call.function.name }}{{ '\\n```json\\n' -}}
{{ call.function.arguments | tojson }}{{ '\\n```' }}<｜tool▁call▁end｜>"""
# Earlier answers lose their thoughts, and the prompt opens a new one.
R1 = f"""<｜begin▁of▁sentence｜>{{% if tools %}}{{{{ tools | tojson }}}}{{% endif %}}{{% for message in messages %}}{{% if message.role == 'system' %}}{{{{ message.content }}}}
{{%- elif message.role == 'user' %}}<｜User｜>{{{{ message.content }}}}{{% elif message.tool_calls -%}}
<｜Assistant｜><｜tool▁calls▁begin｜>{{% for call in message.tool_calls %}}{{% if not loop.first %}}{{{{ '\\n' }}}}{{% endif %}}{R1_CALL}{{% endfor -%}}
<｜tool▁calls▁end｜><｜end▁of▁sentence｜>{{% elif message.role == 'assistant' %}}<｜Assistant｜>{{{{ message.content.split('</think>')[-1] }}}}<｜end▁of▁sentence｜>
{{%- else %}}<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>{{{{ message.content }}}}<｜tool▁output▁end｜><｜tool▁outputs▁end｜>{{% endif %}}{{% endfor -%}}
{{% if add_generation_prompt %}}<｜Assistant｜><think>{{{{ '\\n' }}}}{{% endif %}}"""


@dataclass(frozen=True)
class Family:
    """One family: its template, its special tokens, and what its tokens are like."""

    template: str
    special: tuple[str, ...]
    end: str  # token that ends the policy's message
    has_tools: bool = True
    keeps_answers: bool = True
    is_metaspace: bool = False  # a word's tokens begin with the space before it, of which a text's beginning gets one
    has_parallel_calls: bool = True


R1_TOKENS = ("calls▁begin", "calls▁end", "call▁begin", "call▁end", "sep", "outputs▁begin", "outputs▁end")
FAMILIES = {
    "qwen2.5": Family(QWEN25, ("<|im_start|>", "<|im_end|>", "<|endoftext|>"), "<|im_end|>"),
    "qwen3": Family(QWEN3, ("<|im_start|>", "<|im_end|>", "<|endoftext|>"), "<|im_end|>", keeps_answers=False),
    "llama3": Family(
        LLAMA3,
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|eot_id|>",
        has_parallel_calls=False,
    ),
    "gemma": Family(
        GEMMA, ("<bos>", "<start_of_turn>", "<end_of_turn>"), "<end_of_turn>", has_tools=False, is_metaspace=True
    ),
    "mistral": Family(
        MISTRAL,
        (
            *("<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
            *("[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
        ),
        "</s>",
        is_metaspace=True,
    ),
    "phi4": Family(
        PHI4,
        (
            *("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|tool|>", "<|/tool|>"),
            *("<|tool_call|>", "<|/tool_call|>"),
        ),
        "<|end|>",
    ),
    "smollm3": Family(SMOLLM3, ("<|im_start|>", "<|im_end|>"), "<|im_end|>"),
    "r1": Family(
        R1,
        (
            *("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
            *(f"<｜tool▁{name}｜>" for name in (*R1_TOKENS, "output▁begin", "output▁end")),
        ),
        "<｜end▁of▁sentence｜>",
        keeps_answers=False,
    ),
}
CORPUS = ["what is the sum of numbers and the answer", "look up the word sun: a star", '{"name": "look_up"} 1234567890']


@cache
def tokenizer_of(name: str) -> Any:
    """Return a tokenizer with a family's template and special tokens, and merges of a few words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    family = FAMILIES[name]
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=family.is_metaspace))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if family.is_metaspace:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        backend.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        alphabet = [chr(number) for number in range(33, 127)] + ["\n", "▁"]
    else:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
    special = ["<unk>", *([f"<0x{byte:02X}>" for byte in range(256)] if family.is_metaspace else [])]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    tokenizer.add_special_tokens({"additional_special_tokens": list(family.special)})
    tokenizer.chat_template = family.template
    return tokenizer
