"""The import table of docs/architecture.md, circles of imports, and which are too heavy for `import handheld`."""

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
FOLDERS[f"{FRONT}.files"] = "pkg/handheld/files.py"
# Files that may import each other in a circle, each circle as a set of modules. None is the aim.
KNOWN_CIRCLES: tuple[frozenset[str], ...] = ()
NATIVE = (f"{FRONT}.runtime.flash._flash",)  # modules without Python sources, which import none of ours
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
    if root.is_file():
        return [(package, root)]
    files = []
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root).with_suffix("").parts
        if package == FRONT and f"{FRONT}.{parts[0]}" in FOLDERS:
            continue  # another package, or a link to one, which is read on its own
        files.append((".".join([package, *(part for part in parts if part != "__init__")]), file))
    return files


def test_table_lists_every_package() -> None:
    table = allowed_imports()
    assert set(table) == set(FOLDERS)
    assert table["handheld.files"] == {"handheld.files"}
    assert table["handheld.models"] == {"handheld.models", "handheld.files"}
    assert table["handheld.distill"] == {"handheld.distill", "handheld.models", "handheld.files"}


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
        ("handheld.files", "from .models import ModelError"),
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
        ("handheld.models.latents", "from handheld.files import replacing\nfrom handheld import files"),
        ("handheld.convert.pipeline", "from ..runtime.bundle import BundleWriter\nimport runtimes.other"),
        ("handheld.cli.main", "from ..convert import pipeline\nfrom handheld import __version__"),
    ],
)
def test_checker_lets_an_allowed_import_pass(module: str, source: str) -> None:
    assert violations(source, module) == []


def test_relative_imports_of_a_package_start_at_the_package() -> None:
    assert violations("from .runtime import bundle", "handheld.models", is_package=True) == []
    assert violations("from ..runtime import bundle", "handheld.models", is_package=True) != []


def import_graph(files: dict[str, tuple[str, bool]]) -> dict[str, set[str]]:
    """Which modules of ours each module imports, by name; imports inside functions and under TYPE_CHECKING count.

    `files` holds the source of each module, and whether it is a package's `__init__`. Python runs a package's
    `__init__` before a module inside of it: that is not counted as an import of the `__init__`.
    """
    graph = {}
    for module, (source, is_package) in files.items():
        parents = module.split(".") if is_package else module.split(".")[:-1]
        found = set()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                prefix = parents[: len(parents) + 1 - node.level] if node.level else []
                base = ".".join([*prefix, *([node.module] if node.module else [])])
                names = {alias.name: f"{base}.{alias.name}" for alias in node.names}
                found |= {name if name in files else base for name in names.values()}
        graph[module] = found & set(files) - {module}
    return graph


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Each group of modules that import one another, directly or through others, sorted by name."""
    reached: dict[str, set[str]] = {}
    for start in graph:
        seen: set[str] = set()
        waiting = list(graph[start])
        while waiting:
            if (module := waiting.pop()) not in seen:
                seen.add(module)
                waiting += graph[module]
        reached[start] = seen
    groups = {frozenset(m for m in reached[start] if start in reached[m]) for start in graph}
    return sorted(sorted(group) for group in groups if group)


def test_no_file_imports_in_a_circle() -> None:
    files = {
        module: (file.read_text(encoding="utf-8"), file.name == "__init__.py")
        for package in FOLDERS
        for module, file in sources(package)
    }
    graph = import_graph(files | dict.fromkeys(NATIVE, ("", False)))
    assert len(graph) > 200
    found = circles(graph)
    told = [
        "circle: " + "; ".join(f"{m} imports {', '.join(sorted(graph[m] & set(group)))}" for m in group)
        for group in found
        if frozenset(group) not in KNOWN_CIRCLES
    ]
    assert not told, "\n".join(told)
    opened = [sorted(known) for known in KNOWN_CIRCLES if sorted(known) not in found]
    assert not opened, f"No circle any more, take it from KNOWN_CIRCLES: {opened}"


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("from .b import thing", "from .a import other"),
        ("from . import b", "def f():\n    from handheld.models import a"),
        ("import handheld.models.b", "if TYPE_CHECKING:\n    from .a import other"),
        ("from .c import thing", "from ..models.a import other"),
    ],
)
def test_circles_are_found(left: str, right: str) -> None:
    files = {
        "handheld.models": ("from .a import thing", True),
        "handheld.models.a": (left, False),
        "handheld.models.b": (right, False),
        "handheld.models.c": ("from .b import thing", False),
    }
    (found,) = circles(import_graph(files))
    assert set(found) >= {"handheld.models.a", "handheld.models.b"}
    assert "handheld.models" not in found


def test_a_package_and_its_modules_are_no_circle_unless_a_module_imports_the_package() -> None:
    files = {"handheld.models": ("from .a import thing", True), "handheld.models.a": ("import torch", False)}
    assert circles(import_graph(files)) == []
    files["handheld.models.a"] = ("from . import thing", False)
    assert circles(import_graph(files)) == [["handheld.models", "handheld.models.a"]]


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
