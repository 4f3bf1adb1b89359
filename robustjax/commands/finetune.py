"""`robustjax finetune`: clean training of one model, in a workdir of its own."""

import dataclasses
from pathlib import Path
from typing import Any

from robustjax import given_model
from robustjax.commands import workdirs
from robustjax.data.chat import ChatConfig, chat_tokenizer, dialogues
from robustjax.data.prompts import Task
from robustjax.data.tasks import TaskConfig, load_task, require_classes
from robustjax.data.tokens import END_OF_TEXT, Tokenizer
from robustjax.errors import UserError
from robustjax.given_model import GivenModel, ModelConfig
from robustjax.models import registry
from robustjax.models.fresh import fresh_victim, ladder_tokenizer
from robustjax.models.transformer import Head, Remat
from robustjax.models.victim import Victim
from robustjax.runtime.mesh import AxisRules, MeshConfig, make_mesh
from robustjax.settings import check_edges_reach, check_seed, describe
from robustjax.stage_work import FROM_SCRATCH, Identity, finetune_into, task_leaves, without
from robustjax.training.finetune import FinetuneConfig
from robustjax.training.loop import OUTSIDE_RESULTS
from robustjax.training.objective import ObjectiveName

SCHEMA_VERSION = 1
"""Raised when the meaning of a hashed leaf changes."""


@dataclasses.dataclass(frozen=True)
class TrainedModel(ModelConfig):
    """Which model is trained.

    Attributes:
        remat: what training computes again in the backward pass; None takes what suits the model.
    """

    remat: Remat | None = None


@dataclasses.dataclass(frozen=True)
class FinetuneRunConfig:
    """Clean training of a model.

    Attributes:
        model: where to start from; a nano-* point without a path is trained from scratch.
        task: the data.
        objective: what it is trained to be: a classifier, or a language model of the task's texts.
        finetune: how it is trained; its own `objective` is not looked at.
        seed: seed of fresh weights and of the order of batches.
        mesh: devices.
        topology: TPU slice that the run is meant for; `robustjax plan` compiles for it.
        chat: how texts become conversations, with the right answers, for a language model.
    """

    model: TrainedModel
    task: TaskConfig
    objective: ObjectiveName = "classifier"
    finetune: FinetuneConfig = FinetuneConfig()
    seed: int = 0
    mesh: MeshConfig = MeshConfig()
    topology: str = ""
    chat: ChatConfig = ChatConfig()

    def __post_init__(self) -> None:
        check_seed("seed", self.seed)
        if self.chat.apply_template and self.objective != "lm":
            raise UserError(
                "chat.apply_template=True: conversations are for language models; set "
                "objective=lm, or leave it out"
            )

    @property
    def head(self) -> Head:
        """What the model is trained to put out."""
        return "lm" if self.objective == "lm" else "classifier"

    @property
    def training(self) -> FinetuneConfig:
        """How it is trained, with the objective."""
        return dataclasses.replace(self.finetune, objective=self.objective)


