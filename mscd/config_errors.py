"""What is wrong with a configuration, said in one line."""

import difflib
import re
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


def describe(error: ValidationError, model: type[BaseModel]) -> str:
    """One line for a pydantic error: the first problem (unknown keys before all else), and how many more there are."""
    problems = error.errors(include_url=False, include_context=True)
    problems.sort(key=lambda problem: problem["type"] != "extra_forbidden")
    line = _describe_one(problems[0], model)
    return line if len(problems) == 1 else f"{line} (and {len(problems) - 1} more)"


def _describe_one(problem: Mapping[str, Any], model: type[BaseModel]) -> str:
    path = [str(part) for part in problem["loc"] if part != "[key]"]
    where = ".".join(path)
    context, got = problem.get("ctx", {}), problem["input"]
    match problem["type"]:
        case "extra_forbidden":
            return f"{where}: unknown key{_nearest(path, model)}"
        case "missing":
            return f"{where}: is missing"
        case "value_error":
            return f"{where}: {context['error']}" if where else str(context["error"])
        case "greater_than_equal":
            what = f"must be at least {context['ge']}"
        case "string_pattern_mismatch":
            what = "must be letters, digits, '.', '_' or '-', and start with a letter or digit"
        case "too_short":
            what = "must not be empty"
        case "literal_error":
            what = f"must be one of {context['expected']}"
        case _:
            what = re.sub(r"^(Input|Value|String|List|Dictionary) should ", "must ", problem["msg"])
    return f"{where}: {what} (got {_short(got)})"


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."


def _nearest(path: list[str], model: type[BaseModel]) -> str:
    for part in path[:-1]:
        field = model.model_fields.get(part)
        inner = _inner_model(field.annotation) if field else None
        model = inner or model
    close = difflib.get_close_matches(path[-1], model.model_fields, n=1)
    return f", did you mean {close[0]}?" if close else f" (known here: {', '.join(model.model_fields)})"


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_inner_model, get_args(annotation))), None)
