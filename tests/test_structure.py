"""The rules of the tree: order of imports, sizes, splats, and commands that answer at once.

A rule is a function. It takes the tracked files, a mapping from path to text, and returns one line
per violation. Small made-up trees show that each rule finds what it has to find.
"""

import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parent.parent

# A package or a root module imports only from the lines above its own.
TIERS = (
    "utils theory",
    "models input_pipeline objective",
    "refusals",
    "args metrics",
    "rundir figures",
    "training reproduction",
    "train eval_nc eval_scores eval_tsne verify_theory reproduce compare demo",
    "benchmarks",
    "tests",
)
TIER_OF = {name: tier for tier, names in enumerate(TIERS) for name in names.split()}
REGISTRIES = ("models", "input_pipeline", "objective", "metrics", "reproduction")

FILE_LINES = {"train.py": 250, "args.py": 540}
FUNCTION_LINES = 60
LINES_OF_FUNCTION = {("train.py", "train"): 50}
NESTING = 3
START_SECONDS = 0.3  # processor time, the interpreter's own start included

REFERENCE = re.compile(r"[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
LOOPS = (ast.For, ast.AsyncFor, ast.While)
BLOCKS = (*LOOPS, ast.If, ast.With, ast.AsyncWith, ast.Try, ast.TryStar, ast.Match)

Files = dict[str, str]


# --- Reading the tree ---


def list_files(root: Path) -> list[Path]:
    """The tracked files; outside a git checkout all files but hidden ones, data and runs."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True)
    if listed.returncode == 0:
        return [root / name for name in listed.stdout.split("\0") if (root / name).is_file()]
    found = (path for path in root.rglob("*") if path.is_file())
    return [path for path in found if not is_left_out(path.relative_to(root))]


def is_left_out(path: Path) -> bool:
    hidden = any(part.startswith(".") or part == "__pycache__" for part in path.parts[:-1])
    return hidden or path.parts[0] in ("data", "model_weights")


def read_files(root: Path) -> Files:
    """Text of the files by their path in the tree; pictures are left out."""
    files = {}
    for path in list_files(root):
        try:
            files[path.relative_to(root).as_posix()] = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
    return files


def parse_modules(files: Files, tests: bool = False) -> Iterator[tuple[str, ast.Module]]:
    for path, text in sorted(files.items()):
        if path.endswith(".py") and (tests or not path.startswith("tests/")):
            yield path, ast.parse(text, path)


def name_unit(path: str) -> str:
    """The package or root module that a file belongs to: "utils" of utils/files.py."""
    return path.split("/")[0].removesuffix(".py")


# --- Imports ---


class Import(NamedTuple):
    path: str
    line: int
    target: str  # dotted

    @property
    def unit(self) -> str:
        return name_unit(self.path)

    @property
    def target_unit(self) -> str:
        return self.target.split(".")[0]


def find_imports(files: Files, tests: bool = False) -> Iterator[Import]:
    """All imports of our own modules, also those inside functions and registries' references."""
    for path, module in parse_modules(files, tests):
        for node in ast.walk(module):
            for target in name_targets(path, node):
                if target.split(".")[0] in TIER_OF:
                    yield Import(path, node.lineno, target)


def name_targets(path: str, node: ast.AST) -> list[str]:
    """The dotted names that a node imports."""
    match node:
        case ast.Import():
            return [alias.name for alias in node.names]
        case ast.ImportFrom():
            base = name_base(path, node)
            return [f"{base}.{alias.name}" for alias in node.names]
        case ast.Call(args=[ast.Constant(value=str(name)), *_]) if is_import_call(node):
            return [name]
        case ast.Constant(value=str(text)) if REFERENCE.fullmatch(text):
            return [text.split(":")[0]]
    return []


def name_base(path: str, node: ast.ImportFrom) -> str:
    """The module after "from"; a relative one is resolved from the file's own package."""
    if not node.level:
        return node.module or ""
    package = path.split("/")[: -node.level]
    return ".".join([*package, node.module] if node.module else package)


def is_import_call(node: ast.Call) -> bool:
    return ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__")


def find_unknown_units(files: Files) -> list[str]:
    paths = {name_unit(path): path for path in sorted(files, reverse=True) if path.endswith(".py")}
    return [
        f"{path}: {unit} is not a package or root module of the layout"
        for unit, path in sorted(paths.items())
        if unit not in TIER_OF
    ]


def find_wrong_imports(files: Files) -> list[str]:
    return [
        f"{found.path}:{found.line}: {found.unit} must not import {found.target}"
        for found in find_imports(files)
        if found.unit != found.target_unit
        if TIER_OF.get(found.unit, 0) <= TIER_OF[found.target_unit]
    ]


def find_cycles(files: Files) -> list[str]:
    """Packages that import each other, directly or through others; a cycle is named once."""
    graph: dict[str, set[str]] = {}
    for found in find_imports(files):
        if found.unit != found.target_unit:
            graph.setdefault(found.unit, set()).add(found.target_unit)
    cycles = {tuple(cycle) for unit in graph for cycle in follow([unit], graph)}
    return [" -> ".join([*cycle, cycle[0]]) for cycle in sorted(cycles)]


def follow(trail: list[str], graph: dict[str, set[str]]) -> Iterator[list[str]]:
    """Cycles back to the trail's start, whose name is the first of the cycle's names."""
    for unit in graph.get(trail[-1], ()):
        if unit == trail[0]:
            yield trail
        elif unit > trail[0] and unit not in trail:
            yield from follow([*trail, unit], graph)


def find_broken_references(files: Files) -> list[str]:
    """Registries' texts "package.module:function" that lead to no function."""
    return [
        f"{path}:{node.lineno}: {node.value} leads to no function"
        for path, module in parse_modules(files)
        for node in ast.walk(module)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if REFERENCE.fullmatch(node.value) and not is_resolved(node.value, files)
    ]


def is_resolved(reference: str, files: Files) -> bool:
    name, function = reference.split(":")
    top = name.split(".")[0]
    if top not in TIER_OF:  # a library's function, or a text that is no reference
        return "." not in name or importlib.util.find_spec(top) is not None
    place = name.replace(".", "/")
    text = files.get(f"{place}.py", files.get(f"{place}/__init__.py", ""))
    kinds = (*FUNCTIONS, ast.ClassDef)
    return any(isinstance(n, kinds) and n.name == function for n in ast.parse(text).body)


def find_imports_of_tests(files: Files) -> list[str]:
    """Test modules share helpers through tests/helpers.py and do not import each other."""
    return [
        f"{found.path}:{found.line}: {found.target} is a test module"
        for found in find_imports(files, tests=True)
        if re.match(r"tests\.(.*\.)?test_", found.target)
    ]


# --- Sizes ---


def find_functions(files: Files) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for path, module in parse_modules(files):
        for node in ast.walk(module):
            if isinstance(node, FUNCTIONS):
                yield path, node


def find_long_files(files: Files) -> list[str]:
    counts = {path: len(files.get(path, "").splitlines()) for path in FILE_LINES}
    return [
        f"{path}: {count} lines, at most {FILE_LINES[path]}"
        for path, count in counts.items()
        if count > FILE_LINES[path]
    ]


def find_long_functions(files: Files) -> list[str]:
    found = []
    for path, node in find_functions(files):
        count = (node.end_lineno or node.lineno) - node.lineno + 1
        limit = LINES_OF_FUNCTION.get((path, node.name), FUNCTION_LINES)
        if count > limit:
            found.append(f"{path}:{node.lineno}: {node.name}: {count} lines, at most {limit}")
    return found


def find_deep_functions(files: Files) -> list[str]:
    return [
        f"{path}:{node.lineno}: {node.name}: {depth} blocks inside each other, at most {NESTING}"
        for path, node in find_functions(files)
        if (depth := measure_nesting(node)) > NESTING
    ]


def measure_nesting(node: ast.AST) -> int:
    """How many blocks stand inside each other; an inner function or class counts by itself."""
    deepest = 0
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (*FUNCTIONS, ast.ClassDef)):
            opens = isinstance(child, BLOCKS) and not is_elif(child, node)
            deepest = max(deepest, opens + measure_nesting(child))
    return deepest


