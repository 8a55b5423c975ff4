"""Every command and its options, in Markdown, from the parser of the command line."""

import argparse

from bluesky_cdi.cli import _parser


def command_lines() -> list[str]:
    """Give a section for each command, the options that all have in the first one only."""
    parser = _parser()
    common = {option for action in parser._actions for option in action.option_strings}
    lines = ["## Options of every command", "", "They may stand before the command or after it.", ""]
    lines += [line for action in parser._actions if action.option_strings for line in _entry(action)]
    return lines + _commands(parser, common)


def _commands(parser: argparse.ArgumentParser, common: set[str], level: int = 2) -> list[str]:
    lines = []
    for group in parser._actions:
        if not isinstance(group, argparse._SubParsersAction):
            continue
        helps = {choice.dest: choice.help for choice in group._choices_actions}
        for name, command in group.choices.items():
            lines += [f"{'#' * level} {command.prog}", "", f":::{{program}} {command.prog}", ":::", ""]
            lines += [f"{_sentence(helps[name])}", "", "```text", *_usage(command), "```", ""]
            if command.description and command.description != helps[name]:
                lines += [command.description, ""]
            for action in command._actions:
                if not common & set(action.option_strings) and not isinstance(action, argparse._SubParsersAction):
                    lines += _entry(action)
            lines += _commands(command, common, level + 1)
    return lines


def _usage(command: argparse.ArgumentParser) -> list[str]:
    return command.format_usage().rstrip().splitlines()


def _entry(action: argparse.Action) -> list[str]:
    if action.help == argparse.SUPPRESS:
        return []
    value = "" if action.nargs == 0 else _value(action)
    names = ", ".join(f"{option} {value}".rstrip() for option in action.option_strings) or value
    return [f":::{{option}} {names}", *_help(action).splitlines(), ":::", ""]


def _value(action: argparse.Action) -> str:
    name = action.metavar or (f"{{{','.join(map(str, action.choices))}}}" if action.choices else action.dest.upper())
    return " ".join(name) if isinstance(name, tuple) else name


def _help(action: argparse.Action) -> str:
    values = {**vars(action), "prog": "bluesky-cdi"}
    return _sentence((action.help or "") % values)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"
