"""Definitions in Python files and uses of them, in another file or far away in their own, found by their syntax.

    kind        definition                        use, and what is asked
    keyword     def scan(text, start, strict):    found = decoder.scan(line, 0, ...
    parameter   def scan(text, start, strict):    scan(line, 0)  list(inspect.signature(scan).parameters)[1] ==
    default     def load(path, mode="rb"):        load(name)     inspect.signature(load).parameters["mode"].default ==
    constant    MAX_DEPTH = 512                   depth = decoder.MAX_DEPTH             decoder.MAX_DEPTH ==
    attribute   class Reader: limit = 4096        left = Reader.limit - taken           Reader.limit ==

A keyword is asked for if the definition's signature leaves one parameter alone open at that place of the call; a
value if it is a literal that does not stand in the use itself. Only names that are bound once in each file count.
"""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

_MOST_LINES = 12  # of a use, of a signature
FAR = 100  # lines between a definition and a use in the same file, at least
_SIMPLE = (ast.Expr, ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Return, ast.Raise, ast.Assert)
_DULL = {"0", "1", "-1", "2", "''", '""', "()", "0.0", "1.0"}  # anybody would guess these

Lines = tuple[int, int]  # first and last, from 1


@dataclass(frozen=True)
class SourceFile:
    """A file of the tree. `path` is relative to the tree, with "/"."""

    path: str
    lines: list[str]


@dataclass(frozen=True)
class Item:
    """A use, cut where the answer comes, and the lines of the definition that tells it."""

    kind: str  # see the module's table
    definition: int  # file
    lines: tuple[Lines, ...]  # of the definition: evidence
    use: int  # file
    question: str  # the use, from its file's header on
    answer: str


@dataclass(frozen=True)
class Definition:
    """What a module's top or a class defines once."""

    file: int
    lines: tuple[Lines, ...]
    arguments: ast.arguments | None = None  # of a function, `self` removed
    value: str = ""  # of a constant or attribute, as it is written


@dataclass(frozen=True)
class Use:
    """A name of another module, or of the file itself, in a statement."""

    file: int
    target: str  # dotted: module.name or module.Class.name
    expression: str  # as it is written
    line: int
    imported: str  # the import that binds it; empty: it is defined in the same file
    statement: str
    call: ast.Call | None = None
    cuts: tuple[str, ...] = ()  # the statement up to each keyword of the call


