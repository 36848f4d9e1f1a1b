"""The floors of docs/architecture.md, the public names, and what an import costs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import cfa_index

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "cfa_index"


def floors() -> dict[str, int]:
    """Floor of each module, from the table in docs/architecture.md."""
    found: dict[str, int] = {}
    text = (ROOT / "docs" / "architecture.md").read_text()
    for number, names in re.findall(r"^\| (\d) \| ([^|]+) \|", text, flags=re.MULTILINE):
        for name in re.findall(r"`(\w+)`", names):
            found[name] = int(number)
    return found


def imports_of(file: Path) -> set[str]:
    """First part of every cfa_index module that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("cfa_index."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.module == "cfa_index":
            found.add("__init__")
        elif isinstance(node, ast.Import):
            found |= {name.name.split(".")[1] for name in node.names if name.name.startswith("cfa_index.")}
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_down_only(file: Path) -> None:
    if file == PACKAGE / "__init__.py":
        return
    own = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    floor = floors()
    for name in imports_of(file) - {own}:
        assert floor[name] < floor[own], f"{own} (floor {floor[own]}) imports {name} (floor {floor[name]})"


def test_every_module_has_a_floor() -> None:
    modules = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if not path.name.startswith("_")}
    assert modules - {"py.typed"} == set(floors())


@pytest.mark.parametrize(
    ("library", "home"),
    [("zarr", "store"), ("faiss", "bank"), ("cuvs", "bank"), ("matplotlib", "report"), ("plotly", "report")],
)
def test_a_library_has_one_home(library: str, home: str) -> None:
    users = {
        file.relative_to(PACKAGE).parts[0]
        for file in FILES
        if re.search(rf"^\s*(import|from) {library}\b", file.read_text(), flags=re.MULTILINE)
    }
    assert users == {home}


@pytest.mark.parametrize("folder", ["cli", "benchmarks"])
def test_commands_and_benchmarks_use_public_names_only(folder: str) -> None:
    for file in (ROOT / folder).rglob("*.py"):
        assert imports_of(file) <= {"__init__", "errors", "specs"}, file


def test_public_names_load_and_are_documented() -> None:
    for name in dir(cfa_index):
        if name.startswith("_"):
            continue
        value = getattr(cfa_index, name)
        if callable(value) and getattr(value, "__module__", "").startswith("cfa_index"):
            assert value.__doc__, name


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, cfa_index, cfa_index_cli.main; print(sorted({'torch','faiss','zarr','pyarrow','sklearn'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_package_is_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = {".".join(file.parent.relative_to(ROOT).parts) for file in PACKAGE.rglob("__init__.py")}
    found |= {
        ".".join(file.parent.relative_to(ROOT / "cli").parts) for file in (ROOT / "cli").rglob("__init__.py")
    }
    assert set(project["tool"]["setuptools"]["packages"]) == found


def test_no_file_outgrows_a_sitting() -> None:
    for file in [*FILES, *(ROOT / "cli").rglob("*.py")]:
        assert len(file.read_text().splitlines()) <= 400, file


def test_the_readme_names_every_module() -> None:
    text = (ROOT / "README.md").read_text()
    for file in FILES:
        name = str(file.relative_to(PACKAGE))
        assert file.name.startswith("__") or f" {name} " in text, name
