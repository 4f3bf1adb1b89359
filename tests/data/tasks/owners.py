"""Small files in the formats in which the tasks' owners publish theirs, and a server for them."""

import contextlib
import csv
import functools
import gzip
import hashlib
import http.server
import importlib
import io
import json
import tarfile
import threading

STORED = ("imdb", "spam", "helpful", "harmless", "strongreject")
SIZES = {
    "imdb": {"train": 12, "validation": 8},
    "spam": {"train": 9, "validation": 5},  # of 10 and 6 mails, one of each empty
    "helpful": {"train": 10, "validation": 6},  # of 11 and 7 pairs, one of each half empty
    "harmless": {"train": 10, "validation": 6},
    "strongreject": {"validation": 4},
}


def builder_class(name):
    return importlib.import_module(f"robustjax.data.tasks.{name}.builder").Builder


def write_files(name, folder):
    """Writes all files of a task under the names that they have in a folder of downloads."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = builder_class(name).SOURCES
    for key, data in CONTENTS[name]().items():
        (folder / sources[key].file_name).write_bytes(data)
    return folder


def tar_gz(members):
    """An archive of `(TarInfo or name, content)`."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for member, data in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            info.size = info.size or len(data)
            archive.addfile(info, io.BytesIO(data.ljust(info.size, b"\0")))
    return stream.getvalue()


def reviews(split):
    """Names and texts in an order that is not the task's."""
    count = SIZES["imdb"]["train" if split == "train" else "validation"] // 2
    for number in reversed(range(count)):
        for kind, stars in (("pos", 9), ("neg", 2)):
            name = f"aclImdb/{split}/{kind}/{number}_{stars}.txt"
            text = f"A {kind} review,<br /><br />number {number} of {split}: tr\u00e8s bien."
            yield name, text.encode()


def imdb():
    folder = tarfile.TarInfo("aclImdb/train")
    folder.type = tarfile.DIRTYPE
    others = [("aclImdb/README", b"read me"), ("aclImdb/train/unsup/0_0.txt", b"no label")]
    return {"archive": tar_gz([(folder, b""), *others, *reviews("test"), *reviews("train")])}


def spam():
    def rows(split, count):
        for number in range(count):
            text = " " if number == 3 else f"subject {number} of {split}\nBuy \U0001f600 {number}!"
            subject, _, body = text.partition("\n")
            more = {"label_text": "spam" if number % 2 else "ham", "message_id": number}
            yield {"text": text, "label": number % 2, "subject": subject, "message": body} | more

    return {"train": jsonl(rows("train", 10)), "validation": jsonl(rows("test", 6))}


def hh_rlhf():
    def rows(split, count):
        for number in range(count):
            asked = f"\n\nHuman: question {number} of {split}?\n\nAssistant:"
            rejected = "" if number == 5 else f"{asked} no"
            yield {"chosen": f"{asked} yes", "rejected": rejected}

    sizes = {"train": 11, "validation": 7}
    return {
        split: gzip.compress(jsonl(rows(split, count)), mtime=0) for split, count in sizes.items()
    }


def strongreject():
    stream = io.StringIO(newline="")
    table = csv.writer(stream)
    table.writerow(["category", "source", "forbidden_prompt"])
    for number in range(4):
        table.writerow(["none", "made up", f'Say "nothing", please;\nline two of {number}'])
    return {"validation": stream.getvalue().encode()}


CONTENTS = {
    "imdb": imdb,
    "spam": spam,
    "helpful": hh_rlhf,
    "harmless": hh_rlhf,
    "strongreject": strongreject,
}


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@contextlib.contextmanager
def server(folder):
    """Serves a folder on the loopback device.

    Yields its address, the paths asked for, and a list that makes it break off while it has an
    element.
    """
    asked, breaks_off = [], []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def copyfile(self, source, target):
            data = source.read()
            target.write(data[: len(data) // 2] if breaks_off else data)

        def log_message(self, *arguments):
            asked.append(self.path)

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_port}", asked, breaks_off
        finally:
            running.shutdown()
            thread.join()


def sha256(data):
    return hashlib.sha256(data).hexdigest()
