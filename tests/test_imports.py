"""The import table of docs/architecture.md, and which imports are too heavy for `import handheld`."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
FRONT = "handheld"
FOLDERS = {FRONT: "pkg/handheld"} | {
    f"{FRONT}.{name}": name for name in ("models", "distill", "convert", "runtime")
}
HEAVY = ("diffusers", "coremltools", "executorch", "onnxruntime", "matplotlib", "av", "torchmetrics")


def allowed_imports() -> dict[str, set[str]]:
    """What each package may import of ours, read from the table that people read."""
    text = (REPO / "docs/architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(handheld[.\w]*)` \|.*\| ([^|]+) \|$", text, flags=re.MULTILINE)
    table = {}
    for package, cell in rows:
        names = {f"{FRONT}.{name}" for name in re.findall(r"`(\w+)`", cell)}
        table[package] = {package} | (set(FOLDERS) if cell.strip() == "all" else names)
    return table


def package_of(module: str) -> str | None:
    """The package of ours that a dotted module name belongs to."""
    for package in sorted(FOLDERS, key=len, reverse=True):
        if module == package or module.startswith(package + "."):
            return package
    return f"{FRONT}.{module.split('.')[0]}" if f"{FRONT}.{module.split('.')[0]}" in FOLDERS else None


def imported_modules(tree: ast.AST, module: str, is_package: bool) -> list[tuple[int, str]]:
    """Line and absolute name of every import in the source of `module`, relative ones resolved."""
    found = []
    parents = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            prefix = parents[: len(parents) + 1 - node.level] if node.level else []
            base = ".".join([*prefix, *([node.module] if node.module else [])])
            # `from handheld import models` imports a package by the name after `import`.
            whole = [f"{base}.{alias.name}" for alias in node.names]
            found += [(node.lineno, name if base == FRONT and name in FOLDERS else base) for name in whole]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                found.append((node.lineno, node.args[0].value))
    return found


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """Imports in `source` that the table does not allow to the package of `module`."""
    package = package_of(module)
    assert package is not None
    allowed = allowed_imports()[package]
    return [
        f"{module}:{line} imports {name}"
        for line, name in imported_modules(ast.parse(source), module, is_package)
        if (target := package_of(name)) is not None and target not in allowed
    ]


def sources(package: str) -> list[tuple[str, Path]]:
    root = REPO / FOLDERS[package]
    files = []
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root).with_suffix("").parts
        if package == FRONT and f"{FRONT}.{parts[0]}" in FOLDERS:
            continue  # a link to another package, which is read on its own
        files.append((".".join([package, *(part for part in parts if part != "__init__")]), file))
    return files


def test_table_lists_every_package() -> None:
    table = allowed_imports()
    assert set(table) == set(FOLDERS)
    assert table["handheld.models"] == {"handheld.models"}
    assert table["handheld.distill"] == {"handheld.distill", "handheld.models"}


@pytest.mark.parametrize("package", FOLDERS)
def test_package_imports_only_what_the_table_allows(package: str) -> None:
    files = sources(package)
    assert files
    found = []
    for module, file in files:
        found += violations(file.read_text(encoding="utf-8"), module, is_package=file.name == "__init__.py")
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("handheld.models.latents", "import handheld.runtime.bundle"),
        ("handheld.models.latents", "from handheld import runtime"),
        ("handheld.models.latents", "from handheld import __version__"),
        ("handheld.models.teachers.base", "from ...distill.errors import DistillError"),
        ("handheld.models.teachers.base", "from ... import distill"),
        ("handheld.runtime.bundle", "from ..models import LatentSpec"),
        ("handheld.runtime.bundle", "def f():\n    from handheld.models import LatentSpec"),
        ("handheld.distill.trainer", "if TYPE_CHECKING:\n    from handheld.convert import pipeline"),
        ("handheld.distill.trainer", "importlib.import_module('handheld.runtime')"),
        ("handheld.convert.pipeline", "import distill.losses"),
    ],
)
def test_checker_finds_a_forbidden_import(module: str, source: str) -> None:
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("handheld.models.teachers.base", "import torch\nfrom ..errors import ModelError\nfrom . import ltx"),
        ("handheld.distill.trainer", "from ..models import LatentSpec\nfrom handheld.models import teachers"),
        ("handheld.convert.pipeline", "from ..runtime.bundle import BundleWriter\nimport runtimes.other"),
        ("handheld.cli.main", "from ..convert import pipeline\nfrom handheld import __version__"),
    ],
)
def test_checker_lets_an_allowed_import_pass(module: str, source: str) -> None:
    assert violations(source, module) == []


def test_relative_imports_of_a_package_start_at_the_package() -> None:
    assert violations("from .runtime import bundle", "handheld.models", is_package=True) == []
    assert violations("from ..runtime import bundle", "handheld.models", is_package=True) != []


@pytest.mark.parametrize("modules", [(FRONT, "handheld.models", "handheld.models.teachers"), tuple(FOLDERS)])
def test_importing_packages_imports_nothing_heavy(modules: tuple[str, ...]) -> None:
    program = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
