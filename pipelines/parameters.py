"""Parameters of the notebooks: what they declare, and values for them that are typed by that declaration alone."""

import ast
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import papermill
import yaml

from fraudlib.errors import DataError, ParameterError

Value = int | float | str | bool

# Given by the pipeline itself, so that a run cannot write into another run's folder.
RESERVED = {"run_dir": "--runs", "artifacts_dir": "--artifacts"}


@dataclass(frozen=True)
class Parameter:
    """One line `name: kind = default` of a cell tagged `parameters`."""

    name: str
    kind: str
    default: Value


def parse(kind: str, text: str) -> Value:
    """Value of `text` as `kind` ("int", "float", "str" or "bool"); ValueError where it is none."""
    if kind == "str":
        return text
    if kind == "int":
        return int(text)
    if kind == "bool":
        return {"true": True, "false": False}[text.lower()]
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def declared(notebook: Path) -> dict[str, Parameter]:
    """Parameters that a notebook declares.

    Raises
    ------
    DataError
        If the notebook is not there or is none.
    ParameterError
        If a parameter is no typed literal.
    """
    logging.getLogger("papermill").setLevel(logging.WARNING)
    try:
        found = papermill.inspect_notebook(str(notebook))
    except (OSError, ValueError) as err:
        raise DataError(f"{notebook}: expected a notebook with a kernel ({err})") from err
    return {name: _literal(notebook, name, p["inferred_type_name"], p["default"]) for name, p in found.items()}


def _literal(notebook: Path, name: str, kind: str, text: str) -> Parameter:
    try:
        default = ast.literal_eval(text)
        if kind not in ("int", "float", "str", "bool") or type(default).__name__ != kind:
            raise ValueError(kind)
    except (ValueError, SyntaxError) as err:
        raise ParameterError(
            f"{notebook.name}: expected `{name}: int|float|str|bool = literal`, found {kind} = {text}"
        ) from err
    return Parameter(name, kind, default)


def merge(stages: Iterable[Mapping[str, Parameter]]) -> dict[str, Parameter]:
    """Parameters of all stages by name; one that several declare has one type and one default.

    Raises
    ------
    ParameterError
        If two stages declare the same name differently.
    """
    merged: dict[str, Parameter] = {}
    for stage in stages:
        for name, parameter in stage.items():
            if merged.setdefault(name, parameter) != parameter:
                raise ParameterError(f"two notebooks declare {name} differently: {merged[name]} and {parameter}")
    return merged


def read(path: Path) -> dict[str, str]:
    """Name and text of each parameter in a YAML file; the text is typed later, by the notebook's declaration."""
    try:
        content = yaml.load(path.read_text("utf-8"), Loader=yaml.BaseLoader)  # noqa: S506 (makes strings only)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as err:
        raise ParameterError(f"{path}: expected a YAML file of parameters ({' '.join(str(err).split())})") from err
    if content is None or content == "":
        return {}
    if not isinstance(content, dict):
        raise ParameterError(f"{path}: expected lines `name: value`, found a {type(content).__name__}")
    for name, text in content.items():
        if not isinstance(text, str):
            raise ParameterError(f"{path}: {name}: expected one value, found a {type(text).__name__}")
    return content


def given(path: Path | None, assignments: Iterable[str]) -> dict[str, str]:
    """Name and text of each parameter in a file, if there is one, and of each `name=value`, which wins."""
    texts = read(path) if path else {}
    for assignment in assignments:
        name, sign, text = assignment.partition("=")
        if not name or not sign:
            raise ParameterError(f"-p {assignment}: expected name=value")
        texts[name] = text
    return texts


def resolve(known: Mapping[str, Parameter], texts: Mapping[str, str]) -> dict[str, Value]:
    """Value of every known parameter: the given text as its declared type, else the default.

    Raises
    ------
    ParameterError
        If a given name is unknown or its text is not of the declared type.
    """
    values: dict[str, Value] = {name: parameter.default for name, parameter in known.items()}
    for name, text in texts.items():
        if name in RESERVED:
            raise ParameterError(f"parameter {name} is set by the pipeline; use {RESERVED[name]}")
        if name not in known:
            names = ", ".join(f"{p.name} ({p.kind})" for p in known.values() if p.name not in RESERVED)
            raise ParameterError(f"unknown parameter {name}; known are: {names}")
        try:
            values[name] = parse(known[name].kind, text)
        except (ValueError, KeyError) as err:
            raise ParameterError(f"parameter {name}: expected {known[name].kind}, found {text!r}") from err
    return values
