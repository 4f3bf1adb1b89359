import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from robustjax.data.tokens import END_OF_TEXT, Tokenizer, train_byte_bpe
from robustjax.errors import UserError
from tests.tokenizer_kinds import KINDS

# What a byte-level tokenizer must give back: every text that can be encoded, but for the one that
# spells the special token (hypothesis finds it among the package's constants).
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30).filter(
    lambda text: END_OF_TEXT not in text
)

TRAIN_TWICE = """
from robustjax.data.tokens import train_byte_bpe
words = [a + b + c for a in "abcdefgh" for b in "aeiou" for c in "nrst"]
texts = [f"{words[i * 7 % len(words)]} {words[i * 11 % len(words)]}" for i in range(300)]
train_byte_bpe(texts, 400).save(__import__("sys").argv[1])
"""


@settings(max_examples=50)
@given(texts=st.lists(ANY_TEXT, max_size=4))
def test_any_text_round_trips(tiny_tokenizer, texts):
    assert tiny_tokenizer.decode(tiny_tokenizer.encode(texts)) == texts


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_decoded_as_the_library_does(kind):
    """Whole characters, parts of them, special and added tokens, ids beyond the vocabulary."""
    tokenizer = KINDS[kind]()
    rng = np.random.default_rng(0)
    high = rng.integers(0, tokenizer.num_ids + 40, (400, 6))
    low = rng.integers(0, 300, (400, 6))  # most of the single bytes
    rows = np.concatenate([high, low, np.full((1, 6), tokenizer.pad_id)])

    texts = tokenizer.decode(rows)

    assert texts == tokenizer._backend.decode_batch(rows.tolist(), skip_special_tokens=True)
    assert 100 < sum("\ufffd" in text for text in texts) < 700
    assert texts[-1] == ""
    with pytest.raises(OverflowError):
        tokenizer.decode([[-1]])


def test_encoding_adds_cuts_and_pads_nothing(tiny_tokenizer):
    long = "word " * 5000
    short, empty, longest = tiny_tokenizer.encode(["word ", "", long])

    assert empty == []
    assert tiny_tokenizer.pad_id not in short + longest
    assert tiny_tokenizer.decode([longest]) == [long]


def test_the_end_of_text_token_is_id_0_and_special(tiny_tokenizer):
    assert tiny_tokenizer.pad_id == tiny_tokenizer.eos_id == 0
    assert tiny_tokenizer.special_ids == {0}
    assert tiny_tokenizer.encode([f"a{END_OF_TEXT}"])[0][-1] == 0
    assert tiny_tokenizer.decode([[0, 0]]) == [""]


def test_sizes_and_attack_ids(tiny_tokenizer):
    assert tiny_tokenizer.vocab_size == tiny_tokenizer.num_ids == 512
    assert tiny_tokenizer.allowed_attack_ids.dtype == np.int32
    np.testing.assert_array_equal(tiny_tokenizer.allowed_attack_ids, np.arange(1, 512))


def test_standalone_ids_are_those_whose_text_gives_them_back(tiny_tokenizer):
    standalone = set(tiny_tokenizer.standalone_ids.tolist())
    for token in tiny_tokenizer.allowed_attack_ids.tolist():
        again = tiny_tokenizer.encode(tiny_tokenizer.decode([[token]]))
        assert (token in standalone) == (again == [[token]])
    assert 256 < len(standalone) < 511  # not the bytes that are parts of characters


def test_decoding_takes_arrays_and_passes_over_unknown_ids(tiny_tokenizer):
    (ids,) = tiny_tokenizer.encode(["hello there"])
    padded = np.array([[*ids, tiny_tokenizer.pad_id, 99_999]], dtype=np.int32)

    assert tiny_tokenizer.decode(padded) == ["hello there"]
    assert tiny_tokenizer.decode([np.array(ids)]) == ["hello there"]


def test_one_string_is_not_a_list_of_strings(tiny_tokenizer):
    with pytest.raises(ValueError, match="list of strings"):
        tiny_tokenizer.encode("text")


def test_a_small_text_gives_a_smaller_vocabulary_and_says_so():
    tokenizer = train_byte_bpe(["ab ab ab"], vocab_size=1000)

    assert tokenizer.vocab_size == tokenizer.num_ids < 1000
    assert tokenizer.decode(tokenizer.encode(["ü"])) == ["ü"]


