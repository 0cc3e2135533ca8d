"""Checks an OUT against its own graph.json: every line schema-valid, every row accounted for.

Usage: check.py OUT ROWS [SHARE]
SHARE: at most this part of the rows may stand in errors/ (0.1).
"""

import collections
import json
import pathlib
import sys

import jsonschema


def lines(folder: pathlib.Path):
    for shard in sorted(folder.glob("*.jsonl"), key=lambda path: int(path.stem)):
        for line in shard.read_text().splitlines():
            yield json.loads(line)


def main(out: pathlib.Path, rows: int, share: float) -> None:
    graph = json.loads((out / "graph.json").read_text())
    metadata = json.loads((out / "metadata.json").read_text())
    assert metadata["state"] == "finished", metadata["state"]

    checked = 0
    schemas = graph["schemas"]
    assert sorted(schemas["nodes"]) == sorted(node["id"] for node in graph["nodes"])
    for node, schema in schemas["nodes"].items():
        jsonschema.Draft202012Validator.check_schema(schema)
        validator = jsonschema.Draft202012Validator(schema)
        for line in lines(out / node):
            validator.validate(line)
            checked += 1
    validator = jsonschema.Draft202012Validator(schemas["flattened"])
    flattened = list(lines(out / "flattened"))
    for line in flattened:
        validator.validate(line)

    ids = [line["row_id"] for line in flattened]
    errors = list(lines(out / "errors"))
    failed = [line["row_id"] for line in errors if "branch" not in line]
    main_line = [node["id"] for node in graph["nodes"] if node["branch"] is None]
    filtered = sum(metadata["nodes"][node]["filtered"] for node in main_line)
    ended = set(ids + failed)
    assert len(ended) == len(ids) + len(failed), "a row is doubled"
    # Children of a fan-out are rows of one input row.
    roots = {row_id.split(".")[0] for row_id in ended}
    assert roots <= {str(n) for n in range(rows)}, "a row came from nowhere"
    assert len(roots) + filtered == rows, f"{len(roots)} rows ended, {filtered} were filtered, {rows} came in"
    places = [[int(part) for part in row_id.split(".")] for row_id in ids]
    assert places == sorted(places), "flattened/ is out of order"
    for node, counts in metadata["nodes"].items():
        fates = sum(counts[fate] for fate in ("emitted", "filtered", "skipped", "nulled", "failed"))
        assert counts["rows"] == fates, (node, counts)
    counted = metadata["rows"]
    assert (counted["in"], counted["out"], counted["failed"]) == (rows, len(ids), len(failed)), counted
    kinds = dict(collections.Counter(line["kind"] for line in errors))
    assert len(failed) < rows * share, f"{len(failed)} of {rows} rows failed: {kinds}"
    print(
        f"{out}: {rows} rows in, {len(ids)} out, {filtered} filtered, {len(failed)} failed {kinds or ''}; "
        f"{checked} node lines match their schemas"
    )


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), int(sys.argv[2]), float((sys.argv[3:] or [0.1])[0]))
