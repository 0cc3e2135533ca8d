"""Generates product reviews with a verdict and a topic, from the phrase files in grammar/.

    python data.py 20 --seed 1          # twenty reviews as JSON lines

Pure standard library, same reviews for the same seed. No review shares five words in a row with
a review of reviews_test.jsonl: such a review is thrown away and drawn again.
"""

import argparse
import json
import random
import re
from pathlib import Path

HERE = Path(__file__).parent
TOPICS = ["price", "quality", "delivery", "service", "size"]
SENTIMENTS = ["positive", "negative"]
OPPOSITE = {"positive": "negative", "negative": "positive"}
OVERLAP = 5
SMILE = [":)", ":-)", ";)", "<3", "😀", "😍", "👍", "❤️", "🙂", "🎉", "⭐⭐⭐⭐⭐", "👌", ":D", "🥰", "😊", "💯", "*****"]
FROWN = [":(", ":-(", "😡", "👎", "😞", "🙄", ":/", "😠", "💔", "☹️", "🤬", "😤", "😢", "⭐", "🤦", "*", ">:("]


class Grammar:
    """Patterns: (a|b) is a choice, (a|b)? and [a] are optional, {name} is a slot."""

    def __init__(self):
        self.slots = {}
        self.parsed = {}

    def parse(self, text):
        """A pattern as nested lists: a choice is a list of sequences, a sequence a tuple of parts."""
        if text not in self.parsed:
            node, end = self._choice(text, 0, "")
            if end != len(text):
                raise ValueError(f"unbalanced pattern: {text}")
            self.parsed[text] = node
        return self.parsed[text]

    def _choice(self, text, at, closer):
        options, parts, plain = [], [], []

        def flush():
            if plain:
                parts.append("".join(plain))
                plain.clear()

        while at < len(text) and text[at] != closer:
            char = text[at]
            if char == "(":
                flush()
                node, at = self._choice(text, at + 1, ")")
                at = self._close(text, at, ")")
                if text[at : at + 1] == "?":
                    at += 1
                    node = [(), (node,)]
                parts.append(node)
            elif char == "[":
                flush()
                node, at = self._choice(text, at + 1, "]")
                at = self._close(text, at, "]")
                parts.append([(), (node,)])
            elif char == "{":
                flush()
                end = text.index("}", at)
                parts.append({"slot": text[at + 1 : end]})
                at = end + 1
            elif char == "|":
                flush()
                options.append(tuple(parts))
                parts = []
                at += 1
            elif char in ")]}":
                raise ValueError(f"stray {char!r} at {at} in pattern: {text}")
            else:
                plain.append(char)
                at += 1
        flush()
        options.append(tuple(parts))
        return options, at

    @staticmethod
    def _close(text, at, closer):
        if text[at : at + 1] != closer:
            raise ValueError(f"missing {closer!r} in pattern: {text}")
        return at + 1

    def fill(self, rng, text, local=None):
        """One random text of a pattern; `local` slots go before the shared ones."""
        out = []
        self._walk(rng, self.parse(text), local or {}, out)
        return "".join(out)

    def _walk(self, rng, node, local, out):
        for part in node[int(rng.random() * len(node))]:
            if isinstance(part, str):
                out.append(part)
            elif isinstance(part, list):
                self._walk(rng, part, local, out)
            else:
                name = part["slot"]
                value = local[name] if name in local else self.slots[name]
                self._walk(rng, self.parse(value), local, out)


def lines(path):
    """The lines of a phrase file without comments and empty lines."""
    rows = path.read_text(encoding="utf-8").splitlines()
    return [row.strip() for row in rows if row.strip() and not row.startswith("#")]


def sections(path):
    """A phrase file with @name headings, as a dict of lists."""
    found, name = {}, ""
    for row in lines(path):
        if row.startswith("@"):
            name = row[1:]
            found[name] = []
        else:
            found[name].append(row)
    return found


def words(text):
    """The words of a text, lower-case, letters and digits only."""
    return re.findall(r"[a-z0-9]+", text.lower().replace("'", ""))


def runs(text):
    """Every run of OVERLAP words of a text."""
    found = words(text)
    return {tuple(found[i : i + OVERLAP]) for i in range(len(found) - OVERLAP + 1)}


