"""The report: complete, self-contained, deterministic, careful with old files, free of jax."""

import base64
import csv
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import robustjax.analysis
from robustjax.analysis import canvas
from robustjax.analysis.report import write_report
from robustjax.errors import UserError

TWO_SIZES = {"nano-28k": 28_320, "nano-900k": 913_664}
TINY = {"sizes": {"nano-28k": 28_320}, "num_examples": 8, "num_rounds": 1}
VOID = {"meta", "img", "br", "link"}
FIGURES = [
    "clean_accuracy",
    "asr_vs_size",
    "asr_vs_attack_compute_gcg",
    "asr_vs_attack_compute_random_token",
    "slope_vs_size",
    "asr_vs_round",
    "asr_after_rounds",
    "asr_vs_defence_compute",
    "accuracy_vs_round",
    "asr_at_budgets_gcg_trained_on_gcg",
    "asr_at_budgets_gcg_trained_on_random_token",
    "asr_at_budgets_random_token_trained_on_gcg",
    "asr_at_budgets_random_token_trained_on_random_token",
    "offence_vs_defence",
    "transfer_attack",
    "transfer_iterations",
    "transfer_matrix",
]


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails on tags that do not balance."""

    def __init__(self, path):
        super().__init__()
        self.attributes, self.tags, self._open, self._text = [], [], [], []
        self.source = Path(path).read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self._open == []
        self.text = " ".join(" ".join(self._text).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open[-1:] not in (["style"], ["script"]):
            self._text.append(data)

    def values(self, name):
        return [value for key, value in self.attributes if key == name]


def read_csv(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def contents(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.fixture
def not_drawn(monkeypatch):
    """Skip the drawing, by far the slowest part, in tests that look elsewhere."""
    monkeypatch.setattr(canvas, "draw", lambda *_: None)
    monkeypatch.setattr(canvas, "png", lambda _: b"png")
    monkeypatch.setattr(canvas, "svg", lambda _: b"svg")


@pytest.fixture(scope="module")
def full(shared_study, tmp_path_factory):
    """The report on a study of two sizes, nothing missing."""
    out = tmp_path_factory.mktemp("report") / "R"
    write_report([shared_study(sizes=TWO_SIZES, num_examples=32)], out, title="A title")
    return out


def test_all_figures_tables_and_fits_are_there(full):
    tables = [*FIGURES, "headline", "training_rounds", "attack_runs", "efficiency", "answers"]
    drawn = {f"{stem}-nano_spam.{kind}" for stem in FIGURES for kind in ("png", "svg")}
    expected = {f"{stem}.csv" for stem in tables} | drawn
    assert set(contents(full)) == expected | {"fits.json", "index.html"}
    assert all(read_csv(full / f"{stem}.csv") for stem in tables)
    fits = json.loads((full / "fits.json").read_text())
    assert set(fits) == {"attack_scaling", "size_trend", "offence_defence", "headline"}
    assert {row["attack"] for row in fits["attack_scaling"]} == {"gcg", "random_token"}
    assert {row["position"] for rows in fits.values() for row in rows} == {"suffix"}
    assert "NaN" not in (full / "fits.json").read_text()


def test_the_page_holds_the_figures_and_loads_nothing(full):
    page = Page(full / "index.html")
    images = page.values("src")
    assert len(images) == len(FIGURES)
    embedded = {base64.b64decode(image.removeprefix("data:image/png;base64,")) for image in images}
    assert embedded == {file.read_bytes() for file in full.glob("*.png")}
    assert not {"iframe", "object"} & set(page.tags)
    assert not re.search(r"url\(|@import|https?://|fetch\(|XMLHttp", page.source)
    for link in page.values("href"):
        if link == "data:,":  # the icon
            continue
        if link.startswith("#"):
            assert link[1:] in page.values("id")
        else:
            assert (full / link).is_file()
    assert "prefers-color-scheme: dark" in page.source


def test_the_page_says_what_was_run_and_found(full):
    text = Page(full / "index.html").text
    assert text.startswith("A title")
    assert "2 scaling points of nano (nano-28k, nano-900k; 28k to 0.9M parameters)" in text
    assert "Adversarial training on RandomToken: 2 victims, rounds: 3, 3 to 5 attack" in text
    runs = read_csv(full / "attack_runs.csv")
    attacked = sum(int(run["num_attacked"]) for run in runs if run["attack"] == "gcg")
    assert f"GCG: 14 runs of 8 iterations on 32 examples each, {attacked} of which" in text
    for row in read_csv(full / "headline.csv"):
        before, low = float(row["asr_pooled_before"]), float(row["asr_pooled_low_before"])
        assert f"{100 * before:.1f} % [{100 * low:.1f}, " in text
        assert row["intervals_overlap"] in ("yes", "no")
    assert "git_commit 0123456789ab-dirty" in text
    assert "never to be shown" not in text


def test_every_caption_gives_n_seeds_and_interval(full):
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", (full / "index.html").read_text())
    assert len(captions) == len(FIGURES)
    for number, caption in enumerate(captions, 1):
        assert f"Figure {number}." in caption
        assert "No data" not in caption
        stem = FIGURES[number - 1]
        if stem in ("slope_vs_size", "offence_vs_defence"):  # of lines and crossings, not of rates
            continue
        assert re.search(r"1 seed; per seed n = (128|32) examples( offered, )?", caption)
        assert "Intervals are Wilson 95 %." in caption
        is_plain = stem in ("clean_accuracy", "asr_vs_size", "accuracy_vs_round", "transfer_matrix")
        assert ("smoothed" in caption) != is_plain


def test_the_page_begins_with_the_four_questions(full):
    page = Page(full / "index.html")
    answers = page.source.partition('<section id="answers">')[2].partition("</section>")[0]
    assert answers.count("<h3>") == 4
    rows = read_csv(full / "answers.csv")
    for row in rows:
        assert row["subject"] in page.text
        assert row["sentence"] in page.text
    of_size = {row["verdict"] for row in rows if row["question"] == "Does size alone help?"}
    assert of_size == {"withheld"}  # two sizes carry no trend
    first, second = page.source.index('id="answers"'), page.source.index('id="run"')
    assert first < second


def test_tables_of_fits_show_what_fits_json_holds(full):
    page = Page(full / "index.html")
    fits = json.loads((full / "fits.json").read_text())
    slopes = page.source.partition('<section id="slopes">')[2].partition("</section>")[0]
    shown = [row for row in fits["attack_scaling"] if row["round"] in (0, 3)]
    assert slopes.count("<tr>") - 1 == len({(r["point"], r["attack"], r["training_attack"])
                                            for r in shown})  # fmt: skip
    for row in shown:
        if row["method"] == "binomial":
            assert f'data-value="{row["slope"]!r}"' in slopes
    balance = page.source.partition('<section id="balance">')[2].partition("</section>")[0]
    for row in fits["offence_defence"]:
        assert f'data-value="{row["slope"]!r}"' in balance


def test_panels_for_a_paper(lone_attack, tmp_path):
    page = write_report([lone_attack()], tmp_path / "R", for_a_paper=True)
    pdfs = sorted(file.name for file in (tmp_path / "R").glob("*.pdf"))
    assert len(pdfs) == 8  # four figures of one panel, with legend and without
    assert "asr_vs_size-nano_spam-1-legend.pdf" in pdfs
    assert all(f'href="{name}"' in page.read_text() for name in pdfs)
    assert all((tmp_path / "R" / name).read_bytes().startswith(b"%PDF") for name in pdfs)
    write_report([lone_attack("again")], tmp_path / "R")
    assert not list((tmp_path / "R").glob("*.pdf"))


def test_csv_numbers_are_in_full_precision(full, shared_study):
    (row,) = [
        row
        for row in read_csv(full / "attack_runs.csv")
        if row["source"] == "attack/nano-28k-s0/none-r0/gcg"
    ]
    folder = shared_study(sizes=TWO_SIZES, num_examples=32) / row["source"]
    summary = json.loads((folder / "summary.json").read_text())
    assert row["metric"] == "attack_success_rate"
    assert float(row["asr"]) == summary["attack_success_rate"]
    assert float(row["asr_low"]) == summary["asr_interval"][0]


def test_the_same_records_give_the_same_bytes_wherever_they_lie(shared_study, tmp_path):
    one = shared_study(**TINY)
    two = tmp_path / "moved" / "here"
    shutil.copytree(one, two)
    write_report([one], tmp_path / "R1")
    write_report([two], two / "report")
    assert contents(tmp_path / "R1") == contents(two / "report")
    assert [path.name for path in two.iterdir() if path.name.startswith(".")] == []


def test_the_users_matplotlib_style_changes_nothing(lone_attack, tmp_path):
    import matplotlib

    folder = lone_attack()
    write_report([folder], tmp_path / "R1")
    with matplotlib.rc_context({"xtick.labelsize": 20, "axes.titlelocation": "left"}):
        write_report([folder], tmp_path / "R2")
    assert contents(tmp_path / "R1") == contents(tmp_path / "R2")


@pytest.mark.parametrize(
    ("plan", "undrawn"),
    [
        ({"iterations": {"gcg": 1, "random_token": 1}}, ["longer attack"]),
        ({"fixed_asr": 0.0}, ["Slope"]),
        ({"fixed_asr": 1.0, "seeds": (0, 1)}, ["Slope"]),
        (
            {"defences": ()},
            ["over adversarial training rounds", "defence compute", "another", "longer"],
        ),
        ({"attacks": ()}, ["against model size", "rounds", "defence compute", "Slope"]),
        ({"attacks": ("random_token",), "defences": ("gcg",)}, ["longer attack"]),
    ],
)
def test_unusual_studies(shared_study, tmp_path, monkeypatch, plan, undrawn):
    monkeypatch.setattr(canvas, "png", lambda _: b"png")
    monkeypatch.setattr(canvas, "svg", lambda _: b"svg")
    page = Page(write_report([shared_study(**{**TINY, **plan})], tmp_path / "R"))
    gaps = page.source.partition('<section id="gaps">')[2]
    assert ("Figures that were not drawn" in gaps) == bool(undrawn)
    for words in undrawn:
        assert words in gaps
    assert "nan" not in re.sub("nano", "", page.text).lower()


def test_seeds_are_named_in_captions(not_drawn, shared_study, tmp_path):
    plan = {**TINY, "fixed_asr": 1.0, "seeds": (0, 1)}
    text = Page(write_report([shared_study(**plan)], tmp_path / "R")).text
    assert "2 seeds; per seed n = 8 examples offered" in text
    assert "from the lowest to the highest seed" in text


def test_a_lone_attack(lone_attack, tmp_path):
    page = Page(write_report([lone_attack()], tmp_path / "R"))
    # Clean accuracy, success against size and against compute, and its slope.
    assert len(page.values("src")) == 4
    assert "No adversarial training." in page.text
    assert "after the last evaluated round" not in page.text


def test_a_size_without_data_is_named(not_drawn, study, tmp_path):
    root = study(sizes=TWO_SIZES, num_examples=32)
    shutil.rmtree(root / "attack/nano-900k-s0/none-r0/gcg")
    shutil.rmtree(root / "advtrain/nano-900k-s0/gcg")
    page = Page(write_report([root], tmp_path / "R"))
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page.source)
    assert "No data: 0.9M (trained on GCG)." not in captions[0]  # attack records fill the gap
    assert "attack records and validation" in captions[0]
    assert "No data: 0.9M (GCG, undefended)." in captions[1]
    assert "No data: 0.9M (GCG, undefended)." in captions[2]
    assert "No data" not in captions[3]
    assert "No data: 0.9M (GCG)." in captions[FIGURES.index("transfer_iterations")]
    row = next(row for row in read_csv(tmp_path / "R/headline.csv") if row["size"] == "0.9M")
    assert (row["asr_pooled_before"], row["intervals_overlap"]) == ("", "")


def test_failures_and_unfinished_stages_are_listed(not_drawn, study, tmp_path):
    from robustjax.evaluation import records as rec

    root = study(**TINY)
    folder = root / "attack/nano-28k-s0/none-r0/gcg"
    records = rec.read_records(folder / "attack_records.jsonl")
    failed = {"failure": "too long", "attacked_text": None, "success": False, "iterations": []}
    records[0] = rec.AttackRecord(**{**vars(records[0]), **failed})
    rec.write_records(folder / "attack_records.jsonl", records)
    summary = json.loads((folder / "summary.json").read_text())
    summary.update(rec.summarise(records))
    (folder / "summary.json").write_text(rec.canonical_json(summary))
    (root / "advtrain/nano-28k-s0/gcg/DONE").unlink()
    text = Page(write_report([root], tmp_path / "R")).text
    assert "1 example could not be attacked" in text
    assert "attack/nano-28k-s0/none-r0/gcg: 1 of 8" in text
    assert "Left out: 1 unfinished stage. advtrain/nano-28k-s0/gcg" in text


def test_runs_with_options_are_attacks_of_their_own(not_drawn, study, lone_attack, tmp_path):
    """Against the same victim, with the same seed: neither an error, nor one number of all."""
    variants = ("", "momentum", "keep_best", "stop_at_success", "stop_at_success+momentum")
    folders = [study(**TINY)]
    for number, variant in enumerate(variants[1:]):
        folders.append(lone_attack(f"w{number}", variant=variant))
    text = Page(write_report(folders, tmp_path / "R")).text
    for name in (
        "GCG (momentum)", "GCG (keeps the best)", "GCG (stops at success)",
        "GCG (stops at success, momentum)",
    ):  # fmt: skip
        assert f"{name}: 1 run of 8 iterations" in text
    rows = {row["attack"]: row for row in read_csv(tmp_path / "R" / "asr_vs_size.csv")
            if row["trained_on"] == "none" and row["attack"] != "random_token"}  # fmt: skip
    assert {attack: row["metric"] for attack, row in rows.items()} == {
        "gcg": "attack_success_rate",
        "gcg+momentum": "attack_success_rate",
        "gcg+keep_best": "attack_success_rate_best",
        "gcg+stop_at_success": "attack_success_rate_stopped",
        "gcg+stop_at_success+momentum": "attack_success_rate_stopped",
    }
    assert {row["num_seeds"] for row in rows.values()} == {"1"}
    curves = {
        file.stem.removeprefix("asr_vs_attack_compute_"): {row["metric"] for row in read_csv(file)}
        for file in (tmp_path / "R").glob("asr_vs_attack_compute_gcg*.csv")
    }
    undrawn = {name for name, metrics in curves.items() if not metrics}
    assert undrawn <= {"gcg_with_stop_at_success", "gcg_with_stop_at_success_with_momentum"}
    assert {name: metrics for name, metrics in curves.items() if metrics} == {
        "gcg": {"asr_at"},
        "gcg_with_momentum": {"asr_at"},
        "gcg_with_keep_best": {"asr_best_at"},
    }
    assert "GCG (stops at success): attack success against attack compute" in text
    fits = json.loads((tmp_path / "R" / "fits.json").read_text())
    fitted = {row["attack"] for row in fits["attack_scaling"]}
    assert fitted == {"gcg", "random_token", "gcg+momentum", "gcg+keep_best"}
    runs = read_csv(tmp_path / "R" / "attack_runs.csv")
    assert {run["metric"] for run in runs} == {
        f"attack_success_rate{word}" for word in ("", "_best", "_stopped")
    }


@pytest.mark.parametrize("variant", ["momentum", "keep_best", "stop_at_success"])
def test_a_report_of_nothing_but_one_run_with_an_option(not_drawn, lone_attack, tmp_path, variant):
    folder = lone_attack(variant=variant)
    write_report([folder], tmp_path / "R")
    (row,) = read_csv(tmp_path / "R" / "headline.csv")
    summary = json.loads((folder / "summary.json").read_text())
    assert row["attack"] == f"gcg+{variant}"
    assert float(row["asr_pooled_before"]) == summary[row["metric"]]
    assert ("attack_success_rate" in summary) == (variant == "momentum")


def test_names_from_records_cannot_become_html(not_drawn, lone_attack, tmp_path):
    folder = lone_attack(task="<b>&\"x'", point="<script>")
    page = Page(write_report([folder], tmp_path / "R", title="</title><x>"))
    assert page.tags.count("script") == 1  # ours
    assert "x" not in page.tags
    assert page.tags.count("title") == 1
    assert "<b>&\"x'" in page.text
    assert all("/" not in name and "<" not in name for name in contents(tmp_path / "R"))


def test_several_tasks_share_tables_but_not_figures(not_drawn, lone_attack, tmp_path):
    folders = [lone_attack("a", task="spam"), lone_attack("b", task="imdb")]
    page = Page(write_report(folders, tmp_path / "R"))
    assert {row["task"] for row in read_csv(tmp_path / "R/asr_vs_size.csv")} == {"spam", "imdb"}
    assert len(list((tmp_path / "R").glob("asr_vs_size-*.png"))) == 2
    assert "Figure 9." in page.text
    rows = read_csv(tmp_path / "R/tasks_asr_vs_size.csv")
    assert [(row["task"], row["num_params"]) for row in rows] == [
        ("imdb", "28320"), ("spam", "28320"),
    ]  # fmt: skip
    assert "GCG on imdb 8, GCG on spam 8" in page.text


def test_an_old_report_is_replaced_and_other_files_stay(
    not_drawn, shared_study, lone_attack, tmp_path
):
    out = tmp_path / "R"
    write_report([shared_study(**TINY)], out)
    (out / "notes.txt").write_text("mine")
    (out / "photo.png").write_text("mine")
    write_report([lone_attack()], out)
    assert "asr_vs_round.csv" not in contents(out)
    assert (out / "notes.txt").read_text() == (out / "photo.png").read_text() == "mine"
    write_report([lone_attack("again")], tmp_path / "fresh")
    assert contents(tmp_path / "fresh").keys() == contents(out).keys() - {"notes.txt", "photo.png"}


def test_a_failed_report_leaves_the_old_one(not_drawn, lone_attack, tmp_path):
    folder, out = lone_attack(), tmp_path / "R"
    write_report([folder], out)
    before = contents(out)
    (folder / "attack_records.jsonl").write_text("broken")
    with pytest.raises(UserError, match="line 1"):
        write_report([folder], out)
    assert contents(out) == before


def test_a_file_is_no_folder_for_a_report(lone_attack, tmp_path):
    (tmp_path / "R").write_text("")
    with pytest.raises(UserError, match="R is a file"):
        write_report([lone_attack()], tmp_path / "R")


def test_reports_are_written_where_jax_cannot_be_imported(lone_attack, tmp_path):
    program = """
import sys

class NoJax:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("jax", "jaxlib", "flax", "optax", "orbax", "transformers"):
            raise ImportError(f"{name} is not here")

sys.meta_path.insert(0, NoJax())
from robustjax.analysis import canvas
from robustjax.analysis.report import write_report
print(write_report([sys.argv[1]], sys.argv[2]))
assert "jax" not in sys.modules
"""
    root = Path(robustjax.analysis.__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", program, str(lone_attack()), str(tmp_path / "R")],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(tmp_path / "R" / "index.html")
    assert Page(tmp_path / "R" / "index.html").values("src")
