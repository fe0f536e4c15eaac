"""Gives a function that is already imported the code of a mutant.

So a mutant needs no import and no collection of tests. It works for changes in the body of a
function; any other mutant has to be imported.
"""

from __future__ import annotations

import gc
import inspect
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any


def code_of_change(before: str, after: str) -> tuple[CodeType, CodeType] | None:
    """The function that differs between two sources of a module; None if other code differs."""
    old, new = compile(before, "", "exec"), compile(after, "", "exec")
    while True:
        if _outside(old) != _outside(new):
            return None
        pairs = [
            (mine, its)
            for mine, its in zip(_inner(old), _inner(new), strict=True)
            if _shape(mine) != _shape(its)
        ]
        if len(pairs) != 1:
            return None
        ((old, new),) = pairs
        # Bodies of classes have their names in dictionaries, those of functions have not.
        if old.co_flags & inspect.CO_OPTIMIZED:
            return old, new


def functions_of(path: Path) -> list[FunctionType]:
    """The functions of a module that exist now."""
    name = str(path.absolute())
    found = [f for f in gc.get_objects() if isinstance(f, FunctionType)]
    return [f for f in found if f.__code__.co_filename == name]


def swap(functions: list[FunctionType], change: tuple[CodeType, CodeType]) -> bool:
    """Gives the changed function its new code; returns whether it is there."""
    old, new = change
    same = [
        f
        for f in functions
        if f.__code__.co_firstlineno == old.co_firstlineno
        and f.__code__.co_qualname == old.co_qualname
        and _shape(f.__code__) == _shape(old)
    ]
    for function in same:
        try:
            function.__code__ = new
        except ValueError:  # It uses other variables of its surroundings.
            return False
    return bool(same)


def _inner(code: CodeType) -> list[CodeType]:
    return [each for each in code.co_consts if isinstance(each, CodeType)]


def _outside(code: CodeType) -> tuple[Any, ...]:
    """The code without that of the functions and classes in it."""
    values = [repr(each) for each in code.co_consts if not isinstance(each, CodeType)]
    variables = (code.co_varnames, code.co_freevars, code.co_cellvars, code.co_names)
    count = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    inner = [each.co_name for each in _inner(code)]
    return code.co_name, code.co_code, code.co_exceptiontable, variables, count, values, inner


def _shape(code: CodeType) -> tuple[Any, ...]:
    """The code without the numbers of its lines."""
    return _outside(code), [_shape(each) for each in _inner(code)]
