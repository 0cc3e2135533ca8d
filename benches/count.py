"""A trivial function, and the same as a program."""

import json
import sys


def count(item):
    return {"id": item["id"], "n_chars": len(item["text"])}


if __name__ == "__main__":
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps({"row_id": asked["row_id"], "outputs": [count(asked["item"])]}), flush=True)
