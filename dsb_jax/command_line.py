"""What the commands have in common: a mistake is answered by one line on stderr, which says what is wrong."""

import argparse
import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from dsb_jax import validation

_WRONG = 2
_INTERRUPTED = 130

# What wrong input makes of programs; anything else is a mistake of ours, whose traceback is wanted.
_OF_INPUT = (ValueError, OSError, ImportError, OverflowError, FloatingPointError, MemoryError)

# What argparse says, which is the same in all versions of Python, and what is said here; {name} is the argument.
_SAID = {
    r"invalid int value: (.*)": "{name} must be an integer, got {0}",
    r"invalid positive_int value: (.*)": "{name} must be an integer >= 1, got {0}",
    r"invalid natural value: (.*)": "{name} must be an integer >= 0, got {0}",
    r"invalid float value: (.*)": "{name} must be a number, got {0}",
    r"invalid \w+ value: (.*)": "{name} cannot be read, got {0}",
    r"expected one argument": "{name} needs a value, got none",
    r"expected at least one argument": "{name} needs one value or more, got none",
    r"ignored explicit argument (.*)": "{name} takes no value, got {0}",
    r"(must .*)": "{name} {0}",
    r"(unknown .*)": "{0}",
}


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line: the usage would bury it. Unknown names are answered with the nearest one.

    Example:
      >>> parser = Parser(prog="python -m birds")
      >>> _ = parser.add_argument("--wings", type=int)
      >>> parser.parse_args(["--wing", "2"]).wings
      2
      >>> import contextlib
      >>> with contextlib.redirect_stderr(sys.stdout), contextlib.suppress(SystemExit):
      ...     parser.parse_args(["--wigns", "2"])
      error: unknown option '--wigns'; did you mean '--wings'? Valid names: --help, --wings
    """

    def error(self, message: str) -> NoReturn:
        """Ends the program with status 2, after what argparse or a caller has to say."""
        self.exit(_WRONG, f"error: {self._reworded(message)}\n")

    def parse_known_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """As argparse has it, but nothing is left over: that would be reported without the command that it is of."""
        given = list(sys.argv[1:] if args is None else args)
        self._require_known(given)
        options, rest = super().parse_known_args(given, namespace)
        if rest:
            self.error(f"unexpected argument {rest[0]!r}; {self.prog} --help says what there is")
        return options, rest

    def _require_known(self, given: Sequence[str]) -> None:
        """Beforehand, for a misspelt option would otherwise be said to be missing."""
        for argument in given:
            if argument == "--" or (not argument.startswith("-") and self._commands):
                return  # what follows are no options, or they are the command's
            name = argument.partition("=")[0]
            if not re.match(r"-+[^\W\d]\S*$", name):  # a value, such as a file or -1
                continue
            if not any(known == name or (self.allow_abbrev and known.startswith(name)) for known in self._options):
                longest = [max(action.option_strings, key=len) for action in self._actions if action.option_strings]
                self.error(str(validation.unknown_name("option", name, longest)))

    @property
    def _options(self) -> list[str]:
        return [name for action in self._actions for name in action.option_strings]

    @property
    def _commands(self) -> list[str]:
        return [name for action in self._actions if action.nargs == argparse.PARSER for name in action.choices or ()]

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            kind = action.option_strings[0] if action.option_strings else str(action.metavar or action.dest).lower()
            raise argparse.ArgumentError(None, str(validation.unknown_name(kind, str(value), map(str, action.choices))))

    def _reworded(self, message: str) -> str:
        if found := re.fullmatch(r"the following arguments are required: (.*)", message):
            *first, last = found[1].split(", ")
            if self._commands:
                return f"{last} is missing: one of {', '.join(self._commands)}"
            names = f"{', '.join(first)} and {last} are" if first else f"{last} is"
            return f"{names} missing; {self.prog} --help says what is wanted"
        if found := re.fullmatch(r"ambiguous option: (\S+) could match (.*)", message):
            return f"ambiguous option {found[1]!r}; it may be {found[2]}"
        if found := re.fullmatch(r"argument ([^:]+): (.*)", message, re.DOTALL):
            name, what = found[1].partition("/")[0], found[2]
            for said, text in _SAID.items():
                if matched := re.fullmatch(said, what, re.DOTALL):
                    return text.format(*matched.groups(), name=name)
        return message


def positive_int(text: str) -> int:
    """An argument that is an integer of at least one."""
    return _integer(text, lowest=1)


def natural(text: str) -> int:
    """An argument that is an integer of at least zero."""
    return _integer(text, lowest=0)


def _integer(text: str, *, lowest: int) -> int:
    number = int(text)
    if number < lowest:
        raise argparse.ArgumentTypeError(f"must be an integer >= {lowest}, got {number}")
    return number


def answer(program: Callable[[], int | None], *, interrupted: str = "interrupted") -> int:
    """Runs a program; what is wrong with its input becomes one line on stderr.

    Args:
      program: gives its exit code, or None for 0. It may end by SystemExit, as a parser does.
      interrupted: what is said after Ctrl-C.

    Returns:
      The exit code: the program's; 2 after an error; 130 when it was interrupted; 0 where the reader of its output has
      seen enough, as ``head`` has.

    Example:
      >>> def program():
      ...     raise ValueError("wings must be two,\\n got 3")
      >>> import contextlib
      >>> with contextlib.redirect_stderr(sys.stdout):
      ...     answer(program)
      error: wings must be two, got 3
      2
    """
    try:
        code = program()
        sys.stdout.flush()
        return code or 0
    except _OF_INPUT as error:
        message, code = f"error: {one_line(error)}", _WRONG
        if isinstance(error, BrokenPipeError):
            discard_stdout()
            message, code = "", 0
        elif isinstance(error, OSError) and _stdout_is_full():
            discard_stdout()
            message = f"error: stdout: {error.strerror}"
    except KeyboardInterrupt:
        message, code = interrupted, _INTERRUPTED
    # Nothing holds the frames of the program any more, so that progress bars are gone from the terminal.
    if message:
        print(message, file=sys.stderr)
    return code


def one_line(error: BaseException) -> str:
    """What an error says, with the file that it is of.

    Example:
      >>> one_line(FileNotFoundError(2, "No such file or directory", "birds.csv"))
      'birds.csv: No such file or directory'
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def discard_stdout() -> None:
    """Throws away what cannot be printed, and all that will be: Python would complain when it ends."""
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), sys.stdout.fileno())


def _stdout_is_full() -> bool:
    try:
        sys.stdout.flush()
        os.write(sys.stdout.fileno(), b"")  # where Python keeps nothing back that could be written again
    except io.UnsupportedOperation:  # no file: a test's, or a notebook's
        return False
    except OSError:
        return True
    return False
