"""Converts a checkpoint of `make_model` to GGUF in bfloat16, with llama.cpp's own converter.

Runs in an interpreter that has the converter's packages (docs/peers.md), and imports nothing of
this repository: `python to_gguf.py LLAMA_CPP_TREE CHECKPOINT OUT.gguf`.
"""

from __future__ import annotations

import importlib
import runpy
import sys
from pathlib import Path

PRE_TOKENIZER = "gpt-2"
"""llama.cpp's name for the byte-level pre-tokenizer with GPT-2's pattern, which `make_model` uses.

The converter tells pre-tokenizers apart by a hash over the token ids of a probe text, so that it
only knows published vocabularies; one that was trained on the spot needs to be named.
"""


def convert(tree: Path, checkpoint: Path, out: Path) -> None:
    """Write `out`, complete or not at all."""
    sys.path.insert(0, str(tree))
    base = importlib.import_module("conversion.base")
    base.TextModel.get_vocab_base_pre = lambda *_: PRE_TOKENIZER
    partial = out.with_suffix(".partial")
    script = tree / "convert_hf_to_gguf.py"
    sys.argv = [str(script), str(checkpoint), "--outtype", "bf16", "--outfile", str(partial)]
    runpy.run_path(str(script), run_name="__main__")
    partial.rename(out)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: python to_gguf.py LLAMA_CPP_TREE CHECKPOINT OUT.gguf")
    convert(*map(Path, sys.argv[1:]))