def parse(text: str) -> ast.Module | None:
    """The syntax of a text; None: it is no Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in strings
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _bound(nodes: list[ast.stmt]) -> Counter[str]:
    """How often each name is bound by these statements, without looking into functions and classes."""
    names: Counter[str] = Counter()
    waiting: list[ast.AST] = list(nodes)
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names[node.name] += 1
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, (ast.Store, ast.Del)):
            names[node.id] += 1
        if isinstance(node, ast.alias):
            names[(node.asname or node.name).split(".")[0]] += 1
        waiting += ast.iter_child_nodes(node)
    return names


def find_definitions(tree: ast.Module, text: str, file: int) -> Iterator[tuple[str, Definition]]:
    """What a module defines once, at its top."""
    lines, bound = text.split("\n"), _bound(tree.body)
    bound.update(name for node in ast.walk(tree) if isinstance(node, ast.Global) for name in node.names)
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and (bound[node.name] != 1 or node.decorator_list):
            continue
        if isinstance(node, ast.FunctionDef):
            signature = _signature(node, lines)
            if signature:
                yield node.name, Definition(file, (signature,), node.args)
        elif isinstance(node, ast.ClassDef):
            yield from _class(node, lines, file)
        else:
            value = _literal(node, lines)
            if value and bound[value[0]] == 1:
                yield value[0], Definition(file, ((node.lineno, node.lineno),), value=value[1])


def _class(node: ast.ClassDef, lines: list[str], file: int) -> Iterator[tuple[str, Definition]]:
    head, bound = _signature(node, lines), _bound(node.body)
    if not head or node.keywords:
        return
    for each in node.body:
        if isinstance(each, ast.FunctionDef) and each.name == "__init__" and not each.decorator_list:
            signature = _signature(each, lines)
            arguments = each.args
            ordinary = arguments.posonlyargs or arguments.args
            if signature and ordinary and bound["__init__"] == 1 and bound["__new__"] == 0:
                del ordinary[0]
                yield node.name, Definition(file, (head, signature), arguments)
        value = _literal(each, lines)
        if value and bound[value[0]] == 1:
            yield f"{node.name}.{value[0]}", Definition(file, (head, (each.lineno, each.lineno)), value=value[1])


def _signature(node: ast.FunctionDef | ast.ClassDef, lines: list[str]) -> Lines | None:
    """The lines up to the colon before the body; None: the body is on the same line, or they are too many."""
    for last in range(node.lineno, min(node.lineno + _MOST_LINES, node.body[0].lineno)):
        if parse(textwrap.dedent("\n".join(lines[node.lineno - 1 : last])) + " pass"):
            return node.lineno, last
    return None


def _literal(node: ast.stmt, lines: list[str]) -> tuple[str, str] | None:
    """Name and source of a literal that an assignment of one line gives a name."""
    target = node.targets[0] if isinstance(node, ast.Assign) and len(node.targets) == 1 else None
    if not isinstance(node, ast.Assign) or not isinstance(target, ast.Name) or node.lineno != node.end_lineno:
        return None
    value = _plain(node.value, lines)
    return (target.id, value) if value else None


def _plain(node: ast.expr, lines: list[str]) -> str:
    """The source of a literal worth asking for, else nothing."""
    if isinstance(node, ast.Constant) and not isinstance(node.value, (int, float, str, bytes)):
        return ""
    number = isinstance(node, ast.UnaryOp) and isinstance(node.operand, ast.Constant)
    if not number and (not isinstance(node, ast.Constant) or isinstance(node.value, bool)):
        return ""
    if node.lineno != node.end_lineno:
        return ""
    source = lines[node.lineno - 1].encode()[node.col_offset : node.end_col_offset].decode()
    return source if source not in _DULL and 1 <= len(source) <= 40 and source.isprintable() else ""


def find_uses(tree: ast.Module, text: str, file: int, module: str, package: bool) -> Iterator[Use]:
    """Calls of imported names, and values of theirs, in simple statements."""
    imports = dict(_imports(tree, module, package))
    own = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    values = [node.targets[0] for node in tree.body if isinstance(node, ast.Assign)]
    own |= {target.id for target in values if isinstance(target, ast.Name)}
    own -= imports.keys()  # bound twice: more than `own` says, so these drop out below
    imports = {**imports, **{name: (f"{module}.{name}", "") for name in own}}
    bound = Counter(n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load))
    bound.update(n.arg for n in ast.walk(tree) if isinstance(n, ast.arg))
    bound.update(n.name for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)))
    imports = {name: found for name, found in imports.items() if bound[name] == (name in own)}
    lines = text.split("\n")
    for node in ast.walk(tree) if imports else ():
        if not isinstance(node, _SIMPLE):
            continue
        statement = None
        for part in ast.walk(node):
            names = _dotted(part.func if isinstance(part, ast.Call) else part)
            if not names or names[0] not in imports or (isinstance(part, ast.Name) and not names[0].isupper()):
                continue
            statement = _statement(node, lines) if statement is None else statement
            if not statement:
                break
            target, imported = imports[names[0]]
            full = ".".join([target, *names[1:]])
            if isinstance(part, ast.Call):
                cuts = tuple(_cut(keyword, node, lines) for keyword in part.keywords)
                yield Use(file, full, ".".join(names), node.lineno, imported, statement, part, cuts)
            elif isinstance(part, (ast.Name, ast.Attribute)) and isinstance(part.ctx, ast.Load):
                yield Use(file, full, ".".join(names), node.lineno, imported, statement)


def _imports(tree: ast.Module, module: str, package: bool) -> Iterator[tuple[str, tuple[str, str]]]:
    """Name here -> (dotted name there, the import as one line), of the imports at the module's top."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.asname is None and "." not in alias.name:
                    yield alias.name, (alias.name, f"import {alias.name}")
        elif isinstance(node, ast.ImportFrom):
            up = module.split(".")[: len(module.split(".")) - node.level + package] if node.level else []
            base = ".".join([*up, *filter(None, [node.module])])
            for alias in node.names:
                if base and alias.asname is None and alias.name != "*":
                    yield alias.name, (f"{base}.{alias.name}", f"from {base} import {alias.name}")


