"""Russian word forms by pymorphy3, which only making and testing kinds.tsv needs.

A name is inflected up to its first noun: "пожарная машина" wholly, of "шар для боулинга" only "шар".
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

GENDERS = {"masc": "m", "femn": "f", "neut": "n"}


class Forms(NamedTuple):
    gender: str  # m, f, n; p of what is a plural alone
    gen: str
    acc: str
    few: str  # after 2, 3 and 4: "красные чашки", "красных шара"
    plural: str
    gen_plural: str


EXCEPTIONS = {  # what the dictionary lacks, or knows by another reading
    "кроссовка": Forms(
        "f", "кроссовки", "кроссовку", "кроссовки", "кроссовки", "кроссовок"
    ),  # has "кроссовок"
    "носки": Forms("p", "носков", "носки", "носков", "носки", "носков"),  # takes it for "носка"
    "носок": Forms(
        "m", "носка", "носок", "носка", "носки", "носков"
    ),  # half of its readings are of носка
    "рыба-ёж": Forms("f", "рыбы-ежа", "рыбу-ежа", "рыбы-ежа", "рыбы-ежи", "рыб-ежей"),  # a compound
    "хот-дог": Forms(
        "m", "хот-дога", "хот-дог", "хот-дога", "хот-доги", "хот-догов"
    ),  # a dog, so animate
    "геймпад": Forms("m", "геймпада", "геймпад", "геймпада", "геймпады", "геймпадов"),  # unknown
    "киви": Forms("m", "киви", "киви", "киви", "киви", "киви"),  # the fruit; the bird is its neuter
    "угольник": Forms(
        "m", "угольника", "угольник", "угольника", "угольники", "угольников"
    ),  # not the trader
    "парусник": Forms(
        "m", "парусника", "парусник", "парусника", "парусники", "парусников"
    ),  # not the butterfly
    "кленовый лист": Forms(
        "m",
        "кленового листа",
        "кленовый лист",
        "кленовых листа",
        "кленовые листья",
        "кленовых листьев",
    ),  # листы are of paper
    "лист клевера": Forms(
        "m", "листа клевера", "лист клевера", "листа клевера", "листья клевера", "листьев клевера"
    ),  # листы are of paper
    "конёк": Forms("m", "конька", "конёк", "конька", "коньки", "коньков"),  # worn, not ridden
    "роликовый конёк": Forms(
        "m",
        "роликового конька",
        "роликовый конёк",
        "роликовых конька",
        "роликовые коньки",
        "роликовых коньков",
    ),  # worn, not ridden
    "спагетти": Forms(
        "p", "спагетти", "спагетти", "спагетти", "спагетти", "спагетти"
    ),  # plural in use
    "суши": Forms("p", "суши", "суши", "суши", "суши", "суши"),  # plural in use
    "воздушный змей": Forms(
        "m",
        "воздушного змея",
        "воздушного змея",
        "воздушных змея",
        "воздушные змеи",
        "воздушных змеев",
    ),  # the toy is said as if it lived
    "плюшевый мишка": Forms(
        "m",
        "плюшевого мишки",
        "плюшевого мишку",
        "плюшевых мишки",
        "плюшевые мишки",
        "плюшевых мишек",
    ),  # a toy, and as if it lived
    "кальмар": Forms(
        "m", "кальмара", "кальмара", "кальмара", "кальмары", "кальмаров"
    ),  # the animal, not the dish
}


def forms(name: str) -> Forms:
    """The forms of a name in the nominative. Raises ValueError for one without a noun."""
    if name in EXCEPTIONS:
        return EXCEPTIONS[name]
    words = name.split()
    parsed = [_parse(word, is_last=word is words[-1]) for word in words]
    head = next((at for at, one in enumerate(parsed) if one.tag.POS == "NOUN"), None)
    if head is None:
        raise ValueError(f"no noun in {name!r}")
    noun = parsed[head].tag
    number = "plur" if noun.number == "plur" else "sing"
    gender = "p" if number == "plur" else GENDERS[noun.gender]

    def inflected(case: str, count: str, of_adjective: frozenset[str] | None = None) -> str:
        wanted = {case, count}
        wanted_adjective = set(of_adjective or wanted)
        if case == "accs" and (count == "plur" or noun.gender == "masc"):
            wanted_adjective.add(noun.animacy)
        if count == "sing" and of_adjective is None:
            wanted_adjective.add(noun.gender)
        said = []
        for at, (word, one) in enumerate(zip(words, parsed, strict=True)):
            if at > head:
                said.append(word)
                continue
            form = one.inflect(wanted if at == head else wanted_adjective)
            said.append(form.word if form else word)
        return " ".join(said)

    beside_few = frozenset({"nomn" if noun.gender == "femn" else "gent", "plur"})
    return Forms(
        gender,
        inflected("gent", number),
        inflected("accs", number),
        inflected("gent", number, beside_few),
        inflected("nomn", "plur"),
        inflected("gent", "plur"),
    )


def _parse(word: str, *, is_last: bool) -> Any:
    """The likeliest reading as a word of a name: before another word an adjective, if it can be one."""

    def fitness(one: Any) -> tuple[bool, ...]:
        is_adjective = one.tag.POS in ("ADJF", "PRTF")
        return (
            one.tag.case == "nomn" and (is_adjective or one.tag.POS == "NOUN"),
            is_adjective and not is_last,
            one.tag.POS == "NOUN",
            not {"Name", "Geox", "Erro"} & set(one.tag.grammemes),
            one.normal_form == word,
            one.tag.number == "sing",  # what does not change is both
        )

    return max(_analyser().parse(word), key=fitness)


@cache
def _analyser() -> Any:
    import pymorphy3

    return pymorphy3.MorphAnalyzer()
