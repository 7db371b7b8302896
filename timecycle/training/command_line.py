"""The command line of train.py: options from the fields of `timecycle.training.settings`, and a run's settings."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from timecycle.errors import InputError
from timecycle.published_options import TRAINING, add_without_effect, check_fixed, take_without_effect
from timecycle.training.settings import (
    OPTIONS,
    TYPES,
    RunSettings,
    applies,
    flag,
    settings_class,
)

OLD_OPTIONS = ("side", "patch")
"""Options of version 0.1 that are another field in each objective, see `RunSettings.aliases`."""
OLD_SETTINGS = {
    "optimiser": "optimizer", "clip": "max_grad_norm", "made_clips": "synthetic_clips",
    "pictures_every": "visualize_every",
}  # fmt: skip
"""Settings in checkpoints of version 0.1, and their names now."""
DEMO_OBJECTIVE = "walk"  # of a run without data
DEMO_RUN = {"steps": 300, "minutes": 1.0, "synthetic_clips": 16}


def read_command_line(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The options that a command line gives, by field, and those that are accepted without effect.

    Exits with status 2 on unknown options. Raises InputError for values of the published program that
    are not offered.
    """
    arguments = _parser(words).parse_args(words)
    ignored = check_fixed(take_without_effect(arguments))
    return vars(arguments), ignored


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of a command line, whose help shows the options and defaults of the objective that the line names."""
    chosen = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS, allow_abbrev=False)
    for name in ("objective", "walk_over", "optimizer", "filelist", "videos"):
        chosen.add_argument(*_flags(name), dest=name, nargs="?")
    given = vars(chosen.parse_known_args(words)[0])
    for name in ("objective", "walk_over", "optimizer"):
        if given.get(name) not in get_args(TYPES[name]):  # which the whole parser refuses, if it is not asked for help
            given.pop(name, None)
    values = defaults(given)
    objective = f"--objective {values['objective']}"
    if values["objective"] == "walk":
        objective += f" --walk-over {given.get('walk_over', values['walk_over'])}"
    data = "data given" if given.get("filelist") or given.get("videos") else "no data given (synthetic video, a demo)"
    parser = argparse.ArgumentParser(
        prog="train.py",
        description=f"Learn correspondence from unlabeled video. The options and defaults shown are those of "
        f"{objective} with {data}; give --objective, --walk-over, --optimizer, --filelist or --videos beside --help to "
        "see others. A resumed run keeps its own settings.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    optimizer = given.get("optimizer", values["optimizer"])
    own = {name for name in values if applies(name, optimizer)}
    values["objective"] = usual_objective(given)
    for name in OPTIONS:
        about = _parsing(name, values.get(name), shown=name in own)
        parser.add_argument(*_flags(name), dest=name, **about)
    for name in OLD_OPTIONS:
        parser.add_argument(flag(name), type=int, help=argparse.SUPPRESS)
    add_without_effect(parser, TRAINING)
    return parser


def _flags(name: str) -> tuple[str, ...]:
    flags: tuple[str, ...] = OPTIONS[name].metadata["flags"]
    return flags or (flag(name),)


def _parsing(name: str, default: Any, shown: bool) -> dict[str, Any]:
    """What argparse needs to know of a field, and the help with its default."""
    kind, metadata = TYPES[name], OPTIONS[name].metadata
    if kind is bool:
        default = flag(name) if default else f"--no-{flag(name).removeprefix('--')}"
    about = f"{metadata['help']} (default: {metadata['none'] if default is None else default})"
    if not shown:
        about = argparse.SUPPRESS
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction, "help": about}
    if get_origin(kind) is Literal:
        return {"choices": get_args(kind), "help": about}
    plain = next(part for part in (*get_args(kind), kind) if part is not type(None))
    return {"type": plain, "help": about, "metavar": plain.__name__.upper()}


def resolved(given: dict[str, Any], stored: Any = None, source: str = "the checkpoint") -> RunSettings:
    """The settings of a run: what is given, over those of the checkpoint (by name), over defaults.

    source: what the stored ones are from, for error messages.

    Raises InputError naming the first option that the objective or the optimizer does not have, or that is given
    otherwise than the checkpoint's and would change the result, or that the checkpoint has as another type. The length
    of a run may change as long as the learning rate does not depend on it.
    """
    if stored is None:
        values = defaults(given)
        kind = settings_class(values)
        return kind(**values | _own(given, kind, given.get("optimizer", values["optimizer"])))
    if not isinstance(stored, dict):
        raise InputError(f"the settings in {source} are a {type(stored).__name__}; expected values by name")
    stored = _with_current_names(stored, source)
    kind = settings_class(stored)
    stored = {name: _typed(name, stored[name], source) for name in kind.names() if name in stored}
    chosen = {name: given[name] for name in ("objective", "optimizer", "walk_over") if name in given}
    _check_unchanged({name: value for name, value in chosen.items() if name in kind.names()}, stored)
    given = _own(given, kind, stored.get("optimizer", kind.optimizer))
    _check_unchanged(given, stored)
    of_this_process = {"minutes": None, "resume": None}
    return kind(**{**stored, **of_this_process, **given})


def _check_unchanged(given: dict[str, Any], stored: dict[str, Any]) -> None:
    """Raise InputError if a value is given that is stored otherwise, and changes the result."""
    constant = stored.get("schedule", "constant") == "constant"
    for name, value in given.items():
        free = not OPTIONS[name].metadata["result"] or (constant and name in ("steps", "epochs"))
        if not free and name in stored and value != stored[name]:
            raise InputError(
                f"{flag(name)} is {value}, and {stored[name]} in the run that is gone on from; expected the same, as "
                "it changes the result"
            )


def _own(given: dict[str, Any], kind: type[RunSettings], optimizer: str) -> dict[str, Any]:
    """What is given under the names of the objective's fields.

    Raises InputError for an option that the objective or the optimizer does not have, or that is given by two names.
    """
    own: dict[str, Any] = {}
    for name, value in given.items():
        field = field_name(name, kind, optimizer)
        if field not in kind.names():
            raise InputError(
                f"{flag(name)} is given; expected it left out with {kind.command()}, which has no use for it"
            )
        if not applies(field, optimizer):
            raise InputError(
                f"{flag(name)} is given; expected it left out with --optimizer {optimizer}, which has no use for it"
            )
        if field in own or (field != name and field in given):
            raise InputError(f"{flag(name)} is given beside {flag(field)}, of which it is another name; expected one")
        own[field] = value
    return own


def field_name(name: str, kind: type[RunSettings], optimizer: str) -> str:
    """The field that an option is, which may have a name of version 0.1 or of the published program."""
    if name == "momentum" and optimizer != "sgd":
        return "beta1"
    return kind.aliases.get(name, name)


def _with_current_names(stored: dict[Any, Any], source: str) -> dict[Any, Any]:
    """A checkpoint's settings with the names that version 0.1 wrote otherwise replaced."""
    of_old_version = "optimiser" in stored
    stored = {OLD_SETTINGS.get(name, name): value for name, value in stored.items()}
    for name in ("objective", "walk_over"):
        if name in stored:
            stored[name] = _typed(name, stored[name], source)
    kind = settings_class(stored)
    optimizer = stored.get("optimizer", kind.optimizer)
    if of_old_version and optimizer == "sgd":
        stored.pop("momentum", None)  # of Adam, and not used
    return {field_name(name, kind, optimizer): value for name, value in stored.items()}


