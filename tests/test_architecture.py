"""The rules of the house that a program can check: which way imports go, docstrings, sizes."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "nextflow_jax"
FILES = sorted(PACKAGE.rglob("*.py"))

ROOMS = {
    "contracts": (
        *("config", "errors", "folders", "scales", "vocabulary", "image_layout", "sequence", "resize", "text", "chat"),
        "sampling.settings",
    ),
    "platform": ("sharding", "sharding_table", "compile_cache", "command", "distributed", "maintenance", "aot.chips"),
    "models": ("models", "ops"),
    "vision": ("vision",),
    "convert": ("convert", "bundle"),
    "data": ("data",),
    "sampling": ("sampling",),
    "training": ("training",),
    "aot": ("aot",),
    "planning": ("planning",),
    "evals": ("evals",),
    "report": ("report",),
    "commands": (
        *("train", "extract", "export", "sample", "evaluate", "compile", "plan_rows", "supervise"),
        *("convert.__main__", "data.ingest.__main__", "data.inspect"),
    ),
}
"""Rooms of the package, and the modules and folders that belong to each; a longer name goes before a shorter one."""

MAY_IMPORT = {
    "contracts": set(),
    "platform": {"contracts"},
    "models": {"contracts", "platform"},
    "vision": {"contracts", "platform", "models"},
    "convert": {"contracts", "platform", "models", "vision"},
    "data": {"contracts", "platform", "vision", "convert"},
    "sampling": {"contracts", "platform", "models", "vision", "convert"},
    "evals": {"contracts", "vision", "convert", "data", "sampling"},
    "training": {"contracts", "platform", "models", "vision", "convert", "data", "evals"},
    "aot": {"contracts", "platform", "models", "vision", "convert", "data", "sampling", "training"},
    "planning": {"contracts", "platform", "aot"},
    "report": {"contracts", "evals", "training"},
    "commands": set(ROOMS) - {"commands"},
}


def room_of(module):
    """The room of a dotted module name inside the package, or None for the package itself."""
    name = module.removeprefix("nextflow_jax").removeprefix(".")
    if name in ("", "__init__", "__version__"):
        return None
    rooms = {member: room for room, members in ROOMS.items() for member in members}
    homes = [member for member in rooms if f"{name}.".startswith(f"{member}.")]
    return rooms[max(homes, key=len)] if homes else f"unknown room of {module}"


def imported_modules(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "nextflow_jax":
            yield from (f"nextflow_jax.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def relative(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_imports_go_one_way(path):
    here = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    imports = [name for name in imported_modules(ast.parse(path.read_text())) if name.startswith("nextflow_jax")]
    there = {room_of(name) for name in imports} - {None, here}
    assert here is None or there <= MAY_IMPORT[here], f"{relative(path)} ({here}) imports {there - MAY_IMPORT[here]}"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_run_time_needs_neither_torch_nor_tensorflow(path):
    roots = {name.split(".")[0] for name in imported_modules(ast.parse(path.read_text()))}
    assert not roots & {"torch", "tensorflow", "transformers"}


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_every_module_says_what_it_is(path):
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert docstring.split("\n")[0].rstrip().endswith((".", ":", ")")) or len(docstring) > 20, relative(path)


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_files_and_functions_can_be_read_in_one_sitting(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 500, f"{relative(path)}: past 500 lines; split it"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 100, f"{relative(path)}: {node.name} has {length} lines; split it"


def test_every_test_file_mirrors_a_module():
    """tests/data/test_shards.py stands for nextflow_jax/data/shards.py or a module whose name it begins with, and
    tests/launch/test_host.py for launch/host.sh."""
    special = {"test_launch", "test_architecture", "test_experiments", "test_ablations", "test_against_torch"}
    special |= {"test_decoder_stages", "test_pods"}
    strays = []
    for path in (ROOT / "tests").rglob("test_*.py"):
        inside = path.parent.relative_to(ROOT / "tests")
        folder = (ROOT if inside.name == "launch" else PACKAGE) / inside
        subject = path.stem.removeprefix("test_")
        modules = [module.stem for module in folder.glob("*")] if folder.is_dir() else []
        if path.stem not in special and not any(subject.startswith(module) for module in modules):
            strays.append(relative(path))
    assert not strays
