"""What the house asks of every file: floors, length, packages, documentation, examples that run."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = ("ir", "frontend", "passes", "backends", "runtime")
HEAVY = ("torch", "onnx", "onnxruntime", "onnx_ir", "sympy", "numpy", "scipy", "transformers", "networkx")
PROSE = {".py", ".md", ".toml", ".txt", ".cfg", ".ini", ".yml", ".yaml", ".json", ".html", ""}


def files(*suffixes: str) -> list[Path]:
    """The project's files (all that git does not ignore) with these suffixes, or all of them."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode == 0:
        names = [name for name in listed.stdout.split("\0") if name]
    else:  # an unpacked archive
        names = [str(p.relative_to(ROOT)) for p in walk(ROOT)]
    found = [ROOT / name for name in sorted(names)]
    return [p for p in found if p.is_file() and not p.is_symlink() and (not suffixes or p.suffix in suffixes)]


def walk(folder: Path) -> Iterator[Path]:
    """Files below a folder, without hidden ones, builds and caches."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name in ("build", "dist", "__pycache__") or path.is_symlink():
            continue
        if path.is_dir():
            yield from walk(path)
        elif not path.name.endswith(".pyc"):
            yield path


def sources() -> list[Path]:
    """The modules of the five floors."""
    return [p for p in files(".py") if p.relative_to(ROOT).parts[0] in FLOORS]


def python(*args: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run this interpreter."""
    return subprocess.run([sys.executable, *args], cwd=cwd, capture_output=True, text=True)


def imported_by(statement: str, cwd: Path) -> set[str]:
    """The names of all modules that a fresh interpreter holds after a statement."""
    done = python("-c", f"{statement}\nimport sys\nprint(*sorted(sys.modules))", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_imports_only_go_down() -> None:
    done = python(
        "-c", "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_files_are_short() -> None:
    long = {str(p.relative_to(ROOT)): n for p in files(".py") if (n := len(p.read_text().splitlines())) > 500}
    assert not long, f"at most 500 lines: {long}"


def test_package_list_equals_folders() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {".".join(("planish", *p.relative_to(ROOT).parts[:-1])) for p in sources()}
    assert listed == sorted(listed)
    assert set(listed) == folders | {"planish"}


def test_every_package_folder_has_init() -> None:
    missing = sorted(
        {str(p.parent.relative_to(ROOT)) for p in sources() if not (p.parent / "__init__.py").is_file()}
    )
    assert not missing


def test_every_public_name_is_documented() -> None:
    bare = []
    for path in sources():
        if path.name.endswith(".ir.py"):
            continue
        where = path.relative_to(ROOT)
        tree = ast.parse(path.read_text())
        if not ast.get_docstring(tree):
            bare.append(f"{where}: module")
        for node in tree.body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            overload = any(ast.unparse(d).endswith("overload") for d in node.decorator_list)
            if not node.name.startswith("_") and not overload and not ast.get_docstring(node):
                bare.append(f"{where}:{node.lineno}: {node.name}")
    assert not bare, "no docstring:\n" + "\n".join(bare)


def test_nothing_is_left_undone() -> None:
    # The words are put together here, so that this file does not hold them.
    words = [
        "TO" + "DO",
        "FIX" + "ME",
        "XX" + "X",
        r"(?<!except )NotImplemented" + "Error",
        r"pytest\.(mark\.)?" + "skip",
        "x" + "fail",
    ]
    pattern = re.compile(r"\b(" + "|".join(words) + r")")
    assert not found_in_text(pattern)


def test_no_place_of_one_machine() -> None:
    places = [
        "/wo" + "rk/",
        "/tm" + "p/wk",
        "/ro" + "ot/",
        r"/ho" + r"me/\w",
        r"/Us" + r"ers/\w",
        r"\.\./sha" + "red",
    ]
    assert not found_in_text(re.compile("|".join(places)))


def found_in_text(pattern: re.Pattern[str]) -> list[str]:
    """Lines of the project's text that hold a pattern, as `file:line: text`."""
    lines = []
    for path in files():
        if path.suffix not in PROSE or path.name == "LICENSE":
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if pattern.search(line):
                lines.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:160]}")
    return lines


