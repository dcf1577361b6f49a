"""The world's captions and its tokenizer."""

import json
import re

import numpy as np
import pytest
from transformers import CLIPTokenizer

from attrjax.attrworld import words
from attrjax.attrworld.captions import (
    COLOURS,
    HELD_OUT_MATERIALS,
    HELD_OUT_SHAPES,
    MAX_WORDS,
    PATTERNS,
    TRAIN_MATERIALS,
    TRAIN_SHAPES,
    Facts,
    caption,
    prompt,
    with_article,
)
from attrjax.attrworld.tokenizer import ENGLISH, LENGTH, save_tokenizer, tokenizer, train_tokenizer

COMMITTED = ENGLISH.with_name("base") / "tokenizer"
FILES = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
IDS = [1838, 320, 622, 825, 1839]  # of "a red vase"; a base's embeddings are trained for these numbers
MARBLE_VASE = Facts("vase", "marble", "", (), "matte", "lavender", "left", "above")
HOSTILE = [
    "",
    "🦊🎨 a fox",
    "一只猫坐在椅子上",
    "naïve CAFÉ №5",
    "¡¿«ß»?!",
    "a\u0301 \ufffd\x7f",
    "o'clock it's",
    "x" * 90,
]


def random_facts(generator, shapes, materials):
    named = generator.random() < 0.6
    colours = generator.choice(COLOURS, generator.integers(2, 4), replace=False)
    return Facts(
        shape=str(generator.choice([*shapes, ""])),
        material=str(generator.choice(materials)) if named else "",
        pattern="" if named else str(generator.choice(list(PATTERNS))),
        colours=() if named else tuple(map(str, colours)),
        finish=str(generator.choice(["", *words.FINISHES])),
        backdrop=str(generator.choice(words.BACKDROPS)),
        light=str(generator.choice(["left", "right", "front"])),
        view=str(generator.choice(list(words.VIEW_TAGS))),
    )


def captions(shapes, materials, count=4000, seed=0):
    generator = np.random.default_rng(seed)
    return [caption(random_facts(generator, shapes, materials), generator) for _ in range(count)]


@pytest.fixture(scope="module")
def training_captions():
    return captions(TRAIN_SHAPES, TRAIN_MATERIALS)


@pytest.fixture(scope="module")
def all_captions():
    return captions(TRAIN_SHAPES + HELD_OUT_SHAPES, TRAIN_MATERIALS + HELD_OUT_MATERIALS, seed=1)


@pytest.fixture(scope="module")
def committed():
    return CLIPTokenizer.from_pretrained(str(COMMITTED))


@pytest.fixture(scope="module")
def trained():
    return train_tokenizer()


@pytest.mark.parametrize(
    "phrase, expected",
    [
        ("vase", "a vase"),
        ("orange bell", "an orange bell"),
        ("hourglass", "an hourglass"),
        ("house", "a house"),
        ("umbrella", "an umbrella"),
        ("stairs", "stairs"),
        ("wooden stairs", "wooden stairs"),
        ("staircase", "a staircase"),
        ("something", "something"),
    ],
)
def test_article(phrase, expected):
    assert with_article(phrase) == expected


def test_articles_stand_where_they_belong_in_every_caption(all_captions):
    for text in all_captions:
        for article, following in re.findall(r"\b(an?) (\w+)", text):
            vowel = following[0] in "aeiou" or following == "hourglass"
            assert article == ("an" if vowel else "a"), text
        assert not re.search(r"\ban? [\w -]*(stairs|something)\b", text.split(" of ")[-1].split(",")[0]), text


@pytest.mark.parametrize(
    "shape, material, expected",
    [
        ("vase", "marble", "a vase made of marble"),
        ("vase", "red", "a red vase"),
        ("arch", "orange", "an orange arch"),
        ("mug", "zebra", "a mug with zebra stripes"),
        ("chess", "glass", "a chess piece made of stained glass"),
        ("stairs", "wood", "stairs made of wood"),
        ("", "gold", "an object made of gold"),
        ("umbrella", "", "an umbrella"),
    ],
)
def test_prompt(shape, material, expected):
    assert prompt(shape, material) == expected


def test_every_shape_and_material_has_a_prompt_of_its_own_that_names_both():
    shapes, materials = TRAIN_SHAPES + HELD_OUT_SHAPES, TRAIN_MATERIALS + HELD_OUT_MATERIALS
    prompts = {prompt(shape, material): (shape, material) for shape in shapes for material in materials}
    assert len(prompts) == len(shapes) * len(materials)
    for text, (shape, material) in prompts.items():
        assert shape in text and material in text


