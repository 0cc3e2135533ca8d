"""Runs one function for chainette: a row per line in, a line per row out, in the same order.

In: the item as JSON, or `[item, row]` if the function takes `row`. Out: a list of outputs, or a string that says why
there is none. The first line out is the greeting: `{"row": bool}`, or a string that says why there is no function.
"""

import gc
import importlib.util
import inspect
import json
import os
import re
import sys
import time
import types

path, name, folder, max_outputs, max_bytes = sys.argv[1:]
max_outputs, max_bytes = int(max_outputs), int(max_bytes)

# The protocol gets descriptors of its own: what the function prints goes to the log, and its stdin is empty.
# Programs that it starts inherit neither, and a forked copy of this process must not answer.
answers, rows = os.dup(1), os.dup(0)
os.dup2(2, 1)
empty = os.open(os.devnull, os.O_RDONLY)
os.dup2(empty, 0)
os.close(empty)


def forked():
    global answers, rows
    os.close(answers)
    os.close(rows)
    answers = rows = -1


os.register_at_fork(after_in_child=forked)
for stream in (sys.stdout, sys.stderr):
    stream.reconfigure(line_buffering=True, errors="backslashreplace")
if hasattr(sys, "set_int_max_str_digits"):
    sys.set_int_max_str_digits(0)


class Unfit(Exception):
    """A result that cannot be a row; the message says all."""


class Spelled(float):
    """A number that Python would spell differently: unchanged, it is written as it was read."""

    __slots__ = ("text",)


def read_float(text):
    value = float(text)
    if repr(value) == text:
        return value
    spelled = Spelled(value)
    spelled.text = text
    return spelled


decode = json.JSONDecoder(parse_float=read_float).decode
encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":"))
try:
    # What `encode` sets up anew for each value.
    listed = json.encoder.c_make_encoder(
        None, encoder.default, json.encoder.c_encode_basestring, None, ":", ",", False, False, False
    )

    def encode(value):
        return "".join(listed(value, 0))

    encode([{"a": 1}])
except Exception:
    encode = encoder.encode

PLAIN = frozenset((str, int, bool, type(None)))


def check(value, place):
    """Refuses what JSON cannot hold; true when the value has spelled numbers in it."""
    kind = type(value)
    if kind in PLAIN or isinstance(value, (str, int)):
        return False
    if isinstance(value, float):
        if value - value != 0:
            raise Unfit("%s is %r, which JSON cannot hold" % (shown(place), float(value)))
        return kind is Spelled
    spelled = False
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise Unfit("%s has the key %s, and keys must be strings" % (shown(place), brief(key)))
            if type(inner) not in PLAIN and check(inner, (place, key)):
                spelled = True
    elif isinstance(value, (list, tuple)):
        for at, inner in enumerate(value):
            if type(inner) not in PLAIN and check(inner, (place, at)):
                spelled = True
    else:
        raise Unfit("%s is a %s, which JSON cannot hold" % (shown(place), type_name(value)))
    return spelled


def shown(place):
    parts = []
    while place:
        place, key = place
        parts.append("[%d]" % key if isinstance(key, int) else "." + key)
    return "`%s`" % "".join(reversed(parts)).lstrip(".") if parts else "the output"


def type_name(value):
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else "%s.%s" % (kind.__module__, kind.__name__)


def brief(value):
    return tidy(repr(value), 60)


