"""Describes what is wrong with a configuration, in one line."""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, Tag, ValidationError

from mscd.config.base import NAME_PATTERN, SHA256_PATTERN

PATTERNS = {
    NAME_PATTERN: "must consist of letters, digits, '.', '_' and '-', and start with a letter or digit",
    SHA256_PATTERN: "must be 64 lower-case hex digits",
}


def explain_errors(error: ValidationError, model: type[BaseModel]) -> str:
    """Describe a pydantic error in one line: its first problem (unknown keys first), and how many more there are."""
    problems = error.errors(include_url=False, include_context=True)
    problems.sort(key=lambda problem: problem["type"] != "extra_forbidden")
    line = _describe_one(problems[0], model)
    return line if len(problems) == 1 else f"{line} (and {len(problems) - 1} more)"


def _describe_one(problem: Mapping[str, Any], model: type[BaseModel]) -> str:
    where = ".".join(_path(problem["loc"]))
    context, got = problem.get("ctx", {}), problem["input"]
    match problem["type"]:
        case "extra_forbidden":
            return f"{where}: unknown key{_nearest(problem['loc'], model)}"
        case "missing":
            return f"{where}: is missing"
        case "value_error":
            return f"{where}: {context['error']}" if where else str(context["error"])
        case "union_tag_invalid":  # only a student's: a teacher's tag is never wrong
            where, got = f"{where}.method", context["tag"].strip("<>")
            what = f"must be one of {context['expected_tags'].replace('<', '').replace('>', '')}"
        case "greater_than_equal":
            what = f"must be at least {context['ge']}"
        case "string_pattern_mismatch":
            what = PATTERNS[context["pattern"]]
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


def _path(location: Sequence[str | int]) -> list[str]:
    """The keys of an error's location, as the user typed them."""
    return [str(part) for part in location if part != "[key]" and not _is_tag(part)]


def _is_tag(part: str | int) -> bool:
    """Whether a part of a location is not a key but the tag of the union member that was tried."""
    return str(part).startswith("<")


def _model_at(location: Sequence[str | int], model: type[BaseModel]) -> type[BaseModel]:
    """The model that the last key of a location belongs to."""
    annotation: Any = None
    for part in location[:-1]:
        if _is_tag(part):
            annotation = _tagged(annotation, str(part))
        elif str(part) in model.model_fields:
            annotation = model.model_fields[str(part)].annotation
        model = _inner_model(annotation) or model
    return model


def _tagged(annotation: Any, tag: str) -> Any:
    """The member of a union, however deep in an annotation, that has the tag."""
    if Tag(tag) in getattr(annotation, "__metadata__", ()):
        return annotation
    return next(filter(None, (_tagged(inner, tag) for inner in get_args(annotation))), None)


def _nearest(location: Sequence[str | int], model: type[BaseModel]) -> str:
    known = _model_at(location, model).model_fields
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f", did you mean {close[0]}?" if close else f" (known keys: {', '.join(known)})"


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_inner_model, get_args(annotation))), None)
