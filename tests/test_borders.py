"""Each package imports only what it may, at the top of a file, in a function, or by importlib."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {  # Each package, and the others that it may import.
    "protocol": set(),
    "rundir": {"protocol"},
    "actors": {"protocol"},
    "learner": {"protocol", "rundir"},
    "dashboard": {"protocol", "rundir"},
    "supervisor": {"protocol", "rundir", "actors", "learner"},  # The last two are for --in-process.
    "commands": {"protocol", "rundir", "actors", "dashboard", "supervisor"},
}
LIBRARIES = {  # Some libraries, and the packages that may import them.
    "mlx": {"learner"},
    "zmq": {"protocol"},
    "gymnasium": {"actors", "commands"},
    "tyro": {"commands"},
    "starlette": {"dashboard"},
    "rich": {"commands", "supervisor"},
}
LOADERS = {"import_module", "__import__", "run_module"}
USERS_MODULES = {  # These files import modules whose names a user gives.
    "actors/arguments.py",
    "actors/environment.py",
    "protocol/networks.py",
    "commands/completion.py",
}


def imports_of(source: str) -> Iterator[str | None]:
    """The modules that `source` imports; None for each import whose name is not a constant."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", None)) in LOADERS:
            name = node.args[0] if node.args else None
            yield name.value if isinstance(name, ast.Constant) and isinstance(name.value, str) else None


def faults_of(file: str, source: str) -> list[str]:
    """The forbidden imports in `source`; `file` is its path relative to the root."""
    package = file.split("/")[0]
    forbidden = PACKAGES.keys() - PACKAGES[package] - {package}
    forbidden |= {library for library, users in LIBRARIES.items() if package not in users}
    names = [module.split(".")[0] if module else "a module that is not named" for module in imports_of(source)]
    if file not in USERS_MODULES:
        forbidden.add("a module that is not named")
    return [name for name in names if name in forbidden]


def test_no_package_imports_what_it_must_not() -> None:
    files = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
    assert len(files) > 80
    found = {str(file.relative_to(ROOT)): faults_of(str(file.relative_to(ROOT)), file.read_text()) for file in files}
    assert {file: faults for file, faults in found.items() if faults} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import learner",
        "from learner.model import ActorCritic",
        "def f():\n    import learner.ppo",
        "import importlib\nimportlib.import_module('learner.ppo')",
        "from importlib import import_module\nimport_module('learner')",
        "__import__('mlx.core')",
        "import importlib\nname = 'learner'\nimportlib.import_module(name)",
    ],
)
def test_every_way_to_import_is_seen(source: str) -> None:
    assert faults_of("actors/lane.py", source)
    assert not faults_of("learner/learner.py", source) or "name =" in source
