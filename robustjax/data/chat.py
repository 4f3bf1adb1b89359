"""Prompts inside a chat model's conversation, by the template that its tokenizer carries.

An example's whole prompt becomes the user's turn. What the template writes before it joins the
first chunk and what it writes after it joins the last, so the attack slot stays where it was,
inside the user's turn, and all that works on chunks works on conversations. That the prompt really
is what the template makes of the turn is asserted for every example, with and without a text in
the slot.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers

from robustjax.data.prompts import Example, Task, split_at_slot
from robustjax.data.tokens import Tokenizer
from robustjax.errors import UserError

_PROBES = ("probe7c1e", "PROBE 40d2 X")
"""Turns of the user that no template writes by itself; two, lest one be found by accident."""
_SLOT = "@&"
"""A text in the slot, to see that the template leaves it alone."""


@dataclasses.dataclass(frozen=True)
class ChatConfig:
    """How prompts become conversations.

    Attributes:
        apply_template: put every prompt into the user's turn of the tokenizer's chat template.
        system: system prompt; empty leaves it to the template, which may have one of its own.
        template_file: a Jinja file in place of the tokenizer's template, for a tokenizer without.
    """

    apply_template: bool = False
    system: str = ""
    template_file: str = ""

    def __post_init__(self) -> None:
        for name in ("system", "template_file"):
            if getattr(self, name) and not self.apply_template:
                raise UserError(
                    f"{name}={getattr(self, name)!r} has no effect without the template: set "
                    "apply_template=True, or leave it empty"
                )


@dataclasses.dataclass(frozen=True)
class Turn:
    """What a template writes around the user's turn.

    Attributes:
        before: the text before it.
        after: the text after it, up to where the model's answer begins.
        strips_start: whether white space at the turn's beginning is lost.
        strips_end: whether white space at its end is.
    """

    before: str
    after: str
    strips_start: bool
    strips_end: bool

    def around(self, text: str) -> str:
        """A conversation up to the model's answer."""
        return self.before + text + self.after

    def of(self, prompt: str) -> str:
        """The user's turn in a conversation up to the model's answer."""
        return prompt.removeprefix(self.before).removesuffix(self.after)


NO_TURN = Turn("", "", False, False)
"""Around prompts that are no conversation."""


class ChatTemplate:
    """A tokenizer's chat template with a system prompt, rendered by transformers."""

    def __init__(self, tokenizer: Tokenizer, system: str = ""):
        """Finds what the template writes around the user's turn.

        Args:
            tokenizer: it carries the template.
            system: the system prompt; empty gives the template none.

        Raises:
            UserError: the tokenizer has no template, or one that cannot be used.
        """
        if tokenizer.chat_template is None:
            raise UserError(
                "chat.apply_template=True: the tokenizer has no chat template; take a chat model, "
                "name a Jinja file in chat.template_file, or set it to False"
            )
        self._tokenizer, self._system = tokenizer, system
        self.turn = self._find_turn()

    @functools.cached_property
    def _transformers(self) -> Any:
        from transformers import PreTrainedTokenizerFast  # slow to import, and seldom needed

        # It only fills in the template: no text is tokenised by it.
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE()),
            chat_template=self._tokenizer.chat_template,
            **self._tokenizer.named_specials,
        )

    def _render(self, turns: Sequence[tuple[str, str]], *, is_open: bool) -> str:
        system = [("system", self._system)] if self._system else []
        messages = [{"role": role, "content": text} for role, text in (*system, *turns)]
        from jinja2 import TemplateError

        try:
            rendered = self._transformers.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=is_open
            )
        except (TemplateError, ValueError) as error:
            remedy = "; leave chat.system empty" if system else ""
            raise UserError(
                f"the chat template refuses the conversation: {error}{remedy}"
            ) from error
        return str(rendered)

    @property
    def sha256(self) -> str:
        """Of the template."""
        text = json.dumps(self._tokenizer.chat_template, sort_keys=True)
        return hashlib.sha256(text.encode("utf-8")).hexdigest()

    def prompt(self, text: str) -> str:
        """The conversation up to the model's answer."""
        return self._render([("user", text)], is_open=True)

    def dialogue(self, text: str, answer: str) -> str:
        """The conversation with the model's answer."""
        return self._render([("user", text), ("assistant", answer)], is_open=False)

    def _find_turn(self) -> Turn:
        found = set()
        for probe in _PROBES:
            parts = self.prompt(probe).split(probe)
            if len(parts) != 2:
                raise UserError(
                    f"the chat template writes the user's turn {len(parts) - 1} times; take one "
                    "that writes it once, as it is"
                )
            found.add(tuple(parts))
        if len(found) != 1:
            raise UserError(
                "the chat template changes with the user's turn; take one that writes the same "
                "text around every turn"
            )
        ((before, after),) = found

        def strips(text: str) -> bool:
            return self.prompt(text) != before + text + after

        return Turn(before, after, strips(f"\n {_PROBES[0]}"), strips(f"{_PROBES[0]} \n"))

    def goal(self, text: str) -> str:
        """An answer as it follows the prompt: with the white space that the template has there."""
        answer, prompt = text.strip(), self.prompt(_PROBES[0])
        whole = self.dialogue(_PROBES[0], answer)
        start = whole.find(answer, len(prompt))
        space = whole[len(prompt) : start] if whole.startswith(prompt) and start >= 0 else ""
        return answer if space.strip() else space + answer


