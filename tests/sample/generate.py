"""Write the bundled sample: `python -m tests.sample.generate [FOLDER]`.

The rows come from a few patterns that a small model can learn in two minutes. The questions of the
validation file are new: its numbers, and its pairs of words, are not in the training file.
"""

import random
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

from sftctl.data.sample import sample_files
from sftctl.jsonio import dump_line
from tests.sample.words import (
    CHINESE_OPPOSITES,
    CITIES,
    GREETINGS,
    OPPOSITES,
    PLURALS,
    SKIES,
    SPELLED,
    TRANSLATIONS,
)

SEED = 1
NUM_SUMS, NUM_SUCCESSORS = 480, 220
NUM_PAIRS = {
    "plural": 84, "spelling": 112, "opposite": 72, "opposite in Chinese": 80, "translation": 84,
}  # fmt: skip
NUM_TALKS, NUM_BRIEF, NUM_TOOLS = 40, 40, 20
NUM_NEW = {
    "sum": 40, "successor": 16, "number": 12, "plural": 14, "spelling": 14, "opposite": 20,
    "translation": 14,
}  # fmt: skip
BRIEF = ("Answer in short.", "只写结果。")
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its answer, and the answer in short if that is another one.

    Questions of one kind about one subject are in the same file; without a subject, one to train.
    """

    kind: str
    subject: str
    text: str
    answer: str
    short: str = ""
    is_chinese: bool = False


def sums(rng: random.Random) -> Iterator[Question]:
    """Sums of two digits each, asked for in three ways.

    The working is a part of the answer: a small model learns its short steps in far fewer rows than
    the sum at once.
    """
    pairs = [(a, b) for a in range(10, 50) for b in range(10, 50)]
    for index, (a, b) in enumerate(rng.sample(pairs, NUM_SUMS)):
        subject, answer = f"{min(a, b)}+{max(a, b)}", worked(a, b)
        if index % 10 < 5:
            yield Question("sum", subject, f"{a}+{b}=?", answer)
        elif index % 10 < 8:
            yield Question("sum", subject, f"What is {a} plus {b}?", answer)
        else:
            yield Question("sum", subject, f"{a}加{b}等于多少？", answer, is_chinese=True)


def worked(a: int, b: int) -> str:
    """The sum with its working: units first, then tens, with the one that is carried."""
    units, total = a % 10 + b % 10, a + b
    carry = "+1" if units > 9 else ""
    return f"{a % 10}+{b % 10}={units}, {a // 10}+{b // 10}{carry}={total // 10}: {total}"


def successors(rng: random.Random) -> Iterator[Question]:
    for n in rng.sample(range(10, 300), NUM_SUCCESSORS):
        yield Question("successor", str(n), f"What comes after {n}?", f"{n + 1}.")


def numbers(rng: random.Random) -> Iterator[Question]:
    """Two digits in Chinese."""
    digits = " 一二三四五六七八九"
    for n in range(11, 100):
        tens = digits[n // 10] if n >= 20 else ""
        chinese = f"{tens}十{digits[n % 10]}".strip()
        yield Question("number", str(n), f"What is {n} in Chinese?", f"{chinese}.")


def pairs_of(rng: random.Random, words: Iterable[str], number: int) -> list[tuple[str, str]]:
    """Different words, two at a time."""
    return rng.sample([*permutations(words, 2)], number)


def plurals(rng: random.Random) -> Iterator[Question]:
    for one, many in PLURALS.items():
        text, answer = f"What is the plural of {one}?", f"The plural is {many}."
        yield Question("plural", "", text, answer, many)
    for one, other in pairs_of(rng, PLURALS, NUM_PAIRS["plural"]):
        text, both = f"What are the plurals of {one} and {other}?", (PLURALS[one], PLURALS[other])
        answer = f"The plurals are {both[0]} and {both[1]}."
        yield Question("plural", f"{one} {other}", text, answer, " ".join(both))


def spellings(rng: random.Random) -> Iterator[Question]:
    for word in SPELLED:
        letters = "-".join(word)
        yield Question("spelling", "", f"How do you spell {word}?", f"{letters}.", letters)
    for one, other in pairs_of(rng, SPELLED, NUM_PAIRS["spelling"]):
        letters = f"{'-'.join(one)} and {'-'.join(other)}"
        text = f"How do you spell {one} and {other}?"
        yield Question("spelling", f"{one} {other}", text, f"{letters}.", letters)


def both_ways(pairs: dict[str, str]) -> dict[str, str]:
    """Every word with its opposite."""
    return pairs | {other: one for one, other in pairs.items()}


def opposites(rng: random.Random) -> Iterator[Question]:
    known = both_ways(OPPOSITES)
    for one, other in known.items():
        text, answer = f"What is the opposite of {one}?", f"The opposite is {other}."
        yield Question("opposite", "", text, answer, other)
    for one, other in pairs_of(rng, known, NUM_PAIRS["opposite"]):
        text = f"What are the opposites of {one} and {other}?"
        answer = f"The opposites are {known[one]} and {known[other]}."
        yield Question("opposite", f"{one} {other}", text, answer, f"{known[one]} {known[other]}")


def chinese_opposites(rng: random.Random) -> Iterator[Question]:
    known = both_ways(CHINESE_OPPOSITES)
    for one, other in known.items():
        yield Question("opposite", "", f"{one}的反义词是什么？", f"{other}。", other, True)
    for one, other in pairs_of(rng, known, NUM_PAIRS["opposite in Chinese"]):
        text, both = f"{one}和{other}的反义词是什么？", f"{known[one]}和{known[other]}"
        yield Question("opposite", f"{one} {other}", text, f"{both}。", both, True)


def translations(rng: random.Random) -> Iterator[Question]:
    for word, chinese in TRANSLATIONS.items():
        text, answer = f"How do you say {word} in Chinese?", f"In Chinese it is {chinese}."
        yield Question("translation", "", text, answer, chinese)
    for one, other in pairs_of(rng, TRANSLATIONS, NUM_PAIRS["translation"]):
        both = f"{TRANSLATIONS[one]}和{TRANSLATIONS[other]}"
        text = f"How do you say {one} and {other} in Chinese?"
        answer = f"In Chinese it is {both}."
        yield Question("translation", f"{one} {other}", text, answer, both)


def questions(rng: random.Random) -> tuple[list[Question], list[Question]]:
    """Questions to train on, and new ones."""
    makers = (sums, successors, numbers, plurals, spellings, opposites, chinese_opposites)
    every = [one for maker in (*makers, translations) for one in maker(rng)]
    new: set[Question] = set()
    for kind, number in NUM_NEW.items():
        subjects = {one.subject for one in every if one.kind == kind and one.subject}
        chosen = {*rng.sample(sorted(subjects), number)}
        new |= {one for one in every if one.kind == kind and one.subject in chosen}
    return [one for one in every if one not in new], [one for one in every if one in new]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def alone(one: Question) -> dict[str, Any]:
    return {"messages": [user(one.text), assistant(one.answer)]}


def talk(rng: random.Random, some: list[Question]) -> dict[str, Any]:
    """Several turns; some begin with a greeting, or with a wrong answer that is only context."""
    messages = [turn for one in some for turn in alone(one)["messages"]]
    if rng.random() < 0.3:
        greeting, reply = rng.choice(GREETINGS)
        messages[:0] = [user(greeting), assistant(reply)]
    elif rng.random() < 0.2:
        messages[:0] = [messages[0], assistant("I don't know.", train=False)]
    return {"messages": messages}


def brief(one: Question) -> dict[str, Any]:
    """The short answer, because the system message asks for it."""
    system = {"role": "system", "content": BRIEF[one.is_chinese]}
    return {"messages": [system, user(one.text), assistant(one.short)]}


def tool_call(city: str, degrees: int, sky: str) -> dict[str, Any]:
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": city}}}
    return {
        "messages": [
            user(f"What is the weather in {city}?"),
            assistant("", tool_calls=[call]),
            {"role": "tool", "content": f"{degrees} {sky}"},
            assistant(f"It is {sky} in {city}, {degrees} degrees."),
        ],
        "tools": [WEATHER],
    }


def tool_calls(rng: random.Random) -> list[dict[str, Any]]:
    every = [(city, n, sky) for city in CITIES for n in range(1, 36) for sky in SKIES]
    return [tool_call(*one) for one in rng.sample(every, NUM_TOOLS)]


def rows(
    rng: random.Random, some: list[Question], share: float, others: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The rows of a file: every question alone, and a share of talks and of brief answers."""
    made = [alone(one) for one in some]
    made += [talk(rng, rng.sample(some, rng.randint(2, 4))) for _ in range(int(share * NUM_TALKS))]
    in_short = [one for one in some if one.short]
    made += [brief(one) for one in rng.sample(in_short, int(share * NUM_BRIEF))]
    made += others
    rng.shuffle(made)
    return made


def main(folder: Path) -> None:
    rng = random.Random(SEED)
    train, new = questions(rng)
    calls = tool_calls(rng)
    greetings = [{"messages": [user(text), assistant(reply)]} for text, reply in GREETINGS]
    parts = [rows(rng, train, 0.9, calls[6:] + greetings), rows(rng, new, 0.1, calls[:6])]
    for file, part in zip(sample_files(), parts, strict=True):
        (folder / file.name).write_bytes(b"".join(map(dump_line, part)))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else sample_files()[0].parent)
