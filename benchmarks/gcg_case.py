"""One attack that any implementation can run: a random model in a folder, a prompt and a target.

The tokenizer is trained on the standard library's sources, to as many ids as Pythia's has, so that
retokenisation costs what it costs with a real one.
"""

import dataclasses
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from benchmarks.random_model import write_random_model
from robustjax.data.tokens import Tokenizer, train_byte_bpe

VOCAB = 50_254
TARGET = " yes"
AFTER = " Answer with care:"
SLOT = "@&@&@&@&@&"


@dataclasses.dataclass(frozen=True)
class Case:
    """What both sides are given.

    Attributes:
        before: text before the slot.
        slot: text of ten tokens to start from.
        after: text between the slot and the target.
        target: text of one token.
    """

    before: str
    slot: str
    after: str
    target: str

    def write(self, folder: Path) -> None:
        """Puts the case beside the model."""
        (folder / "case.json").write_text(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> "Case":
        """The case in a model's folder."""
        return cls(**json.loads((folder / "case.json").read_text()))


def sources() -> Iterator[str]:
    """Texts of the standard library, in a fixed order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.glob("*.py")) + sorted(root.glob("[a-l]*/*.py")):
        yield path.read_text(encoding="utf-8", errors="replace")


def write_case(point: str, folder: Path, prefix_tokens: int, tokenizer: Tokenizer) -> Case:
    """Writes model, tokenizer and case into a folder."""
    write_random_model(point, folder, "float32")
    tokenizer.save(folder)
    return write_prompt(folder, prefix_tokens, tokenizer)


def write_prompt(folder: Path, prefix_tokens: int, tokenizer: Tokenizer) -> Case:
    """Writes a case beside a model that is there."""
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    case = Case(_text_of(tokenizer, prefix_tokens), SLOT, AFTER, TARGET)
    case.write(folder)
    return case


def bench_tokenizer() -> Tokenizer:
    """The tokenizer of all cases."""
    return train_byte_bpe(sources(), VOCAB)


def _text_of(tokenizer: Tokenizer, count: int) -> str:
    """Text of exactly so many tokens that ends where a word does."""
    text = next(iter(sources()))
    text = " ".join(text.replace("{", "(").replace("}", ")").split())
    words = text.split(" ")
    while tokenizer.encode([text])[0][count:]:
        words.pop()
        text = " ".join(words)
    for filler in (" a", " the", " of", " in", " it", "."):
        while len(tokenizer.encode([text + filler])[0]) <= count:
            text += filler
    assert len(tokenizer.encode([text])[0]) == count, len(tokenizer.encode([text])[0])
    return text
