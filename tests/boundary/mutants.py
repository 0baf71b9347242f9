"""The allow-list with one condition changed, drawn by chance."""

from __future__ import annotations

import ast
import inspect
import random
import sys
from types import ModuleType

from django_smart.fhir import allow_list

__all__ = ["draw_mutants"]

_OPPOSITES: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.Gt: ast.LtE,
}


class _Mutator(ast.NodeTransformer):
    """Changes the condition with a number; counts them all."""

    def __init__(self, number: int = -1) -> None:
        self.number = number
        self.count = 0
        self.changed = ""

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        if self._is_next(node):
            node.ops[0] = _OPPOSITES[type(node.ops[0])]()
        return node

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        self.generic_visit(node)
        # Without its last part.
        return node.values[0] if self._is_next(node) else node

    def visit_If(self, node: ast.If) -> ast.AST:
        self.generic_visit(node)
        if self._is_next(node.test):
            node.test = ast.Constant(value=False)
        return node

    def _is_next(self, node: ast.AST) -> bool:
        is_next = self.count == self.number
        self.count += 1
        if is_next:
            self.changed = ast.unparse(node)
        return is_next


def draw_mutants(count: int, *, seed: int) -> list[tuple[str, ModuleType]]:
    """Modules that are to be used in place of ``allow_list``, each with its name."""
    source = inspect.getsource(allow_list)
    counter = _Mutator()
    counter.visit(ast.parse(source))
    numbers = random.Random(seed).sample(range(counter.count), count)
    return [_build(source, number) for number in numbers]


def _build(source: str, number: int) -> tuple[str, ModuleType]:
    tree = ast.parse(source)
    mutator = _Mutator(number)
    mutator.visit(tree)
    module = ModuleType(allow_list.__name__)
    module.__package__ = allow_list.__package__
    code = compile(ast.fix_missing_locations(tree), "<mutant>", "exec")
    original = sys.modules[module.__name__]
    try:
        # Dataclasses look for their module there.
        sys.modules[module.__name__] = module
        exec(code, vars(module))
    finally:
        sys.modules[module.__name__] = original
    return f"{number}: {mutator.changed}", module
