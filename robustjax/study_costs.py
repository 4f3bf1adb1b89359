"""What the stages of a study will cost, known from shapes and texts before anything is run.

Counts are upper bounds where they depend on what is found: every example is attacked, every
candidate survives the filter, and no search stops early.
"""

import collections
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from robustjax.attacks import search
from robustjax.attacks.beam_search import BeamSearch
from robustjax.attacks.beast import BEAST
from robustjax.attacks.frame import PlannedBatch, Prompt, abstract_inputs
from robustjax.attacks.gcg import GCG
from robustjax.attacks.search import Attack, SearchConfig, module_of
from robustjax.data.batching import bucket_for
from robustjax.data.prompts import Example, Task
from robustjax.data.tokens import Tokenizer
from robustjax.evaluation import flops
from robustjax.evaluation.flops import Flops
from robustjax.evaluation.transfer import Cell
from robustjax.models import registry
from robustjax.models.port import ModelConfig
from robustjax.models.transformer import Definition, Head, count_params
from robustjax.planning.work import num_steps, usual_programs
from robustjax.settings import PointConfig, SamplerConfig
from robustjax.study_work import Companion
from robustjax.training.adversarial import AdversarialConfig
from robustjax.training.finetune import FinetuneConfig
from robustjax.training.loop import TrainConfig, executed_epoch_flops

NOTHING = Flops(0, 0)


class _Reader(NamedTuple):
    """What prompts are made for: a model that need not be there yet."""

    name: str
    definition: Definition
    tokenizer: Tokenizer


@dataclasses.dataclass(frozen=True, eq=False)
class StudyCosts:
    """Counts the FLOPs of stages.

    Attributes:
        task: the data.
        tokenizer: what all points read with.
        shapes: of the points, by name.
        companion: the second model of the attacks that ask one, or None.
    """

    task: Task
    tokenizer: Tokenizer
    shapes: Mapping[str, ModelConfig]
    companion: Companion | None

    def definition(self, point: str, settings: PointConfig, head: Head) -> Definition:
        """What a point's models are."""
        shape = self.shapes.get(point) or registry.scaling_point(point).config
        return Definition(
            shape,
            head=head,
            num_classes=self.task.num_classes,
            numerics=settings.numerics,
            **registry.layer_loop(shape, settings.remat),
        )

    def typical_width(self, edges: tuple[int, ...]) -> int:
        """The width that most training texts are padded to."""
        widths = collections.Counter(bucket_for(length, edges) for length in self._train_lengths)
        return widths.most_common(1)[0][0]

    def sampler(self, config: SamplerConfig) -> Flops:
        """Of training the language model that attacks ask."""
        return self.clean(config.point, PointConfig(FinetuneConfig(), {}), config.train)

    def clean(self, point: str, settings: PointConfig, config: FinetuneConfig) -> Flops:
        """Of clean training."""
        head: Head = "lm" if config.objective == "lm" else "classifier"
        lengths = self._lengths(config.num_train)
        definition = self.definition(point, settings, head)
        return _training(definition, config.train, lengths)

    def hardening(self, point: str, settings: PointConfig, config: AdversarialConfig) -> Flops:
        """Of adversarial training; embedding attacks count with the training."""
        definition = self.definition(point, settings, "classifier")
        total = NOTHING
        sample = self._lengths(config.pool.max_examples)
        lengths = [length + config.slot_width for length in sample]
        examples = self.task.split("train")
        for number in range(1, config.num_rounds + 1):
            attacks = config.attacks_of(number)
            start = 0
            for name, count in config.shares.items():
                some = examples[start : start + count]
                total = _plus(total, self._attack(definition, attacks[name], some, config.search))
                start += count
            steps = 0 if config.embedding is None else config.embedding.num_steps
            training = _training(definition, config.train, lengths)
            share = config.pool.max_adversarial_share if steps else 0.0
            moved = Flops(*(int(steps * share * one) for one in training))
            total = _plus(_plus(total, training), moved)
        return total

    def attack(self, point: str, settings: PointConfig, cell: Cell) -> Flops:
        """Of an attack on held-out examples, as many as are asked for."""
        definition = self.definition(point, settings, "classifier")
        examples = self.task.split("validation")[: cell.num_examples]
        return self._attack(definition, cell.attack, examples, settings.search)

    def _attack(
        self,
        definition: Definition,
        attack: Attack,
        examples: Sequence[Example],
        config: SearchConfig,
    ) -> Flops:
        companion = self.companion if attack.needs_companion else None
        batches = search.plan(self._prompts(definition, attack, tuple(examples)), config)
        other = None if companion is None else companion.definition
        executed = sum(
            _executed(definition, other, attack, batch.shape, config.batch_size)
            for batch in batches
        )
        return Flops(sum(_algorithmic(definition, other, attack, one) for one in batches), executed)

    def _prompts(
        self, definition: Definition, attack: Attack, examples: tuple[Example, ...]
    ) -> list[Prompt]:
        """The prompts of an attack; how many iterations it runs does not matter for most."""
        width = module_of(attack).slot_width(attack)
        ids = tuple(example.example_id for example in examples)
        key = attack.position, width, ids
        if key not in self._known_prompts:
            reader = _Reader("", definition, self.tokenizer)
            kinds = self.task.chunk_kinds
            found = [search.prompt_of(reader, one, kinds, attack) for one in examples]
            self._known_prompts[key] = [one for one in found if isinstance(one, Prompt)]
        return self._known_prompts[key]

    @functools.cached_property
    def _known_prompts(self) -> dict[tuple[float, int, tuple[int, ...]], list[Prompt]]:
        return {}

    @functools.cached_property
    def _train_lengths(self) -> list[int]:
        rows = self.tokenizer.encode([example.text for example in self.task.split("train")])
        return [len(row) for row in rows]

    def _lengths(self, count: int) -> list[int]:
        return self._train_lengths[: count or None]


def _plus(one: Flops, other: Flops) -> Flops:
    return Flops(one.algorithmic + other.algorithmic, one.executed + other.executed)


def _training(definition: Definition, config: TrainConfig, lengths: Sequence[int]) -> Flops:
    tokens = sum(lengths)
    one = flops.training_flops(count_params(definition), tokens)
    return Flops(
        config.epochs * one, config.epochs * executed_epoch_flops(definition, config, lengths)
    )


def _algorithmic(
    definition: Definition, companion: Definition | None, attack: Attack, batch: PlannedBatch
) -> int:
    width = module_of(attack).slot_width(attack)
    tokens = sum(prompt.length + width for prompt in batch.prompts) * attack.num_iterations
    per_token = flops.forward_flops(count_params(definition), tokens)
    if isinstance(attack, GCG):
        return (3 + attack.num_candidates) * per_token
    if isinstance(attack, BeamSearch):
        return attack.num_candidates * per_token
    if isinstance(attack, BEAST):
        sampler = definition if companion is None else companion
        read = flops.forward_flops(count_params(sampler), tokens)
        return attack.num_candidates * per_token + attack.beam_width * read
    return per_token


@functools.lru_cache(maxsize=512)
def _executed(
    definition: Definition,
    companion: Definition | None,
    attack: Attack,
    shape: tuple[int, int, int],
    rows: int,
) -> int:
    """Of a whole batch."""
    inputs = abstract_inputs(definition, shape, rows, companion)
    once, each = (
        sum(flops.executed_flops(one.function, *one.arguments) for one in programs)
        for programs in map(dict.values, usual_programs(attack, inputs))
    )
    return once + num_steps(attack) * each
