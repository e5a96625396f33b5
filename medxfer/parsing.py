"""Command line and YAML files → a frozen config. Every fault of every source is reported in one message."""

import difflib
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from medxfer.config import TrainConfig
from medxfer.errors import ConfigError, listed
from medxfer.validation import training_faults

set_parsing_settings(docstring_parse_attribute_docstrings=True)

Config = TypeVar("Config")

# What may differ between a run and its continuation: where it runs, what it keeps, and how long.
RESUMABLE = (
    "trainer.accelerator", "trainer.devices", "trainer.num_nodes",
    "data.num_workers", "tracking.uri", "cache.at", "profile", "debug", "resume",
)  # fmt: skip
EXTENDABLE = ("stages.head_epochs", "stages.finetune_epochs")


def parse_config(
    kind: type[Config],
    argv: Sequence[str],
    *,
    prog: str,
    description: str,
    positional: str | None = None,
    metavar: str | None = None,
    check: Callable[[Config], Iterable[str]] = lambda _: (),
    files_of: type | None = None,
) -> Config:
    """Read `--config FILE` (repeatable, later ones win) and dotted overrides into a config.

    Args:
        kind: the dataclass to fill.
        argv: the command line without the program's name.
        prog: the program's name in `--help`.
        description: what the verb does.
        positional: the field that arguments without a name go to; a list field takes all of them.
        metavar: how the positional argument is called in `--help`.
        check: config → what cannot work in it; told together with everything else.
        files_of: a larger config whose files are read too; what they hold besides is left aside.

    Raises:
        ConfigError: with every unknown name and wrong value, where it stands, and the nearest known name; and with what
            `check` says of the other settings.
        SystemExit: 0, after `--help` or `--print_config`.
    """
    parser = _parser(kind, prog, description, positional, metavar)
    types = dict(_leaves(kind))
    if any(token in ("-h", "--help") for token in argv):
        parser.parse_args(["--help"])  # prints and exits
    tokens = _joined(argv, types)
    printing = [token for token in tokens if token.partition("=")[0] == "--print_config"]
    tokens = [token for token in tokens if token not in printing]
    aside = {name for name, _ in _leaves(files_of)} - types.keys() if files_of else set()
    with tempfile.TemporaryDirectory() as folder:
        tokens, file_faults = _with_sound_files(parser, tokens, types, aside, Path(folder))
        sound, line_faults = _sorted_out(_line_settings(parser, tokens, types, positional))
        faults = [*line_faults, *file_faults]
        sound.extend([] if faults else printing)  # which exits
        named = [token for token in sound if token.startswith("--")]
        loose = [token for token in sound if not token.startswith("--")]
        try:
            config = _filled(kind, parser.instantiate(parser.parse_args([*named, *loose])))
        except ArgumentError as error:
            raise ConfigError(listed("the settings cannot be used:", [*faults, str(error)])) from error
    faults.extend(check(config))
    if faults:
        raise ConfigError(listed("the settings cannot be used:", faults))
    return config


def resume_config(argv: Sequence[str], *, stored: Path, prog: str, description: str) -> TrainConfig:
    """Read a run's own config, then the command line over it, and refuse what would make it another run.

    Args:
        argv: the command line without the program's name.
        stored: the run's `config.yaml`.
        prog: the program's name.
        description: what the verb does.

    Raises:
        ConfigError: with every setting that may not differ.
    """
    read: dict[str, Any] = {"prog": prog, "description": description}
    before = flatten(asdict(parse_config(TrainConfig, [f"--config={stored}"], **read)))
    config = absolute_paths(parse_config(TrainConfig, [f"--config={stored}", *argv], **read))
    faults = []
    for name, value in flatten(asdict(config)).items():
        if value == before[name] or name in RESUMABLE:
            continue
        if name not in EXTENDABLE:
            faults.append(f"{name} is {before[name]!r} in the run and {value!r} now")
        elif value < before[name]:
            faults.append(f"{name} may only grow: it is {before[name]} in the run and {value} now")
    if faults:
        allowed = ", ".join((*RESUMABLE[:-1], "larger " + " and ".join(EXTENDABLE)))
        raise ConfigError(
            listed(f"a resumed run keeps its settings ({stored}); start a new run instead:", faults)
            + f"\nonly these may differ: {allowed}"
        )
    return config


def absolute_paths(config: TrainConfig) -> TrainConfig:
    """Return the config with absolute paths of data and weights, so that a run can be resumed from anywhere."""

    def absolute(path: str | None) -> str | None:
        return str(Path(path).expanduser().absolute()) if path else path

    data = replace(config.data, source=absolute(config.data.source), image_root=absolute(config.data.image_root))
    weights = config.model.weights
    if weights not in ("imagenet", "none"):
        weights = absolute(weights) or weights
    return replace(config, data=data, model=replace(config.model, weights=weights))


