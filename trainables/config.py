"""Configs are frozen typed values; choosing a component is choosing a class.

    @config
    class Tangent:
        d: float = 9.0

    override(trial, {"system.process.schedule": Cosine(), "training.steps": 500})     every check on the way runs
    assign(trial, ["system.process.schedule=Tangent(d=5)", "training.steps=500"])     the same, from a command line
    flat(trial)            {"system.process.schedule": "Tangent", "system.process.schedule.d": 5.0, ...}
    fingerprint(trial)     the identity of a stage, a cell, a checkpoint
    from_dict(Trial, to_dict(trial)) == trial

A field holds a scalar, a tuple, a Literal, another config, or one of a union of configs: the annotation
`AdamW | Lion` is the closed set, so there is no registry to keep in step.  A class refuses nonsense in
`__post_init__` by raising ValueError; whoever set the value learns its dotted path from the ConfigError.
"""

import ast
import dataclasses
import difflib
import functools
import hashlib
import json
import math
import types
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, Union, dataclass_transform, get_args, get_origin, get_type_hints

C = TypeVar("C")


class ConfigError(ValueError):
    """A value that a config refuses: the dotted path, the value, and what would be right."""

    def __init__(self, path: str, problem: str):
        super().__init__(f"{path}: {problem}" if path else problem)
        self.path, self.problem = path, problem

    def __reduce__(self):
        return type(self), (self.path, self.problem)          # it crosses processes, and `args` is the one message


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field,))
def config(cls: type[C]) -> type[C]:
    """Make `cls` a frozen, keyword-only dataclass whose fields are checked against their annotations."""
    own_checks = cls.__dict__.get("__post_init__")

    def check(self):
        for name, annotation in fields(type(self)).items():
            try:
                object.__setattr__(self, name, conform(getattr(self, name), annotation))
            except ConfigError as error:
                raise ConfigError(join(name, error.path), error.problem) from None
        if own_checks is not None:
            own_checks(self)

    cls.__post_init__ = check  # type: ignore[attr-defined]
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


# ---------------------------------------------------------------- reading the annotations


@functools.cache
def fields(cls: type) -> dict[str, Any]:
    """Field name -> resolved annotation, in order of declaration."""
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def is_config(value: Any) -> bool:
    """Whether `value` is a config or a config class."""
    return dataclasses.is_dataclass(value)


