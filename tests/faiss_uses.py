"""What our own sources use of FAISS, read from their syntax trees.

FAISS's Python objects take any attribute: `config.useFlot16 = True` does nothing and says nothing. So what is set on
them, called on them and passed to them is read here, and `bank/test_faiss_gpu_contract.py` looks for each in the wheel.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Use:
    """One place where a source names something of FAISS's.

    Attributes:
        name: dotted, without `faiss.`: "knn_gpu", "GpuIndexFlatConfig.device", "contrib.torch_utils".
        where: file and line.
        call: the call, where it is called.
        stored: the expression that is assigned to it, where one is.
    """

    name: str
    where: str
    call: ast.Call | None = None
    stored: ast.expr | None = None


def uses_of(folder: Path, objects: Mapping[str, str]) -> list[Use]:
    """Every use of FAISS in the sources of a folder.

    Args:
        folder: of Python files.
        objects: class of FAISS's by "file.py:name" of the variable or attribute that holds such an object, for
            those that the file does not assign itself as `name = faiss.Class(...)`.
    """
    return [use for file in sorted(folder.glob("*.py")) for use in _of_file(file, objects)]


def _of_file(file: Path, objects: Mapping[str, str]) -> Iterator[Use]:
    tree = ast.parse(file.read_text())
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    imported = dict(_imported(tree))
    held = {key.split(":")[1]: kind for key, kind in objects.items() if key.split(":")[0] == file.name}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Call):
            made = _dotted(node.value.func, imported)
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if made is not None and made.split(".")[-1][0].isupper():  # a class
                held |= {_last(one): made for one in targets if isinstance(one, ast.Name | ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom | ast.Import):
            for name in _modules(node):
                yield Use(name, f"{file.name}:{node.lineno}")
            continue
        if not isinstance(node, ast.Name | ast.Attribute) or isinstance(parents[node], ast.Attribute):
            continue  # the whole chain is looked at, once
        named = _dotted(node, imported) or _of_object(node, held)
        if named is None:
            continue
        parent = parents[node]
        call = parent if isinstance(parent, ast.Call) and parent.func is node else None
        stored = parent.value if isinstance(parent, ast.Assign) and node in parent.targets else None
        yield Use(named, f"{file.name}:{node.lineno}", call, stored)


def _imported(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """What each local name stands for: "" for faiss itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for one in node.names:
                if one.name == "faiss" or (one.name.startswith("faiss.") and one.asname is None):
                    yield one.asname or "faiss", ""
                elif one.name.startswith("faiss."):
                    yield str(one.asname), one.name.removeprefix("faiss.")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "faiss":
            for one in node.names:
                yield one.asname or one.name, f"{node.module}.{one.name}".removeprefix("faiss.")


def _modules(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """What an import itself names of FAISS's."""
    if isinstance(node, ast.ImportFrom):
        if (node.module or "").split(".")[0] == "faiss":
            yield from (f"{node.module}.{one.name}".removeprefix("faiss.") for one in node.names)
    else:
        yield from (one.name.removeprefix("faiss.") for one in node.names if one.name.startswith("faiss."))


def _dotted(node: ast.expr, imported: Mapping[str, str]) -> str | None:
    """A chain of attributes that begins at FAISS, without it."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name) or node.id not in imported:
        return None
    return ".".join(part for part in (imported[node.id], *reversed(parts)) if part) or None


def _of_object(node: ast.expr, held: Mapping[str, str]) -> str | None:
    """An attribute of an object of FAISS's: its class and the attribute."""
    chain: list[str] = []
    while isinstance(node, ast.Attribute):
        holder = node.value
        chain.insert(0, node.attr)
        if isinstance(holder, ast.Name | ast.Attribute) and _last(holder) in held:
            return ".".join((held[_last(holder)], *chain))
        if not isinstance(holder, ast.Name | ast.Attribute):
            return None
        node = holder
    return None


def _last(node: ast.expr) -> str:
    """A variable's or an attribute's own name."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