def check_training(config: TrainConfig) -> TrainConfig:
    """Return the config, or raise a ConfigError with everything that cannot work."""
    faults = training_faults(config)
    if faults:
        raise ConfigError(listed("the settings cannot be used:", faults))
    return config


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested sections into dotted names; `tracking.tags` stays one value.

    >>> flatten({"seed": 0, "data": {"fold": 1}})
    {'seed': 0, 'data.fold': 1}
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and name != "tracking.tags":
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat


def to_yaml(config: Any) -> str:
    """Write a config as YAML text, in the order of its fields."""
    return yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True)


def _parser(kind: type, prog: str, description: str, positional: str | None, metavar: str | None) -> ArgumentParser:
    parser = ArgumentParser(prog=prog, description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="A YAML file of settings; repeatable, later ones win.")
    skip: set[str | int] = {positional} if positional else set()
    parser.add_class_arguments(kind, skip=skip)
    if positional:
        types = get_type_hints(kind)
        many = "*" if _is_list(types[positional]) else "?"
        element = str if _is_list(types[positional]) else types[positional]
        default = next(f for f in fields(kind) if f.name == positional)
        value = default.default_factory() if callable(default.default_factory) else default.default  # type: ignore[misc]
        parser.add_argument(positional, type=element, default=value, metavar=metavar, nargs=many)
    return parser


def _filled(kind: type[Config], namespace: Any) -> Config:
    return kind(**{f.name: getattr(namespace, f.name) for f in fields(kind)})  # type: ignore[arg-type]


