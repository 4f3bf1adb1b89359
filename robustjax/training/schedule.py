"""How many attack iterations each adversarial training round gets."""

import dataclasses
import math

from robustjax.errors import UserError


class ScheduleError(UserError, ValueError):
    """An attack schedule that contradicts itself, or the number of rounds."""


@dataclasses.dataclass(frozen=True)
class AttackSchedule:
    """Iterations that grow linearly from round to round (Howe et al. 2024, arXiv 2407.18213).

    At most two of the three are given, and the third follows; one of `start` and `end` alone means
    a constant number of iterations.

    Attributes:
        start: iterations of the first round.
        end: iterations of the last round. Where (end - start) / (rounds - 1) is not exact in
            floating point, truncation can make the last round one less, as in the reference
            implementation.
        rate: iterations added per round; fractions are added up before they are truncated.
    """

    start: int | None = None
    end: int | None = None
    rate: float | None = None

    def __post_init__(self):
        for field in ("start", "end"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ScheduleError(f"schedule.{field}: {value} is below 1; use at least 1")
        if self.rate is not None and not math.isfinite(self.rate):
            raise ScheduleError(f"schedule.rate: {self.rate} is not a finite number")
        if None not in (self.start, self.end, self.rate):
            raise ScheduleError(
                f"schedule: start={self.start}, end={self.end} and rate={self.rate} are all given; "
                "leave one of them out"
            )
        if self.start is None and self.end is None:
            raise ScheduleError("schedule: neither start nor end is given; give at least one")

    def iterations(self, round_index: int, num_rounds: int) -> int:
        """The number of attack iterations of a round.

        Args:
            round_index: the round, counted from 0.
            num_rounds: how many rounds there are in all.

        Raises:
            IndexError: no such round.
            ScheduleError: a schedule that does not fit so many rounds, or falls below 1 iteration.
        """
        start, rate = self._start_and_rate(num_rounds)
        if not 0 <= round_index < num_rounds:
            raise IndexError(f"round {round_index} is not one of the {num_rounds} rounds")
        for index in (0, num_rounds - 1):  # it never turns round in between
            if start + int(index * rate) < 1:
                raise ScheduleError(
                    f"schedule: round {index} of {num_rounds} would have "
                    f"{start + int(index * rate)} iterations; raise start or end, or change rate"
                )
        return start + int(round_index * rate)

    def _start_and_rate(self, num_rounds: int) -> tuple[int, float]:
        steps = num_rounds - 1
        if self.rate is not None:
            if steps <= 0 and self.rate != 0:
                raise ScheduleError(
                    f"schedule.rate: {self.rate} with num_rounds={num_rounds}; "
                    "If num_rounds<=1, rate must be 0."
                )
            if self.start is not None:
                return self.start, self.rate
            assert self.end is not None  # __post_init__ has seen to it
            return self.end - int(self.rate * steps), self.rate
        if self.start is not None and self.end is not None:
            if steps > 0:
                return self.start, (self.end - self.start) / steps
            if self.start != self.end:
                raise ScheduleError(
                    f"schedule: start={self.start}, end={self.end} with num_rounds={num_rounds}; "
                    "If num_rounds<=1, start must equal end."
                )
        constant = self.start if self.start is not None else self.end
        assert constant is not None
        return constant, 0.0