def is_elif(node: ast.stmt, parent: ast.AST) -> bool:
    """Whether an if is its parent's elif: the syntax tree differs from else only in the column."""
    return (
        isinstance(node, ast.If)
        and isinstance(parent, ast.If)
        and parent.orelse == [node]
        and node.col_offset == parent.col_offset
    )


# --- Splats and prose ---


def find_packing_splats(files: Files) -> list[str]:
    """Splats of a literal, such as *("a", "b"): the values can stand there without it."""
    return [
        f"{path}:{splat.lineno}: {ast.unparse(splat)[:60]}: a splat that only packs lines"
        for path, module in parse_modules(files)
        for node in ast.walk(module)
        for splat in find_splats(node)
    ]


def find_splats(node: ast.AST) -> list[ast.expr]:
    match node:
        case ast.Starred(value=ast.Tuple() | ast.List()):
            return [node.value]
        case ast.Dict():
            pairs = zip(node.keys, node.values, strict=True)
            return [value for key, value in pairs if key is None and isinstance(value, ast.Dict)]
        case ast.Call():
            splats = [keyword.value for keyword in node.keywords if keyword.arg is None]
            return [value for value in splats if is_keywords(value)]
    return []


def is_keywords(node: ast.expr) -> bool:
    """Whether a literal could be written as keywords: no key is computed at run time."""
    if not isinstance(node, ast.Dict):
        return False
    names = [key.value if isinstance(key, ast.Constant) else None for key in node.keys if key]
    return all(isinstance(name, str) and name.isidentifier() for name in names)


