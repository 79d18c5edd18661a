"""pyproject.toml against the code: what is installed, and what is imported."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_is_installed():
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "mtkd_cache").rglob("__init__.py")}
    expected = {".".join(folder.parts) for folder in folders} | {"mtkd_cache.cli"}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == expected


def test_files_beside_the_code_are_installed():
    listed = PROJECT["tool"]["setuptools"]["package-data"].items()
    installed = {
        path for package, patterns in listed for pattern in patterns for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    files = {path for path in (ROOT / "mtkd_cache").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert files and files == installed


def test_what_is_imported_is_declared():
    extras = PROJECT["project"]["optional-dependencies"]
    used = [*PROJECT["project"]["dependencies"], *(name for extra in extras.keys() - {"test"} for name in extras[extra])]
    names = {re.split(r"[<>=\[]", requirement)[0] for requirement in used}
    imported = set()
    for path in (*(ROOT / "mtkd_cache").rglob("*.py"), *(ROOT / "cli").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.partition(".")[0])
    of = packages_distributions()
    for module in imported - set(sys.stdlib_module_names) - {"mtkd_cache"}:
        assert any(re.sub("_", "-", name.lower()) in names for name in of[module]), module
    assert {"torch", "zarr", "timm"} <= imported
