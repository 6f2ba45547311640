"""What code a result depends on: a digest for each class, over every definition that it can reach by name.

    class TEncDM  --names-->  TEncDMSystem, Gaussian, SPLITS ...  --names-->  ...      definitions of trainables/
                  --names-->  torch, transformers                                      the versions that are installed

A definition is a class, a function or a constant at the top of a file, without its comments and docstrings; so a
comment, a file that is not used and a function beside it change nothing, and a changed line of a loss changes all that
is trained with it.  Annotations are read as text and not followed: `system: TEncDM | Ld4lg` does not make one system
depend on the other, since which of them a trial has is said by the classes of its own config.

A stage that is met on the way is not entered: its result is had through the store alone, where it has a key, and so a
code version, of its own.  A changed metric rescores; it does not retrain.

Why studies do not do this by themselves (`--by-code` asks for it): whoever renames a variable while a paper's table is
half done wants the other half, not the first half again.  There, a stage's `version` says by hand what changed its
meaning.  A night asks the opposite question, whether the code still does what it did, so a night is run by code.
"""

import ast
import functools
import hashlib
import importlib.metadata
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from studies.engine.provenance import ROOT

Name = tuple[str, str]                  # (module, definition); (module, "") is what runs when the module is imported
PACKAGE = "package"                     # (PACKAGE, "torch"): not ours, known by its version


class Module:
    """A file of ours: its definitions by name, what it imports, and the statements that are neither."""

    def __init__(self, name: str, path: Path):
        self.name, self.path = name, path
        self.definitions: dict[str, list[ast.stmt]] = {"": []}
        self.imports: dict[str, Name] = {}                  # local name -> (module, name there, or "*": all of it)
        for statement in ast.parse(path.read_bytes()).body:
            if isinstance(statement, (ast.Import, ast.ImportFrom)):
                self.imports |= imported(statement)
            elif _checking_types(statement):
                continue
            else:
                for defined in _defines(statement) or [""]:
                    self.definitions.setdefault(defined, []).append(statement)
        self.imports |= {local: target for statement in self.definitions[""] for node in ast.walk(statement)
                         if isinstance(node, (ast.Import, ast.ImportFrom)) for local, target in imported(node).items()}

    def is_stage(self, name: str) -> bool:
        """Whether a definition is a class that makes a result for the store."""
        return any(isinstance(statement, ast.ClassDef)
                   and {"needs", "make"} <= {part.name for part in statement.body if isinstance(part, ast.FunctionDef)}
                   for statement in self.definitions[name])