def write(value):
    """A value with spelled numbers in it, as JSON."""
    if type(value) is Spelled:
        return value.text
    if isinstance(value, dict):
        return "{%s}" % ",".join(encode(str(key)) + ":" + write(inner) for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return "[%s]" % ",".join(map(write, value))
    return encode(value)


def output(value):
    """One output as JSON: an object, or `{"value": v}`."""
    if not isinstance(value, dict):
        value = {"value": value}
    try:
        return write(value) if check(value, ()) else encode(value)
    except RecursionError:
        raise Unfit("an output nests too deep, or contains itself") from None


def outputs(result):
    """What a function returned, as a JSON list."""
    if result is None:
        return "[]"
    if isinstance(result, (list, tuple)) or hasattr(result, "__next__"):
        parts, size = [], 0
        for value in result:
            if len(parts) == max_outputs:
                raise Unfit("more than %d outputs for one row" % max_outputs)
            part = output(value)
            size += len(part)
            if size > max_bytes:
                raise Unfit("more than %d MiB of outputs for one row" % (max_bytes >> 20))
            parts.append(part)
        return "[%s]" % ",".join(parts)
    return "[%s]" % output(result)


def tidy(text, limit):
    """A text without memory addresses, on one line, cut to a limit."""
    text = re.sub(r"0x[0-9a-fA-F]{4,}", "0x…", " ".join(text.split()))
    return text if len(text) <= limit else text[:limit] + "…"


def place_of(error):
    """The innermost place in the user's own files, else the innermost of all."""
    place, trace = None, error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_filename != "<string>":
            own = os.path.abspath(code.co_filename).startswith(folder + os.sep) or code.co_filename == path
            if own or place is None or not place[0]:
                place = (own, os.path.basename(code.co_filename), trace.tb_lineno, code.co_name)
        trace = trace.tb_next
    return " (%s:%d in %s)" % place[1:] if place and not place[1].startswith("<frozen") else ""


def explain(error):
    """An exception and what caused it, as one line."""
    parts, seen = [], set()
    while error is not None and id(error) not in seen and len(parts) < 3:
        seen.add(id(error))
        try:
            text = tidy(str(error), 500)
        except Exception:
            text = "(its message cannot be printed)"
        if isinstance(error, Unfit):
            parts.append(text)
        else:
            parts.append(type_name(error) + (": " + text if text else "") + place_of(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "; caused by ".join(parts)


def refusal(message):
    return encode(message.encode("utf-8", "replace").decode())


def answer(line):
    try:
        given = decode(line)
        result = function(given[0], row=given[1]) if takes_row else function(given)
        return outputs(result).encode()
    except BaseException as error:
        return refusal(explain(error)).encode()


def load():
    """The function, and whether it takes `row`."""
    stem = os.path.splitext(os.path.basename(path))[0]
    spec = importlib.util.spec_from_file_location(stem, path)
    module = importlib.util.module_from_spec(spec)
    # A file may be named like a module that is loaded already; that one stays.
    sys.modules.setdefault(stem, module)
    spec.loader.exec_module(module)
    found = getattr(module, name, None)
    if not callable(found):
        import difflib

        names = [key for key, value in vars(module).items() if isinstance(value, types.FunctionType)]
        near = difflib.get_close_matches(name, names, 1)
        hint = "; did you mean `%s`?" % near[0] if near else ""
        problem = "has no function" if found is None else "holds no function in"
        raise Unfit("%s %s `%s`%s" % (os.path.basename(path), problem, name, hint))
    if inspect.iscoroutinefunction(found) or inspect.isasyncgenfunction(found):
        raise Unfit("`%s` is asynchronous; write a plain `def`" % name)
    try:
        parameters = list(inspect.signature(found).parameters.values())
    except (TypeError, ValueError):
        return found, False
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    # The first one is the item's, whatever its name.
    if parameters and parameters[0].kind in positional:
        parameters = parameters[1:]
    return found, any(p.name == "row" and p.kind in named or p.kind == p.VAR_KEYWORD for p in parameters)


def send(parts):
    parts.append(b"")
    data = memoryview(b"\n".join(parts))
    while data:
        data = data[os.write(answers, data) :]


def serve():
    clock, read, pending = time.monotonic, os.read, []
    while True:
        block = read(rows, 1 << 20)
        if not block:
            return
        end = block.rfind(b"\n") + 1
        if not end:
            pending.append(block)
            continue
        pending.append(block[:end - 1])
        lines = b"".join(pending).decode().split("\n")
        pending = [block[end:]]
        out, size, sent = [], 0, clock()
        for line in lines:
            done = answer(line)
            out.append(done)
            size += len(done)
            # Rows that take their time are not held back by those behind them.
            if size > 1 << 16 or clock() - sent > 0.02:
                send(out)
                out, size, sent = [], 0, clock()
        if out:
            send(out)


sys.path[:1] = dict.fromkeys((folder, os.path.dirname(path)))
try:
    function, takes_row = load()
except BaseException as error:
    send([refusal(explain(error)).encode()])
    sys.exit(1)
send([encode({"row": takes_row}).encode()])
gc.collect()
gc.freeze()
serve()
