"""Small chat templates, each with the habits of a family of models, and tokenizers with them."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from tests.support.tiny_model import TEMPLATE, byte_tokenizer

# Functions, calls and thoughts in ChatML.
_CALLS = (
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
)
_THOUGHTS = "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>\n{% endif %}"
_CHATML_TOOLS = (
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}"
    "<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    + _THOUGHTS
    + "{{ m.content }}"
    + _CALLS
    + ""
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# Trims every content.
_LLAMA = (
    "{% for m in messages %}<|header|>{{ m.role }}<|/header|>\n\n{{ m.content | trim }}<|eot|>"
    "{% endfor %}{% if add_generation_prompt %}<|header|>assistant<|/header|>\n\n{% endif %}"
)

# No system message, roles in turns, its own name for the assistant; trims; eos is another token.
_GEMMA = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}"
    "{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)

# Drops the thoughts of answers before the last question.
_QWEN = (
    "{% set ns = namespace(last=-1) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}"
    "{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if loop.index0 > ns.last %}" + _THOUGHTS + "{% endif %}"
    "{{ m.content }}" + _CALLS + "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# No token ends a turn.
_VICUNA = (
    "{% for m in messages %}{{ m.role | upper }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)

# Ends the whole text as well, after the end of the last turn.
_PHI = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """A template, the tokens that it needs, and the texts that it writes around a turn.

    header, end: before and after an answer; trims: content loses white space at its ends; takes:
    parts of a chat that the template writes, among system, tools, thoughts.
    """

    template: str
    tokens: tuple[str, ...]
    header: str
    end: str
    eos: str = "<|im_end|>"
    trims: bool = False
    takes: frozenset[str] = frozenset({"system"})


_IM = ("<|im_start|>assistant\n", "<|im_end|>")
_ALL = frozenset({"system", "tools", "thoughts"})
FAMILIES = {
    "chatml": Family(TEMPLATE, (), *_IM),
    "chatml-tools": Family(_CHATML_TOOLS, (), *_IM, takes=_ALL),
    "llama": Family(
        _LLAMA,
        ("<|header|>", "<|/header|>", "<|eot|>"),
        "<|header|>assistant<|/header|>\n\n",
        "<|eot|>",
        "<|eot|>",
        trims=True,
    ),
    "gemma": Family(
        _GEMMA,
        ("<start_of_turn>", "<end_of_turn>", "<eos>"),
        "<start_of_turn>model\n",
        "<end_of_turn>",
        "<eos>",
        trims=True,
        takes=frozenset(),
    ),
    "qwen": Family(_QWEN, (), *_IM, takes=_ALL - {"tools"}),
    "vicuna": Family(_VICUNA, ("</s>",), "ASSISTANT: ", "</s>", "</s>"),
    "phi": Family(
        _PHI,
        ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>"),
        "<|assistant|>\n",
        "<|end|>",
        "<|endoftext|>",
    ),
}


def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    """A byte tokenizer with the template of a family."""
    family, made = FAMILIES[name], byte_tokenizer()
    made.add_special_tokens({"additional_special_tokens": list(family.tokens)})
    made.eos_token = family.eos
    made.chat_template = family.template
    return made
