"""Who may import whom: numerics know neither Ray nor files, the package itself imports nothing."""

import ast
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import sdd_ray
from sdd_ray import core

PACKAGE = Path(sdd_ray.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 400
OUTER = ("ray", "boto3", "botocore", "pyarrow", "pydantic", "yaml", "PIL", "matplotlib")
COMMANDS = sorted(path.stem for path in PACKAGE.glob("*.py") if "def run(" in path.read_text())


def imported_by(code: str, *candidates: str) -> list[str]:
    """Return which of the modules are loaded after running code in a fresh interpreter."""
    code += f"\nimport sys\nprint(*sorted(set({candidates!r}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    return done.stdout.split()


def project_imports(path: Path) -> set[str]:
    """Return the modules of this project that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # `from sdd_ray import columns` imports a module, not a name.
            base = node.module or ""
            found |= (
                {f"{base}.{alias.name}" for alias in node.names} if base == "sdd_ray" else {base}
            )
    return {name for name in found if name.split(".")[0] == "sdd_ray"}


def names_of(*rooms: str) -> list[Path]:
    return [path for room in rooms for path in sorted((PACKAGE / room).rglob("*.py"))]


def test_core_knows_neither_ray_nor_files():
    modules = [info.name for info in pkgutil.walk_packages(core.__path__, "sdd_ray.core.")]
    assert len(modules) > 15
    code = "\n".join(f"import {name}" for name in modules)
    assert imported_by(code, *OUTER, "sdd_ray.core", "sdd_ray.store") == ["sdd_ray.core"]


@pytest.mark.parametrize("path", names_of("core"), ids=lambda p: p.name)
def test_core_imports_only_core(path):
    wrong = {name for name in project_imports(path) if not name.startswith("sdd_ray.core")}
    assert wrong == set()


@pytest.mark.parametrize(
    ("room", "forbidden"),
    [
        ("store", {"engine", "report", "formats"}),
        ("formats", {"engine", "report"}),
        ("report", {"engine", "store", "formats"}),
        ("synthetic", {"engine", "report"}),
        ("engine", set()),
    ],
)
def test_inner_rooms_do_not_know_outer_ones(room, forbidden):
    outer = {f"sdd_ray.{name}" for name in (*forbidden, *COMMANDS)}
    wrong = {
        f"{path.name}: {name}"
        for path in names_of(room)
        for name in project_imports(path)
        if any(name == other or name.startswith(f"{other}.") for other in outer)
    }
    assert wrong == set()


def test_only_the_engine_knows_ray():
    users = set()
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "ray" for name in names):
                users.add(path.relative_to(PACKAGE).parts[0])
    assert users == {"engine"}


def test_local_files_need_no_s3():
    code = "from sdd_ray.store.location import Location\nLocation('/').entries()"
    assert imported_by(code, "boto3", "botocore", "pyarrow") == ["pyarrow"]


def test_package_imports_nothing():
    rest = ("ray", "torch", "numpy", "pyarrow", "scipy", "sdd_ray.scorer", "sdd_ray.config")
    assert imported_by("import sdd_ray", *rest, "sdd_ray.store", "sdd_ray.core") == []


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_load_nothing_heavy_before_the_configuration_is_checked(command):
    heavy = ("ray", "torch", "pyarrow", "scipy", "matplotlib", "sdd_ray.config")
    assert imported_by(f"import sdd_ray.{command}", *heavy) == ["sdd_ray.config"]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_modules_are_short_and_say_what_they_are_for(path):
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_LINES
    assert ast.get_docstring(ast.parse(text))
