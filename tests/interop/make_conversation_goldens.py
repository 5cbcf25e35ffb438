"""Write tests/protocol/conversation_goldens.json.gz from the real fschat.

Run it in FastChat's own virtual environment (README.md beside this file says how to make one):

    $TRIREME_FASTCHAT_PYTHON tests/interop/make_conversation_goldens.py

For every template of the fschat package it records the object that a worker would send and the
prompts that fschat renders. Templates without a separator style cannot be rendered by fschat (they
are for hosted models) and are left out.
"""

from __future__ import annotations

import dataclasses
import gzip
import importlib.metadata
import json
from pathlib import Path

from fastchat.conversation import conv_templates, get_conv_template

TARGET = Path(__file__).parents[1] / "protocol" / "conversation_goldens.json.gz"

USER = "Name a colour,\r\n\r\nplease: {red} or <n>green?"
ANSWER = " Green.\n\nIt is calm. "
Turns = list[list[str | None]]

TURNS: Turns = [["user", USER], ["assistant", ANSWER], ["user", "Why?"], ["assistant", "It is."]]
SYSTEM: list[str | None] = ["system", "Be {brief}."]

CONVERSATIONS: dict[str, Turns] = {
    "one turn": [TURNS[0], ["assistant", None]],
    "two turns": [*TURNS[:3], ["assistant", None]],
    "three turns": [*TURNS, ["user", "Then go on"], ["assistant", None]],
    "closed": TURNS[:2],
    "empty message": [["user", ""], ["assistant", None]],
    "same role twice": [TURNS[0], TURNS[2], ["assistant", None]],
    "nothing": [],
    "system, one turn": [SYSTEM, TURNS[0], ["assistant", None]],
    "system, three turns": [SYSTEM, *TURNS, ["user", "Then go on"], ["assistant", None]],
    "empty system": [["system", ""], TURNS[0], ["assistant", None]],
}


def prompt(name: str, turns: Turns) -> str:
    """The prompt as fschat's gateway builds it."""
    conv = get_conv_template(name)
    for role, text in turns:
        if role == "system":
            conv.set_system_message(text)
        else:
            conv.append_message(conv.roles[role == "assistant"], text)
    return str(conv.get_prompt())


def main() -> None:
    """Write the file, the same bytes for the same fschat."""
    named = {n: conv for n, conv in conv_templates.items() if conv.sep_style is not None}
    goldens = {
        "fschat": importlib.metadata.version("fschat"),
        "conversations": CONVERSATIONS,
        "templates": {
            name: {
                "wire": dataclasses.asdict(conv) | {"sep_style": int(conv.sep_style)},
                "prompts": {title: prompt(name, turns) for title, turns in CONVERSATIONS.items()},
            }
            for name, conv in named.items()
        },
    }
    text = json.dumps(goldens, ensure_ascii=False, indent=0)
    TARGET.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))
    print(f"{len(named)} templates, {TARGET.stat().st_size} bytes in {TARGET}")


if __name__ == "__main__":
    main()
