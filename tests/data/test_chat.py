"""Conversations are what `apply_chat_template` of transformers makes of them, slot and all."""

import json

import pytest
import tokenizers
import transformers

from robustjax.data.chat import (
    NO_TURN,
    ChatConfig,
    ChatTemplate,
    chat_tokenizer,
    dialogues,
    templated,
    turn_of,
)
from robustjax.data.prompts import ChunkKind, Example, Task, split_at_slot
from robustjax.data.segments import locate, segments_of
from robustjax.data.tokens import Tokenizer
from robustjax.errors import UserError
from tests.tokenizer_kinds import neox, qwen2

INSERT = (ChunkKind.IMMUTABLE, ChunkKind.PERTURBABLE, ChunkKind.IMMUTABLE)

# Templates of the kinds that published models have, in words of our own.
CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe brief.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% set told = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set told = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if m['role'] == 'user' %}"
    "{% set text = (told if loop.first else '') + m['content'] %}"
    "{{ bos_token + '[INST] ' + text.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def with_tokens(base, template, special, **named):
    backend = tokenizers.Tokenizer.from_str(base._backend.to_str())
    backend.add_special_tokens(special)
    return Tokenizer(backend, base._config | named | {"chat_template": template})


KINDS = {
    "chatml": lambda: with_tokens(qwen2(), CHATML, []),
    "llama2": lambda: with_tokens(
        neox(), LLAMA2, ["<s>", "</s>"], bos_token="<s>", eos_token="</s>"
    ),
    "llama3": lambda: with_tokens(
        neox(),
        LLAMA3,
        ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
    ),
}
GOALS = {"chatml": "Sure, here", "llama2": " Sure, here", "llama3": "Sure, here"}


def make_task(
    prompts=("Where does the river begin?", "Name a tree.\n"), answer_prompt="\n\nAnswer:"
):
    examples = tuple(
        Example(i, "", (text,), answer_prompt, 0, 1, " I cannot help with that.", " Sure, here")
        for i, text in enumerate(prompts)
    )
    return Task("toy", (), INSERT, (), examples, {"rows": len(prompts)})


def their_messages(text, system):
    told = [{"role": "system", "content": system}] if system else []
    return [*told, {"role": "user", "content": text}]


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def tokenizer(kind):
    return KINDS[kind]()


@pytest.fixture
def theirs(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "theirs")
    return transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")


@pytest.mark.parametrize("system", ["", "You know rivers and trees."])
@pytest.mark.parametrize("position", [1.0, 0.5])
def test_a_prompt_is_what_transformers_makes_of_it(kind, tokenizer, theirs, system, position):
    task, slot = make_task(), " @& 7"
    config = ChatConfig(apply_template=True, system=system)
    found = templated(task, tokenizer, config, [position])
    for plain, example in zip(task.validation, found.validation, strict=True):
        before, after = split_at_slot(plain, task.chunk_kinds, position)
        for text, ours in (
            (plain.text, example.text),
            (before + slot + after, slot.join(split_at_slot(example, task.chunk_kinds, position))),
        ):
            messages = their_messages(text, system)
            rendered = theirs.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
            ids = theirs.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=False
            )
            assert ours == rendered
            assert tokenizer.encode([ours]) == [list(ids)]
        assert example.proxy_gen_target == GOALS[kind]
        assert turn_of(tokenizer, config).of(example.text) == plain.text
        tokens = locate(tokenizer, segments_of(example, task.chunk_kinds, position, slot))
        assert tokens.obstacle is None
        inside = [tokens.ids[i] for i in tokens.slot]
        assert tokenizer.decode([inside]) == [slot]
    assert system in found.validation[0].text
    turn = turn_of(tokenizer, config)
    chat = found.source["chat"]
    assert (chat["before_turn"], chat["after_turn"]) == (turn.before, turn.after)


def test_a_dialogue_is_what_transformers_makes_of_it(tokenizer, theirs):
    task = make_task()
    for plain, example in zip(
        task.validation,
        dialogues(task, tokenizer, ChatConfig(apply_template=True)).validation,
        strict=True,
    ):
        messages = their_messages(plain.text, "")
        messages.append({"role": "assistant", "content": "I cannot help with that."})
        assert example.text == theirs.apply_chat_template(messages, tokenize=False)