def _dotted(node: ast.AST) -> list[str]:
    """["a", "b"] of a.b; nothing of what is not only names."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return [node.id, *names] if isinstance(node, ast.Name) else []


def _statement(node: ast.stmt, lines: list[str]) -> str:
    """A statement that has its lines for itself, without its indentation; nothing if it shares them or is long."""
    last = node.end_lineno or node.lineno
    if last - node.lineno >= _MOST_LINES:
        return ""
    own = lines[node.lineno - 1 : last]
    behind = own[-1].encode()[node.end_col_offset :].decode().strip()
    if own[0].encode()[: node.col_offset].strip() or (behind and not behind.startswith("#")):
        return ""
    if any(not line.strip() for line in own):
        return ""
    statement = textwrap.dedent("\n".join(own))
    return statement if not statement[0].isspace() and parse(statement) else ""


def _cut(keyword: ast.keyword, node: ast.stmt, lines: list[str]) -> str:
    """The statement up to a keyword of a call in it, ending in a comma; nothing if there is none before it."""
    before = lines[node.lineno - 1 : keyword.lineno]
    before[-1] = before[-1].encode()[: keyword.col_offset].decode()
    # The keyword's own line is kept while the margin is taken off, since it may be the least indented.
    cut = textwrap.dedent("\n".join([*before[:-1], before[-1] + "x"]))[:-1].rstrip()
    return cut if keyword.arg and cut.endswith(",") else ""


def find_items(use: Use, definitions: dict[str, Definition | None], files: list[SourceFile]) -> Iterator[Item]:
    """What can be asked about a use."""
    definition = definitions.get(use.target)
    if definition is None or (definition.file == use.file) is bool(use.imported):
        return
    if not use.imported and min(abs(use.line - line) for lines in definition.lines for line in lines) < FAR:
        return
    head = f"# file: {files[use.file].path}\n{use.imported}{chr(10) if use.imported else ''}\n"

    def item(kind: str, question: str, answer: str) -> Item:
        return Item(kind, definition.file, definition.lines, use.file, head + question, answer)

    if use.call is None:
        if definition.value and definition.value not in use.statement:
            inside = len(definition.lines) > 1
            yield item("attribute" if inside else "constant", f"{use.statement}\nassert {use.expression} ==",
                       definition.value)  # fmt: skip
        return
    arguments, call = definition.arguments, use.call
    if arguments is None or any(isinstance(each, ast.Starred) for each in call.args):
        return
    if not all(keyword.arg for keyword in call.keywords):
        return
    ordinary = [*arguments.posonlyargs, *arguments.args]
    by_name = [
        each.arg for each in [*ordinary[max(len(call.args), len(arguments.posonlyargs)) :], *arguments.kwonlyargs]
    ]
    for place, (keyword, cut) in enumerate(zip(call.keywords, use.cuts, strict=True)):
        given = {each.arg for each in call.keywords[:place]}
        open_ = [name for name in by_name if name not in given]
        if cut and open_ == [keyword.arg] and not arguments.vararg and not arguments.kwarg:
            yield item("keyword", cut, open_[0])
    given = {each.arg for each in call.keywords}
    for place in range(min(len(call.args), len(ordinary)) - 1, 0, -1):
        name = ordinary[place].arg
        if len(name) > 2 and not re.search(rf"\b{name}\b", use.statement):
            ask = f"assert list(inspect.signature({use.expression}).parameters)[{place}] =="
            yield item("parameter", f"{use.statement}\n{ask}", f'"{name}"')
            break
    lines = files[definition.file].lines
    for name, default in _defaults(arguments):
        value = _plain(default, lines)
        if (
            name in by_name
            and name not in given
            and value
            and not re.search(rf"(?<!\w){re.escape(value)}", use.statement)
        ):
            ask = f'assert inspect.signature({use.expression}).parameters["{name}"].default =='
            yield item("default", f"{use.statement}\n{ask}", value)


def _defaults(arguments: ast.arguments) -> list[tuple[str, ast.expr]]:
    ordinary = [*arguments.posonlyargs, *arguments.args]
    behind = ordinary[len(ordinary) - len(arguments.defaults) :]
    found = [(each.arg, default) for each, default in zip(behind, arguments.defaults, strict=True)]
    return found + [(a.arg, d) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d]