def defaults(given: dict[str, Any]) -> dict[str, Any]:
    """The value of every field of a new run that its command line does not give.

    The objective, walk's nodes and whether there are data determine them; epochs replace the demo's steps.
    """
    objective = given.get("objective", usual_objective(given))
    kind = settings_class({"objective": objective, "walk_over": given.get("walk_over")})
    values = {name: getattr(kind, name) for name in kind.names()}
    if not given.get("filelist") and not given.get("videos"):
        values |= kind.demo | DEMO_RUN
    if "epochs" in given:
        values["steps"] = None
    return values


def usual_objective(given: dict[str, Any]) -> str:
    """The objective of a command line that names none: TimeCycle's, unless no data are given."""
    return str(RunSettings.objective if given.get("filelist") or given.get("videos") else DEMO_OBJECTIVE)


def _typed(name: str, value: Any, source: str) -> Any:
    """A checkpoint's value of a field, as the field has it. Raises InputError if it is of another type."""
    kind = TYPES[name]
    if get_origin(kind) is Literal:
        fits = isinstance(value, str) and value in get_args(kind)
        expected = " or ".join(get_args(kind))
    else:
        kinds = get_args(kind) or (kind,)
        stored = {Path: (str,), float: (float, int)}  # as to_json and JSON have them
        fits = any(type(value) in stored.get(each, (each,)) for each in kinds)
        fits = fits and not (isinstance(value, str) and "\0" in value)
        expected = " or ".join("None" if each is type(None) else each.__name__ for each in kinds)
        if fits and isinstance(value, str) and Path in kinds:
            return Path(value)
    if not fits:
        shown = " ".join(repr(value).split())[:50] if not isinstance(value, int) or value < 2**64 else "a huge number"
        raise InputError(f"the setting {name} in {source} is {shown}; expected {expected}")
    return value
