"""The text that the demo model is trained on, all of it made here from templates.

`conversations` is an endless stream that depends on its random generator alone.
"""

from worker.demo.corpus.dialogue import Message, conversations

__all__ = ["Message", "conversations"]
