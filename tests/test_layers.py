"""The house's rules, read from the source: layers, plugins, imports of heavy libraries, files for devices."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "edgekit"

LAYERS = {
    "core": 0,
    "frontends": 1,
    "passes": 1,
    "backends": 1,
    "transports": 1,
    "runners": 1,
    "agent": 1,
    "instruments": 1,
    "conditions": 1,
    "bundles": 1,
    "flow": 2,
    "report": 3,
    "web": 3,
    "api": 3,
    "cli": 4,
    "__main__": 5,
}
PLUGINS = {"frontends", "passes", "backends", "transports", "runners", "instruments", "conditions", "bundles"}
"""Packages whose public modules are plugins: reached from outside through `base` and the registry only."""

SHARED = {"_quantize"}
"""What a package's plugins share and the flow works with too: nothing of one vendor's."""

HEAVY = {
    "ai_edge_litert",
    "ai_edge_quantizer",
    "alembic",
    "coremltools",
    "distributed",
    "fastapi",
    "jinja2",
    "keras",
    "litert_torch",
    "nncf",
    "numpy",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "onnxscript",
    "openvino",
    "optuna",
    "paramiko",
    "peft",
    "playwright",
    "plotly",
    "safetensors",
    "skimage",
    "sklearn",
    "sqlalchemy",
    "tflite_runtime",
    "torch",
    "torch_pruning",
    "tensorly",
    "torchao",
    "transformers",
    "uvicorn",
}
MAX_LINES = 500
NEWER_THAN_PYTHON_3_9 = {"tomllib"}


@dataclass(frozen=True)
class Import:
    """One import statement: what, where, and whether it runs when the module is imported."""

    module: str
    line: int
    at_import: bool


def sources() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "_targets" not in path.parts)


def module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sources()}


def is_type_checking(node: ast.expr) -> bool:
    return ast.unparse(node) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imports_in(path: Path) -> list[Import]:
    """Every import of a module, with `from package import module` told apart from `from module import name`."""

    def visit(nodes: list[ast.stmt] | list[ast.AST], at_import: bool) -> Iterator[Import]:
        for node in nodes:
            if isinstance(node, ast.Import):
                yield from (Import(alias.name, node.lineno, at_import) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}:{node.lineno}: a relative import; write the whole name"
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    yield Import(inner if inner in MODULES else str(node.module), node.lineno, at_import)
            elif isinstance(node, ast.If) and is_type_checking(node.test):
                yield from visit(node.body, False)
                yield from visit(node.orelse, at_import)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                yield from visit(list(ast.iter_child_nodes(node)), False)
            else:
                yield from visit(list(ast.iter_child_nodes(node)), at_import)

    return list(visit(ast.parse(path.read_text(encoding="utf-8")).body, True))


IMPORTS = {name: imports_in(path) for name, path in MODULES.items()}


def complaint(importer: str, imported: str) -> str | None:
    """Why `importer` must not import `imported`, or None."""
    if imported in ("edgekit._version", importer):
        return None
    if imported == "edgekit":
        return "the package's top is for users; import the module that has it"
    here, there = importer.split(".")[1], imported.split(".")[1]
    rest = imported.split(".")[2:]
    if there not in LAYERS:
        return f"'{there}' has no layer: give it one in {Path(__file__).name}"
    if here == there:
        own = importer.split(".")[2:3]
        public_plugin = (
            here in PLUGINS and rest and rest[0] != "base" and not rest[0].startswith("_") and rest[:1] != own
        )
        return "plugins never import each other" if public_plugin else None
    if LAYERS[there] > LAYERS[here]:
        return f"layer {LAYERS[here]} ({here}) must not know layer {LAYERS[there]} ({there})"
    if there in PLUGINS and rest[:1] != ["base"] and not SHARED.intersection(rest[:1]):
        return f"plugins are reached through edgekit.{there}.base"
    if there == "agent" and rest:
        return "the agent's files are pushed, never imported"
    if LAYERS[there] == LAYERS[here] and there not in PLUGINS:
        return f"{here} and {there} stand in the same layer"
    return None


def test_every_folder_has_a_layer() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    assert folders <= LAYERS.keys()


@pytest.mark.parametrize("name", [name for name in MODULES if name.count(".") and name != "edgekit._version"])
def test_a_module_imports_only_what_its_layer_may_know(name: str) -> None:
    wrong = [
        f"{MODULES[name]}:{found.line}: {found.module}: {why}"
        for found in IMPORTS[name]
        if found.module.split(".")[0] == "edgekit" and (why := complaint(name, found.module))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("edgekit.core.model", "edgekit.flow.build"),
        ("edgekit.backends.litert", "edgekit.backends.openvino"),
        ("edgekit.backends._mil.wire", "edgekit.backends.coreml"),
        ("edgekit.backends.litert", "edgekit.transports.ssh"),
        ("edgekit.flow.build", "edgekit.backends.litert"),
        ("edgekit.flow.build", "edgekit.report.html"),
        ("edgekit.report.html", "edgekit.cli.main"),
        ("edgekit.runners.agent", "edgekit.agent.worker"),
        ("edgekit.core.model", "edgekit"),
    ],
)
def test_the_rule_refuses_what_it_is_there_for(importer: str, imported: str) -> None:
    assert complaint(importer, imported)


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("edgekit.cli.main", "edgekit.flow.build"),
        ("edgekit.flow.build", "edgekit.backends.base"),
        ("edgekit.backends.coreml", "edgekit.backends._mil.wire"),
        ("edgekit.runners.agent", "edgekit.transports.base"),
        ("edgekit.flow.build", "edgekit._version"),
        ("edgekit.flow.fake_quantize", "edgekit.backends._quantize.ranges"),
    ],
)
def test_the_rule_lets_pass_what_the_flow_needs(importer: str, imported: str) -> None:
    assert complaint(importer, imported) is None


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {
        name: {found.module for found in found_in if found.at_import and found.module in MODULES} - {name}
        for name, found_in in IMPORTS.items()
    }
    done: set[str] = set()

    def walk(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " → ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for other in sorted(graph[name]):
                walk(other, (*trail, name))
            done.add(name)

    for name in graph:
        walk(name, ())


def runs_elsewhere(name: str) -> bool:
    """Whether a module is only ever loaded by a device, or by Alembic."""
    return name.startswith(("edgekit.agent.", "edgekit.flow.migrations."))


@pytest.mark.parametrize("name", [name for name in MODULES if not runs_elsewhere(name)])
def test_no_heavy_library_is_imported_when_a_module_is(name: str) -> None:
    heavy = [
        f"{MODULES[name]}:{found.line}: {found.module}"
        for found in IMPORTS[name]
        if found.at_import and found.module.split(".")[0] in HEAVY
    ]
    assert not heavy, "import it inside the function that needs it:\n" + "\n".join(heavy)


def test_importing_the_package_imports_nothing_of_ours_but_its_version() -> None:
    ours = {found.module for found in IMPORTS["edgekit"] if found.at_import and found.module.startswith("edgekit")}
    assert ours <= {"edgekit._version"}


@pytest.mark.parametrize("name", list(MODULES))
def test_no_module_is_too_long_to_read(name: str) -> None:
    assert len(MODULES[name].read_text(encoding="utf-8").splitlines()) <= MAX_LINES


AGENT_FILES = sorted(path for path in (PACKAGE / "agent").rglob("*.py") if path.name != "__init__.py")


@pytest.mark.parametrize("path", AGENT_FILES, ids=lambda path: path.name)
class TestAFileForDevices:
    """Pushed as it is to a device that has Python 3.9 and nothing else of ours."""

    def test_has_the_grammar_of_python_3_9(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        ast.parse(text, feature_version=(3, 9))
        annotated = any(
            isinstance(node, ast.arg | ast.AnnAssign) and node.annotation for node in ast.walk(ast.parse(text))
        )
        assert not annotated or "from __future__ import annotations" in text, "`int | None` fails in Python 3.9"

    def test_calls_nothing_as_only_a_newer_python_can(self, path: Path) -> None:
        newer = {"zip": "strict", "dataclass": "slots"}
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert newer.get(node.func.id) not in {keyword.arg for keyword in node.keywords} - {None}, node.lineno
                assert not (node.func.id == "isinstance" and isinstance(node.args[1], ast.BinOp)), node.lineno

    def test_starts_with_the_standard_library_alone(self, path: Path) -> None:
        siblings = {file.stem for file in AGENT_FILES}
        # A driver is loaded once the runtime is unpacked, and every runtime brings NumPy.
        allowed = sys.stdlib_module_names | siblings | ({"numpy"} if path.name.startswith("device_") else set())
        found = {found.module.split(".")[0] for found in imports_in(path) if found.at_import}
        assert found <= allowed - NEWER_THAN_PYTHON_3_9

    def test_needs_nothing_of_edgekit(self, path: Path) -> None:
        assert not [found for found in imports_in(path) if found.module.split(".")[0] == "edgekit"]

    def test_reads_with_no_library_but_numpy_unless_it_is_a_driver(self, path: Path) -> None:
        if not path.name.startswith("device_"):
            siblings = {file.stem for file in AGENT_FILES}
            found = {found.module.split(".")[0] for found in imports_in(path)}
            assert found <= sys.stdlib_module_names | siblings | {"numpy"}