def members(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the annotation itself."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def spell(annotation: Any) -> str:
    """An annotation in words that a command line understands."""
    if get_origin(annotation) is Literal:
        return " | ".join(repr(choice) for choice in get_args(annotation))
    if get_origin(annotation) is tuple:
        return "a tuple of " + spell(get_args(annotation)[0])
    return " | ".join(getattr(member, "__name__", str(member)) for member in members(annotation))


def conform(value: Any, annotation: Any) -> Any:
    """`value` as `annotation` wants it, or a ConfigError.  Only int -> float and list -> tuple are converted."""
    for member in members(annotation):
        if get_origin(member) is Literal:
            if value in get_args(member):
                return value
        elif get_origin(member) is tuple:
            if isinstance(value, (tuple, list)):
                return _conform_tuple(value, get_args(member))
        elif member is float:
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                if not math.isfinite(value):
                    raise ConfigError("", f"must be finite, not {value}")
                return value + 0.0              # and -0.0 is 0.0: equal values must have equal fingerprints
        elif isinstance(value, member) and (member is bool or not isinstance(value, bool)):
            return value
    raise ConfigError("", f"must be {spell(annotation)}, not {_show(value)}")


def _conform_tuple(values: Iterable, kinds: tuple) -> tuple:
    values = tuple(values)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(values)
    if len(kinds) != len(values):
        raise ConfigError("", f"must have {len(kinds)} entries, not {len(values)}")
    return tuple(conform(value, kind) for value, kind in zip(values, kinds, strict=True))


def _show(value: Any) -> str:
    return type(value).__name__ if is_config(value) else f"{value!r} ({type(value).__name__})"


def join(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def near(word: str, known: Iterable[str]) -> str:
    """' (did you mean ...?)', or the whole list when it is short, or nothing."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f" (did you mean {close[0]!r}?)"
    return f" (there are: {', '.join(known)})" if 0 < len(known) <= 12 else ""


# ---------------------------------------------------------------- changing a value


def override(cfg: C, changes: Mapping[str, Any]) -> C:
    """A copy of `cfg` with values replaced by dotted path; rebuilt from the leaves to the root, so all checks run."""
    return _rebuild(cfg, _tree(changes), "")


def assign(cfg: C, assignments: Iterable[str]) -> C:
    """`override` from 'path=value' texts; the value is read as its field's annotation says."""
    changes: dict[str, Any] = {}
    for text in assignments:
        path, equals, value = text.partition("=")
        path = path.strip()
        if not equals or not path:
            raise ConfigError("", f"expected path=value, not {text!r}")
        changes[path] = parse(value.strip(), _annotation(override(cfg, changes), path), path)
    return override(cfg, changes)


def _tree(changes: Mapping[str, Any]) -> dict:
    """Dotted paths -> nested dict; '' holds the replacement of a node itself, its siblings go on top of it."""
    root: dict = {}
    for path, value in changes.items():
        node = root
        for part in path.split("."):
            node = node.setdefault(part, {})
        node[""] = value
    return root


def _rebuild(value: Any, changes: dict, path: str) -> Any:
    value = changes.get("", value)
    inner = {name: change for name, change in changes.items() if name}
    if not inner:
        return value
    if not is_config(value):
        raise ConfigError(join(path, next(iter(inner))), f"{path} is {_show(value)} and has no fields")
    for name in inner:
        _check_field(type(value), name, path)
    replaced = {name: _rebuild(getattr(value, name), change, join(path, name)) for name, change in inner.items()}
    try:
        return dataclasses.replace(value, **replaced)
    except ConfigError as error:
        raise ConfigError(join(path, error.path), error.problem) from None
    except ValueError as error:
        raise ConfigError(join(path, _blame(inner)), str(error)) from None


def _blame(inner: dict) -> str:
    """The one path that was changed below here, if there is only one."""
    parts = []
    while len(inner) == 1 and "" not in inner:
        (name, inner), = inner.items()
        parts.append(name)
    return ".".join(parts)


def _check_field(cls: type, name: str, path: str) -> None:
    if name not in fields(cls):
        raise ConfigError(join(path, name), f"{cls.__name__} has no field {name!r}{near(name, fields(cls))}")


def _annotation(cfg: Any, path: str) -> Any:
    *parents, leaf = path.split(".")
    for depth, part in enumerate(parents):
        here = ".".join(parents[:depth])
        if not is_config(cfg):
            raise ConfigError(path, f"{here} is {_show(cfg)} and has no fields")
        _check_field(type(cfg), part, here)
        cfg = getattr(cfg, part)
    if not is_config(cfg):
        raise ConfigError(path, f"{'.'.join(parents)} is {_show(cfg)} and has no fields")
    _check_field(type(cfg), leaf, ".".join(parents))
    return fields(type(cfg))[leaf]


# ---------------------------------------------------------------- reading a value from text


def parse(text: str, annotation: Any, path: str = "") -> Any:
    """A command line's text as a value: 0.1, true, bert, (1, 2), Tangent, Tangent(d=5)."""
    word = _word(text, annotation)
    if word is not None:
        return conform_at(path, word, annotation)
    try:
        node = ast.parse(text, mode="eval").body
    except SyntaxError:
        raise ConfigError(path, f"cannot read {text!r}; it must be {spell(annotation)}") from None
    return conform_at(path, _evaluate(node, annotation, path), annotation)


def _word(text: str, annotation: Any) -> str | bool | None:
    """What a bare word says where it is no component: itself, or a boolean."""
    if str in members(annotation) or get_origin(annotation) is Literal and text in get_args(annotation):
        return text
    return {"true": True, "false": False}.get(text.lower())


def conform_at(path: str, value: Any, annotation: Any) -> Any:
    try:
        return conform(value, annotation)
    except ConfigError as error:
        raise ConfigError(join(path, error.path), error.problem) from None


def _evaluate(node: ast.expr, annotation: Any, path: str) -> Any:
    if isinstance(node, ast.Name) and (word := _word(node.id, annotation)) is not None:
        return word
    if isinstance(node, (ast.Name, ast.Call)):
        name, keywords = (node, []) if isinstance(node, ast.Name) else (node.func, node.keywords)
        if not isinstance(name, ast.Name) or isinstance(node, ast.Call) and node.args:
            raise ConfigError(path, "write a component as Name or Name(field=value, ...)")
        cls = choose(name.id, annotation, path)
        arguments = {}
        for keyword in keywords:
            name = keyword.arg or "**"
            _check_field(cls, name, path)
            arguments[name] = _evaluate(keyword.value, fields(cls)[name], join(path, name))
        return build(cls, arguments, path)
    if isinstance(node, ast.Tuple):
        kind = get_args(annotation)[0] if get_origin(annotation) is tuple else annotation
        return tuple(_evaluate(entry, kind, path) for entry in node.elts)
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ConfigError(path, f"cannot read {ast.unparse(node)!r}; it must be {spell(annotation)}") from None


def choose(name: str, annotation: Any, path: str) -> type:
    """The union's member called `name`."""
    classes = {member.__name__: member for member in members(annotation) if is_config(member)}
    if name not in classes:
        if not classes:
            raise ConfigError(path, f"must be {spell(annotation)}, not {name!r}")
        hint = near(name, classes) if len(classes) > 1 else ""
        raise ConfigError(path, f"{name!r} is none of {', '.join(classes)}{hint}")
    return classes[name]


def build(cls: type[C], arguments: Mapping[str, Any], path: str = "") -> C:
    """`cls(**arguments)` with errors that carry the path."""
    required = [f.name for f in dataclasses.fields(cls)  # type: ignore[arg-type]
                if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    missing = [name for name in required if name not in arguments]
    if missing:
        raise ConfigError(path, f"{cls.__name__} needs {', '.join(missing)}")
    try:
        return cls(**arguments)
    except ConfigError as error:
        raise ConfigError(join(path, error.path), error.problem) from None
    except ValueError as error:
        raise ConfigError(path, str(error)) from None


# ---------------------------------------------------------------- flat, dict, fingerprint


def flat(cfg: Any, prefix: str = "") -> dict[str, Any]:
    """Every leaf by dotted path; a component's class name stands at its own path, so two choices always differ."""
    leaves: dict[str, Any] = {}
    for name, annotation in fields(type(cfg)).items():
        value, path = getattr(cfg, name), join(prefix, name)
        if is_config(value):
            if len(members(annotation)) > 1:
                leaves[path] = type(value).__name__
            leaves |= flat(value, path)
        else:
            leaves[path] = to_dict(value)
    return leaves


def classes(cfg: Any) -> set[type]:
    """The class of a config and those of everything in it."""
    inside = (entry for name in fields(type(cfg)) for value in [getattr(cfg, name)]
              for entry in (value if isinstance(value, tuple) else (value,)))
    return {type(cfg)}.union(*(classes(entry) for entry in inside if is_config(entry)))


def differences(a: Any, b: Any) -> dict[str, Any]:
    """What `b` says that `a` does not: dotted path -> b's leaf.  Where a component's class differs, only the component,
    as it is written: Lion(lr=0.003)."""
    mine, theirs = flat(a), flat(b)
    changed = {path: value for path, value in theirs.items() if path not in mine or mine[path] != value}
    swapped = [path for path in changed if path in mine and any(p.startswith(f"{path}.") for p in theirs | mine)]
    inside = tuple(f"{path}." for path in swapped)
    return {path: written(functools.reduce(getattr, path.split("."), b)) if path in swapped else value
            for path, value in changed.items() if not path.startswith(inside)}


def written(cfg: Any) -> str:
    """A component with those of its own scalars that are not as usual; its inner components stay unsaid."""
    usual = {field.name: field.default for field in dataclasses.fields(cfg)}
    said = [f"{name}={getattr(cfg, name)!r}" for name in usual
            if isinstance(getattr(cfg, name), (bool, int, float, str)) and getattr(cfg, name) != usual[name]]
    return f"{type(cfg).__name__}({', '.join(said)})" if said else type(cfg).__name__


def to_dict(value: Any) -> Any:
    """Plain dicts, lists and scalars; a config says its class under 'class'."""
    if is_config(value):
        return {"class": type(value).__name__} | {name: to_dict(getattr(value, name)) for name in fields(type(value))}
    if isinstance(value, tuple):
        return [to_dict(entry) for entry in value]
    return value


def from_dict(annotation: Any, data: Any, path: str = "") -> Any:
    """The inverse of `to_dict`; classes come from the annotations alone, so a file cannot name arbitrary code."""
    if isinstance(data, Mapping):
        cls = choose(data.get("class", getattr(annotation, "__name__", "")), annotation, path)
        arguments = {}
        for name, entry in data.items():
            if name != "class":
                _check_field(cls, name, path)
                arguments[name] = from_dict(fields(cls)[name], entry, join(path, name))
        return build(cls, arguments, path)
    if isinstance(data, (list, tuple)):
        kinds: tuple = next((get_args(member) for member in members(annotation) if get_origin(member) is tuple), ())
        kinds = (kinds[0],) * len(data) if kinds[1:] == (Ellipsis,) else kinds
        if len(kinds) == len(data):
            data = tuple(from_dict(kind, entry, path) for kind, entry in zip(kinds, data, strict=True))
    return conform_at(path, data, annotation)


def fingerprint(cfg: Any, length: int = 16) -> str:
    """Hex digest of everything the config says, classes and their `version` included."""
    canonical = json.dumps(_identity(cfg), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:length]


def _identity(value: Any) -> Any:
    if is_config(value):
        version = getattr(type(value), "version", None)
        tag = type(value).__name__ if version is None else f"{type(value).__name__} v{version}"
        return {"class": tag} | {name: _identity(getattr(value, name)) for name in fields(type(value))}
    if isinstance(value, tuple):
        return [_identity(entry) for entry in value]
    return value
