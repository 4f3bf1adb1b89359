"""Where everything lies on eight devices, and what they send each other in an iteration of GCG.

    python -m tests.on_eight_devices FOLDER

Prints JSON; run by test_eight_devices.py, in a process of its own for the devices' sake.
"""

import collections
import json
import re
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from robustjax.attacks import frame, gcg, ranking
from robustjax.attacks.gcg import GCG
from robustjax.attacks.objective import encode_prefix
from robustjax.attacks.search import SearchConfig
from robustjax.data.tokens import train_byte_bpe
from robustjax.models import victim as victims
from robustjax.models.model_folder import load_model, save_model
from robustjax.models.victim import Victim, init_params
from robustjax.runtime.checkpoint import Checkpoints
from robustjax.runtime.mesh import AxisRules, MeshConfig, make_mesh
from robustjax.training import loop
from robustjax.training.loop import TrainConfig
from robustjax.training.optimizer import OptimizerConfig
from robustjax.training.step import TrainBatch, put_batch
from tests.attacks.tiny import TEXTS, letters_tokenizer, make_examples, make_run, make_victim
from tests.conftest import SENTENCES
from tests.models.tiny import define

RULES = AxisRules()
SPLIT, MIXED = (8, 1, 1), (2, 2, 2)
ATTACK = GCG(num_iterations=3, num_tokens=4, num_candidates=16, top_k=8, candidate_chunk=4)
COLLECTIVE = re.compile(
    r" (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\("
)


def specs(tree: Any) -> dict[str, str]:
    """The partition of each array by its path."""
    named = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): spec_of(leaf)
        for path, leaf in named
    }


def spec_of(leaf: jax.Array) -> str:
    """The mesh axes that each axis is really split over, up to the last that is."""
    sharding = leaf.sharding
    assert isinstance(sharding, jax.NamedSharding)
    spec = []
    for axes in sharding.spec:
        names = axes if isinstance(axes, tuple) else (axes,)
        spec.append("+".join(name for name in names if name and sharding.mesh.shape[name] > 1))
    return " ".join(name or "-" for name in spec).rstrip(" -")


def of_training(folder: Path, optimizer: str, scanned: bool) -> dict[str, Any]:
    """Weights and the optimizer's state at every station of their lives."""
    mesh = make_mesh(MeshConfig(*MIXED))
    definition = define("neox", scanned=scanned)
    tokenizer = letters_tokenizer()
    fresh = init_params(definition, 0, mesh, RULES)
    victim = Victim("tiny", "tiny", definition, fresh, tokenizer, mesh)
    wanted = victims.param_shardings(definition, mesh, RULES)
    found = {
        "wanted": jax.tree.map(
            lambda leaf, sharding: leaf.sharding.is_equivalent_to(sharding, leaf.ndim),
            fresh,
            wanted,
        ),
        "init": specs(fresh),
    }
    save_model(folder / "model", victim)
    found["load"] = specs(load_model(folder / "model", mesh, RULES).params)
    config = TrainConfig(batch_size=8, microbatch_size=8, optimizer=OptimizerConfig(name=optimizer))
    step, state = loop.start(victim, config)
    found["start"] = {"params": specs(state.params), "optimizer": specs(state.opt_state)}
    shape = (1, 8, 16)
    batch = TrainBatch(
        np.ones(shape, np.int32),
        np.ones(shape, bool),
        np.zeros(shape[:2], np.int32),
        np.ones(shape[:2], np.float32),
    )
    state, report = step(state, put_batch(victim, batch), np.float32(1e-3))
    found["step"] = {"params": specs(state.params), "optimizer": specs(state.opt_state)}
    found["report"] = specs(report)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(1, state, {})
    _, restored, _ = checkpoints.restore(like=state)
    found["restore"] = {"params": specs(restored.params), "optimizer": specs(restored.opt_state)}
    other = make_mesh(MeshConfig(*SPLIT))
    elsewhere = Victim(
        "tiny", "tiny", definition, init_params(definition, 1, other, RULES), tokenizer, other
    )
    _, moved, _ = checkpoints.restore(like=loop.start(elsewhere, config)[1])
    found["is_the_same_elsewhere"] = all(
        np.array_equal(one, two)
        for one, two in zip(jax.tree.leaves(moved), jax.tree.leaves(state), strict=True)
    )
    found["elsewhere"] = sorted(
        {tuple(leaf.sharding.mesh.shape.values()) for leaf in jax.tree.leaves(moved)}
    )
    return found


def of_an_attack(sizes: tuple[int, int, int], rows: int) -> dict[str, Any]:
    """Arrays of a search on so many rows, and the collectives of each of its programs."""
    tokenizer = train_byte_bpe(SENTENCES, 400)
    victim = make_victim(tokenizer, mesh=MeshConfig(*sizes), width=32)
    examples = make_examples(victim, TEXTS)
    run = make_run(victim, examples, ATTACK, config=SearchConfig(batch_size=rows, edges=(48, 96)))
    inputs, state = run.inputs, gcg.init(ATTACK, run)
    reader = inputs.victim
    counts: dict[str, dict[str, int]] = {}

    def ran(name: str, function: Any, *arguments: Any, **options: Any) -> Any:
        text = function.lower(*arguments, **options).compile().as_text()
        counts[name] = dict(collections.Counter(COLLECTIVE.findall(text)))
        return function(*arguments, **options)

    known = (reader.definition, reader.params)
    ran("encode_prefix", encode_prefix, *known, run.batch)
    current, incumbent, proposed, _ = ran(
        "propose",
        gcg.propose,
        *(*known, reader.prefix, run.batch, state, inputs.forbidden, inputs.seed, np.uint32(1)),
        **gcg._drawing(ATTACK, inputs),
    )
    to_score = (*known, reader.prefix, run.batch, state.slots, incumbent, proposed)
    at_once, parts = frame.pass_of(ATTACK, ATTACK.num_tokens, inputs), ranking.cut(ATTACK, inputs)
    scores = ran(
        "score_replacements", ranking.score_replacements, *to_score, at_once=at_once, parts=parts
    )
    # One example of each shard after the other.
    one_by_one = at_once._replace(examples=inputs.shards)
    of_examples = ran(
        "score_one_by_one", ranking.score_replacements, *to_score, at_once=one_by_one, parts=parts
    )
    valid = run.put(np.ones(proposed.places.shape, bool))
    new = ran("select", gcg.select, state.slots, current, proposed.slots, scores, valid)
    return {
        "collectives": counts,
        "groups": inputs.rows // inputs.shards,
        "losses": [run.fetch(one.loss).tolist() for one in (scores, of_examples)],
        "prefix": specs(reader.prefix),
        "batch": sorted(set(specs(run.batch).values())),
        "rows": sorted(set(specs((state.slots, proposed, scores, new)).values())),
    }


def main() -> None:
    jax.config.update("jax_num_cpu_devices", 8)
    folder = Path(sys.argv[1])
    found = {
        "adafactor": of_training(folder / "adafactor", "adafactor", scanned=False),
        "adamw": of_training(folder / "adamw", "adamw", scanned=True),
        "split": of_an_attack(SPLIT, 16),
        "mixed": of_an_attack(MIXED, 8),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
