"""The functions of a Python file as tools: type hints are the schema, docstrings say what they do.

The file is run as it is: it is the user who names it.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from pydantic import PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import ArgsKwargs

from qvl.chat.conversation import Function
from qvl.errors import UsageError
from qvl.types import Tool

MODULE = "qvl_tools_of_the_user"


def functions_in(path: Path) -> list[Function]:
    """Each function that the file defines, but for those whose names begin with `_`.

    Raises UsageError for a file that cannot be run, and for a function that says too little.
    """
    module = _run(path)
    found = [
        _function(path.name, value)
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == MODULE and not name.startswith("_")
    ]
    if not found:
        raise UsageError(f"{path.name!r} defines no function that could be a tool")
    return found


def _run(path: Path) -> ModuleType:
    spec = spec_from_file_location(MODULE, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{str(path)!r} is not a Python file", hint="its name ends with .py")
    if not path.is_file():
        raise UsageError(f"{str(path)!r} does not exist", hint="check the path of --tools")
    module = module_from_spec(spec)
    sys.modules[MODULE] = module  # where hints that are text are looked up
    try:
        spec.loader.exec_module(module)
    except Exception as err:  # somebody else's code may raise anything
        raise UsageError(f"{path.name!r} cannot be run: {type(err).__name__}: {err}") from err
    return module


def _function(file: str, function: Callable[..., Any]) -> Function:
    name, described = function.__name__, inspect.getdoc(function)
    hint = "or begin its name with an underscore if it is not meant as a tool"
    if inspect.iscoroutinefunction(function):
        raise UsageError(f"{name!r} in {file!r} is async", hint=f"make it a plain function, {hint}")
    if not described:
        raise UsageError(
            f"{name!r} in {file!r} has no docstring", hint=f"say in one what it does, {hint}"
        )
    for parameter in inspect.signature(function).parameters.values():
        if parameter.annotation is parameter.empty or parameter.kind in (
            parameter.POSITIONAL_ONLY,
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            raise UsageError(
                f"{parameter.name!r} of {name!r} in {file!r} is not a named parameter with a type",
                hint=f"write it as {parameter.name}: str, {hint}",
            )
    try:
        takes: TypeAdapter[Any] = TypeAdapter(cast(Any, function))
        schema = takes.json_schema()
    except (PydanticUserError, NameError) as err:
        why = re.sub(" at 0x[0-9a-fA-F]+", "", str(err))  # of an object that is no type
        raise UsageError(f"the types of {name!r} in {file!r} have no JSON schema: {why}") from err
    return Function(Tool(name, described, schema), partial(_call, takes))


def _call(takes: TypeAdapter[Any], arguments: Mapping[str, Any]) -> str:
    """Runs the function with arguments that fit its types; its result as text, or as JSON."""
    try:
        result = takes.validate_python(ArgsKwargs((), dict(arguments)))
    except ValidationError as err:
        first = err.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from err
    if isinstance(result, str):
        return result
    return TypeAdapter(Any).dump_json(result, fallback=str).decode()
