"""Which attacks meet which victims: declarative products, and the cells that they name.

A cell of the transfer matrix is one attack, at one position of its slot, on one victim: hardened
against something, for some rounds. How strong the attack is needs no cells of its own: a longer run
of an attack begins with the shorter one.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from robustjax.attacks.frame import check_position
from robustjax.attacks.search import Attack
from robustjax.errors import UserError
from robustjax.evaluation.records import UNDEFENDED

SPACED_ROUNDS = 10


@dataclasses.dataclass(frozen=True)
class TransferConfig:
    """Every combination of its fields; an empty one takes all there is.

    Attributes:
        attacks: names of evaluation attacks.
        trained_on: names of adversarial trainings; "none" are the victims before any.
        points: scaling points.
        seeds: seeds of training.
        positions: places of the slot; empty leaves each attack its own.
        iterations: of the attacks; 0 leaves each its own.
        rounds: after which rounds of a training: "last", "all", or "spaced" (`spaced_rounds`).
        num_examples: correctly answered examples to attack; 0 takes ``evaluation.num_examples``.
    """

    attacks: tuple[str, ...] = ()
    trained_on: tuple[str, ...] = ()
    points: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    positions: tuple[float, ...] = ()
    iterations: int = 0
    rounds: str = "last"
    num_examples: int = 0

    def __post_init__(self) -> None:
        if self.rounds not in _ROUNDS:
            raise UserError(f"rounds={self.rounds!r} is unknown; use {', '.join(_ROUNDS)}")
        for name in ("iterations", "num_examples"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)} must not be negative")
        for position in self.positions:
            check_position(position)

    def includes(self, point: str, seed: int, trained_on: str) -> bool:
        """Whether it is about a victim."""
        return (
            (not self.points or point in self.points)
            and (not self.seeds or seed in self.seeds)
            and (not self.trained_on or trained_on in self.trained_on)
        )


class Cell(NamedTuple):
    """One attack on one victim.

    Attributes:
        round: rounds of hardening behind the victim.
        name: what the attack is called.
        attack: its settings, position and iterations among them.
        num_examples: correctly answered examples to attack.
    """

    round: int
    name: str
    attack: Attack
    num_examples: int

    @property
    def label(self) -> str:
        """The name, and the position where it is no suffix; one of each in a folder."""
        place = self.attack.position
        return self.name if place == 1.0 else f"{self.name}@{place:g}"


def cells(
    products: Mapping[str, TransferConfig],
    attacks: Mapping[str, Attack],
    num_examples: int,
    *,
    point: str,
    seed: int,
    trained_on: str,
    num_rounds: int = 0,
) -> Iterator[Cell]:
    """What is to be run on one victim, round by round, each attack once.

    Of a cell that several products name, the most examples and iterations count.

    Args:
        products: by name.
        attacks: evaluation attacks by name.
        num_examples: where a product does not say.
        point: the victim's scaling point.
        seed: of its training.
        trained_on: what it was hardened against, or `UNDEFENDED`.
        num_rounds: of that hardening.
    """
    found: dict[tuple[int, str], Cell] = {}
    for product in products.values():
        if not product.includes(point, seed, trained_on):
            continue
        numbers = (0,) if trained_on == UNDEFENDED else _ROUNDS[product.rounds](num_rounds)
        for number in numbers:
            for name in product.attacks or attacks:
                for position in product.positions or (attacks[name].position,):
                    attack = dataclasses.replace(
                        attacks[name],
                        position=position,
                        num_iterations=product.iterations or attacks[name].num_iterations,
                    )
                    cell = Cell(number, name, attack, product.num_examples or num_examples)
                    key = number, cell.label
                    found[key] = _stronger(found.get(key, cell), cell)
    order = {name: index for index, name in enumerate(attacks)}
    yield from sorted(
        found.values(), key=lambda cell: (cell.round, order[cell.name], -cell.attack.position)
    )


def _stronger(one: Cell, other: Cell) -> Cell:
    longer = max(one.attack, other.attack, key=lambda attack: attack.num_iterations)
    return one._replace(attack=longer, num_examples=max(one.num_examples, other.num_examples))


def spaced_rounds(num_rounds: int) -> tuple[int, ...]:
    """Ten rounds from the first to the last, geometrically spaced (Howe et al. 2024).

    Spaced ones fall together where rounds are few; the smallest rounds left over then join them. Of
    ten rounds or fewer it is all.
    """
    spaced = np.geomspace(1, num_rounds, SPACED_ROUNDS)
    chosen = set(np.floor(spaced + 1e-9).astype(int).tolist())  # 1.9999999 is 2
    left = (number for number in range(1, num_rounds + 1) if number not in chosen)
    while len(chosen) < min(SPACED_ROUNDS, num_rounds):
        chosen.add(next(left))
    return tuple(sorted(chosen))


_ROUNDS = {
    "last": lambda count: (count,),
    "all": lambda count: tuple(range(1, count + 1)),
    "spaced": spaced_rounds,
}