def test_prompt_refuses_what_the_world_lacks():
    with pytest.raises(ValueError, match=r"no shape 'vaze'; did you mean 'vase'"):
        prompt("vaze", "marble")
    with pytest.raises(ValueError, match=r"no material 'marbel'; did you mean 'marble'"):
        prompt("vase", "marbel")


def test_names_are_those_of_the_design():
    assert (len(TRAIN_SHAPES), len(HELD_OUT_SHAPES)) == (32, 14)
    assert (len(TRAIN_MATERIALS), len(HELD_OUT_MATERIALS)) == (28, 14)
    assert TRAIN_MATERIALS[: len(COLOURS)] == COLOURS
    assert not set(TRAIN_SHAPES) & set(HELD_OUT_SHAPES) and not set(TRAIN_MATERIALS) & set(HELD_OUT_MATERIALS)


def test_no_held_out_word_is_in_a_caption_of_training_facts(training_captions, all_captions):
    also = {
        "spaceship",
        "parasol",
        "plane",
        "aeroplane",
        "plaid",
        "stained",
        "rusty",
        "rusted",
        "pawn",
        "kettle",
    }
    held_out = {*HELD_OUT_SHAPES, *HELD_OUT_MATERIALS, *also}
    for text in training_captions:
        assert not held_out & set(re.findall(r"\w+", text)), text
    assert len([text for text in all_captions if held_out & set(re.findall(r"\w+", text))]) > 1000


@pytest.mark.parametrize(
    "said, rate",
    [
        (r"\bvase\b", 0.9),
        (r"\bmarble\b", 0.9),
        (r"\blavender\b", 0.45),
        (r"\bleft\b", 0.15),
        (r"\b(above|high angle)\b", 0.15),
        (r"\b(matte|dull)\b", 0.4),
    ],
    ids=["shape", "material", "backdrop", "light", "view", "finish"],
)
def test_what_is_said_how_often(said, rate):
    generator = np.random.default_rng(3)
    texts = [caption(MARBLE_VASE, generator) for _ in range(4000)]
    assert np.mean([bool(re.search(said, text)) for text in texts]) == pytest.approx(rate, abs=0.025)


def test_what_a_picture_does_not_have_is_not_said():
    generator = np.random.default_rng(4)
    facts = Facts("bell", "", "stripes", ("blue", "yellow"), "", "gray", "front", "level")
    texts = [caption(facts, generator) for _ in range(2000)]
    assert not [
        text for text in texts if re.search(r"matte|dull|glossy|shiny|polished|finish|red|left|above", text)
    ]
    assert {"a bell with blue and yellow stripes", "a yellow and blue striped bell"} <= set(texts)


def test_captions_vary_and_are_short(all_captions):
    assert len(set(all_captions)) > 0.9 * len(all_captions)
    lengths = [len(text.split()) for text in all_captions]
    assert max(lengths) <= MAX_WORDS and 6 < np.mean(lengths) < 12
    for text in all_captions:
        assert re.fullmatch(r"[a-z0-9]+((, | |-)[a-z0-9]+)*", text), text
        assert not re.search(r"\b(\w+) \1\b", text), text


def test_a_generator_gives_the_same_captions_and_moves_on_by_the_same_amount():
    first, second = np.random.default_rng(5), np.random.default_rng(5)
    texts = [caption(MARBLE_VASE, first) for _ in range(20)]
    assert texts == [caption(MARBLE_VASE, second) for _ in range(20)] and len(set(texts)) > 10
    caption(MARBLE_VASE, first)
    caption(Facts("", "", "", (), "", "", "", ""), second)
    assert first.random() == second.random()


def test_the_committed_tokenizer_is_what_training_gives(trained, tmp_path):
    save_tokenizer(tmp_path / "tokenizer", trained)
    for name in FILES:
        assert json_or_text(COMMITTED / name) == json_or_text(tmp_path / "tokenizer" / name), name


def json_or_text(path):
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else text


def test_a_tokenizer_loaded_from_disk_gives_the_same_ids(trained, committed, training_captions, tmp_path):
    save_tokenizer(tmp_path / "all", trained)
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):  # what the published bases have
        (tmp_path / "old").mkdir(exist_ok=True)
        (tmp_path / "old" / name).write_bytes((tmp_path / "all" / name).read_bytes())
    texts = [*training_captions[:200], *HOSTILE, " ".join(training_captions[:20])]
    wanted = trained(texts, truncation=True, padding="max_length")["input_ids"]
    for folder in (COMMITTED, tmp_path / "all", tmp_path / "old"):
        loaded = CLIPTokenizer.from_pretrained(str(folder))
        assert loaded(texts, truncation=True, padding="max_length")["input_ids"] == wanted, folder
    assert {len(ids) for ids in wanted} == {LENGTH}