def chat_tokenizer(tokenizer: Tokenizer, config: ChatConfig) -> Tokenizer:
    """The tokenizer with the template that the settings name, if they name one.

    Raises:
        UserError: the file cannot be read.
    """
    if not config.template_file:
        return tokenizer
    path = Path(config.template_file).expanduser()
    try:
        return tokenizer.with_chat_template(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"chat.template_file={config.template_file!r} cannot be read ({error}); name a Jinja "
            "file in UTF-8"
        ) from error


def turn_of(tokenizer: Tokenizer, config: ChatConfig) -> Turn:
    """What stands around each prompt; nothing without a template."""
    if not config.apply_template:
        return NO_TURN
    return ChatTemplate(chat_tokenizer(tokenizer, config), config.system).turn


def templated(
    task: Task, tokenizer: Tokenizer, config: ChatConfig, positions: Sequence[float] = ()
) -> Task:
    """The task as conversations up to the model's answer; the same task without a template.

    Targets get the white space with which an answer begins in the template.

    Args:
        task: the data.
        tokenizer: what the model reads with.
        config: which template.
        positions: where attacks put their slots.

    Returns:
        The task; `source["chat"]` says what stands around each turn.

    Raises:
        UserError: there is no template, or it changes a text, or would change a slot's.
    """
    if not config.apply_template:
        return task
    template = ChatTemplate(chat_tokenizer(tokenizer, config), config.system)
    goal = functools.cache(template.goal)

    def conversation(example: Example) -> Example:
        _check_unchanged(template, task, example, positions)
        return dataclasses.replace(
            example,
            instructions=template.turn.before + example.instructions,
            answer_prompt=example.answer_prompt + template.turn.after,
            gen_target=goal(example.gen_target),
            proxy_gen_target=goal(example.proxy_gen_target),
        )

    return _replaced(task, template, conversation)


def dialogues(task: Task, tokenizer: Tokenizer, config: ChatConfig) -> Task:
    """The task as conversations with the right answers, for training a language model on.

    Raises:
        UserError: as `templated`; or a conversation does not go on from its prompt.
    """
    if not config.apply_template:
        return task
    template = ChatTemplate(chat_tokenizer(tokenizer, config), config.system)

    def conversation(example: Example) -> Example:
        _check_unchanged(template, task, example, ())
        whole = template.dialogue(example.text, example.gen_target.strip())
        if not whole.startswith(template.turn.around(example.text)):
            raise UserError(
                f"the chat template does not put the answer of example {example.example_id} of "
                f"task {task.name!r} after its prompt; take one that does"
            )
        rest = whole[len(template.turn.before) + len(example.text) :]
        return dataclasses.replace(
            example,
            instructions=template.turn.before + example.instructions,
            answer_prompt=example.answer_prompt + rest,
        )

    return _replaced(task, template, conversation)


def _replaced(task: Task, template: ChatTemplate, conversation: Any) -> Task:
    described = {
        "before_turn": template.turn.before,
        "after_turn": template.turn.after,
        "template_sha256": template.sha256,
    }
    return dataclasses.replace(
        task,
        class_names=tuple(template.goal(name) for name in task.class_names),
        train=tuple(map(conversation, task.train)),
        validation=tuple(map(conversation, task.validation)),
        source=task.source | {"chat": described},
    )


def _check_unchanged(
    template: ChatTemplate, task: Task, example: Example, positions: Sequence[float]
) -> None:
    """Raises UserError unless the template leaves the example's text, and a slot's, as they are."""
    turn, where = template.turn, f"example {example.example_id} of task {task.name!r}"
    cuts = [split_at_slot(example, task.chunk_kinds, position) for position in positions]
    for before, after in cuts:
        for is_edge, side in (
            (turn.strips_start and not before.strip(), "beginning"),
            (turn.strips_end and not after.strip(), "end"),
        ):
            if is_edge:
                raise UserError(
                    f"{where}: the attack slot stands at the {side} of the user's turn, where the "
                    "chat template strips white space, so that a slot might lose some; put the "
                    "slot elsewhere (attack.position), or a text beyond it (answer_prompt, "
                    "instructions)"
                )
    for text in (example.text, *(before + _SLOT + after for before, after in cuts)):
        if template.prompt(text) != turn.around(text):
            raise UserError(
                f"{where}: the chat template changes the text (most strip white space at its "
                "beginning and end); change the example, or the template"
            )
