"""The Applies that the generator draws, as Python functions and as a command: `python3 twins.py NAME`.

Each is the twin of a jq program in gen.rs and of a Rust one in twins.rs. Between them they return all that a function
may return: None, a dict, a list, a generator, a value that is no dict.
"""

import json
import math
import os
import re
import sys


def whole(fields):
    """The row's number."""
    n = fields.get("n")
    if type(n) is not int:
        raise TypeError("no number: %r" % (n,))
    return n


def rest(n, divisor):
    """As jq divides: the sign is that of `n`."""
    return int(math.fmod(n, divisor))


def identity(item):
    return item


def add_k(item):
    return {**item, "k": 1}


def empty(item):
    return None


def twice(item):
    return [item, {"first": item.get("text")}]


def row_id(item, row):
    return {"row_id": row["row_id"], "text": item.get("text")}


def inputs(item, *, row):
    given = row["chain_input"]
    return ({"p": given.get("price"), "b": given.get("big"), "o": given.get("obj")},)


def tone(item, **more):
    return {**item, "tone": more["row"]["vars"]["tone"]}


def to_number(item):
    n = item.get("n")
    return {**item, "n": n if type(n) is int else int(n)}


def with_number(place):
    """The twins that read a number, from the current item or the chain's input."""

    def where(item, row):
        return row["chain_input"] if place == "input" else item

    def even(item, row):
        return item if rest(whole(where(item, row)), 2) == 0 else None

    def pick(item, row):
        return {"a": where(item, row).get("n")}

    def number(item, row):
        return [where(item, row).get("n")]

    def fan(item, row):
        for i in range(rest(whole(where(item, row)), 3)):
            yield {**item, "i": i}

    def bad(item, row):
        if rest(whole(where(item, row)), 5) == 0:
            raise ValueError("bad")
        return item

    def bad_late(item, row):
        yield item
        if rest(whole(where(item, row)), 4) == 0:
            raise ValueError("late")

    return even, pick, number, fan, bad, bad_late


for place in ("item", "input"):
    for twin in with_number(place):
        globals()["%s_%s" % (twin.__name__, place)] = twin


def __getattr__(name):
    """`row_NAME`: what an earlier node gave."""
    if not name.startswith("row_"):
        raise AttributeError(name)

    def of_row(item, row):
        return {"r": row.get(name[4:]), "text": item.get("text"), "n": row["chain_input"].get("n")}

    return of_row


def call(twin, item, row):
    """A twin's outputs as a list."""
    takes_row = "row" in twin.__code__.co_varnames or twin.__code__.co_flags & 8
    result = twin(item, row=row) if takes_row else twin(item)
    if result is None:
        return []
    return [result] if isinstance(result, dict) else list(result)


def main(name):
    """The command's side of the protocol; what was asked together is answered from the end."""
    twin = globals().get(name) or __getattr__(name)
    spelled = re.compile(r'"\\u0000F([^"]*)"')
    left = b""
    while block := os.read(0, 1 << 16):
        *lines, left = (left + block).split(b"\n")
        for line in reversed(lines):
            asked = json.loads(line, parse_float=lambda text: "\0F" + text)
            answer = {"row_id": asked["row_id"]}
            try:
                answer["outputs"] = call(twin, asked["item"], asked["row"])
            except Exception as error:
                answer["error"] = repr(error)
            text = spelled.sub(r"\1", json.dumps(answer, ensure_ascii=False, separators=(",", ":")))
            os.write(1, text.encode() + b"\n")


if __name__ == "__main__":
    main(sys.argv[1])
