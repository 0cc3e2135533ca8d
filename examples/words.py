#!/usr/bin/env python3
"""A program for chains/command.yaml; any language does. It reads a line per row, {"row_id", "item", "row"}, and writes
a line per row, {"row_id", "outputs": [...]} or {"row_id", "error": "..."}, in any order."""

import json
import sys

for line in sys.stdin:
    asked = json.loads(line)
    words = asked["item"]["text"].split()
    if words:
        answer = {"outputs": [{"words": len(words), "longest": max(words, key=len)}]}
    else:
        answer = {"error": "no words"}
    # Without the flush the answer would wait in a buffer while chainette waits for it.
    print(json.dumps({"row_id": asked["row_id"], **answer}), flush=True)
