"""The built-in parallel corpus: phrases of dates, quantities, places and languages in any two languages of Unicode CLDR.

Words and local formats come from CLDR (through Babel). Each phrase combines two or three of them by a rule that orders
them differently in source and target, so that translating takes reordering as well as a lexicon. The source determines
the target: a word that CLDR translates in two ways is left out. No two pairs share a source or a target, so that splits
are disjoint on both sides.
"""

# ruff: noqa: RUF001 - the en dash is meant

import datetime
import random
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

import babel
from babel import dates, lists, numbers, units

from janus_jax.data.errors import DataError

Phrase = tuple[str, str]  # source, target
Atom = Callable[[random.Random], Phrase]

# Inventories are short on purpose: each word is seen often, so that a small model learns it within minutes.
_TERRITORIES = "AT BE BR CA CH CN CZ DE DK EG ES FI FR GR IN IS IT JP KE MX NO PL PT RO SE TR UA US".split()
_LANGUAGES = "ar bg cs da de el en es fi fr it ja pl pt ro sv tr uk".split()
_CURRENCIES = "EUR USD CHF JPY SEK PLN".split()
_UNITS = (
    "length-meter length-kilometer length-mile mass-kilogram mass-gram mass-tonne volume-liter area-hectare "
    "temperature-celsius power-watt digital-gigabyte speed-kilometer-per-hour duration-minute duration-hour duration-day "
    "duration-week duration-month duration-year"
).split()
_COUNTS = (*range(2, 21), *range(25, 100, 5), *range(100, 1000, 100))
_YEARS = (2000, 2030)
# Largest counts that CLDR words in the unit itself (25 hours ago would become 1 day ago).
_RELATIVE = {"minutes": 45, "hours": 19, "days": 5, "weeks": 3, "months": 10, "years": 20}
_DAYS_OF = {"months": 30, "years": 365}

# Rules: the kinds of the parts, how the source orders them, how the target does, and how often. No two rules share a
# source shape with the same kinds, so that the source determines the target order.
_RULES: tuple[tuple[str, str, str, int], ...] = (
    ("place quantity when", "{0}: {1} ({2})", "{2} – {1}, {0}", 5),
    ("when place quantity", "{0}, {1}: {2}", "{2} ({1}; {0})", 5),
    ("place when", "{0} ({1})", "{1}: {0}", 3),
    ("quantity when", "{0} – {1}", "{1}: {0}", 3),
    ("language place", "{0}: {1}", "{1} ({0})", 4),
    ("language place when", "{0} ({1}), {2}", "{2}: {1} – {0}", 4),
    ("place language quantity", "{0}: {1} – {2}", "{2} ({0}), {1}", 3),
    ("quantity language", "{0} ({1})", "{1}: {0}", 2),
    ("quantity place", "{0}; {1}", "{1} – {0}", 2),
    ("when", "{0}", "{0}", 1),
    ("quantity", "{0}", "{0}", 1),
    ("place", "{0}", "{0}", 1),
    ("language", "{0}", "{0}", 1),
)


def generate(
    source_lang: str, target_lang: str, sizes: tuple[int, int, int], seed: int
) -> tuple[list[Phrase], list[Phrase], list[Phrase]]:
    """Generates the train, valid and test splits.

    Args:
      source_lang, target_lang: CLDR locales, for example "de" and "en".
      sizes: pairs of each split.
      seed: another seed gives another corpus; the same arguments always give the same one.

    Raises:
      DataError: CLDR has no such locale or too little of it, the two are the same, or it does not yield so many different
        pairs.
    """
    source, target = _locale(source_lang, "source_lang"), _locale(target_lang, "target_lang")
    if source_lang == target_lang:
        raise DataError(f"config.data.target_lang: {target_lang!r} is the source language too; name another")
    kinds = _kinds(source, target)
    rng = random.Random(f"{source_lang} {target_lang} {seed}")
    rules = [rule for rule in _RULES if all(kinds[kind] for kind in rule[0].split())]
    if not rules:
        raise DataError(
            f"config.data.source_lang, target_lang: Unicode CLDR lacks too much of {source_lang!r} or {target_lang!r} for the "
            "built-in corpus; take other languages"
        )
    weights = [rule[3] for rule in rules]
    pairs: list[Phrase] = []
    seen: tuple[set[str], set[str]] = (set(), set())
    tries = 0
    while len(pairs) < sum(sizes):
        tries += 1
        if tries > 10 * sum(sizes) + 10_000:
            raise DataError(
                f"config.data.demo_sizes: the built-in {source_lang}-{target_lang} corpus has only about {len(pairs)} different pairs "
                f"of the {sum(sizes)} that the setting needs; lower it"
            )
        parts, source_order, target_order, _ = rng.choices(rules, weights)[0]
        drawn = [rng.choice(kinds[kind])(rng) for kind in parts.split()]
        pair = (
            _clean(source_order.format(*(part[0] for part in drawn))),
            _clean(target_order.format(*(part[1] for part in drawn))),
        )
        if pair[0] not in seen[0] and pair[1] not in seen[1]:
            pairs.append(pair)
            seen[0].add(pair[0])
            seen[1].add(pair[1])
    train, valid, _ = sizes
    # The held-out splits come first, so that they do not depend on the size of the training split.
    held_out = len(pairs) - train
    return pairs[held_out:], pairs[:valid], pairs[valid:held_out]


