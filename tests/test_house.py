"""The house in order: imports point one way, modules stay one idea long, no file tells on a machine."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "memory_titan"
MODULES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 450

# Each part of the package, and the parts it may import. A new part gets its row here first.
BESIDE_A_MEMORY = {"models", "graft", "hybrid", "store", "tasks"}  # they know memory, not each other
USES = {"memory": set(), "embedders": set(), "viz": {"memory"}}
USES |= {part: {"memory"} for part in BESIDE_A_MEMORY}
USES |= {"store": {"memory", "embedders"}}
USES |= {"evaluation": {"memory", "embedders", "viz"} | BESIDE_A_MEMORY}
USES |= {"training": {"memory", "evaluation"} | BESIDE_A_MEMORY}
USES |= {"experiments": {"memory", "models", "tasks", "training", "evaluation", "viz"}}
USES |= {"benchmarks": {"memory", "embedders", "models", "graft", "store", "tasks", "training", "evaluation", "viz"}}
USES |= {"integrations": {"memory", "store", "embedders"}}
USES |= {"app": set(USES)}
USES |= {"cli": set(USES)}
USES |= {"__main__": {"cli"}, "__init__": set(USES) - {"cli", "app", "benchmarks", "experiments", "integrations"}}


def part_of(module: str) -> str:
    """memory_titan.hybrid.engine -> hybrid; memory_titan -> __init__."""
    return f"{module}.__init__".split(".")[1]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(source: str, path: Path) -> set[str]:
    """The parts of memory_titan that a module imports, at its top or inside a function."""
    here = path.relative_to(ROOT).parts[:-1]
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = here[: len(here) - node.level + 1] if node.level else ()
            base = ".".join([*start, *filter(None, [node.module])])
            # `from memory_titan import hybrid` may name a part, and its version may be read from anywhere
            names |= {f"{base}.{alias.name}" if base == "memory_titan" else base for alias in node.names}
    ours = {name for name in names if name.split(".")[0] == "memory_titan"} - {"memory_titan.__version__"}
    # a name that is no part, as in `from memory_titan import NeuralMemory`, is one of the package's own
    return {part if part in USES else "__init__" for part in map(part_of, ours)}


def upward(source: str, path: Path) -> set[str]:
    """What a module imports and may not."""
    part = part_of(module_name(path))
    assert part in USES, f"{module_name(path)}: {part} has no place in the house yet; give it a row in USES"
    return imported(source, path) - USES[part] - {part}


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_point_one_way(path):
    assert not upward(path.read_text("utf-8"), path)


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_module_is_one_idea_long(path):
    assert len(path.read_text("utf-8").splitlines()) <= MAX_LINES


@pytest.mark.parametrize(
    ("where", "source", "expected"),
    [
        ("memory/state.py", "from memory_titan.hybrid.engine import Engine", {"hybrid"}),
        ("memory/neural/chunk.py", "from ...models import mac", {"models"}),
        ("memory/neural/chunk.py", "from ..state import State; from .naive import step; import torch", set()),
        ("memory/state.py", "from memory_titan import NeuralMemory", {"__init__"}),
        ("embedders/base.py", "from memory_titan.memory import NeuralMemory", {"memory"}),
        ("store/manager.py", "from memory_titan.embedders import as_embedder; import memory_titan.memory", set()),
        ("memory/state.py", "def f():\n    import memory_titan.store", {"store"}),
        ("hybrid/engine.py", "from memory_titan.memory import NeuralMemory", set()),
        ("hybrid/engine.py", "from .. import graft, __version__", {"graft"}),
        ("models/mac.py", "import memory_titan.viz.heat as heat", {"viz"}),
        ("training/loop.py", "from memory_titan.evaluation import needle", set()),
        ("evaluation/needle.py", "from memory_titan.training import mag", {"training"}),
        ("evaluation/needle.py", "from memory_titan import hybrid, viz", set()),
        ("evaluation/needle.py", "from memory_titan.cli import main", {"cli"}),
        ("app/chat.py", "from memory_titan.evaluation import needle", set()),
        ("cli.py", "from memory_titan import app, viz; from memory_titan.hybrid.engine import Engine", set()),
        ("__init__.py", "from memory_titan.memory import NeuralMemory", set()),
        ("__init__.py", "from .cli import main", {"cli"}),
    ],
)
def test_the_import_rule_can_tell(where, source, expected):
    assert upward(source, PACKAGE / where) == expected


# Written as patterns that do not match themselves.
TELLS = {
    "a path of one machine": r"(?<![\w.-])/(?:work|root|tmp|farm|Users|home/\w+)/[\w.]",
    "a place outside the project": r"\.\./shared/|\bshared/(?:science|style|seeds|trials|checks|hooks)",
    "a package index": r"(?:pypi|npmjs)\.(?:org|com|io)|pythonhoste[d]|download\.pytorch|//[^/\s]*/simple\b",
    "an index by its address": r"(?i)index[-_]url\W{1,4}\w+://|//[\w.-]*(?:mirror|devpi|artifactory)",
}


def tells(text: str) -> list[str]:
    return [f"{what}: {hit[0]}" for what, pattern in TELLS.items() for hit in re.finditer(pattern, text)]


def test_no_file_tells_on_a_machine():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    files = [ROOT / name for name in listing.stdout.decode().split("\0") if name and (ROOT / name).is_file()]
    assert files
    # latin-1 reads any bytes: pictures and notebooks carry text too
    found = {str(file.relative_to(ROOT)): tells(file.read_text("latin-1")) for file in files}
    assert not {file: hits for file, hits in found.items() if hits}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("open('/w*ork/main/notes.txt')", True),
        ("see /r*oot/.cache", True),
        ("/ho*me/jane/notes.mem", True),
        ("as ../sha*red/science.md says", True),
        ("https://pyp*i.org/project/torch", True),
        ("pip install --extra-index-u*rl=https://example.org/cpu", True),
        ("http://packages.example:3141/sim*ple", True),
        ("benchmarks/work/results and a/root/b", False),
        ("docs.python.org/3/library and https://example.org/work", False),
        ("pip's index-url setting", False),
    ],
)
def test_the_tell_rule_can_tell(text, expected):
    assert bool(tells(text.replace("*", ""))) == expected  # the star keeps this file itself clean
