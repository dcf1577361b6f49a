"""The bundled base's tokenizer: CLIP's format, with the world's words and common English as its vocabulary.

It is trained on captions and on ``english.txt``: nothing is downloaded, and the ids are always the same.
"""

import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from transformers import CLIPTokenizer

from attrjax.attrworld import words
from attrjax.attrworld.captions import Facts, caption, prompt
from attrjax.checkpoints.files import write_json
from attrjax.checkpoints.pipeline import save_tokenizer as write_tokenizer
from attrjax.runs import check_run, write_record

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
LENGTH = 32  # tokens of a prompt, with its beginning and end
ENGLISH = Path(__file__).with_name("english.txt")
# Times that a name of the world counts beside the captions, so that it becomes one token before any English.
NAME_WEIGHT = 20


def tokenizer(config: Mapping[str, Any], workdir: str, *, resume: bool = False) -> None:
    """Train the tokenizer that the config describes, and write it to ``WORKDIR/tokenizer``.

    With ``resume``, one that is there is kept.

    Raises:
        FileExistsError: the run directory holds a run or a tokenizer, and ``resume`` is false.
        ValueError: the vocabulary cannot hold all bytes, or the run that is there had another config.
    """
    check_run(workdir, config, resume=resume, may_change=())
    directory = Path(workdir)
    folder = directory / "tokenizer"
    if folder.exists():
        if not resume:
            raise FileExistsError(f"{folder} is there already: take another --workdir")
        logging.info("%s is there already", folder)
        return
    trained = train_tokenizer(config["vocab_size"], config["captions"], config["seed"])
    write_record(directory, config, {"vocabulary": len(trained)})
    partial = directory / f".tokenizer.partial-{os.getpid()}"
    try:
        save_tokenizer(partial, trained)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    logging.info("wrote %s with %d tokens", folder, len(trained))


def save_tokenizer(folder: Path, trained: CLIPTokenizer) -> None:
    """Write a tokenizer as in a base, and the map of special tokens that older versions of transformers
    read.
    """
    folder.mkdir(parents=True)
    write_tokenizer(folder, trained)
    write_json(folder / "special_tokens_map.json", trained.special_tokens_map)


def train_tokenizer(vocab_size: int = 4096, captions: int = 4000, seed: int = 0) -> CLIPTokenizer:
    """Train byte-level BPE as in CLIP (Radford et al. 2021, §2.4).

    Args:
        vocab_size: at most so many tokens; there are fewer where no two symbols are left that stand together
            twice. 514 hold all bytes, inside a word and at its end, and the marks of beginning and end, which
            are the last two.
        captions: how many are drawn beside ``english.txt``, from all names, held out or not.
        seed: of the captions.

    Raises:
        ValueError: ``vocab_size`` is less than 514.
    """
    letters = [*_byte_letters(), *(letter + WORD_END for letter in _byte_letters())]
    if vocab_size < len(letters) + 2:
        raise ValueError(f"vocab_size={vocab_size} must be {len(letters) + 2} or more, to hold all bytes")
    counts = _count_words(_build(letters, []), _texts(captions, seed))
    merges = _train_merges(counts, vocab_size - len(letters) - 2)
    # Different merges may give the same token, as "ab c" and "a bc" do.
    return _build(list(dict.fromkeys([*letters, *map("".join, merges)])), merges)


def _build(tokens: Sequence[str], merges: Sequence[tuple[str, str]]) -> CLIPTokenizer:
    pairs: Any = list(merges)  # transformers' own type for it, a list of strings, is not what it reads
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate([*tokens, START, END])},
        merges=pairs,
        pad_token=END,
        model_max_length=LENGTH,
    )


def _byte_letters() -> list[str]:
    """The letter that stands for each byte, as in GPT-2: printable ones are themselves, then come the
    others.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def _texts(captions: int, seed: int) -> Iterable[str]:
    generator = np.random.default_rng(seed)
    for _ in range(captions):
        yield caption(_random_facts(generator), generator)
    for shape in words.SHAPES:
        for name in (shape, prompt(shape, "")):
            yield from [name] * NAME_WEIGHT
    for material in words.MATERIALS:
        for name in (material, prompt("", material)):
            yield from [name] * NAME_WEIGHT
    yield ENGLISH.read_text(encoding="utf-8")


def _random_facts(generator: np.random.Generator) -> Facts:
    """Any facts, among them those that no training picture shows."""
    named = generator.random() < 0.7
    colours = np.argsort(generator.random(len(words.COLOURS)))[: 2 if generator.random() < 0.5 else 3]
    return Facts(
        shape=_any(words.SHAPES, generator),
        material=_any(words.MATERIALS, generator) if named else "",
        pattern="" if named else _any(words.PATTERNS, generator),
        colours=() if named else tuple(words.COLOURS[i] for i in colours),
        finish=_any(words.FINISHES, generator),
        backdrop=_any(words.BACKDROPS, generator),
        light=_any(("left", "right", "front"), generator),
        view=_any(words.VIEW_TAGS, generator),
    )


def _any(names: Iterable[str], generator: np.random.Generator) -> str:
    options = list(names)
    return options[int(generator.random() * len(options))]  # numpy keeps to random's numbers in all versions


def _count_words(splitter: CLIPTokenizer, texts: Iterable[str]) -> Counter[str]:
    """How often each word comes, in byte letters, split as the tokenizer itself splits."""
    normalizer = splitter.backend_tokenizer.normalizer
    split = splitter.backend_tokenizer.pre_tokenizer.pre_tokenize_str
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word for word, _ in split(normalizer.normalize_str(text)))
    return counts


def _train_merges(counts: Mapping[str, int], limit: int) -> list[tuple[str, str]]:
    """The pairs of symbols to join, in order: always the one that comes most often, the first by alphabet
    where several do, until none comes twice or the limit is reached.
    """
    spelled = [[*word[:-1], word[-1] + WORD_END] for word in sorted(counts)]
    times = [counts[word] for word in sorted(counts)]
    pairs: Counter[tuple[str, str]] = Counter()
    holders = defaultdict(set)  # the words in which a pair stands, or stood
    for i, symbols in enumerate(spelled):
        for pair in zip(symbols, symbols[1:], strict=False):
            pairs[pair] += times[i]
            holders[pair].add(i)

    merges: list[tuple[str, str]] = []
    while pairs and len(merges) < limit:
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        if pairs[best] < 2:
            break
        merges.append(best)
        for i in holders.pop(best):
            before, after = spelled[i], _join(spelled[i], best)
            for pair in zip(before, before[1:], strict=False):
                pairs[pair] -= times[i]
            for pair in zip(after, after[1:], strict=False):
                pairs[pair] += times[i]
                holders[pair].add(i)
            spelled[i] = after
        pairs = +pairs  # without those that are gone
    return merges


def _join(symbols: Sequence[str], pair: tuple[str, str]) -> list[str]:
    joined: list[str] = []
    i = 0
    while i < len(symbols):
        both = tuple(symbols[i : i + 2]) == pair
        joined.append("".join(pair) if both else symbols[i])
        i += 2 if both else 1
    return joined