class CodeVersions:
    """Called with a class, its digest.  In another process it knows what it was asked before it was sent there."""

    def __init__(self, root: Path = ROOT):
        self.root = root
        self.modules: dict[str, Module | None] = {}
        self.digests: dict[str, str] = {}               # of classes, with all that they reach
        self.edges: dict[Name, frozenset[Name]] = {}    # definition -> what it names
        self.said: dict[Name, str] = {}                 # definition -> its own digest

    def __getstate__(self) -> dict:
        return {"root": self.root, "modules": {}, "digests": self.digests, "edges": {}, "said": {}}

    def __call__(self, cls: type) -> str:
        at = f"{cls.__module__}:{cls.__qualname__}"
        if at not in self.digests:
            said = " ".join(f"{where} {digest}" for where, digest in sorted(self.table([cls]).items()))
            self.digests[at] = hashlib.sha256(said.encode()).hexdigest()[:16]
        return self.digests[at]

    def table(self, classes: Iterable[type]) -> dict[str, str]:
        """All that these classes reach: "trainables/trial.py: Trained" -> digest, "package torch" -> version."""
        found: dict[str, str] = {"python": "{}.{}".format(*sys.version_info)}
        for module, name in self.reached(classes):
            if module == PACKAGE:
                found[f"package {name}"] = installed(name)
            elif (known := self.module(module)) is not None:
                if (module, name) not in self.said:
                    self.said[module, name] = digest(known.definitions[name])
                found[f"{self.file(known)}: {name or 'on import'}"] = self.said[module, name]
        return found

    def file(self, module: Module) -> str:
        """A module's path as git says it."""
        path = module.path
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else path.name

    def reached(self, classes: Iterable[type]) -> set[Name]:
        """Every definition and package that these classes reach, themselves included."""
        roots = {(cls.__module__, cls.__qualname__.partition(".")[0]) for cls in classes}
        found, ahead = set(roots), list(roots)
        while ahead:
            for target in self.named(ahead.pop()) - found:
                if target in roots or not self.cut(target):
                    found.add(target)
                    ahead.append(target)
        return found

    def named(self, at: Name) -> frozenset[Name]:
        """What one definition names, and what runs when its module is imported."""
        if at not in self.edges:
            module, used = None if at[0] == PACKAGE else self.module(at[0]), set()
            if module is not None:
                parents = at[0].split(".")
                used |= {(".".join(parents[:n]), "") for n in range(1, len(parents) + 1)}
                used |= set(self.uses(module, module.definitions[at[1]]))
            self.edges[at] = frozenset(used)
        return self.edges[at]

    def cut(self, target: Name) -> bool:
        """Whether a definition is a stage, which is not entered."""
        module = None if target[0] == PACKAGE else self.module(target[0])
        return module is not None and module.is_stage(target[1])

    def uses(self, module: Module, statements: Iterable[ast.stmt]) -> Iterator[Name]:
        """What these statements name, where it is defined."""
        for statement in statements:
            for node in executed(statement):
                if isinstance(node, (ast.Import, ast.ImportFrom)):              # inside a function
                    for where, what in imported(node).values():
                        yield from self.resolve(where, what)
                elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                    where, what = module.imports.get(node.value.id, ("", ""))   # a module's name, dot, what is in it
                    if (within := self.submodule(where, what)) is not None:
                        yield from self.resolve(within, node.attr)
                    else:
                        yield from self.lookup(module, node.value.id)
                elif isinstance(node, ast.Name):
                    yield from self.lookup(module, node.id)

    def lookup(self, module: Module, name: str) -> Iterator[Name]:
        """A name as a module sees it; nothing for locals and builtins."""
        if name in module.definitions:
            yield module.name, name
        elif name in module.imports and self.submodule(*module.imports[name]) is None:
            yield from self.resolve(*module.imports[name])

    def submodule(self, where: str, what: str) -> str | None:
        """The module of ours that an import names, if it names a module and not something in it."""
        name = where if what == "*" else f"{where}.{what}"
        return name if where and self.module(name) is not None else None

    def resolve(self, where: str, what: str) -> Iterator[Name]:
        """The definition behind `from where import what`, through any number of files that pass it on."""
        module = self.module(where)
        if module is None:
            top = where.partition(".")[0]
            if top and top not in sys.stdlib_module_names:
                yield PACKAGE, top
        elif what == "*":
            yield from ((where, name) for name in module.definitions)
        elif what in module.definitions:
            yield where, what
        elif what in module.imports:
            yield where, ""
            yield from self.resolve(*module.imports[what])

    def module(self, name: str) -> Module | None:
        """The file of ours that has this name: beneath the root, or one that this process has loaded from elsewhere
        and that is no installed package, such as a study's own."""
        if name not in self.modules:
            self.modules[name] = Module(name, path) if (path := self._find(name)) is not None else None
        return self.modules[name]

    def _find(self, name: str) -> Path | None:
        below = self.root.joinpath(*name.split("."))
        for path in (below.with_suffix(".py"), below / "__init__.py"):
            if name and path.exists():
                return path
        loaded = getattr(sys.modules.get(name), "__file__", None)
        path = Path(loaded or "absent")
        strange = path.suffix != ".py" or name.partition(".")[0] in sys.stdlib_module_names
        return None if strange or "site-packages" in path.parts else path


@functools.cache
def current() -> CodeVersions:
    """The code of this process, read once."""
    return CodeVersions()


# ---------------------------------------------------------------- reading a file


def imported(statement: ast.Import | ast.ImportFrom) -> dict[str, Name]:
    """Local name -> what it stands for."""
    if isinstance(statement, ast.ImportFrom):
        return {alias.asname or alias.name: (statement.module or "", alias.name) for alias in statement.names}
    return {alias.asname or alias.name.partition(".")[0]: (
        alias.name if alias.asname else alias.name.partition(".")[0], "*") for alias in statement.names}


def executed(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but annotations."""
    yield node
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "returns"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from executed(child)


def digest(statements: Iterable[ast.stmt]) -> str:
    """What the statements say, whatever their comments, docstrings and line breaks."""
    said = " ".join(ast.dump(_Undocumented().visit(ast.parse(ast.unparse(statement)))) for statement in statements)
    return hashlib.sha256(said.encode()).hexdigest()[:12]


class _Undocumented(ast.NodeTransformer):
    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(
                    first.value.value, str):
                node.body = node.body[1:]
        return node


def _defines(statement: ast.stmt) -> list[str]:
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [statement.name]
    if isinstance(statement, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        return [node.id for target in targets for node in ast.walk(target)
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    return []


def _checking_types(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.If) and isinstance(statement.test, ast.Name) and (
        statement.test.id == "TYPE_CHECKING")


@functools.cache
def installed(package: str) -> str:
    """The version of what `import package` loads."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        names = importlib.metadata.packages_distributions().get(package)
        return importlib.metadata.version(names[0]) if names else "absent"