def test_a_vocabulary_without_room_for_the_bytes_is_refused():
    assert train_byte_bpe([], vocab_size=257).num_ids == 257
    with pytest.raises(ValueError, match="at least 257"):
        train_byte_bpe(["text"], vocab_size=256)


def test_training_gives_the_same_bytes_in_every_process(tmp_path):
    saved = []
    for hash_seed in ("1", "2"):
        folder = tmp_path / hash_seed
        env = os.environ | {"PYTHONHASHSEED": hash_seed}
        subprocess.run([sys.executable, "-c", TRAIN_TWICE, folder], env=env, check=True)
        saved.append([path.read_bytes() for path in sorted(folder.iterdir())])

    assert len(saved[0]) == 2
    assert saved[0] == saved[1]


def test_saved_and_loaded_it_is_the_same_here_and_in_transformers(tiny_tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tiny_tokenizer.save(tmp_path)
    ours = Tokenizer.load(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)

    texts = ["Hello world , it 's ", " naïve\n\ntext", f"end{END_OF_TEXT}", "😀 1,234", ""]
    ids = tiny_tokenizer.encode(texts)
    assert ours.encode(texts) == ids
    assert theirs(texts, add_special_tokens=False)["input_ids"] == ids
    assert theirs.batch_decode(ids, skip_special_tokens=True) == ours.decode(ids)
    assert ours.fingerprint == tiny_tokenizer.fingerprint
    assert (theirs.pad_token_id, theirs.eos_token_id) == (ours.pad_id, ours.eos_id)
    assert (theirs.vocab_size, set(theirs.all_special_ids)) == (512, ours.special_ids)


def test_the_fingerprint_tells_tokenizers_apart(tiny_tokenizer):
    assert train_byte_bpe(["other text"], 300).fingerprint != tiny_tokenizer.fingerprint


def make_folder(path, config, added=()):
    """A word-level tokenizer as other projects store it: added tokens above the base vocabulary."""
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"<eos>": 0, "a": 1, "b": 2}, unk_token="<eos>")
    )
    backend.add_special_tokens(["<eos>", "<pad>", "b"])
    backend.add_tokens(list(added))
    backend.enable_truncation(2)
    backend.enable_padding(length=4)
    backend.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def test_a_foreign_tokenizer_loses_its_truncation_and_padding(tmp_path):
    config = {"eos_token": {"content": "<eos>"}, "pad_token": "<pad>"}
    tokenizer = Tokenizer.load(make_folder(tmp_path, config, added=["c"]))

    assert tokenizer.encode(["a"]) == [[1]]
    assert tokenizer.encode(["cccc"]) == [[4, 4, 4, 4]]
    assert (tokenizer.vocab_size, tokenizer.num_ids) == (3, 5)
    assert (tokenizer.eos_id, tokenizer.pad_id) == (0, 3)
    # "b" stands in the base vocabulary but is flagged special, like Pythia's <|padding|>.
    assert tokenizer.special_ids == {0, 2, 3}
    np.testing.assert_array_equal(tokenizer.allowed_attack_ids, [1])


def test_eos_pads_when_no_pad_token_is_named(tmp_path):
    config = {"eos_token": "<eos>", "pad_token": None}
    assert Tokenizer.load(make_folder(tmp_path, config)).pad_id == 0


def test_a_tokenizer_without_eos_and_pad_is_refused(tmp_path):
    with pytest.raises(UserError, match="no pad_token and no eos_token"):
        Tokenizer.load(make_folder(tmp_path, {"eos_token": "<gone>"}))


def test_an_older_folder_names_its_tokens_in_the_special_tokens_map(tmp_path):
    make_folder(tmp_path, {"pad_token": None})
    (tmp_path / "special_tokens_map.json").write_text('{"pad_token": "<pad>"}')
    assert Tokenizer.load(tmp_path).pad_id == 3


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no tokenizer.json"),
        ({"tokenizer.json": "{"}, "tokenizer.json cannot be read"),
    ],
)
def test_a_folder_without_a_tokenizer_is_refused(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("name", ["no-such-owner/no-such-model", "/no/such/folder/at/all"])
def test_an_unknown_name_is_refused_with_the_remedy(name):
    with pytest.raises(UserError, match="give an existing folder"):
        Tokenizer.load(name)
