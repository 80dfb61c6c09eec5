"""No code from a checkpoint can run, because nothing that could run it is in the package."""

import ast
from pathlib import Path

import pytest

import qvl

PACKAGE = Path(qvl.__file__).parent
FILES = sorted(
    path for part in ("loading", "models", "processing") for path in (PACKAGE / part).rglob("*.py")
)
WORKER = PACKAGE / "loading" / "pickle_worker.py"
MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml", "importlib"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
ATTRIBUTES = {("torch", "load"), ("torch", "hub"), ("np", "load"), ("numpy", "load")}


def dangers(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                found += [n.name for n in names if n.name.split(".")[0] in MODULES]
            case ast.ImportFrom(module="importlib.util", names=[ast.alias(name="find_spec")]):
                pass  # looks for a module and runs nothing
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in MODULES:
                found.append(module)
            case ast.Call(func=ast.Name(id=name)) if name in BUILTINS:
                found.append(name)
            case ast.Attribute(value=ast.Name(id=owner), attr=attr) if (owner, attr) in ATTRIBUTES:
                found.append(f"{owner}.{attr}")
            case ast.keyword(arg="trust_remote_code" | "allow_pickle" as name):
                found.append(name)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_that_runs_foreign_code_is_used(path: Path) -> None:
    found = dangers(ast.parse(path.read_text(encoding="utf-8")))
    assert found == (["torch.load"] if path == WORKER else [])


def test_the_one_place_that_reads_pickles_reads_tensors_alone() -> None:
    calls = [
        {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        for node in ast.walk(ast.parse(WORKER.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    ]
    assert [call["weights_only"] for call in calls] == ["True"]
    importing = [path for path in FILES if "import pickle_worker" in path.read_text("utf-8")]
    assert importing == []  # it runs as a process only


def test_the_search_finds_what_it_looks_for() -> None:
    code = "import pickle\nfrom importlib import util\neval('1')\ntorch.load(x)\nf(allow_pickle=1)"
    found = sorted(dangers(ast.parse(code)))
    assert found == ["allow_pickle", "eval", "importlib", "pickle", "torch.load"]
