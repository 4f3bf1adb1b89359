import functools

import pytest

from tests.models.folders import make_hugging_face


@pytest.fixture
def make_folder(tmp_path, tiny_tokenizer):
    """make_folder(family, dtype, ...) -> a Hugging Face folder."""
    return functools.partial(make_hugging_face, tmp_path / "hf", tiny_tokenizer)
