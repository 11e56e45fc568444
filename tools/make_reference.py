"""Pages of the site that follow from the code: every command with its options, every setting."""

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

from typer.main import get_command

from diffuserec.cli import app
from diffuserec.fetching import data_sets as known_data_sets
from diffuserec.models.methods import method_settings, method_summaries


def commands() -> str:
    """Markdown of all commands: what they do, arguments, options and defaults."""
    group = get_command(app)
    parts = [
        "# Commands",
        "Each has `--help`, which says the same.",
        "```text\ndiffuserec COMMAND …\n```",
    ]
    assert hasattr(group, "commands")
    for name, command in _leaves(group.commands):
        words, _, examples = inspect.cleandoc(command.help or "").partition("Examples:")
        parts += [f"## {name}", words.strip()]
        lines = [_parameter(each) for each in command.params if each.name != "help"]
        parts.append("\n".join(["| option | default | meaning |", "|---|---|---|", *lines]))
        if examples:
            parts.append(f"```bash\n{inspect.cleandoc(examples)}\n```")
    return "\n\n".join(parts) + "\n"


def _leaves(commands: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """All commands with their names; of a group, those that it holds."""
    for name, command in commands.items():
        if hasattr(command, "commands"):
            yield from _leaves(command.commands, f"{above}{name} ")
        else:
            yield f"{above}{name}", command


def data_sets() -> str:
    """Markdown of a table of the data sets that can be fetched."""
    lines = ["| name | what | size | checksum from | terms |", "|---|---|---|---|---|"]
    for entry in known_data_sets().values():
        size = f"{entry.size:,}" if entry.size else ""
        checked = f"{' and '.join(entry.sums)}: {entry.checksum_from}" if entry.sums else "none"
        cells = (f"`{entry.name}`", f"[{_cell(entry.title)}]({entry.page})", size)
        lines.append("| " + " | ".join((*cells, _cell(checked), _cell(entry.terms))) + " |")
    return "\n".join(lines) + "\n"


def _parameter(found: Any) -> str:
    names = [f"`{word}`" for word in (*found.opts, *found.secondary_opts)]
    if found.param_type_name == "argument":
        names = [f"`{found.name.upper()}`"]
    meaning = found.help or ""
    kind = found.type_descriptor.annotation
    if get_origin(kind) is Literal:
        meaning += f" One of {', '.join(get_args(kind))}."
    plain = found.default is None or found.default is False or callable(found.default)
    default = "" if plain or found.default == [] else f"`{found.default}`"
    return (
        f"| {', '.join(names)} | {'required' if found.required else default} | {_cell(meaning)} |"
    )


def methods() -> str:
    """Markdown of all methods with their settings."""
    parts = ["# Settings of every method"]
    parts.append("`diffuserec models NAME` prints the same.")
    for method in method_summaries():
        kind, summary, settings = method_settings(method["name"])
        parts += [f"## {method['name']}", f"{kind.capitalize()}: {summary}"]
        lines = ["| setting | type | default | meaning |", "|---|---|---|---|"]
        for found in settings:
            kinds = " ".join(filter(None, (found["type"], found["bounds"])))
            meaning = " ".join(filter(None, (found["meaning"], found["only_if"])))
            cells = (f"`{found['name']}`", kinds, found["default"], meaning)
            lines.append("| " + " | ".join(map(_cell, cells)) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _cell(text: str) -> str:
    """Text that stands in a cell of a table: in one line, without markup of its own."""
    plain = " ".join(text.split()).replace("|", "\\|")
    if "`" in plain:
        return plain
    return re.sub(r"([*_\[\]<>])", r"\\\1", plain)
