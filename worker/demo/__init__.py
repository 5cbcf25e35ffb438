"""The embedded demo model: a small Llama checkpoint that lies beside this file.

Importing this module loads neither torch nor transformers.
"""

from pathlib import Path

__all__ = ["demo_model_path"]


def demo_model_path() -> Path:
    """The folder with the checkpoint, ready for `from_pretrained`."""
    return Path(__file__).resolve().parent / "model"
