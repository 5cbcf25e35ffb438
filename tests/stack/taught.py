"""A tiny model that was taught a few conversations by heart: it thinks, answers and calls tools in
a format of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from worker.demo import demo_model_path

TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t.function.name }} {% endfor %}"
    "<|im_end|>\n{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n'
    "</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n"
    "{% if enable_thinking is defined and not enable_thinking %}</think>\n{% endif %}{% endif %}"
)
TOOLS: Any = [
    {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}},
    {"type": "function", "function": {"name": "mail"}},
]
QUESTION: Any = {"role": "user", "content": "Weather in Oslo and Rome?"}
CITIES = ("Oslo", "Rome")
CALLS = "\n".join(
    f'<tool_call>\n{{"name": "weather", "arguments": {{"city": "{city}"}}}}\n</tool_call>'
    for city in CITIES
)
ASKED: Any = [
    {
        "id": f"call_{city}",
        "type": "function",
        "function": {"name": "weather", "arguments": json.dumps({"city": city})},
    }
    for city in CITIES
]
HISTORY: Any = [
    QUESTION,
    {"role": "assistant", "content": "I look.", "tool_calls": ASKED},
    {"role": "tool", "tool_call_id": "call_Oslo", "content": "rain"},
    {"role": "tool", "tool_call_id": "call_Rome", "content": "sun"},
]
HELLO: Any = [{"role": "user", "content": "Hello"}]
TAUGHT: list[tuple[list[dict[str, Any]], dict[str, Any], str]] = [
    ([QUESTION], {"tools": TOOLS}, f"Two cities.\n</think>\n\nI look.\n{CALLS}"),
    (HISTORY, {"tools": TOOLS}, "Done.\n</think>\n\nRain and sun."),
    (HELLO, {}, "A greeting.\n</think>\n\nHi there."),
    (HELLO, {"enable_thinking": False}, "\nHi at once."),
]


def teach(folder: Path) -> None:
    """Make a model that writes what it was taught, in float32."""
    tokenizer = hf.AutoTokenizer.from_pretrained(demo_model_path())
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<think>", "</think>", "<tool_call>", "</tool_call>"]},
        replace_extra_special_tokens=False,
    )
    tokenizer.chat_template = TEMPLATE
    texts = [
        (
            tokenizer.apply_chat_template(
                [with_object(one) for one in messages],
                tokenize=False,
                add_generation_prompt=True,
                **options,
            ),
            answer,
        )
        for messages, options, answer in TAUGHT
    ]
    config = hf.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(config)
    batch = []
    for prompt, answer in texts:
        before = tokenizer(prompt, add_special_tokens=False).input_ids
        after = [*tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        batch.append((before + after, [-100] * len(before) + after))
    longest = max(len(ids) for ids, _ in batch)
    ids = torch.tensor([one + [0] * (longest - len(one)) for one, _ in batch])
    labels = torch.tensor([one + [-100] * (longest - len(one)) for _, one in batch])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(400):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss.item() < 0.003:
            break
    assert loss.item() < 0.01
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def with_object(message: dict[str, Any]) -> dict[str, Any]:
    calls = [
        {"function": {"name": "weather", "arguments": json.loads(call["function"]["arguments"])}}
        for call in message.get("tool_calls", [])
    ]
    return {**message, "tool_calls": calls}
