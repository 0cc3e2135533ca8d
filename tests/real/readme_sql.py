"""Runs the SQL of the README in DuckDB, over what its chain from scratch writes.

Usage: readme_sql.py BINARY README WORK
"""

import os
import pathlib
import re
import subprocess
import sys

import duckdb

binary, readme, work = sys.argv[1:]
readme = pathlib.Path(readme).read_text()
blocks = re.findall(r"```(\w+)\n(.*?)```", readme, re.S)
chain = next(text for kind, text in blocks if kind == "yaml" and "\nname: grade\n" in text)
statements = [line for kind, text in blocks if kind == "sql" for line in text.splitlines()]
assert len(statements) >= 2, statements

os.chdir(work)
subprocess.run([binary, "init", "demo"], check=True, stdout=subprocess.DEVNULL)
pathlib.Path("demo/grade.yaml").write_text(chain)
with open("demo/inputs.jsonl", "a") as rows:
    rows.write("not JSON\n")
run = [binary, "run", "demo/grade.yaml", "demo/inputs.jsonl", "demo/graded", "--quiet"]
assert subprocess.run(run).returncode == 3
rows, errors = (duckdb.sql(statement).fetchall() for statement in statements)
assert len(rows) == 5 and sum(row[2] is not None for row in rows) == 2, rows
assert [error[:2] for error in errors] == [("invalid_input", 1)], errors
print("the README's SQL: as it says")
