"""Functions for chains/python.yaml: plain Python, a row in, rows out."""

import re


def clean(item):
    """One row out: the text without needless space. Other fields stay as they are."""
    return {**item, "text": re.sub(r"\s+", " ", item["text"]).strip()}


def sentences(item, row):
    """A row for each sentence; none for a text without one. `row` holds everything the chain knows."""
    floor = row["vars"]["min_words"]
    for sentence in re.findall(r"[^.!?;]+[.!?;]?", item["text"]):
        words = sentence.split()
        if len(words) >= floor:
            yield {"sentence": " ".join(words), "words": len(words), "stars": row["chain_input"].get("stars", 0)}
