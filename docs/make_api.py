"""Writes docs/api.md from the docstrings of what mtkd_cache exports: python docs/make_api.py > docs/api.md, or `make api`."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parent.parent
PROMISE = """# Python API

Made by `make api` from the docstrings; edit those.

```python
import mtkd_cache as mc
```

**The promise.** Public is what is on this page: the names that `mtkd_cache.__all__` exports, with the attributes and methods
documented here. They follow [semantic versioning](https://semver.org): code that works with one version works with every
later one of the same major number (while that is 0, of the same minor number). Everything else may change at any time. Files
have promises of their own ([format.md](format.md)).

All of it is typed (`py.typed`). A name is imported when it is first used, so that `import mtkd_cache` is quick. An error
that a user can do something about is an `MtkdError`, which says what is wrong, where, and what to do.
[own_loop.py](examples/own_loop.py) is a whole training loop."""


def page() -> Iterator[str]:
    """The page, a paragraph at a time."""
    yield PROMISE
    stub = ast.parse((ROOT / "mtkd_cache/__init__.pyi").read_text())
    imports = (line for line in stub.body if isinstance(line, ast.ImportFrom))
    modules = {alias.name: line.module for line in imports for alias in line.names}
    for name, module in sorted(modules.items()):
        source = Path("mtkd_cache", *module.split(".")).with_suffix(".py")
        [node] = [node for node in ast.parse((ROOT / source).read_text()).body if getattr(node, "name", None) == name]
        yield f"## {name}\n\n[{source}](../{source})"
        yield from entry(node, "")


def entry(node: ast.AST, owner: str) -> Iterator[str]:
    """Signature and docstring of a function, or of a class and of its documented methods."""
    methods = [method for method in getattr(node, "body", ()) if owner == "" and isinstance(method, ast.FunctionDef)]
    if isinstance(node, ast.FunctionDef):
        yield signature(node, owner)
    yield from (signature(method, node.name) for method in methods if method.name == "__init__")
    yield markdown(ast.get_docstring(node))
    for method in methods:
        if ast.get_docstring(method) and (method.name == "__call__" or method.name[0] != "_"):
            yield from entry(method, node.name)


def signature(node: ast.FunctionDef, owner: str) -> str:
    """As it is called; a property without parentheses."""
    decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
    name = {"__init__": owner, "__call__": owner.lower()}.get(node.name, ".".join(filter(None, (owner, node.name))))
    parameters = re.sub(r"^(self|cls)(, )?", "", ast.unparse(node.args))
    returns = f" -> {ast.unparse(node.returns)}".replace("'", "") if node.returns else ""
    return f"```python\n{name if {'property', 'cached_property'} & {*decorators} else f'{name}({parameters})'}{returns}\n```"


def markdown(docstring: str) -> str:
    """A docstring with its sections (Args, Returns, ...) as lists."""

    def section(match: re.Match) -> str:
        items = re.sub(r"^(\w+(?:, \w+)*):", lambda names: f"- `{names[1]}`:", dedent(match[2]), flags=re.MULTILINE)
        return f"**{match[1]}**\n\n" + re.sub(r"^    ", "  ", items, flags=re.MULTILINE)

    return re.sub(r"^(Attributes|Args|Returns|Raises):\n((?:    .+\n?)+)", section, docstring, flags=re.MULTILINE)


if __name__ == "__main__":
    print("\n\n".join(page()))
