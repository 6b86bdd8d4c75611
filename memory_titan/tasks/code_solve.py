"""Solving a code question from its evidence alone: `ast` on the definition and on the line to be completed."""

from __future__ import annotations

import ast
import io
import re
import textwrap
import tokenize
from collections.abc import Sequence

from memory_titan.tasks.checking import UnsolvableError

_DOTTED = r"[\w.]+"
_BLANK = "answer_goes_here"


class _Known:
    """What the evidence defines: `file`, values by name, functions by name, parameters without `self`."""

    def __init__(self, evidence: Sequence[str]) -> None:
        self.file = ""
        self.values: dict[str, str] = {}  # "LIMIT", "Class.attribute", 'PORTS["main"]', "function()"
        self.functions: dict[str, ast.arguments] = {}
        owner = ""
        for piece in evidence:
            if piece.startswith("# file: "):
                self.file = piece.removeprefix("# file: ").split(",")[0]
                continue
            source = textwrap.dedent(piece)
            inside = f"{owner}." if piece[:1].isspace() else ""
            # What was cut off behind a colon is a body.
            tree = _parse(source) or _parse(f"{source} pass")
            if tree is None or len(tree.body) != 1:
                raise UnsolvableError(f"no definition: {piece[:60]!r}")
            owner = self._learn(tree.body[0], source, inside) or owner

    def _learn(self, node: ast.stmt, source: str, inside: str) -> str:
        if isinstance(node, ast.ClassDef):
            return node.name
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            arguments = node.args
            if inside:  # a method is called without its first argument
                ordinary = arguments.posonlyargs or arguments.args
                del ordinary[:1]
            self.functions[inside[:-1] if node.name == "__init__" else inside + node.name] = arguments
            last = node.body[-1]
            if isinstance(last, ast.Return) and last.value is not None:
                self.values[f"{inside}{node.name}()"] = _source(source, last.value)
            for name, default in _defaults(arguments).items():
                self.values[f"{inside[:-1] if node.name == '__init__' else inside + node.name}?{name}"] = _source(
                    source, default
                )
            return ""
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        value = getattr(node, "value", None)
        if not isinstance(target, ast.Name) or value is None:
            raise UnsolvableError(f"neither function, class nor value: {source[:60]!r}")
        self.values[inside + target.id] = _source(source, value)
        if isinstance(value, ast.Dict):
            for key, each in zip(value.keys, value.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(key.value, str):
                    self.values[f'{inside}{target.id}["{key.value}"]'] = _source(source, each)
        return ""


def solve(evidence: Sequence[str], question: str) -> str:
    """What completes the question's last line, as the evidence defines it.

    Raises:
        UnsolvableError: the evidence does not define what is used, or leaves more than one answer open.
    """
    known = _Known(evidence)
    _same_file(known.file, question)
    line = question.rsplit("\n", 1)[-1].strip()
    default = re.fullmatch(rf'assert inspect\.signature\(({_DOTTED})\)\.parameters\["(\w+)"\]\.default ==', line)
    parameter = re.fullmatch(rf"assert list\(inspect\.signature\(({_DOTTED})\)\.parameters\)\[(\d+)\] ==", line)
    value = re.fullmatch(rf'assert ({_DOTTED})(\(\)|\["\w+"\])? ==', line)
    if default:
        wanted = _find(list(known.values), default[1], f"?{default[2]}")
        return known.values[wanted]
    if parameter:
        arguments = known.functions[_find(list(known.functions), parameter[1], "")]
        ordinary = [each.arg for each in [*arguments.posonlyargs, *arguments.args]]
        if int(parameter[2]) >= len(ordinary):
            raise UnsolvableError(f"{parameter[1]} has {len(ordinary)} parameters by position")
        return f'"{ordinary[int(parameter[2])]}"'
    if value:
        return known.values[_find(list(known.values), value[1], value[2] or "")]
    call = _open_call(question)
    wanted = _find(list(known.functions), ast.unparse(call.func), "")
    return _missing(known.functions[wanted], call)


def _find(names: list[str], dotted: str, end: str) -> str:
    """The one name that `dotted` means: a module in front of it may be left out."""
    parts = dotted.split(".")
    for skipped in range(len(parts)):
        name = ".".join(parts[skipped:]) + end
        if name in names:
            return name
    raise UnsolvableError(f"the evidence does not define {dotted}{end}")


def _missing(arguments: ast.arguments, call: ast.Call) -> str:
    """The one parameter that a call does not give yet."""
    if arguments.vararg or arguments.kwarg:
        raise UnsolvableError("the function takes any arguments")
    ordinary = [*arguments.posonlyargs, *arguments.args][len(call.args) :]
    free = [each.arg for each in [*ordinary, *arguments.kwonlyargs] if each not in arguments.posonlyargs]
    given = {keyword.arg for keyword in call.keywords}
    left = [name for name in free if name not in given]
    if len(left) != 1:
        raise UnsolvableError(f"the call leaves {len(left)} parameters open: {', '.join(left)}")
    return left[0]


def _open_call(question: str) -> ast.Call:
    """The call that the question's last statement breaks off in."""
    statement = textwrap.dedent(question.rsplit("\n\n", 1)[-1])
    if statement.startswith("def "):  # the synthetic form: a test function of one line
        statement = statement.split("\n", 1)[-1].strip()
    closed = f"{statement} {_BLANK}=0{_closers(statement)}"
    tree = _parse(closed)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)] if tree else []
    for call in calls:
        if any(keyword.arg == _BLANK for keyword in call.keywords):
            call.keywords = [keyword for keyword in call.keywords if keyword.arg != _BLANK]
            return call
    raise UnsolvableError(f"no code question: {question[-80:]!r}")


def _closers(source: str) -> str:
    """What closes the brackets that are still open at the end of `source`."""
    pairs, stack = {"(": ")", "[": "]", "{": "}"}, []
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.string in pairs:
                stack.append(pairs[token.string])
            elif stack and token.string == stack[-1]:
                stack.pop()
    except (tokenize.TokenError, SyntaxError):
        pass  # the end of the text inside brackets, as expected
    return "".join(reversed(stack))


def _same_file(file: str, question: str) -> None:
    """A definition's file, if the evidence tells it, has to be what the question imports."""
    if not file:
        return
    imported = re.search(r"^(?:from (\S+) import (\w+)|import (\S+))", question, re.MULTILINE)
    if not imported:
        if not question.startswith(f"# file: {file}\n"):
            raise UnsolvableError(f"the question imports nothing, the evidence is of {file}")
        return
    module = imported[1] or imported[3]
    names = [module, f"{module}.{imported[2]}"] if imported[1] else [module]
    path = "/" + file.removesuffix(".py").removesuffix("/__init__")
    if not any(path.endswith("/" + name.replace(".", "/")) for name in names):
        raise UnsolvableError(f"the question imports {module}, the evidence is of {file}")


def _defaults(arguments: ast.arguments) -> dict[str, ast.expr]:
    ordinary = [*arguments.posonlyargs, *arguments.args]
    found = {}
    if arguments.defaults:
        behind = ordinary[-len(arguments.defaults) :]
        found = {each.arg: default for each, default in zip(behind, arguments.defaults, strict=False)}
    for each, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        if default is not None:
            found[each.arg] = default
    return found


def _source(source: str, node: ast.expr) -> str:
    return ast.get_source_segment(source, node) or ast.unparse(node)


def _parse(source: str) -> ast.Module | None:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError):
        return None