class Reviews:
    """An endless source of labelled reviews for one seed."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.grammar = Grammar()
        folder = HERE / "grammar"
        for row in lines(folder / "words.txt"):
            name, _, value = row.partition(": ")
            self.grammar.slots[name] = value
        self.forms = sections(folder / "forms.txt")
        for row in self.forms.pop("slots"):
            name, _, value = row.partition(": ")
            self.grammar.slots[name] = value
        self.topics = {topic: sections(folder / f"{topic}.txt") for topic in TOPICS}
        self.context = lines(folder / "context.txt")
        self.frames = lines(folder / "frames.txt")
        test = lines(HERE / "reviews_test.jsonl")
        self.held_out = set().union(*(runs(json.loads(row)["text"]) for row in test))

    def local(self, topic):
        parts = self.topics[topic]
        return {name: parts[name][0] for name in ("noun", "good", "bad")}

    def main(self, topic, sentiment):
        """A clause that gives the verdict on a topic."""
        rng = self.rng
        if rng.random() < 0.22:
            forms = self.forms[sentiment]
            form = rng.choice(forms)
            while topic != "quality" and "{noun}" not in form:
                form = rng.choice(forms)
            return self.grammar.fill(rng, form, self.local(topic))
        return self.grammar.fill(rng, rng.choice(self.topics[topic][sentiment]), self.local(topic))

    def weak(self, topic, sentiment):
        """A short clause that concedes something."""
        return self.grammar.fill(self.rng, self.rng.choice(self.topics[topic]["weak" + sentiment]))

    def slot(self, name):
        return self.grammar.fill(self.rng, self.grammar.slots[name])

    def contrast(self, topic, sentiment):
        """A verdict with a concession about (mostly) another topic."""
        rng = self.rng
        other = rng.choice(TOPICS)
        verdict = self.main(topic, sentiment)
        if rng.random() < 0.2:
            return self.doubt(topic, sentiment, verdict)
        if rng.random() < 0.12:
            # Two things of one mind: the fuller clause names the topic.
            return self.join([self.weak(other, sentiment), verdict])
        frame = rng.choice(self.frames)
        local = {
            "a": "{}",
            "b": "{}",
            "verdict": "(happy|good|great|satisfied|recommended)" if sentiment == "positive" else "(unhappy|bad|disappointed|not recommended|poor)",
        }
        weak = self.weak(other, OPPOSITE[sentiment])
        frame = frame.replace("{a}", "\1").replace("{b}", "\2")
        text = self.grammar.fill(rng, frame, local)
        return text.replace("\1", weak).replace("\2", verdict)

    def doubt(self, topic, sentiment, verdict):
        """A fear that proved wrong or a hope that was dashed, then the verdict."""
        rng = self.rng
        if sentiment == "positive":
            fear = self.grammar.fill(rng, rng.choice(self.topics[topic]["fear"]))
            opening = rng.choice(
                ["I was (afraid|worried|scared|sure|convinced|nervous) {}", "(I|we|my {who}) (feared|expected|thought) {}", "was (worried|afraid|sceptical, thought|unsure, thought) {}", "I had doubts, I thought {}", "others (say|wrote|warned) {}"]
            )
            link = rng.choice([", but ", " but ", ". But ", ". Instead ", ", however ", ". Wrong! ", ", not so: ", ". No way, ", ". In fact ", ". Nope, "])
        else:
            fear = self.grammar.fill(rng, rng.choice(self.topics[topic]["hope"]))
            opening = rng.choice(
                ["I (hoped|thought|believed|expected|was told|assumed|was sure) {}", "(we|my {who}) (hoped|thought|expected) {}", "(hoped|thought|expected|promised) {}", "they (said|promised|claimed|told me|swore) {}", "the (ad|website|seller|reviews) (said|promised|claimed) {}", "I really wanted to (love|like) (this|it), I hoped {}"]
            )
            link = rng.choice([", but ", " but ", ". But ", ". Instead ", ", however ", ". Wrong! ", ", sadly ", ". No, ", ". In reality ", ". Nope, ", ", unfortunately ", ". Well, "])
        opening = self.grammar.fill(rng, opening.replace("{}", "\1"))
        return opening.replace("\1", fear) + link + verdict

    def join(self, clauses):
        rng = self.rng
        text = clauses[0]
        for clause in clauses[1:]:
            text += rng.choice([". ", ". ", ". ", "! ", ", ", ", ", " and ", "; ", " - ", "... ", "\n" if rng.random() < 0.2 else ". "]) + clause
        return text

    def compose(self, topic, sentiment):
        """A review without noise."""
        rng = self.rng
        roll = rng.random()
        if roll < 0.24:
            clauses = [self.contrast(topic, sentiment)]
        elif roll < 0.62:
            clauses = [self.main(topic, sentiment)]
        elif roll < 0.92:
            clauses = [self.main(topic, sentiment), self.main(topic, sentiment)]
        else:
            clauses = [self.main(topic, sentiment) for _ in range(3)]
        good = sentiment == "positive"
        if rng.random() < 0.24:
            clauses.insert(0, self.grammar.fill(rng, rng.choice(self.context)))
        if rng.random() < 0.07:
            clauses.insert(rng.randrange(len(clauses) + 1), self.grammar.fill(rng, rng.choice(self.context)))
        if rng.random() < 0.3:
            clauses.append(self.slot("recommend" if good else "avoid"))
        if rng.random() < 0.05:
            clauses.append(rng.choice(["only downside: ", "the only minus: ", "small minus: ", "one star off because "]) + self.weak(rng.choice(TOPICS), "negative") if good else "only plus: " + self.weak(rng.choice(TOPICS), "positive"))
        if rng.random() < 0.13:
            opener = self.slot("posint" if good else "negint") if rng.random() < 0.93 else self.slot("posint")
            clauses.insert(0, opener)
        text = self.join(clauses)
        if rng.random() < 0.06:
            text += " " + rng.choice(SMILE if good else FROWN)
        return text

    def tidy(self, text):
        rng = self.rng
        text = re.sub(r"[ ]+", " ", text).strip(" ,;")
        text = re.sub(r" ([,.!?;])", r"\1", text)
        text = re.sub(r"([,;])[,;.!]+", r"\1", text)
        text = re.sub(r"\.([,!;])", r"\1", text)
        if rng.random() < 0.93:
            text = re.sub(r"\b([Aa]) (?=[aeiouAEIOU](?!ne |uro|ni|se))", r"\1n ", text)
            text = re.sub(r"\b([Aa])n (?=[bcdfgjklmnpqrstvwyzBCDFGJKLMNPQRSTVWYZ])", r"\1 ", text)
        return text

    def case(self, text):
        rng = self.rng
        roll = rng.random()
        if roll < 0.68:
            text = re.sub(r"(^|[.!?]\s+)([a-z])", lambda m: m[1] + m[2].upper(), text)
            names = r"\b(january|february|march|april|june|july|august|september|october|november|december|monday|tuesday|wednesday|thursday|friday|saturday|sunday|christmas|easter|amazon|bluetooth|maria|john|anna|david|sarah|tom|lisa|mike|emma|paul|julia)\b"
            text = re.sub(names, lambda m: m[0].capitalize(), text)
        elif roll < 0.9:
            text = text.lower() if rng.random() < 0.6 else text
        elif roll < 0.94:
            text = text.upper()
        else:
            parts = text.split(" ")
            at = rng.randrange(len(parts))
            parts[at] = parts[at].upper()
            text = " ".join(parts)
            text = text[:1].upper() + text[1:]
        return text

    def noise(self, text):
        """Endings, missing apostrophes, slang and typing errors."""
        rng = self.rng
        if text[-1:].isalnum():
            text += rng.choice([".", ".", ".", ".", ".", "", "", "", "!", "!", "!!", "!!!", "...", ".."])
        if rng.random() < 0.12:
            text = text.replace("'", rng.choice(["", "", "’", "´"]))
        if rng.random() < 0.08:
            for word, short in [("you", "u"), ("really", "rly"), ("because", "cuz"), ("are", "r"), ("with", "w"), ("very", "v"), ("please", "pls"), ("to", "2"), ("for", "4"), ("great", "gr8"), ("and", "&"), ("the ", ""), ("pretty", "p"), ("going to", "gonna"), ("thanks", "thx")]:
                if rng.random() < 0.4:
                    text = re.sub(rf"\b{word}\b", short, text)
        if rng.random() < 0.35:
            rate = rng.choice([0.02, 0.05, 0.1, 0.15])
            text = " ".join(self.mistype(word) if rng.random() < rate else word for word in text.split(" "))
        return text.strip() or "."

    def mistype(self, word):
        rng = self.rng
        if len(word) < 4:
            return word
        at = rng.randrange(1, len(word) - 1)
        kind = rng.randrange(5)
        if kind == 0:
            return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        if kind == 1:
            return word[:at] + word[at + 1 :]
        if kind == 2:
            return word[:at] + word[at] + word[at:]
        if kind == 3:
            return word[:at] + rng.choice("abcdefghijklmnopqrstuvwxyz") + word[at + 1 :]
        return word.replace("e", "a", 1) if rng.random() < 0.5 else word + word[-1] * rng.randrange(1, 4)

    def one(self):
        """The next review, as a dict of text, sentiment and topic."""
        while True:
            topic, sentiment = self.rng.choice(TOPICS), self.rng.choice(SENTIMENTS)
            text = self.tidy(self.compose(topic, sentiment))
            if len(text) > 400 or not runs(text).isdisjoint(self.held_out):
                continue
            text = self.noise(self.case(text))
            return {"text": text, "sentiment": sentiment, "topic": topic}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    source = Reviews(args.seed)
    for _ in range(args.count):
        print(json.dumps(source.one(), ensure_ascii=False))


if __name__ == "__main__":
    main()
