"""Turn exceptions of a chat template into one clear error with the template's line."""

from types import TracebackType

from sftctl.errors import ConfigError, DataError, SftctlError

_FILE = "<template>"  # the file name that Jinja gives to the code of a template
_ROLES = "most templates want user and assistant in turn, after at most one system message"
_SIMPLER = "look at this row, or use another chat template"
_PROGRAM = "correct the template, or give another one with --chat-template FILE"


class TemplateFailed(DataError):
    """The text of a rendered row can't be used by any command."""


class TemplateRanOut(TemplateFailed):
    """Rendering one row took longer than allowed."""


def half_character(text: str) -> TemplateFailed | None:
    """The error if a text has half of a surrogate pair, which no tokenizer can encode; else None.

    The template must have written it, because input files with such a half are refused earlier.
    """
    try:
        text.encode()
    except UnicodeEncodeError as problem:
        code = f"U+{ord(text[problem.start]):04X}"
        return TemplateFailed(
            f"the chat template writes {code}, which is half of a character",
            "correct the template: write such a character itself, or as `\\U0001f600`",
        )
    return None


def refusal(problem: Exception) -> SftctlError:
    """ConfigError if the template itself is broken; DataError if it refuses this conversation."""
    from jinja2 import TemplateError, TemplateSyntaxError

    if isinstance(problem, TemplateSyntaxError):
        return broken_template(problem)
    # True: the template raised the error itself, with a message by its author.
    is_own = type(problem) is TemplateError
    text = str(problem) if is_own else _words(problem)
    return DataError(f"the chat template refuses the conversation: {text}", _ROLES)


def broken_template(problem: Exception) -> ConfigError:
    """The error for a template that can't be compiled."""
    from jinja2 import TemplateSyntaxError

    where = f"line {problem.lineno}: " if isinstance(problem, TemplateSyntaxError) else ""
    text = _words(problem)
    return ConfigError(f"the chat template is not valid: {where}{text}", _PROGRAM)


def ran_out(problem: BaseException | None, seconds: float) -> TemplateRanOut:
    """The error for a rendering that took too long. `problem` is None if its process was killed."""
    line = None if problem is None else _line(problem.__traceback__)
    where = "" if line is None else f" (line {line} of the template)"
    return TemplateRanOut(f"the chat template takes longer than {seconds:g} s{where}", _SIMPLER)


def too_long(num_chars: int, most: int) -> DataError:
    """The error for a text that is longer than a template may write."""
    return DataError(
        f"the chat template writes {num_chars:,} characters; at most {most:,} are accepted",
        _SIMPLER,
    )


def hung_in_compilation(seconds: float) -> ConfigError:
    """The error for a template that is not compiled in time."""
    return ConfigError(
        f"the chat template is not valid: compiling it takes longer than {seconds:g} s", _PROGRAM
    )


def _words(problem: Exception) -> str:
    """The reason in words, with the line of the template."""
    if isinstance(problem, RecursionError):
        text = "it is nested too deeply, or calls itself without end"
    elif isinstance(problem, MemoryError):
        text = "it needs more memory than a template may use"
    else:
        text = str(problem) or type(problem).__name__
    line = _line(problem.__traceback__)
    return text if line is None else f"{text} (line {line} of the template)"


def _line(trace: TracebackType | None) -> int | None:
    """The last line of the template in a traceback; None if there is none."""
    line = None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == _FILE:
            compiled = trace.tb_frame.f_globals.get("__jinja_template__")
            line = trace.tb_lineno  # already the template's own line, except for a BaseException
            line = line if compiled is None else compiled.get_corresponding_lineno(line)
        trace = trace.tb_next
    return line