def test_a_text_that_the_template_changes_is_refused(kind, tokenizer):
    task = make_task([" white space first", "none"])
    config = ChatConfig(apply_template=True)
    if kind == "chatml":  # it writes the turn as it is
        assert " white space" in templated(task, tokenizer, config).validation[0].text
        return
    with pytest.raises(UserError, match="example 0 of task 'toy': the chat template changes"):
        templated(task, tokenizer, config)


@pytest.mark.parametrize(
    ("answer_prompt", "position", "side"), [("", 1.0, "end"), ("\n", 0.0, "beginning")]
)
def test_a_slot_where_white_space_is_stripped_is_refused(
    kind, tokenizer, answer_prompt, position, side
):
    task = make_task(["none"], answer_prompt)
    config = ChatConfig(apply_template=True)
    if kind == "chatml":
        assert templated(task, tokenizer, config, [position]).validation[0].text
        return
    with pytest.raises(UserError, match=f"the attack slot stands at the {side} of the user's turn"):
        templated(task, tokenizer, config, [position])


def test_a_system_prompt_moves_the_beginning(tokenizer, kind):
    """Llama-2 puts it into the user's turn, before the text, where nothing is stripped then."""
    turn = ChatTemplate(tokenizer, "Be kind.").turn
    assert (turn.strips_start, turn.strips_end) == {
        "chatml": (False, False),
        "llama2": (False, True),
        "llama3": (True, True),
    }[kind]


def test_without_a_template_nothing_changes(tokenizer):
    task = make_task()
    assert templated(task, tokenizer, ChatConfig()) is task
    assert dialogues(task, tokenizer, ChatConfig()) is task
    assert turn_of(tokenizer, ChatConfig()) == NO_TURN


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{{ messages[0]['content'] }}{{ messages[0]['content'] }}",
            "writes the user's turn 2 times",
        ),
        ("{{ messages[0]['content'] | upper }}", "writes the user's turn 0 times"),
        (
            "{{ messages[0]['content'] | length }} {{ messages[0]['content'] }}",
            "changes with the user's turn",
        ),
        ("{{ raise_exception('no such role') }}", "refuses the conversation: no such role"),
        ("{% for %}", "refuses the conversation"),
    ],
)
def test_templates_that_cannot_be_used(template, message):
    with pytest.raises(UserError) as caught:
        ChatTemplate(qwen2().with_chat_template(template))
    assert message in str(caught.value)


def test_a_template_that_drops_the_answer_trains_nobody():
    tokenizer = qwen2().with_chat_template("{{ messages[0]['content'] }}:")
    config = ChatConfig(apply_template=True)
    assert templated(make_task(), tokenizer, config).validation[0].proxy_gen_target == "Sure, here"
    other = qwen2().with_chat_template(
        "{{ messages[0]['content'] }}{{ ':' if messages | length < 2 else messages[1]['content'] }}"
    )
    with pytest.raises(UserError, match="does not put the answer of example 0"):
        dialogues(make_task(), other, config)


def test_templates_come_from_where_they_are(tmp_path):
    tokenizer = qwen2()
    with pytest.raises(UserError, match="the tokenizer has no chat template"):
        ChatTemplate(tokenizer)
    path = tmp_path / "mine.jinja"
    config = ChatConfig(apply_template=True, template_file=str(path))
    with pytest.raises(UserError, match="chat.template_file=.* cannot be read"):
        chat_tokenizer(tokenizer, config)
    path.write_text(CHATML)
    assert chat_tokenizer(tokenizer, config).chat_template == CHATML
    tokenizer.save(tmp_path / "folder")
    (tmp_path / "folder" / "chat_template.jinja").write_text(LLAMA3)
    assert Tokenizer.load(tmp_path / "folder").chat_template == LLAMA3
    Tokenizer.load(tmp_path / "folder").save(tmp_path / "copy")
    assert json.loads((tmp_path / "copy" / "tokenizer_config.json").read_text())[
        "chat_template"
    ] == (LLAMA3)


@pytest.mark.parametrize("name", ["system", "template_file"])
def test_settings_without_effect_are_refused(name):
    with pytest.raises(UserError, match=f"{name}='x' has no effect without the template"):
        ChatConfig(**{name: "x"})
