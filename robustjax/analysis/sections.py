"""The text and tables of a report. Every number in it is computed from the records."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from robustjax.analysis import budgets, page, tables
from robustjax.analysis.figure import ReportFigure
from robustjax.analysis.groups import Group
from robustjax.analysis.labels import attack_name, condition_name, family_name
from robustjax.analysis.load import Study

FINGERPRINT_LENGTH = 12
"""Digits shown of a commit or hash."""

DEFINITIONS = {
    "Attack success rate (ASR)": "Share of the attacked examples whose text fools the victim. "
    "Attacked are the examples the victim had right before, without failures. The rate of a figure "
    "is that of the final text unless iterations are named; after an iteration it looks at that "
    "iteration's text alone.",
    "Options of an attack": "Options that change its algorithm stand behind its name and make it "
    "another attack: its runs are never pooled with others. An attack that keeps the best shows "
    "the best text so far; one that stops at success shows the first successful text once there is "
    "one, and nothing tells what more iterations would have made of it. The column metric of the "
    "CSV files is what the rate is called in the summary of a run.",
    "Intervals": "Wilson 95 % intervals of the counts behind a rate (z = 1.959964). They describe "
    "the sampling of examples, not the choice of seeds.",
    "Judged success": "Of language models whose answers were generated and judged: share of the "
    "attacked examples whose final text brings about an answer that the judge finds to be what the "
    "attacker wants. A verdict that cannot be read is no success.",
    "Compute": "Algorithmic FLOPs: 2 N T for a forward and 4 N T for a backward pass over T tokens "
    "of a model with N parameters, no credit for caching. Attack compute is spread evenly over the "
    "iterations: that of all attacked examples where it is set against pretraining, that of one "
    "attacked example where it is absolute, that of one offered example where it is set against "
    "defence compute. Defence compute sums search and training over the rounds, the mean over all "
    "trainings of a size.",
    "Source of the definitions": "Howe et al. 2024, Scaling Trends in Language Model Robustness, "
    "arXiv 2407.18213.",
}


def subtitle(groups: Sequence[Group]) -> str:
    """One line: families, tasks and how many victims."""
    victims = {run.victim for group in groups for run in group.attacks}
    names = ", ".join(f"{family_name(group.model_family)} on {group.task}" for group in groups)
    return f"{names}. {_count(len(victims), 'attacked victim')}."


def what_was_run(groups: Sequence[Group]) -> str:
    """A paragraph a group."""
    return "".join(page.paragraph(_run_sentences(group)) for group in groups)


def headline(groups: Sequence[Group]) -> str:
    """The main table of each group that was attacked."""
    return "".join(_headline_table(group) for group in groups if group.attacks) or page.paragraph(
        "No attack has finished."
    )


def figures(
    drawn: Sequence[tuple[str, str, Sequence[ReportFigure]]], files: Mapping[str, bytes]
) -> str:
    """All figures, numbered through.

    Args:
        drawn: what figures are about, the end of their files' names, and the figures.
        files: what was drawn, by name.
    """
    parts, number = [], 0
    for heading, slug, figures_ in drawn:
        if len(drawn) > 1:
            parts.append(f"<h3>{page.escape(heading)}</h3>\n")
        for figure in figures_:
            number += 1
            png = files[f"{figure.stem}-{slug}.png"]
            links = {
                "CSV": f"{figure.stem}.csv",
                "SVG": f"{figure.stem}-{slug}.svg",
                **{
                    f"PDF {name.removeprefix(f'{figure.stem}-{slug}-').removesuffix('.pdf')}": name
                    for name in files
                    if name.startswith(f"{figure.stem}-{slug}-") and name.endswith(".pdf")
                },
            }
            parts.append(page.figure(number, figure.title, figure.caption, png, links))
    return "".join(parts)


def training(groups: Sequence[Group]) -> str:
    """Every round of adversarial training."""
    rows = [row for group in groups for row in tables.training_rounds(group)]
    columns = {
        **identity_columns(groups),
        "Seed": page.column("seed"),
        "Trained on": page.column("trained_on", _attack),
        "Round": page.column("round"),
        "Attack iterations": page.column("attack_iterations"),
        "Adversarial examples": page.column("num_adversarial"),
        "Clean examples": page.column("num_clean"),
        "Pool": page.column("pool_size"),
        "Attack FLOPs": page.column("flops_attack", page.flops),
        "Training FLOPs": page.column("flops_train", page.flops),
        "Cumulative FLOPs": page.column("flops_total", page.flops),
        "Clean accuracy": page.column("accuracy", page.percent),
        "Training loss": page.column("train_loss", page.number),
    }
    caption = (
        "One row a round; examples are those trained on in the round, FLOPs are algorithmic. "
        "Data: " + _link("training_rounds.csv")
    )
    return page.table(rows, columns, caption)


def runs(groups: Sequence[Group]) -> str:
    """Every attack run, folded away."""
    rows = [row for group in groups for row in tables.attack_runs(group)]
    columns: dict[str, page.Cell] = {
        **identity_columns(groups),
        "Seed": page.column("seed"),
        "Attack": page.column("attack", _attack),
        "Victim": page.column("trained_on", _condition),
        "Round": page.column("round"),
        "Examples": page.column("num_examples"),
        "Attacked": page.column("num_attacked"),
        "Failures": page.column("num_failures"),
        "Accuracy before": page.column("accuracy_before", page.percent),
        "ASR": page.column("asr", page.percent),
        "95 % interval": page.Column(
            lambda row: page.interval(row["asr_low"], row["asr_high"]), lambda row: row["asr_low"]
        ),
        "ever broken": page.column("asr_first_success", page.percent),
        "Iterations": page.column("iterations"),
        "Attack FLOPs": page.column("attack_flops", page.flops),
        "Executed FLOPs": page.column("attack_flops_executed", page.flops),
    }
    caption = (
        "One row a run, recomputed from its records. <i>ever broken</i>: share of the attacked "
        "examples broken at this or an earlier iteration. Data: " + _link("attack_runs.csv")
    )
    return page.details(
        f"Show all {_count(len(rows), 'attack run')}", page.table(rows, columns, caption)
    )


def gaps(study: Study, groups: Sequence[Group], undrawn: Sequence[tuple[Group, str]]) -> str:
    """What the figures do not show: failures, unfinished stages, what was left out on reading."""
    failed = [run for run in study.attacks if run.metrics["num_failures"]]
    parts = []
    if failed:
        total = sum(run.metrics["num_failures"] for run in failed)
        parts.append(
            page.paragraph(
                f"{_count(total, 'example')} could not be attacked; they are in no denominator:"
            )
        )
        parts.append(
            _list(
                f"{run.source}: {run.metrics['num_failures']} of {run.metrics['num_examples']}"
                for run in failed
            )
        )
    else:
        parts.append(page.paragraph("No example failed to be attacked."))
    if study.incomplete:
        many = _count(len(study.incomplete), "unfinished stage")
        parts.append(page.paragraph(f"Left out: {many}."))
        parts.append(_list(study.incomplete))
    else:
        parts.append(page.paragraph("Every stage found had finished."))
    left_out = [line for group in groups for line in budgets.gaps(group)]
    for heading, lines in (
        ("On reading the files:", study.notes),
        ("Sizes without a place in a comparison at equal cost of the defence:", left_out),
    ):
        if lines:
            parts.append(page.paragraph(heading))
            parts.append(_list(lines))
    if undrawn:
        parts.append(page.paragraph("Figures that were not drawn, because no run gives them data:"))
        parts.append(
            _list(
                f"{title} ({family_name(group.model_family)}, {group.task})"
                for group, title in undrawn
            )
        )
    return "".join(parts)


def provenance(study: Study) -> str:
    """Versions and hashes, and what the words of the report mean."""
    rows = [
        {"what": key.removeprefix("versions."), "values": _short(key, values)}
        for key, values in study.provenance.items()
    ]
    definitions = "".join(
        f"<dt>{page.escape(word)}</dt><dd>{page.escape(meaning)}</dd>\n"
        for word, meaning in DEFINITIONS.items()
    )
    versions = (
        page.table(
            rows,
            {"What": page.column("what"), "Values found": page.column("values")},
            "From the manifests of the runs.",
        )
        if rows
        else page.paragraph("No manifest.json with versions was found.")
    )
    return f"<dl>\n{definitions}</dl>\n{versions}"


def _run_sentences(group: Group) -> str:
    labels = list(group.sizes.values())
    span = labels[0] if len(labels) == 1 else f"{labels[0]} to {labels[-1]}"
    sizes = f"{_count(len(labels), 'scaling point')} of {family_name(group.model_family)}"
    seeds = sorted({victim.seed for victim in group.victims})
    sentences = [
        f"{sizes} ({', '.join(group.sizes)}; {span} parameters) on the task {group.task}, "
        f"victim {'seed' if len(seeds) == 1 else 'seeds'} {_words(seeds)}."
    ]
    for attack in group.attack_names:
        mine = [run for run in group.attacks if run.attack == attack]
        iterations = {run.metrics["iterations"] for run in mine if run.metrics["num_attacked"]}
        attacked = sum(run.metrics["num_attacked"] for run in mine)
        sentences.append(
            f"{attack_name(attack)}: {_count(len(mine), 'run')} of "
            f"{_extent(iterations) or '0'} iterations on "
            f"{_extent({run.metrics['num_examples'] for run in mine})} examples each, "
            f"{attacked} of which were attacked."
        )
    for defence in group.defences:
        trainings = [stage for stage in group.trainings if stage.trained_on == defence]
        rounds = [entry for stage in trainings for entry in stage.rounds]
        if rounds:
            sentences.append(
                f"Adversarial training on {attack_name(defence)}: "
                f"{_count(len(trainings), 'victim')}, "
                f"rounds: {_extent({len(stage.rounds) for stage in trainings})}, "
                f"{_extent({entry.attack_iterations for entry in rounds})} attack iterations a "
                "round."
            )
    if not group.defences:
        sentences.append("No adversarial training.")
    return " ".join(sentences)


def _headline_table(group: Group) -> str:
    rows = tables.headline(group)
    attack, defence = rows[0]["attack"], rows[0]["trained_on"]

    def rate(when: str) -> page.Cell:
        def show(row: Mapping[str, Any]) -> str:
            bounds = row[f"asr_pooled_low_{when}"], row[f"asr_pooled_high_{when}"]
            return f"{page.percent(row[f'asr_pooled_{when}'])} {page.interval(*bounds)}"

        return page.Column(show, lambda row: row[f"asr_pooled_{when}"])

    name = page.escape(attack_name(attack))
    columns: dict[str, page.Cell] = {
        "Size": page.column("size", by="num_params"),
        "Scaling point": page.column("point"),
        "Seeds": page.column("seeds_before"),
        "Clean accuracy<br>before": page.column("accuracy_before", page.percent),
        "Iterations": page.column("iterations_before"),
        f"{name} ASR<br>before [95 %]": rate("before"),
    }
    caption = f"{name} against undefended victims"
    if defence:
        columns |= {
            "Round": page.column("round_after"),
            "Clean accuracy<br>after": page.column("accuracy_after", page.percent),
            "Iterations<br>after": page.column("iterations_after"),
            f"{name} ASR<br>after [95 %]": rate("after"),
            "Intervals<br>overlap": page.column("intervals_overlap"),
        }
        caption += f" and after the last evaluated round of training on {_attack(defence)}"
    caption += (
        f" ({page.escape(family_name(group.model_family))}, {page.escape(group.task)}). Rates and "
        "Wilson 95 % intervals of the final text, all seeds pooled. Data: " + _link("headline.csv")
    )
    return page.table(rows, columns, caption)


def identity_columns(groups: Sequence[Group], family: str = "model_family") -> dict[str, page.Cell]:
    """The leading columns of a table; family and task only where there is a choice.

    Args:
        groups: all that the table may show.
        family: what its rows call the model family.
    """
    columns: dict[str, page.Cell] = {"Size": page.column("size", by="num_params")}
    if len(groups) > 1:
        columns["Family"] = page.column(family, lambda name: page.escape(family_name(name)))
        columns["Task"] = page.column("task")
    return columns


def _attack(name: str) -> str:
    return page.escape(attack_name(name))


def _condition(name: str) -> str:
    return page.escape(condition_name(name))


def _link(file: str) -> str:
    return f'<a href="{file}">{file}</a>.'


def _list(items: Iterable[str]) -> str:
    lines = "".join(f"<li><code>{page.escape(item)}</code></li>\n" for item in items)
    return f'<ul class="warn">\n{lines}</ul>\n'


def _short(key: str, values: Sequence[str]) -> str:
    """Values of a manifest entry; many hashes are counted rather than listed."""
    if key in ("git_commit", "config_hash"):
        values = [_fingerprint(value) for value in values]
    if len(values) > 4:
        return f"{len(values)} different"
    return ", ".join(values)


def _fingerprint(value: str) -> str:
    """The first digits of a hash, with what follows a dash: `-dirty` must not get lost."""
    digits, dash, rest = value.partition("-")
    return digits[:FINGERPRINT_LENGTH] + dash + rest


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _words(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


def _extent(values: Iterable[int]) -> str:
    """`5`, or `4 to 8`; empty for nothing."""
    ordered = sorted(values)
    if not ordered:
        return ""
    return str(ordered[0]) if ordered[0] == ordered[-1] else f"{ordered[0]} to {ordered[-1]}"