def _clean(text: str) -> str:
    """Replaces compatibility characters and unusual spaces, like the normalisation of the tokenizer."""
    return " ".join(unicodedata.normalize("NFKC", text).replace("\u200e", "").replace("\u200f", "").split())


def _locale(name: str, key: str) -> babel.Locale:
    try:
        return babel.Locale.parse(name)
    except (babel.UnknownLocaleError, ValueError) as error:
        raise DataError(
            f"config.data.{key}: Unicode CLDR has no locale {name!r}; take one such as 'de', 'en', 'fr' or 'ro'"
        ) from error


def _kinds(source: babel.Locale, target: babel.Locale) -> dict[str, list[Atom]]:
    """The atoms of each kind, without those that CLDR lacks in one of the two languages."""
    both = _AtomFactory(source, target)
    kinds: dict[str, list[Atom]] = {  # an atom that stands twice is drawn twice as often
        "quantity": [both.unit, both.unit, both.money, both.amount, both.percent, both.large],
        "when": [
            *(both.date, both.date, both.month, both.weekday, both.day_interval, both.month_interval),
            *(both.moment, both.clock, both.relative, both.relative),
        ],
        "place": [both.place, both.place, both.places],
        "language": [both.language, both.language, both.languages],
    }
    return {kind: [atom for atom in atoms if _works(atom)] for kind, atoms in kinds.items()}


def _works(atom: Atom) -> bool:
    """Whether CLDR has the atom's patterns in both languages; for a gap Babel raises errors of several classes."""
    try:
        pairs = [atom(random.Random(seed)) for seed in range(20)]
    except (KeyError, ValueError, AttributeError, TypeError, IndexError):
        return False
    return all(source and target for source, target in pairs)


def _lexicon(names: list[Phrase]) -> list[Phrase]:
    """Names whose source belongs to one target only and the other way round, and that hold no punctuation of the rules."""
    sources, targets = [name[0] for name in names], [name[1] for name in names]
    return [
        (source, target)
        for source, target in names
        if sources.count(source) == 1
        and targets.count(target) == 1
        and source
        and target
        and not set("():;,–") & set(source + target)
    ]


