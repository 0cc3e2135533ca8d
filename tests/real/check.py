"""Checks an OUT against its own graph.json: every line schema-valid, every row accounted for.

Usage: check.py OUT ROWS
"""

import json
import pathlib
import sys

import jsonschema


def lines(folder: pathlib.Path):
    for shard in sorted(folder.glob("*.jsonl"), key=lambda path: int(path.stem)):
        for line in shard.read_text().splitlines():
            yield json.loads(line)


def main(out: pathlib.Path, rows: int) -> None:
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
    failed = [line["row_id"] for line in lines(out / "errors") if "branch" not in line]
    assert sorted(ids + failed, key=int) == [str(n) for n in range(rows)], "a row is missing or doubled"
    assert ids == sorted(ids, key=int), "flattened/ is out of order"
    for node, counts in metadata["nodes"].items():
        fates = sum(counts[fate] for fate in ("emitted", "filtered", "skipped", "nulled", "failed"))
        assert counts["rows"] == fates, (node, counts)
    counted = metadata["rows"]
    assert (counted["in"], counted["out"], counted["failed"]) == (rows, len(ids), len(failed)), counted
    assert len(failed) < rows / 10, f"{len(failed)} of {rows} rows failed"
    print(f"{out}: {rows} rows in, {len(ids)} out, {len(failed)} failed; {checked} node lines match their schemas")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), int(sys.argv[2]))
