"""Reads the Parquet files of a run with DuckDB, PyArrow and Polars and compares them with the JSONL run of the same chain.

Usage: parquet_readers.py BINARY CHAIN WORK
"""

import http.server
import json
import pathlib
import subprocess
import sys
import threading

import duckdb
import polars
import pyarrow.parquet

ROWS = 12_000
SHARD = 5_000
# What the chain declares, and what its first rows say; DuckDB's names.
TYPES = {
    "row_id": "VARCHAR",
    "chain_input.text": "VARCHAR",
    "chain_input.n": "BIGINT",
    "chain_input.price": "DOUBLE",
    "chain_input.tags": "VARCHAR[]",
    "chain_input.meta": "VARCHAR",
    "typed.label": "VARCHAR",
    "typed.half": "DOUBLE",
    "typed.part": "STRUCT(k BIGINT, deep STRUCT(v VARCHAR)[])",
    "typed.big": "DOUBLE",
    "free.row_id": "VARCHAR",
    "free.flag": "BOOLEAN",
    "free.mixed": "VARCHAR",
    "sometimes.s": "VARCHAR",
    "sometimes.empty": "VARCHAR",
    "many": "STRUCT(word VARCHAR, len BIGINT)[]",
    "fan.i": "BIGINT",
    "_rescued": "VARCHAR",
}