def test_the_task_writes_the_tokenizer_once(tmp_path):
    config = {"task": "tokenizer", "vocab_size": 600, "captions": 50, "seed": 0}
    tokenizer(config, str(tmp_path / "run"))
    folder = tmp_path / "run" / "tokenizer"
    assert {path.name for path in folder.iterdir()} >= set(FILES)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["run.json", "tokenizer"]
    with pytest.raises(FileExistsError, match="already holds a run"):
        tokenizer(config, str(tmp_path / "run"))
    (folder / "vocab.json").write_text("kept")
    tokenizer(config, str(tmp_path / "run"), resume=True)
    assert (folder / "vocab.json").read_text() == "kept"
    (tmp_path / "other" / "tokenizer").mkdir(parents=True)
    with pytest.raises(FileExistsError, match="another --workdir"):
        tokenizer(config, str(tmp_path / "other"))


def test_ids_are_stable(committed):
    vocabulary = json.loads((COMMITTED / "vocab.json").read_text(encoding="utf-8"))
    assert sorted(vocabulary.values()) == list(range(len(committed)))
    assert 514 < len(vocabulary) <= 4096
    start, end = len(vocabulary) - 2, len(vocabulary) - 1
    assert (committed.bos_token_id, committed.eos_token_id, committed.pad_token_id) == (start, end, end)
    assert committed("a red Vase", padding="max_length")["input_ids"] == IDS + [end] * (LENGTH - len(IDS))


def test_special_tokens_are_the_last_two(committed):
    end = len(committed) - 1
    ids = committed("word " * 60, truncation=True)["input_ids"]
    assert len(ids) == LENGTH and ids[0] == end - 1 and ids[-1] == end
    assert committed.convert_ids_to_tokens([end - 1, end]) == ["<|startoftext|>", "<|endoftext|>"]


def test_every_word_of_the_world_is_one_token(committed):
    nouns = [noun for shape in words.SHAPES.values() for noun in shape]
    said = [phrase for material in words.MATERIALS.values() for phrases in material for phrase in phrases]
    patterns = [word for pattern in words.PATTERNS.values() for group in pattern for word in group]
    finishes = [word for group in words.FINISHES.values() for word in group]
    texts = [*words.SHAPES, *words.MATERIALS, *words.BACKDROPS, *nouns, *said, *patterns, *finishes]
    pieces = {word for text in texts for word in re.findall(r"\w+", text)}
    assert len(pieces) > 150
    assert [word for word in sorted(pieces) if len(committed(word)["input_ids"]) != 3] == []


def test_captions_fit_the_text_tower(committed, all_captions):
    lengths = [len(ids) for ids in committed(all_captions)["input_ids"]]
    assert max(lengths) < LENGTH and np.mean(lengths) < 16


@pytest.mark.parametrize("text", HOSTILE)
def test_any_text_comes_back(committed, text):
    tokens = committed.convert_ids_to_tokens(committed(text)["input_ids"][1:-1])
    assert committed.unk_token_id not in committed(text)["input_ids"][1:-1]
    letters = "".join(tokens).replace("</w>", "")
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    values = {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
    back = bytes(values[letter] for letter in letters).decode("utf-8")
    normal = committed.backend_tokenizer.normalizer.normalize_str(text)
    assert back == re.sub(r"\s", "", normal)


def test_random_unicode_comes_back_whole(committed):
    generator = np.random.default_rng(6)
    points = generator.integers(0x100, 0x2FFFF, 400)
    text = "".join(chr(point) for point in points if not 0xD800 <= point <= 0xDFFF)
    assert "".join(
        committed.decode(committed(text, verbose=False)["input_ids"], skip_special_tokens=True).split()
    ) == ("".join(committed.backend_tokenizer.normalizer.normalize_str(text).split()))


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(ValueError, match="vocab_size=500 must be 514 or more"):
        train_tokenizer(vocab_size=500)


def test_a_limit_holds_and_the_commonest_words_come_first():
    small = train_tokenizer(vocab_size=600, captions=200)
    assert len(small) == 600
    assert [len(small(word)["input_ids"]) - 2 for word in ("a", "of", "red")] == [1, 1, 1]
    assert len(small("umbrella")["input_ids"]) - 2 > 1
