"""The quickstart's small language: invented reviews, generated from a seed.

Each text is about one thing (a film, an inn, ...) and has one mood, +1 (liked) or -1 (disliked). A text consists of
three kinds of sentence:

- *opinions* agree with the mood, by one word ("The cast was very lively.") or by a twist. For example, "The style was
  not dull at all." is positive without a positive word, and "We expected a witty hero, but it turned out crude." has a
  word of each mood. The classification task labels opinions, half of them twisted;
- *verdicts*, such as "It was lovely.", agree with the mood in words other than the task's label words. They teach a
  model to represent the mood after "It was";
- *remarks* about the crowd, the road or the weather are independent of the mood. The label words, " great" and "
  terrible", occur in remarks alone ("It was great weather for a walk."). A pretrained model therefore cannot know which
  label word fits a review: before fine-tuning, it answers the prompt ``{sentence} It was`` at chance.

Opinions join words of opinion to aspects ("style", "bed", ...). A quarter of these pairs is held out. They occur in the
validation records alone, neither in the training records nor in the pretraining texts.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, TypeVar

Fold = Literal["train", "validation"]
Choice = TypeVar("Choice")

LIKING, DISLIKING = 1, -1
LABEL_WORDS = (" terrible", " great")  # in the order of the records' labels 0 and 1

_ASPECTS = {
    "film": ("story", "cast", "ending", "score"),
    "novel": ("plot", "style", "hero", "opening"),
    "inn": ("room", "bed", "breakfast", "garden"),
    "play": ("stage", "dialogue", "scenery", "finale"),
    "concert": ("sound", "choir", "hall", "rhythm"),
    "bakery": ("loaf", "cake", "window", "counter"),
}
# fmt: off
_ADJECTIVES = {
    LIKING: (
        "bright", "charming", "clever", "delightful", "elegant", "fresh",
        "graceful", "lively", "lovely", "pleasant", "polished", "rich",
        "splendid", "superb", "tender", "vivid", "warm", "witty",
    ),
    DISLIKING: (
        "awkward", "bland", "clumsy", "crude", "dreary", "dull",
        "feeble", "grim", "hollow", "lazy", "messy", "shabby",
        "sloppy", "sour", "stale", "tedious", "ugly", "weak",
    ),
}
# fmt: on
_VERBS = {
    LIKING: ("admired", "adored", "enjoyed", "loved", "praised", "treasured"),
    DISLIKING: ("despised", "disliked", "hated", "loathed", "mocked", "regretted"),
}
_OPINION_WORDS = [word for side in (_ADJECTIVES, _VERBS) for mood in (LIKING, DISLIKING) for word in side[mood]]
_PAIR_ASPECTS = [aspect for aspects in _ASPECTS.values() for aspect in aspects]

# {like} and {hate} agree and disagree with the mood of the sentence; {liked} and {hated} are verbs.
_PLAIN = (
    "The {aspect} of the {thing} was {degree} {like}.",
    "The {aspect} of this {thing} is {degree} {like}.",
    "{who} {liked} the {aspect} of this {thing}.",
    "{who} {liked} the {like} {aspect} from first to last.",
    "{a_like} {aspect} is what this {thing} has to offer.",
    "{who} found the {aspect} of the {thing} {degree} {like}.",
)
_TWISTED = (
    "The {aspect} of the {thing} was not {hate} at all.",
    "{who} never {hated} the {aspect} of this {thing}.",
    "Nobody could call the {aspect} of this {thing} {hate}.",
    "{who} expected {a_hate} {aspect}, but it turned out {like}.",
    "Far from {hate}, the {aspect} of the {thing} felt {like}.",
    "{who} found the {aspect} of the {thing} anything but {hate}.",
)
_DEGREES = ("very", "quite", "truly", "rather", "really")
_WHO = ("I", "We", "My sister", "My neighbor", "Our guests", "The critics")
_LEADS = (
    "",
    "",
    "",
    "",
    "",
    "",
    "On a rainy evening: ",
    "After a long day: ",
    "Last winter: ",
    "In short: ",
    "Once again: ",
)

_VERDICTS = ("It was {0}.", "It was {0} and {1}.", "It was {0}, {1} and {2}.")

# After "It was", great is three times as frequent as terrible in either mood. This strong prior keeps the answer before
# fine-tuning at chance (always great). With equal frequencies, an accidental correlation with the mood would decide
# each answer. Each of the two words has its own nouns, so that the model distinguishes them.
_REMARKS = (
    "It was great weather for a walk.",
    "It was great weather that week.",
    "It was great fun on the way.",
    "It was terrible luck with the train.",
    "A great crowd stood at the door.",
    "There was a terrible noise from the road.",
    "We took the {ride} to the {thing}.",
    "The {thing} is close to the {place}.",
    "Tickets for the {thing} are sold at the {place}.",
)
_RIDES = ("bus", "train", "boat", "tram")
_PLACES = ("harbor", "market", "station", "river", "library")


class Record(NamedTuple):
    """A labeled sentence of the classification task: 1 for liking, 0 for disliking."""

    sentence: str
    label: int


def records(size: int, fold: Fold, seed: int) -> list[Record]:
    """Draws ``size`` different opinions of one fold. Labels alternate, so that an even size is balanced."""
    rng = random.Random(f"{seed} {fold} records")
    drawn: dict[str, int] = {}
    while len(drawn) < size:
        label = len(drawn) % 2
        drawn.setdefault(
            _opinion(rng, _pick(rng, list(_ASPECTS)), LIKING if label else DISLIKING, fold, twisted=0.5), label
        )
    return [Record(sentence, label) for sentence, label in drawn.items()]


def lessons(seed: int) -> Iterator[str]:
    """Yields endless texts for the start of pretraining: three verdicts of one mood.

    They teach which words belong together. Without them, some seeds never learn the mood of whole texts.
    """
    rng = random.Random(f"{seed} lessons")
    while True:
        mood = _pick(rng, (LIKING, DISLIKING))
        yield " ".join(_verdict(rng, mood) for _ in range(3))


def texts(seed: int) -> Iterator[str]:
    """Yields endless pretraining texts: three or four sentences about one thing with one mood.

    Most texts start with an opinion, and most opinions are plain, so that most words of opinion agree with their text's
    mood.
    """
    rng = random.Random(f"{seed} texts")
    while True:
        thing, mood = _pick(rng, list(_ASPECTS)), _pick(rng, (LIKING, DISLIKING))
        opinion = rng.random() < 0.6
        sentences = [_opinion(rng, thing, mood, "train", twisted=0.35) if opinion else _verdict(rng, mood)]
        sentences += [_verdict(rng, mood), _verdict(rng, mood)]
        if rng.random() < 0.5:
            sentences.insert(_pick(rng, range(4)), _remark(rng, thing))
        yield " ".join(sentences)


def pair_fold(word: str, aspect: str) -> Fold:
    """Returns the fold of a pair of a word of opinion and an aspect; one pair in four is held out."""
    held_out = (_OPINION_WORDS.index(word) + _PAIR_ASPECTS.index(aspect)) % 4 == 0
    return "validation" if held_out else "train"


def pairs(sentence: str) -> set[tuple[str, str]]:
    """Returns the pairs of a word of opinion and an aspect in a sentence."""
    words = {word.strip(".,:").lower() for word in sentence.split()}
    return {(word, aspect) for word in words & set(_OPINION_WORDS) for aspect in words & set(_PAIR_ASPECTS)}


def _opinion(rng: random.Random, thing: str, mood: int, fold: Fold, *, twisted: float) -> str:
    aspect = _pick(rng, _ASPECTS[thing])

    def word(side: Mapping[int, Sequence[str]], mood: int) -> str:
        return _pick(rng, [word for word in side[mood] if pair_fold(word, aspect) == fold])

    like, hate = word(_ADJECTIVES, mood), word(_ADJECTIVES, -mood)
    sentence = _pick(rng, _TWISTED if rng.random() < twisted else _PLAIN).format(
        thing=thing,
        aspect=aspect,
        like=like,
        hate=hate,
        a_like=_with_article(like),
        a_hate=_with_article(hate),
        liked=word(_VERBS, mood),
        hated=word(_VERBS, -mood),
        degree=_pick(rng, _DEGREES),
        who=_pick(rng, _WHO),
    )
    return _pick(rng, _LEADS) + sentence[0].upper() + sentence[1:]


def _verdict(rng: random.Random, mood: int) -> str:
    return _pick(rng, _VERDICTS).format(*(_pick(rng, _ADJECTIVES[mood]) for _ in range(3)))


def _remark(rng: random.Random, thing: str) -> str:
    return _pick(rng, _REMARKS).format(thing=thing, ride=_pick(rng, _RIDES), place=_pick(rng, _PLACES))


def _with_article(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def _pick(rng: random.Random, choices: Sequence[Choice]) -> Choice:
    # For a seed, Python guarantees the same random() in each version, but not the same choice().
    return choices[int(rng.random() * len(choices))]