def run(binary: str, chain: str, work: pathlib.Path, form: str) -> pathlib.Path:
    out = work / form
    done = subprocess.run(
        [binary, "run", chain, work / "in.jsonl", out, "--format", form, "--max-lines-per-file", str(SHARD), "--json-logs"],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 3, done.stderr
    events = [json.loads(line) for line in done.stderr.splitlines()]
    warned = sorted(event["message"].split("`")[1] for event in events if event["event"] == "warning")
    expected = ["big", "free.late", "late", "typed.big"] if form == "parquet" else []
    assert warned == expected, warned
    return out


def shards(folder: pathlib.Path, extension: str) -> list[pathlib.Path]:
    return sorted(folder.glob(f"*.{extension}"), key=lambda path: int(path.stem))


def without_nulls(value):
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def restore(row: dict, json_text: list[list[str]]) -> dict:
    """A row as it stands in the JSONL run: JSON text parsed, rescued values back in their columns."""

    def parse(value, path):
        if value is None:
            return None
        if not path:
            return json.loads(value)
        if path[:2] == ["list", "element"]:
            return [parse(item, path[2:]) for item in value]
        return {**value, path[0]: parse(value[path[0]], path[1:])}

    for path in json_text:
        row[path[0]] = parse(row[path[0]], path[1:])
    rescued = json.loads(row.pop("_rescued") or "{}")
    return without_nulls({**row, **rescued})


def compare(folder: str, parquet: pathlib.Path, jsonl: pathlib.Path) -> int:
    expected = [
        without_nulls(json.loads(line))
        for shard in shards(jsonl / folder, "jsonl")
        for line in shard.read_text().splitlines()
    ]
    files = shards(parquet / folder, "parquet")
    assert [file.stem for file in files] == [file.stem for file in shards(jsonl / folder, "jsonl")], files
    schemas = {str(pyarrow.parquet.read_schema(file).remove_metadata()) for file in files}
    assert len(schemas) == 1, f"the shards of {folder}/ differ in their schema"
    facts = pyarrow.parquet.ParquetFile(files[0])
    json_text = json.loads(facts.metadata.metadata[b"chainette.json_text"])
    assert facts.metadata.created_by == "chainette version 1"
    chunk = facts.metadata.row_group(0).column(0)
    assert chunk.compression == "ZSTD", chunk

    readers = {
        "pyarrow": [row for file in files for row in pyarrow.parquet.ParquetFile(file).read().to_pylist()],
        "polars": polars.concat([polars.read_parquet(file) for file in files]).to_dicts(),
        "duckdb": duckdb.sql(f"select * from read_parquet({[str(file) for file in files]})").to_arrow_table().to_pylist(),
    }
    for name, rows in readers.items():
        assert len(rows) == len(expected), f"{name} reads {len(rows)} of {len(expected)} rows of {folder}/"
        for row, line in zip(rows, expected):
            found = restore(row, json_text)
            assert found == line, f"{name}, {folder}/:\nexpected {line}\nfound    {found}"
    return len(expected)


class Embedder(http.server.BaseHTTPRequestHandler):
    """An engine whose vectors have 384 numbers."""

    SIZE = 384
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        n = int(asked["input"].split()[-1])
        vector = [(n * 31 + k * 7) % 2001 / 1000 - 1 for k in range(self.SIZE)]
        body = json.dumps({"data": [{"index": 0, "embedding": vector}], "usage": {"prompt_tokens": 3}}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        pass


def vectors(binary: str, work: pathlib.Path) -> None:
    """Lists of 32-bit numbers that are all of one length; every third row has none."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Embedder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    rows, size = 300, Embedder.SIZE
    engine = {"backend": "openai", "model": "m", "endpoint": f"http://127.0.0.1:{server.server_port}/v1"}
    vec = {"id": "vec", "engine": "e", "task": "embed", "input": "row {{ n }}", "when": "n % 3 > 0"}
    (work / "vectors.json").write_text(json.dumps({"engines": {"e": engine}, "steps": [vec]}))
    (work / "numbers.jsonl").write_text("".join(f'{{"n": {n}}}\n' for n in range(rows)))
    outs = {}
    for form in ("parquet", "jsonl"):
        outs[form] = work / f"vectors-{form}"
        command = [binary, "run", work / "vectors.json", work / "numbers.jsonl", outs[form], "--format", form]
        subprocess.run([*command, "--max-lines-per-file", "120", "--quiet"], check=True)
    server.shutdown()
    lines = [line for shard in shards(outs["jsonl"] / "flattened", "jsonl") for line in shard.read_text().splitlines()]
    expected = [json.loads(line).get("vec.embedding") for line in lines]
    assert len(expected) == rows and sum(vector is None for vector in expected) == rows // 3
    files = [str(file) for file in shards(outs["parquet"] / "flattened", "parquet")]
    assert len(files) == 3, files

    def same(name: str, found: list) -> None:
        assert len(found) == rows, f"{name}: {len(found)} rows"
        for n, (vector, wanted) in enumerate(zip(found, expected)):
            # The text of a 32-bit number is the shortest; as a 64-bit number it is another one, but the nearest.
            near = vector == wanted or all(abs(a - b) <= 6e-8 * abs(b) for a, b in zip(vector, wanted, strict=True))
            assert near, f"{name}, row {n}:\nexpected {wanted}\nfound    {vector}"

    table = pyarrow.parquet.read_table(outs["parquet"] / "flattened")
    kind = table.schema.field("vec.embedding").type
    assert str(kind).startswith("fixed_size_list<element: float>") and kind.list_size == size, kind
    same("pyarrow", table["vec.embedding"].to_pylist())
    frame = polars.concat([polars.read_parquet(file) for file in files])
    assert frame.schema["vec.embedding"] == polars.Array(polars.Float32, size), frame.schema
    same("polars", [None if row is None else list(row) for row in frame["vec.embedding"].to_list()])
    found = duckdb.sql(f"select typeof(\"vec.embedding\"), \"vec.embedding\"::FLOAT[{size}] from read_parquet({files})").fetchall()
    assert {kind for kind, _ in found} == {"FLOAT[]"}, {kind for kind, _ in found}
    same("duckdb", [None if row is None else list(row) for _, row in found])
    nearest = duckdb.sql(
        f"""select a.row_id, b.row_id from read_parquet({files}) a, read_parquet({files}) b
        where a.row_id = '1' and b."vec.embedding" is not null
        order by array_distance(a."vec.embedding"::FLOAT[{size}], b."vec.embedding"::FLOAT[{size}]) limit 1"""
    ).fetchall()
    assert nearest == [("1", "1")], nearest
    print(f"DuckDB, PyArrow and Polars read {rows - rows // 3} vectors of {size} 32-bit numbers")


def main(binary: str, chain: str, work: pathlib.Path) -> None:
    vectors(binary, work)
    with open(work / "in.jsonl", "w") as out:
        for n in range(ROWS):
            row = {"text": f"row {n} é 😀 \"q\"", "n": n, "price": n + 0.1, "meta": [None, n, {"a": "b"}, "t"][n % 4]}
            if n % 2:
                row["tags"] = [f"t{k}" for k in range(n % 4)]
            out.write(json.dumps(row, ensure_ascii=n % 7 == 0) + "\n")
        out.write("no json\n")
    parquet = run(binary, chain, work, "parquet")
    jsonl = run(binary, chain, work, "jsonl")
    described = duckdb.sql(f"describe select * from '{parquet}/flattened/*.parquet'").fetchall()
    types = {column[0]: column[1] for column in described}
    assert types == TYPES and list(types) == list(TYPES), types
    assert (parquet / "errors/000.jsonl").read_bytes() == (jsonl / "errors/000.jsonl").read_bytes()
    folders = sorted(entry.name for entry in jsonl.iterdir() if entry.is_dir() and entry.name not in (".chainette", "errors"))
    counts = {folder: compare(folder, parquet, jsonl) for folder in folders}
    print(f"DuckDB {duckdb.__version__}, PyArrow {pyarrow.__version__} and Polars {polars.__version__} read {counts}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3]))
