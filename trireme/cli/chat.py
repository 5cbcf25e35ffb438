"""`trireme chat`: a conversation in the terminal, or answers to the lines of a pipe.

On a terminal an error is shown and the conversation goes on. In a pipe it ends with exit code 1,
so that a script notices; only answers go to stdout there.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from rich.console import Console
from rich.text import Text

from trireme.cli.chat_client import Answer, ChatClient, ChatError, Message

EXIT_INTERRUPTED: Final = 130
HELP: Final = """\
/reset           forget the conversation
/model [NAME]    list the models, or talk to another one
/system [TEXT]   show or set the system message ("/system -" removes it)
/help            this list
/quit            leave (Ctrl-D does too; Ctrl-C cancels an answer)"""


@dataclass(frozen=True)
class ChatSettings:
    """The flags of `trireme chat`."""

    base_url: str
    model: str | None = None
    system: str | None = None
    api_key: str = field(default="", repr=False)
    temperature: float | None = None
    max_tokens: int | None = None
    verify: bool = True

    @property
    def options(self) -> dict[str, Any]:
        """Sampling parameters that were given."""
        given = {"temperature": self.temperature, "max_tokens": self.max_tokens}
        return {name: value for name, value in given.items() if value is not None}


def chat(settings: ChatSettings) -> int:
    """Talk until the end of the input; returns the exit code."""
    with ChatClient(settings.base_url, settings.api_key, verify=settings.verify) as client:
        conversation = Conversation(settings, client, interactive=sys.stdin.isatty())
        try:
            return conversation.run()
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED


def printable(text: str) -> str:
    """A model's text without control characters, which could steer a terminal."""
    return "".join(ch for ch in text if ch in "\n\t" or (ch >= " " and not "\x7f" <= ch <= "\x9f"))


class Conversation:
    """The history, the commands and the loop.

    Args:
        interactive: whether a person types; else lines of a pipe are answered.
    """

    def __init__(self, settings: ChatSettings, client: ChatClient, *, interactive: bool) -> None:
        self._settings = settings
        self._client = client
        self._interactive = interactive
        self._console = Console(stderr=True, highlight=False)
        self._model = ""
        self._system = settings.system or ""
        self._history: list[Message] = []
        self._commands: dict[str, Callable[[str], None]] = {
            "/reset": self._reset,
            "/model": self._choose_model,
            "/system": self._set_system,
            "/help": lambda _argument: self._say(HELP),
        }

    def run(self) -> int:
        """Read lines until the end of the input or /quit; returns the exit code."""
        try:
            self._model = self._first_model()
        except ChatError as error:
            self._complain(str(error))
            return 1
        if self._interactive:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  gives input() line editing and a history
            self._say(f"Talking to {self._model}. /help lists the commands.")
        while True:
            try:
                line = self._read_line()
            except KeyboardInterrupt:
                if not self._interactive:
                    raise
                self._say("\nCtrl-D or /quit leaves.")
                continue
            if line is None or line.strip() in ("/quit", "/exit"):
                return 0
            try:
                self._act_on(line.strip())
            except ChatError as error:
                self._complain(str(error))
                if not self._interactive:
                    return 1

    def _act_on(self, line: str) -> None:
        """Run a command, or answer a message."""
        if not line:
            return
        name, _, argument = line.partition(" ")
        if not name.startswith("/") or "/" in name[1:]:
            self._answer(line)
        elif name in self._commands:
            self._commands[name](argument.strip())
        else:
            raise ChatError(f"there is no command {name}; /help lists them")

    def _answer(self, line: str) -> None:
        """Stream the answer to `line`; the history takes both once there is an answer."""
        question: Message = {"role": "user", "content": line}
        system: list[Message] = (
            [{"role": "system", "content": self._system}] if self._system else []
        )
        answer = Answer()
        began = time.monotonic()
        pieces = self._client.stream(
            self._model, [*system, *self._history, question], self._settings.options, answer
        )
        cancelled = thinking = False
        try:
            with contextlib.closing(pieces):
                for piece in pieces:
                    if piece.is_reasoning:
                        thinking = True
                        self._say(piece.text, end="")
                        continue
                    if thinking:
                        thinking = False
                        self._say("")
                    sys.stdout.write(printable(piece.text))
                    sys.stdout.flush()
        except KeyboardInterrupt:
            if not self._interactive:
                raise
            cancelled = True
        finally:
            if thinking:
                self._say("")
            if answer.text and not answer.text.endswith("\n"):
                sys.stdout.write("\n")
            sys.stdout.flush()
        if answer.text:
            self._history += [question, {"role": "assistant", "content": answer.text}]
        if self._interactive:
            self._say(_footer(answer, time.monotonic() - began, cancelled))

    def _read_line(self) -> str | None:
        """The next line; None at the end of the input."""
        if not self._interactive:
            return sys.stdin.readline() or None
        try:
            return input("\n> ")
        except EOFError:
            sys.stdout.write("\n")
            return None

    def _first_model(self) -> str:
        served = self._client.models()
        wanted = self._settings.model
        if wanted is not None and wanted not in served:
            raise ChatError(_not_served(wanted, served))
        if not served:
            raise ChatError("no model is served yet")
        return wanted or self._client.chat_models()[0]

    def _reset(self, _argument: str) -> None:
        self._history.clear()
        self._say("The conversation is forgotten.")

    def _choose_model(self, name: str) -> None:
        served = self._client.models()
        if not name:
            marked = (f"{'*' if each == self._model else ' '} {each}" for each in served)
            self._say("\n".join(marked))
        elif name in served:
            self._model = name
            self._say(f"Talking to {name}.")
        else:
            raise ChatError(_not_served(name, served))

    def _set_system(self, text: str) -> None:
        if text:
            self._system = "" if text == "-" else text
        self._say(f"System message: {self._system}" if self._system else "No system message.")

    def _say(self, text: str, end: str = "\n") -> None:
        if self._interactive:
            self._console.print(Text(printable(text), style="dim"), soft_wrap=True, end=end)

    def _complain(self, text: str) -> None:
        line = Text.assemble(("✗", "bold red"), f" {printable(text)}")
        self._console.print(line, soft_wrap=True)


def _not_served(name: str, served: list[str]) -> str:
    return f"the model {name} is not served; there is: {', '.join(served) or 'none'}"


def _footer(answer: Answer, took_s: float, cancelled: bool) -> str:
    """The line under an answer: tokens, speed, and how it ended when not by itself."""
    parts = ["cancelled"] if cancelled else []
    if answer.completion_tokens:
        rate = answer.completion_tokens / took_s if took_s > 0 else 0.0
        parts.append(f"{answer.completion_tokens} tokens, {rate:.0f}/s")
    if answer.finish_reason not in (None, "stop"):
        parts.append(f"ended by {answer.finish_reason}")
    return "; ".join(parts)
