"""The mutants of a module: those of cosmic-ray's operators that hurt, and three more operators."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import parso
from cosmic_ray.ast import ast_nodes, get_ast, is_number
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator

# For each comparison: the one with the other boundary, and the opposite.
_NAMES = (
    *("AddNot", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue"),
    *("ReplaceAndWithOr", "ReplaceOrWithAnd", "ReplaceUnaryOperator_Delete_Not"),
    *("ReplaceBreakWithContinue", "ReplaceContinueWithBreak"),
    *("ExceptionReplacer", "ZeroIterationForLoop"),
    *(f"ReplaceComparisonOperator_{pair}" for pair in ("Eq_NotEq", "NotEq_Eq", "Is_IsNot")),
    *(f"ReplaceComparisonOperator_{pair}" for pair in ("IsNot_Is", "Lt_LtE", "Lt_GtE")),
    *(f"ReplaceComparisonOperator_{pair}" for pair in ("LtE_Lt", "LtE_Gt", "Gt_GtE", "Gt_LtE")),
    *(f"ReplaceComparisonOperator_{pair}" for pair in ("GtE_Gt", "GtE_Lt")),
    *(f"ReplaceBinaryOperator_{pair}" for pair in ("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul")),
    *(f"ReplaceBinaryOperator_{pair}" for pair in ("FloorDiv_Mul", "Mod_Mul")),
)
# Statements that only tell what happens, or that only stand for a method of a subclass.
_IDLE = ("log.debug", "log.info", "raise NotImplementedError")
# Values that a caller treats like None.
_FALSE = ("None", "False")


class ChangeNumber(Operator):
    """0, 1 and 2 plus and minus one; every other number doubled and halved."""

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        if is_number(node):
            yield node.start_pos, node.end_pos
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        value = int(node.value, 0) if node.value.isalnum() else float(node.value)
        if value in (0, 1, 2):
            value += (1, -1)[index]
        else:
            value = (value * 2, value / 2 if isinstance(value, float) else value // 2)[index]
        return parso.python.tree.Number(str(value), node.start_pos, node.prefix)

    @classmethod
    def examples(cls) -> tuple[()]:
        return ()


class RemoveStatement(Operator):
    """A call, an assignment to an attribute or item, a `del` or a `raise`, replaced by `pass`."""

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        if node.type == "simple_stmt" and _removable(node.children[0]):
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        return parso.parse(f"{node.get_first_leaf().prefix}pass\n")

    @classmethod
    def examples(cls) -> tuple[()]:
        return ()


class ReturnNone(Operator):
    """`return x`, replaced by `return None`."""

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        if node.type == "return_stmt" and node.children[1].get_code().strip() not in _FALSE:
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        return parso.parse(f"{node.get_first_leaf().prefix}return None")

    @classmethod
    def examples(cls) -> tuple[()]:
        return ()


def _removable(statement: Any) -> bool:
    function = parso.tree.search_ancestor(statement, "funcdef")
    if function is None or statement.get_code().strip().startswith(_IDLE):
        return False
    if statement.type in ("atom_expr", "await", "power"):
        return True
    if statement.type in ("del_stmt", "raise_stmt"):
        return True
    if statement.type != "expr_stmt":
        return False
    target, sign = statement.children[0], statement.children[1]
    if sign.type == "annassign" or function.name.value == "__init__":
        return False
    return target.type != "name" or getattr(sign, "value", "=") != "="


@dataclass(frozen=True)
class Mutant:
    """One change of a file.

    Attributes:
        line: Its number.
        where: The function or method, "" outside of any.
        before: The changed lines, stripped and joined by a space.
        after: The lines instead.
        source: The whole file.
    """

    line: int
    where: str
    before: str
    after: str
    source: str


@cache
def _operators() -> list[Operator]:
    found = [get_operator(f"core/{name}")() for name in _NAMES]
    return [*found, ChangeNumber(), RemoveStatement(), ReturnNone()]


def mutants(path: Path) -> Iterator[Mutant]:
    """Every mutant of a file that is valid Python."""
    source = path.read_text()
    lines = source.splitlines()
    tree = get_ast(source)
    for node in ast_nodes(tree):
        if _declares(node):
            continue
        for operator in _operators():
            for index, (position, _) in enumerate(operator.mutation_positions(node)):
                changed = _changed(tree, node, operator, index)
                if changed and changed != source and _compiles(changed):
                    before, after = _difference(lines, changed.splitlines())
                    yield Mutant(position[0], _where(node), before, after, changed)


def _changed(tree: Any, node: Any, operator: Operator, index: int) -> str:
    """The source with one change; leaves the tree as it was, because parsing takes long."""
    parts = list(ast_nodes(node))
    children = [(part, part.children[:]) for part in parts if hasattr(part, "children")]
    values = [(part, part.value) for part in parts if hasattr(part, "value")]
    siblings = node.parent.children[:] if node.parent is not None else []
    try:
        new = operator.mutate(node, index)
        if new is not node:
            node.parent.children = [
                new if sibling is node else sibling
                for sibling in siblings
                if sibling is not node or new is not None
            ]
        return str(tree.get_code())
    except AttributeError:  # ExceptionReplacer knows no dotted names.
        return ""
    finally:
        for part, before in children:
            part.children = before
        for part, value in values:
            part.value = value
        if siblings:
            node.parent.children = siblings


def _declares(node: Any) -> bool:
    """Whether the node is part of a decorator, an annotation or an import for type checkers."""
    while node is not None:
        if node.type in ("decorator", "tfpdef"):
            return True
        if node.type == "operator" and node.parent.type == "parameters":
            return True
        if node.type == "if_stmt" and node.children[1].get_code().strip() == "TYPE_CHECKING":
            return True
        parent = node.parent
        if parent is not None and parent.type == "annassign" and node is parent.children[1]:
            return True
        node = parent
    return False


def _where(node: Any) -> str:
    names: list[str] = []
    while node is not None:
        if node.type in ("funcdef", "classdef"):
            names.insert(0, node.name.value)
        node = node.parent
    return ".".join(names)


def _compiles(source: str) -> bool:
    try:
        compile(source, "mutant", "exec")
    except SyntaxError:
        return False
    return True


def _difference(before: list[str], after: list[str]) -> tuple[str, str]:
    """The lines that differ: mutants change one place."""
    first = next((n for n, (b, a) in enumerate(zip(before, after, strict=False)) if b != a), 0)
    last = next(
        n for n, (b, a) in enumerate(zip(before[::-1], after[::-1], strict=False)) if b != a
    )
    return tuple(  # type: ignore[return-value]
        " ".join(line.strip() for line in lines[first : len(lines) - last])
        for lines in (before, after)
    )
