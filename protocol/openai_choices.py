"""How several answers to one request are chosen: `n`, `best_of`, beam search. Checks, no state."""

from __future__ import annotations

from typing import Any

from protocol.generation import MAX_BEAMS, not_in_beam_search
from protocol.openai_fields import MAX_CHOICES, fault

_LIKELIEST = (0, 1)


def check_choices(request: Any, *, prompts: int = 1, best_of: int | None = None) -> None:
    """Whether a request's ways to choose agree.

    Args:
        request: a chat or completions request, its own fields valid.
        prompts: how many it has. best_of: the field, where there is one.

    Raises:
        PydanticCustomError: a `fault` that names the field.
    """
    n, field = request.n, "n" if best_of is None else "best_of"
    if best_of is not None and best_of < n:
        raise fault("invalid_value", f"{best_of} is less than n, {n}.", "best_of")
    number = best_of or n
    if number * prompts > MAX_CHOICES:
        message = f"{number} x {prompts} prompts exceeds {MAX_CHOICES} choices."
        raise fault("integer_above_max_value", message, field)
    if request.use_beam_search:
        _check_beams(request, number, field)
    elif number > n and request.stream:
        message = "more than n cannot be streamed: which are best is known at the end."
        raise fault("invalid_request", message, "best_of")


def _check_beams(request: Any, number: int, field: str) -> None:
    if number > MAX_BEAMS:
        message = f"beam search keeps at most {MAX_BEAMS} beams, got {number}."
        raise fault("integer_above_max_value", message, field)
    misfit = not_in_beam_search(request)
    if "temperature" in request.model_fields_set and request.temperature not in _LIKELIEST:
        misfit = "temperature"
    if request.structure is not None:
        misfit = request.structure.param
    if misfit is not None:
        raise fault("unsupported_parameter", "it does not go with 'use_beam_search'.", misfit)