def test_import_is_light(tmp_path: Path) -> None:
    loaded = imported_by("import planish; dir(planish); planish.__version__", tmp_path)
    assert not loaded & set(HEAVY)
    timed = "from time import perf_counter as t; a = t(); import planish; print(t() - a)"
    best = min(float(python("-c", timed, cwd=tmp_path).stdout) for _ in range(5))
    assert best < 0.3


def test_command_line_starts_light(tmp_path: Path) -> None:
    assert not imported_by("import planish.frontend.cli.main", tmp_path) & (set(HEAVY) - {"numpy"})


def test_runtime_stands_alone(tmp_path: Path) -> None:
    modules = [".".join(("planish", *p.relative_to(ROOT).with_suffix("").parts)) for p in sources()]
    runtime = [m.removesuffix(".__init__") for m in modules if m.startswith("planish.runtime.")]
    loaded = imported_by(f"import {', '.join(runtime)}", tmp_path)
    assert not loaded & {"torch", "sympy", "transformers", "planish.ir", "planish.passes", "planish.frontend"}


def test_ir_does_not_import_torch_at_module_level(tmp_path: Path) -> None:
    assert "torch" not in imported_by("import planish.ir, planish.ir.node, planish.ir.parser", tmp_path)


def test_facade_names_exist() -> None:
    import planish

    missing = [name for name in planish.__all__ if not hasattr(planish, name)]
    assert not missing
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = planish.nothing


def test_modules_are_imported_once() -> None:
    """The root holds `__init__.py`; the tests still see one `planish` and nothing under the folder's name."""
    import planish.ir

    assert Path(planish.__file__ or "").resolve() == ROOT / "__init__.py"
    assert planish.ir is sys.modules["planish.ir"]
    twice: dict[Path, list[str]] = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name != "__main__" and file and Path(file).resolve().is_relative_to(ROOT):
            path = Path(file).resolve()
            if ".venv" not in path.relative_to(ROOT).parts:
                twice.setdefault(path, []).append(name)
    assert not {str(p): names for p, names in twice.items() if len(names) > 1}


def test_error_codes_are_listed() -> None:
    listed = set(re.findall(r"^\| (PL\d{3}) \|", (ROOT / "docs" / "errors.md").read_text(), re.M))
    raised = {code for p in sources() for code in re.findall(r"[\"'](PL\d{3})[\"']", p.read_text())}
    assert not raised - listed, f"not in docs/errors.md: {sorted(raised - listed)}"
    assert not listed - raised, f"in docs/errors.md, but raised nowhere: {sorted(listed - raised)}"


# Examples in Markdown. A block whose info string ends in `run` is executed:
#     ```python run     its code runs, the blocks of one file one after another in one process
#     ```console run    each line `$ planish ...` runs, all of a file in one scratch folder, and exits with 0;
#                       the lines after it are its output, where `...` stands for any text
BLOCK = re.compile(r"^```(?P<kind>python|console) run\n(?P<body>.*?)^```$", re.M | re.S)


@pytest.mark.parametrize("document", files(".md"), ids=lambda p: str(p.relative_to(ROOT)))
def test_examples_run(document: Path, tmp_path: Path) -> None:
    blocks = [(m["kind"], m["body"]) for m in BLOCK.finditer(document.read_text())]
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    if code := "\n".join(body for kind, body in blocks if kind == "python"):
        done = python("-c", code, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    for kind, body in blocks:
        if kind == "console":
            check_console(body, tmp_path)


def check_console(body: str, cwd: Path) -> None:
    """Run the commands of one console block and compare what they print."""
    for part in re.split(r"^\$ ", body, flags=re.M)[1:]:
        command, _, shown = part.partition("\n")
        program, *args = shlex.split(command, comments=True)
        assert program == "planish", f"only planish is run in examples: {command}"
        start = "from planish.frontend.cli.main import main; raise SystemExit(main())"
        done = subprocess.run(
            [sys.executable, "-c", start, *args],
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}"
        expected = ".*".join(re.escape(piece) for piece in shown.strip().split("..."))
        if expected:
            assert re.fullmatch(expected, done.stdout.strip(), re.S), f"{command}\n{done.stdout}"
