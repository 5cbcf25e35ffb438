"""From what an answer must be to a grammar for the engine. Runs beside the event loop.

A JSON answer is compact: spaces between its parts would only cost tokens.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from protocol.errors import TriremeError
from protocol.generation import Structure
from worker.engine.grammar import GrammarError, Grammars
from worker.text.tokenizer import Tokenizer

MAX_CHARS: Final = 64 * 1024
MAX_TOOLS_CHARS: Final = 256 * 1024
MAX_DEPTH: Final = 32
_KEPT: Final = 64
_COMPACT: Final[Any] = {"whitespace_flexible": False}


class Structures:
    """Makes and checks grammars for one model; may be called from several threads.

    Args:
        vocab_size, eos_token_ids: of the engine.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab = vocab_size, eos_token_ids
        self._grammars: Grammars | None = None
        self._made: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def grammar(self, structure: Structure) -> str:
        """The grammar of an answer.

        Raises:
            TriremeError: `invalid_json_schema` or `invalid_grammar` with the parser's reason,
                `unsupported_by_model` where the tokenizer is none for grammars.
        """
        try:
            _check_all(structure)
            with self._lock:
                return self._known(structure)
        except (GrammarError, ValueError) as error:
            if structure.kind == "tools":
                raise self._bad_tool(structure, error) from error
            code = "invalid_json_schema" if structure.kind == "json_schema" else "invalid_grammar"
            message = f"Invalid {structure.kind}: {error}"
            raise TriremeError(code, message, param=structure.param) from error

    def _bad_tool(self, structure: Structure, error: Exception) -> TriremeError:
        """Names the function whose schema is at fault, where one alone is."""
        for function in structure.value["functions"]:
            alone = Structure(kind="json_schema", value=function["parameters"])
            try:
                _check_all(alone)
                self._vocabulary(structure.param).begin(_grammar_of(alone))
            except (GrammarError, ValueError) as found:
                message = f"Invalid parameters of the function '{function['name']}': {found}"
                return TriremeError("invalid_json_schema", message, param=structure.param)
        return TriremeError("invalid_grammar", f"Invalid tools: {error}", param=structure.param)

    def _known(self, structure: Structure) -> str:
        key = structure.model_dump_json()
        if key not in self._made:
            grammar = _grammar_of(structure)
            self._vocabulary(structure.param).begin(grammar)
            self._made[key] = grammar
        self._made.move_to_end(key)
        if len(self._made) > _KEPT:
            self._made.popitem(last=False)
        return self._made[key]

    def _vocabulary(self, param: str) -> Grammars:
        if self._grammars is None:
            try:
                self._grammars = Grammars(self._tokenizer.described, *self._vocab)
            except GrammarError as error:
                raise TriremeError("unsupported_by_model", str(error), param=param) from error
        return self._grammars


def _grammar_of(structure: Structure) -> str:
    from llguidance import LLMatcher

    value: Any = structure.value
    match structure.kind:
        case "json_schema":
            return LLMatcher.grammar_from_json_schema(json.dumps(value), overrides=_COMPACT)
        case "json_object":
            return LLMatcher.grammar_from_json_schema('{"type": "object"}', overrides=_COMPACT)
        case "regex":
            return LLMatcher.grammar_from_regex(value)
        case "choice":
            # JSON's escapes are those of Lark's strings
            return LLMatcher.grammar_from_lark("start: " + " | ".join(map(json.dumps, value)))
        case "grammar":
            return LLMatcher.grammar_from_lark(value)
        case "tools":
            return LLMatcher.grammar_from_lark(_calls(value["functions"], value["parallel"]))


def _calls(functions: Sequence[Mapping[str, Any]], parallel: bool) -> str:
    """Two lines a call: a name, and arguments as JSON, which has no line breaks when compact."""
    rules = ['start: call ("\\n" call)*' if parallel else "start: call"]
    rules.append("call: " + " | ".join(f"call_{i}" for i in range(len(functions))))
    for i, function in enumerate(functions):
        schema = {**function["parameters"], "x-guidance": _COMPACT}
        rules.append(f'call_{i}: "{function["name"]}\\n" %json {json.dumps(schema)}')
    return "\n".join(rules)


def _check_all(structure: Structure) -> None:
    if structure.kind != "tools":
        _check_size(structure.value, MAX_CHARS)
        return
    schemas = [function["parameters"] for function in structure.value["functions"]]
    if sum(_check_size(schema, MAX_CHARS) for schema in schemas) > MAX_TOOLS_CHARS:
        raise ValueError(f"all schemas together have more than {MAX_TOOLS_CHARS} characters")


def _check_size(value: Any, most: int) -> int:
    """The characters in it. No recursion: a value nested too deep is what is looked for."""
    chars, waiting = 0, [(value, 0)]
    while waiting:
        one, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
        chars += len(one) if isinstance(one, str) else 1
        if isinstance(one, dict):
            chars += sum(map(len, one))
            waiting += [(item, depth + 1) for item in one.values()]
        elif isinstance(one, list):
            waiting += [(item, depth + 1) for item in one]
        if chars > most:
            raise ValueError(f"it has more than {most} characters")
    return chars
