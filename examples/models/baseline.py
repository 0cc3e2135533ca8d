"""Bag-of-words baseline: logistic regression on the generated reviews the model is trained on.

    python baseline.py                   # single words
    python baseline.py --pairs           # words and pairs of neighbours

Pure standard library. Prints the same figures as train.py for the same test file.
"""

import argparse
import json
import math
import random
import re
from pathlib import Path

from data import SENTIMENTS, TOPICS, Reviews

HERE = Path(__file__).parent


def features(text, pairs):
    """The set of words (and pairs of neighbours) of a text, lower-case."""
    found = re.findall(r"[a-z0-9']+|[^\sa-z0-9']", text.lower().replace("’", "'"))
    return set(found) | (set(zip(found, found[1:])) if pairs else set())


class Softmax:
    """Multinomial logistic regression over sparse features, trained by Adagrad."""

    def __init__(self, labels):
        self.labels = labels
        self.weights = {}
        self.squares = {}

    def scores(self, found):
        totals = [0.0] * len(self.labels)
        for feature in found:
            for i, value in enumerate(self.weights.get(feature, ())):
                totals[i] += value
        top = max(totals)
        powers = [math.exp(value - top) for value in totals]
        return [power / sum(powers) for power in powers]

    def learn(self, found, label):
        errors = [share - (name == label) for name, share in zip(self.labels, self.scores(found))]
        for feature in found:
            weights = self.weights.setdefault(feature, [0.0] * len(errors))
            squares = self.squares.setdefault(feature, [1e-8] * len(errors))
            for i, error in enumerate(errors):
                squares[i] += error * error
                weights[i] -= 0.3 * error / math.sqrt(squares[i])

    def best(self, found):
        shares = self.scores(found)
        return self.labels[shares.index(max(shares))]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--passes", type=int, default=2)
    parser.add_argument("--pairs", action="store_true")
    parser.add_argument("--seed", type=int, default=8)
    parser.add_argument("--test", default=str(HERE / "reviews_test.jsonl"))
    args = parser.parse_args()
    source = Reviews(args.seed)
    rows = [(features(row["text"], args.pairs), row) for row in (source.one() for _ in range(args.count))]
    models = {"sentiment": Softmax(SENTIMENTS), "topic": Softmax(TOPICS)}
    for turn in range(args.passes):
        random.Random(turn).shuffle(rows)
        for found, row in rows:
            for name, model in models.items():
                model.learn(found, row[name])
    right = {"sentiment": 0, "topic": 0, "both": 0}
    test = [json.loads(line) for line in Path(args.test).read_text(encoding="utf-8").splitlines()]
    for row in test:
        found = features(row["text"], args.pairs)
        hits = [model.best(found) == row[name] for name, model in models.items()]
        for name, hit in zip(right, [*hits, all(hits)]):
            right[name] += hit
    print(f"sentiment {right['sentiment']}, topic {right['topic']}, both {right['both']} of {len(test)}")


if __name__ == "__main__":
    main()