def _leaves(kind: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, hint in get_type_hints(kind).items():
        if is_dataclass(hint):
            yield from _leaves(hint, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            yield f"{prefix}{name}", hint


def _is_list(hint: Any) -> bool:
    return "list[" in str(hint)


def _is_list_of_texts(hint: Any) -> bool:
    return "list[str]" in str(hint)


def _joined(argv: Sequence[str], types: Mapping[str, Any]) -> list[str]:
    """Write every `--name value` as `--name=value`, a bare flag as true, and `a,b` for a list as `[a, b]`."""
    tokens: list[str] = []
    waiting = list(argv)
    while waiting:
        token = waiting.pop(0)
        if not token.startswith("--") or token.partition("=")[0] == "--print_config":
            tokens.append(token)
            continue
        name, separator, value = token[2:].partition("=")
        if not separator:
            flag = types.get(name) is bool
            takes_next = not flag or (bool(waiting) and waiting[0].lower() in ("true", "false"))
            if waiting and not waiting[0].startswith("--") and takes_next:
                value = waiting.pop(0)
            elif flag:
                value = "true"
            else:
                tokens.append(token)
                continue
        if name in types and _is_list(types[name]) and value != "null":
            value = _list_text(value, of_texts=_is_list_of_texts(types[name]))
        tokens.append(f"--{name}={value}")
    return tokens


def _list_text(value: str, *, of_texts: bool) -> str:
    """Write `a,b` as `[a, b]`, and keep 0, no and the like in a list of texts from being read as anything else."""
    text = value if value.lstrip().startswith("[") else f"[{value}]"
    try:
        items = yaml.load(text, yaml.BaseLoader)  # leaves every scalar a text
    except yaml.YAMLError:
        return text  # told as a wrong value
    return json.dumps(items, ensure_ascii=False) if of_texts else text


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a mapping that names a key twice, of which YAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping, or raise a YAMLError that names the key and both lines."""
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if key in seen:
                raise yaml.YAMLError(f"{key} stands twice, in lines {seen[key]} and {line}")
            seen[key] = line
        return super().construct_mapping(node, deep)


# As in YAML 1.2, only true and false are truth values: `near_duplicates: off` is the choice of that name.
_UniqueKeys.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_UniqueKeys.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


Setting = tuple[tuple[str, ...], str | None]
"""Tokens of one setting, and what is wrong with it."""


def _sorted_out(settings: Iterable[Setting]) -> tuple[list[str], list[str]]:
    """Return the tokens of the sound settings, and what is wrong with the others."""
    sound: list[str] = []
    faults: list[str] = []
    for tokens, fault in settings:
        if fault is None:
            sound.extend(tokens)
        else:
            faults.append(fault)
    return sound, faults


def _line_settings(
    parser: ArgumentParser, tokens: Sequence[str], types: Mapping[str, Any], positional: str | None
) -> Iterator[Setting]:
    where = "on the command line"
    loose = tuple(token for token in tokens if not token.startswith("--"))
    if loose and positional is None:
        yield loose, f"{' '.join(loose)!r} has no name: write --name value"
    elif loose and positional is not None:
        yield loose, _type_fault(parser, positional, where, arguments=loose)
    for token in tokens:
        name, separator, _ = token.lstrip("-").partition("=")
        if not token.startswith("--"):
            continue
        if name != "config" and name.removesuffix("+") not in types:
            yield (token,), _unknown(name, types, where)
        elif not separator:
            yield (token,), f"--{name} needs a value"
        else:
            yield (token,), None if name == "config" else _type_fault(parser, name, where, arguments=[token])


def _with_sound_files(
    parser: ArgumentParser, tokens: Sequence[str], types: Mapping[str, Any], aside: Set[str], folder: Path
) -> tuple[list[str], list[str]]:
    """Replace each config file by a copy of its sound settings in a folder; return the tokens and every fault."""
    replaced, faults = [], []
    for number, token in enumerate(tokens):
        if not token.startswith("--config="):
            replaced.append(token)
            continue
        tree: dict[str, Any] = {}
        for name, value, fault in _file_settings(parser, Path(token.partition("=")[2]), types, aside):
            if fault is not None:
                faults.append(fault)
                continue
            place = tree
            *sections, leaf = name.split(".")
            for section in sections:
                place = place.setdefault(section, {})
            place[leaf] = value
        copy = folder / f"{number}.yaml"
        copy.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
        replaced.append(f"--config={copy}")
    return replaced, faults


def _file_settings(
    parser: ArgumentParser, path: Path, types: Mapping[str, Any], aside: Set[str]
) -> Iterator[tuple[str, Any, str | None]]:
    """Yield name, value and fault, if there is one, of each setting of a file."""
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except OSError as error:
        yield "", None, f"the config file {path} cannot be read: {error.strerror}"
        return
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:  # TypeError: keys that cannot be keys
        yield "", None, f"the config file {path} is not YAML that can be used: {' '.join(str(error).split())}"
        return
    if not isinstance(tree, Mapping):
        yield "", None, f"the config file {path} must hold sections and settings, found {type(tree).__name__}"
        return
    sections = {name.rpartition(".")[0] for name in types} - {""}
    for name, value in flatten(tree).items():
        if name not in aside:
            yield name, value, _file_fault(parser, name, value, types, sections, path)


def _file_fault(
    parser: ArgumentParser, name: str, value: Any, types: Mapping[str, Any], sections: Set[str], path: Path
) -> str | None:
    if name in sections:
        return f"{name} is a section and needs settings below it, got {value!r} (in {path})"
    if name not in types:
        return _unknown(name, types, f"in {path}")
    if _is_list_of_texts(types[name]) and isinstance(value, list) and {type(item) for item in value} - {str}:
        return f"{name} must hold texts, got {value}: write each of them in quotes (in {path})"
    if not _is_plain(value):
        return f"{name} must hold text, numbers, true or false, got {value}: write it in quotes (in {path})"
    if value is None and type(None) not in get_args(types[name]):
        return f"{name} must have a value, got null (in {path})"
    return _type_fault(parser, name, f"in {path}", tree=_nested(name, value))


def _is_plain(value: Any) -> bool:
    """Return whether a value is what JSON can hold too; YAML reads 2024-01-01 as a date."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return all(map(_is_plain, value)) if isinstance(value, list) else isinstance(value, str | int | float | None)


def _nested(name: str, value: Any) -> dict[str, Any]:
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


def _unknown(name: str, types: Mapping[str, Any], where: str) -> str:
    near = difflib.get_close_matches(name, types, n=1)
    hint = f"; did you mean {near[0]}?" if near else "; --help lists all settings"
    return f"{name} is not a setting ({where}){hint}"


def _type_fault(
    parser: ArgumentParser,
    name: str,
    where: str,
    *,
    arguments: Sequence[str] | None = None,
    tree: dict[str, Any] | None = None,
) -> str | None:
    try:
        if arguments is not None:
            parser.parse_args(list(arguments))
        if tree is not None:
            parser.parse_object(tree)
    except (ArgumentError, TypeError, ValueError) as error:
        text = " ".join(str(error).split())
        text = re.sub(r'^.*Parser key "[^"]*":?', "", text)
        text = re.sub(r"<class '(\w+)'>", r"\1", text).replace("typing.Literal", "one of ").strip()
        return f"{name} has a wrong value ({where}): {text}"
    return None