@dataclasses.dataclass(frozen=True)
class _Start:
    """What training starts from, before any weights are there: a given model, or nothing."""

    config: FinetuneRunConfig
    given: GivenModel | None
    tokenizer: Tokenizer
    num_classes: int

    @property
    def context(self) -> int:
        if self.given is not None:
            return self.given.definition.config.context
        return registry.scaling_point(self.config.model.point).config.context

    @property
    def weights(self) -> str:
        return FROM_SCRATCH if self.given is None else self.given.weights

    @property
    def pretrain_flops(self) -> int | None:
        return None if self.given is None else given_model.read_past(self.given)[1].pretrain_flops

    def identity(self, task: Task) -> Identity:
        if self.given is not None:
            return Identity(self.given.point, self.given.family, task.name, self.config.seed)
        facts = registry.scaling_point(self.config.model.point)
        return Identity(facts.name, facts.family, task.name, self.config.seed)

    def leaves(self) -> dict[str, Any]:
        model = self.config.model
        if self.given is not None:
            leaves = self.given.leaves(model.numerics)
            shape = self.given.definition.config
        else:
            shape = registry.scaling_point(model.point).config
            leaves = {
                "point": model.point,
                "weights": FROM_SCRATCH,
                "vocab": registry.NANO_VOCAB,  # with the task, it makes the tokenizer
                "head": self.config.head,
                "num_classes": self.num_classes,
                "numerics": describe(model.numerics),
            }
        return leaves | {"remat": registry.layer_loop(shape, model.remat)["remat"]}

    def victim(self) -> Victim:
        config, mesh = self.config, make_mesh(self.config.mesh)
        numerics, remat = config.model.numerics, config.model.remat
        if self.given is not None:
            return self.given.load(numerics, mesh, remat=remat, seed=config.seed)
        return fresh_victim(
            config.model.point,
            self.tokenizer,
            num_classes=self.num_classes,
            seed=config.seed,
            mesh=mesh,
            rules=AxisRules(),
            numerics=numerics,
            remat=remat,
            head=config.head,
        )


def run_finetune_command(config: FinetuneRunConfig, workdir: str | Path) -> Path:
    """Trains a model, or goes on with it.

    Args:
        config: what to do.
        workdir: where everything goes; the same workdir continues an interrupted training.

    Returns:
        The workdir.

    Raises:
        UserError: bad settings, data, model or workdir; a loss that is not finite.
    """
    folder = Path(workdir)
    config.model.check_named()
    make_mesh(config.mesh)  # refuses one that the devices do not make up
    if config.head == "classifier":
        require_classes(config.task)
    whole_task = load_task(config.task)
    _check_numbers(config, whole_task)
    whole_task.split("validation")
    start = _find_start(config, whole_task)
    whole_task = dialogues(whole_task, start.tokenizer, config.chat)
    check_edges_reach({"config.finetune.train": config.finetune.train.edges}, start.context)
    task = workdirs.only_what_fits(
        "finetune", whole_task, start.tokenizer, start.context, config.task.too_long, positions=[]
    )
    _check_numbers(config, task)
    leaves = {
        "task": task_leaves(config.task, task),
        "model": start.leaves(),
        "seed": config.seed,
        "finetune": without(config.training, *OUTSIDE_RESULTS),
    }
    seeds = {"training": config.seed}
    stage = workdirs.claim(
        "finetune", folder, leaves, SCHEMA_VERSION, config=config, seeds=seeds, task=task
    )
    if stage is None:
        return folder
    summary = finetune_into(
        folder,
        start.victim(),
        start.identity(task),
        task,
        config.training,
        started_from=start.weights,
        pretrain_flops=start.pretrain_flops,
    )
    stage.finish()
    workdirs.say(
        "finetune",
        f"perplexity {summary['validation_perplexity']:.1f} on validation texts"
        if config.objective == "lm"
        else f"clean accuracy {summary['validation_accuracy']:.3f}",
    )
    return folder


def _find_start(config: FinetuneRunConfig, task: Task) -> _Start:
    if config.model.is_from_scratch:
        # A tokenizer of bytes only will do to write conversations with.
        spoken = dialogues(task, ladder_tokenizer([]), config.chat)
        texts = (example.text.replace(END_OF_TEXT, "") for example in spoken.split("train"))
        tokenizer = chat_tokenizer(ladder_tokenizer(texts), config.chat)
        return _Start(config, None, tokenizer, task.num_classes)
    given = given_model.find(config.model, config.head, task.num_classes)
    return _Start(config, given, given.tokenizer, task.num_classes)


def _check_numbers(config: FinetuneRunConfig, task: Task) -> None:
    """What the settings ask of the data."""
    try:
        config.finetune.check(len(task.split("train")))
    except UserError as error:
        raise UserError(f"config.finetune: {error}") from error