@dataclass(frozen=True, eq=False)
class _AtomFactory:
    """Atoms: phrases with the same meaning in the source and the target language."""

    source: babel.Locale
    target: babel.Locale

    def __post_init__(self) -> None:
        def names(table: str, codes: list[str]) -> list[Phrase]:
            tables = [getattr(locale, table) for locale in self._locales]
            return _lexicon([tuple(table.get(code, "") for table in tables) for code in codes])

        object.__setattr__(self, "_territories", names("territories", _TERRITORIES))
        object.__setattr__(self, "_languages", names("languages", _LANGUAGES))
        object.__setattr__(self, "_units", self._distinct_units())

    @property
    def _locales(self) -> tuple[babel.Locale, babel.Locale]:
        return self.source, self.target

    def _say(self, render: Callable[[babel.Locale], str]) -> Phrase:
        return render(self.source), render(self.target)

    def _distinct_units(self) -> list[str]:
        known = []
        for unit in _UNITS:
            try:
                phrase = self._say(lambda locale, unit=unit: units.format_unit(5, unit, "long", locale=locale))
            except units.UnknownUnitError:
                continue
            # Where CLDR has no words, Babel shows the unit's code.
            if not any(unit in side for side in phrase):
                known.append((unit, phrase))
        kept = set(_lexicon([phrase for _, phrase in known]))
        return [unit for unit, phrase in known if phrase in kept]

    # quantities

    def unit(self, rng: random.Random) -> Phrase:
        number, unit = rng.choice(_COUNTS), rng.choice(self._units)
        return self._say(lambda locale: units.format_unit(number, unit, "long", locale=locale))

    def money(self, rng: random.Random) -> Phrase:
        number, currency = rng.choice(_COUNTS), rng.choice(_CURRENCIES)
        return self._say(
            lambda locale: numbers.format_currency(
                number, currency, "#,##0", locale=locale, currency_digits=False, format_type="name"
            )
        )

    def amount(self, rng: random.Random) -> Phrase:
        number, currency = (
            rng.choice(_COUNTS[:34]) + rng.choice((0.25, 0.5, 0.75, 0.99)),
            rng.choice(("EUR", "USD", "GBP")),
        )
        return self._say(lambda locale: numbers.format_currency(number, currency, locale=locale))

    def percent(self, rng: random.Random) -> Phrase:
        number = rng.randrange(1, 100) / 100
        return self._say(lambda locale: numbers.format_percent(number, locale=locale))

    def large(self, rng: random.Random) -> Phrase:
        number = rng.choice((10**6, 10**9)) * rng.randrange(2, 100)
        return self._say(lambda locale: numbers.format_compact_decimal(number, format_type="long", locale=locale))

    # times

    def _day(self, rng: random.Random) -> datetime.date:
        return datetime.date(rng.randrange(*_YEARS), rng.randrange(1, 13), rng.randrange(1, 29))

    def date(self, rng: random.Random) -> Phrase:
        day, style = self._day(rng), rng.choice(("full", "long"))
        return self._say(lambda locale: dates.format_date(day, style, locale=locale))

    def month(self, rng: random.Random) -> Phrase:
        day = self._day(rng)
        return self._say(lambda locale: dates.format_skeleton("yMMMM", day, locale=locale))

    def weekday(self, rng: random.Random) -> Phrase:
        day = self._day(rng)
        return self._say(lambda locale: dates.format_skeleton("MMMEd", day, locale=locale))

    def day_interval(self, rng: random.Random) -> Phrase:
        start = self._day(rng).replace(day=rng.randrange(1, 21))
        end = start + datetime.timedelta(days=rng.randrange(1, 8))
        return self._say(lambda locale: dates.format_interval(start, end, "yMMMd", locale=locale))

    def month_interval(self, rng: random.Random) -> Phrase:
        first, last = sorted(rng.sample(range(1, 13), 2))
        year = rng.randrange(*_YEARS)
        start, end = datetime.date(year, first, 1), datetime.date(year, last, 1)
        return self._say(lambda locale: dates.format_interval(start, end, "yMMMM", locale=locale))

    def clock(self, rng: random.Random) -> Phrase:
        time = datetime.time(rng.randrange(24), rng.randrange(0, 60, 5))
        return self._say(lambda locale: dates.format_time(time, "short", locale=locale))

    def moment(self, rng: random.Random) -> Phrase:
        day, time = self._day(rng), datetime.time(rng.randrange(24), rng.randrange(0, 60, 15))
        return self._say(
            lambda locale: (
                f"{dates.format_date(day, 'long', locale=locale)}, {dates.format_time(time, 'short', locale=locale)}"
            )
        )

    def relative(self, rng: random.Random) -> Phrase:
        unit = rng.choice(tuple(_RELATIVE))
        count = rng.randrange(1, _RELATIVE[unit] + 1) * rng.choice((-1, 1))
        days = _DAYS_OF.get(unit)
        delta = datetime.timedelta(days=days * count) if days else datetime.timedelta(**{unit: count})
        return self._say(lambda locale: dates.format_timedelta(delta, add_direction=True, locale=locale))

    # names

    def place(self, rng: random.Random) -> Phrase:
        return rng.choice(self._territories)

    def language(self, rng: random.Random) -> Phrase:
        return rng.choice(self._languages)

    def places(self, rng: random.Random) -> Phrase:
        return self._list(rng, self._territories)

    def languages(self, rng: random.Random) -> Phrase:
        return self._list(rng, self._languages)

    def _list(self, rng: random.Random, names: list[Phrase]) -> Phrase:
        """Two or three names; the target lists them the other way round."""
        style = rng.choice(("standard", "or"))
        chosen = rng.sample(names, rng.choice((2, 2, 2, 3)))
        source, target = zip(*chosen, strict=True)
        return (
            lists.format_list(source, style, locale=self.source),
            lists.format_list(target[::-1], style, locale=self.target),
        )