def find_missing_sources(files: Files) -> list[str]:
    """Mentions of a text that is not in the repository: cite the paper, or docs/."""
    absent = "paper" + ".md"
    return [
        f"{path}:{number}: {absent} is not in the repository"
        for path, text in sorted(files.items())
        for number, line in enumerate(text.splitlines(), start=1)
        if absent in line
    ]


RULES = (
    find_unknown_units,
    find_wrong_imports,
    find_cycles,
    find_broken_references,
    find_imports_of_tests,
    find_long_files,
    find_long_functions,
    find_deep_functions,
    find_packing_splats,
    find_missing_sources,
)


# --- Answers without torch ---

PROBE = """
import runpy, sys, time
del sys.argv[0]
sys.path[0] = sys.argv[0].rpartition("/")[0]
status = 0
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    status = end.code or 0
print()
print(status, "torch" in sys.modules, time.process_time())
"""


def find_scripts(files: Files) -> list[str]:
    """The files that are run as commands."""
    modules = parse_modules(files)
    return [path for path, module in modules if any(map(is_main_block, module.body))]


def is_main_block(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def find_slow_answers(root: Path, script: str, flag: str, status: int, tries: int = 3) -> list[str]:
    """Run a command that answers from its parser alone; the best of several tries counts."""
    command = [sys.executable, "-c", PROBE, str(root / script), flag]
    seconds = []
    for _ in range(tries):
        ended = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
        if ended.returncode:
            return [f"{script} {flag}: {ended.stderr.strip().splitlines()[-1]}"]
        code, has_torch, spent = ended.stdout.splitlines()[-1].split()
        if int(code) != status:
            return [f"{script} {flag}: status {code}, not {status}"]
        if has_torch == "True":
            return [f"{script} {flag}: imports torch ({spent} s)"]
        seconds.append(float(spent))
        if seconds[-1] < START_SECONDS:
            return []
    return [f"{script} {flag}: {min(seconds):.2f} s, at most {START_SECONDS}"]


def find_loaded(root: Path, module: str, *heavy: str) -> list[str]:
    """Which of the heavy modules an import loads."""
    code = f"import sys, {module}; print(*(name for name in {heavy} if name in sys.modules))"
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    if ended.returncode:
        return [f"{module}: {ended.stderr.strip().splitlines()[-1]}"]
    return [f"{module}: imports {name}" for name in ended.stdout.split()]


# --- The tree keeps the rules ---

FILES = read_files(ROOT)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_tree_keeps_the_rule(rule):
    violations = rule(FILES)
    assert not violations, "\n" + "\n".join(violations)


@pytest.mark.parametrize("registry", REGISTRIES)
def test_registries_load_neither_torch_nor_numpy(registry):
    assert find_loaded(ROOT, registry, "torch", "numpy") == []


def test_settings_load_no_torch():
    assert find_loaded(ROOT, "args", "torch") == []


@pytest.mark.parametrize("script", find_scripts(FILES))
def test_help_and_refusals_answer_at_once(script):
    assert find_slow_answers(ROOT, script, "--help", status=0) == []
    assert find_slow_answers(ROOT, script, "--no_such_flag", status=2) == []


def test_pre_commit_has_a_ruff_of_the_required_range():
    pinned = re.search(r"ruff-pre-commit\n\s+rev: v([\d.]+)\n", FILES[".pre-commit-config.yaml"])
    required = re.search(r"^ruff(.+)$", FILES["requirements-dev.txt"], re.MULTILINE)
    assert pinned[1] in SpecifierSet(required[1])


# --- The rules find what they have to find ---


def nest(*heads: str) -> str:
    """A function whose blocks stand inside each other."""
    lines = ["def f(x):", *heads, "pass"]
    return "\n".join("    " * depth + line for depth, line in enumerate(lines))


def lengthen(name: str, count: int) -> str:
    """A function of that many lines."""
    return f"def {name}():\n" + "    pass\n" * (count - 1)


ELIF_CHAIN = "def f(x):\n    if x:\n        pass\n" + "    elif x:\n        pass\n" * 5
ELSE_IF = """
def f(x):
    for a in x:
        for b in a:
            if b:
                pass
            else:
                if a:
                    pass
"""
MATCH_AND_TRY = """
def f(x):
    match x:
        case 1:
            try:
                pass
            except OSError:
                while x:
                    with x:
                        pass
"""

REFUSED = [
    (find_unknown_units, {"datasets/a.py": ""}, "datasets is not"),
    (find_unknown_units, {"helpers.py": ""}, "helpers is not"),
    (find_wrong_imports, {"utils/a.py": "import models"}, "utils must not import models"),
    (find_wrong_imports, {"utils/a.py": "from theory.minimum import f"}, "import theory.minimum"),
    (find_wrong_imports, {"models/a.py": "def f():\n    import args"}, "models/a.py:2: "),
    (
        find_wrong_imports,
        {"args.py": "if TYPE_CHECKING:\n    from rundir.config import f"},
        "args ",
    ),
    (find_wrong_imports, {"metrics/a.py": "import_module('training.step')"}, "training.step"),
    (find_wrong_imports, {"models/__init__.py": "X = 'objective.losses:bce'"}, "objective.losses"),
    (find_wrong_imports, {"train.py": "import eval_nc"}, "train must not import eval_nc"),
    (find_wrong_imports, {"figures/a.py": "import tests.helpers"}, "import tests.helpers"),
    (
        find_cycles,
        {
            "models/a.py": "import utils.b",
            "utils/b.py": "import args",
            "args.py": "def f():\n    from models import a",
        },
        "args -> models -> utils -> args",
    ),
    (find_cycles, {"models/a.py": "X = 'utils.a:f'", "utils/a.py": "import models"}, "models ->"),
    (
        find_broken_references,
        {"objective/__init__.py": "A = 'objective.losses:mse'", "objective/losses.py": "mse = 1"},
        "objective.losses:mse leads to no function",
    ),
    (find_broken_references, {"models/__init__.py": "A = 'models.resnet:build'"}, "models.resnet"),
    (find_broken_references, {"models/__init__.py": "A = 'modles.resnet:build'"}, "modles.resnet"),
    (find_imports_of_tests, {"tests/test_a.py": "from tests.test_b import f"}, "tests.test_b"),
    (find_imports_of_tests, {"tests/a/test_a.py": "from .test_b import f"}, "tests.a.test_b"),
    (find_imports_of_tests, {"tests/a/test_a.py": "from tests.b import test_b"}, "tests.b.test_b"),
    (find_long_files, {"train.py": "pass\n" * 251}, "251 lines"),
    (find_long_files, {"args.py": "pass\n" * 541}, "541 lines"),
    (find_long_functions, {"utils/a.py": lengthen("f", 61)}, "f: 61 lines, at most 60"),
    (find_long_functions, {"train.py": lengthen("train", 51)}, "train: 51 lines, at most 50"),
    (find_deep_functions, {"a.py": nest("if x:", "for y in x:", "while y:", "with y:")}, "f: 4"),
    (find_deep_functions, {"a.py": MATCH_AND_TRY}, "f: 4"),
    (find_deep_functions, {"a.py": ELSE_IF}, "f: 4"),
    (find_packing_splats, {"a.py": "X = (*('a', 'b'), 'c')"}, "('a', 'b')"),
    (find_packing_splats, {"a.py": "f(*['a', x])"}, "['a', x]"),
    (find_packing_splats, {"a.py": "X = {**{'a': 1}, **y}"}, "{'a': 1}"),
    (find_packing_splats, {"a.py": "f(**{'a': 1, **y})"}, "{'a': 1, **y}"),
    (find_missing_sources, {"docs/a.md": "see\n" + "paper" + ".md"}, "docs/a.md:2: "),
]

ACCEPTED = [
    (find_unknown_units, {"train.py": "", "utils/a.py": "", "tests/a/b.py": "", "docs/a.md": ""}),
    (find_wrong_imports, {"theory/a.py": "import torch\nfrom theory.b import f"}),
    (find_wrong_imports, {"models/__init__.py": "X = 'models.a:f'\nfrom utils import registry"}),
    (find_wrong_imports, {"benchmarks/a.py": "import train", "tests/a.py": "import utils"}),
    (find_cycles, {"models/a.py": "import utils", "objective/a.py": "import utils"}),
    (find_cycles, {"models/a.py": "import models.b", "models/b.py": "import models.a"}),
    (
        find_broken_references,
        {"models/__init__.py": "A = 'models.a:f'", "models/a.py": lengthen("f", 2)},
    ),
    (find_broken_references, {"models/__init__.py": "A = 'json.decoder:JSONDecoder', 'note:this'"}),
    (find_broken_references, {"tests/test_a.py": "A = 'models.mlp:missing'"}),
    (find_imports_of_tests, {"tests/test_a.py": "from tests.helpers import run"}),
    (find_long_files, {"train.py": "pass\n" * 250, "args.py": "pass\n" * 350}),
    (find_long_functions, {"train.py": lengthen("train", 50), "utils/a.py": lengthen("train", 60)}),
    (find_long_functions, {"tests/test_a.py": lengthen("f", 99)}),
    (find_deep_functions, {"a.py": nest("if x:", "for y in x:", "while y:")}),
    (find_deep_functions, {"a.py": nest("if x:", "if x:", "if x:", "def g():", "if x:", "if x:")}),
    (find_deep_functions, {"a.py": ELIF_CHAIN}),
    (
        find_deep_functions,
        {"a.py": "def f(x):\n    return [a for b in x for c in b for a in c if a]"},
    ),
    (find_packing_splats, {"a.py": "f(*x, *(y for y in x), **{name: 1}, **dict(x))"}),
    (find_packing_splats, {"a.py": "X = [*(['a'] if y else []), *x]"}),
    (find_packing_splats, {"a.py": "X = {**x, **({} if y else {'a': 1})}"}),
    (find_missing_sources, {"docs/a.md": "the paper, or docs/theory.md"}),
]


@pytest.mark.parametrize(("rule", "files", "words"), REFUSED)
def test_rule_finds(rule, files, words):
    violations = rule(files)
    assert len(violations) == 1, violations
    assert words in violations[0]


@pytest.mark.parametrize(("rule", "files"), ACCEPTED)
def test_rule_accepts(rule, files):
    assert rule(files) == []


def test_every_rule_is_tried():
    assert {rule for rule, *_ in REFUSED} == {rule for rule, _ in ACCEPTED} == set(RULES)


def test_files_are_read_without_git(tmp_path):
    (tmp_path / "utils").mkdir()
    (tmp_path / ".venv").mkdir()
    for name in ("utils/a.py", ".venv/b.py", ".gitignore"):
        (tmp_path / name).write_text("é", encoding="utf-8")
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    assert set(read_files(tmp_path)) == {"utils/a.py", ".gitignore"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import sys; sys.exit(2)", None),
        ("import torch, sys; sys.exit(2)", "imports torch"),
        ("import sys; sys.exit(0)", "status 0, not 2"),
        ("raise ValueError('broken')", "broken"),
        ("import sys, time\nwhile time.process_time() < 0.35: pass\nsys.exit(2)", "at most 0.3"),
    ],
)
def test_slow_answers_are_found(tmp_path, text, words):
    (tmp_path / "torch.py").touch()
    (tmp_path / "script.py").write_text(text)
    found = find_slow_answers(tmp_path, "script.py", "--help", status=2, tries=2)
    assert len(found) == bool(words)
    assert not words or words in found[0]


def test_loaded_modules_are_found(tmp_path):
    (tmp_path / "torch.py").touch()
    (tmp_path / "models.py").write_text("import torch")
    assert find_loaded(tmp_path, "models", "torch", "numpy") == ["models: imports torch"]
