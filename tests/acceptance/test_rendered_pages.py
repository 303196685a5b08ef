"""Pages are printed with random words and addresses; exactly these come back from the models."""

import os
import random
import subprocess
import sys
import time

import pytest
import sqlalchemy as sa

import demo_data
from ppworker import settings, wiring
from ppworker.domain.post_processor import PostProcessor
from ppworker.embedded import acquire
from ppworker.pipeline.uploads import ingest
from ppworker.runners import registry
from ppworker.runners.base import RawAnswer, RunnerInput
from ppworker.runners.rapidocr import RapidOcrRunner
from ppworker.store import datasets, job_operations, post_processors, schema, stats, verify
from ppworker.store.ids import new_id

PATIENCE_S = 240
PARTS = {
    "AddressNumber": "number",
    "StreetName": "street",
    "StreetNamePostType": "street_type",
    "PlaceName": "city",
    "StateName": "state",
    "ZipCode": "zip_code",
}


class Place:
    """A dataset on the embedded servers, with real models in real worker processes."""

    def __init__(self, deps, env):
        self.deps = deps
        self.env = env
        with self.begin() as tx:
            self.user = datasets.ensure_user(tx, "local")
            self.dataset = datasets.create_dataset(tx, self.user, "pages")
            self.split = datasets.get_split(tx, self.user, "pages/train")
            self.add(tx, "page text", "rapidocr", "ocr", order=0, output_target="text")
            self.add(tx, "addresses", "usaddress", "ner", order=1, output_target="annotations")

    def begin(self):
        return self.deps.db.begin()

    def add(self, tx, name, runner, model_type, **more):
        spec = registry.spec(runner)
        processor = PostProcessor(
            id=new_id(),
            dataset_id=self.dataset.id,
            name=name,
            runner=runner,
            model_type=model_type,
            reads=spec.reads,
            media_types=spec.media_types,
            **more,
        )
        post_processors.create_post_processor(tx, self.user, processor)

    def start_worker(self):
        return subprocess.Popen([sys.executable, "-m", "ppworker.process"], env=self.env)

    def upload(self, paths):
        """Ids of the items, in the order of the files."""
        uploads = [ingest.Upload(name=path.name, path=path) for path in paths]
        return ingest.take_upload(self.deps, self.split, uploads).item_ids

    def jobs(self):
        with self.begin() as tx:
            return job_operations.list_jobs(tx, self.user, dataset_id=self.dataset.id)

    def wait(self):
        by = time.monotonic() + PATIENCE_S
        while any(job.status in {"pending", "processing"} for job in self.jobs()):
            assert time.monotonic() < by, "the jobs do not come to an end"
            time.sleep(0.2)

    def text(self, item_id):
        query = "SELECT text FROM dataset_items WHERE id = :id"
        with self.begin() as tx:
            return tx.execute(sa.text(query), {"id": item_id}).scalar_one()

    def spans(self, item_id):
        """(label, start, end, quoted text) of every annotation, from left to right."""
        query = """
            SELECT l.name, a.geometry, a.text, a.kind, a.source FROM annotations a
            JOIN labels l ON l.id = a.label_id
            WHERE a.item_id = :id ORDER BY (a.geometry->>'start')::int"""
        with self.begin() as tx:
            rows = tx.execute(sa.text(query), {"id": item_id}).all()
        assert {(row.kind, row.source) for row in rows} <= {("span", "model")}
        return [(r.name, r.geometry["start"], r.geometry["end"], r.text) for r in rows]

    def labels(self):
        with self.begin() as tx:
            rows = tx.execute(
                sa.text("SELECT id, name FROM labels WHERE version_id = :v"),
                {"v": self.split.version_id},
            )
            return {row.name: row.id for row in rows}


@pytest.fixture
def place(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("PPWORKER_")]:
        monkeypatch.delenv(name)
    data_dir = tmp_path / "data"
    with acquire(data_dir) as servers:
        given = {"database_url": servers.database_url, "redis_url": servers.redis_url}
        given |= {"data_dir": str(data_dir)}
        loaded = settings.load(**given)
        env = {f"PPWORKER_{name.upper()}": value for name, value in given.items() if value}
        db = wiring.open_database(loaded, name="ppworker test")
        broker = wiring.hint_broker(loaded)
        schema.migrate(db)
        place = Place(wiring.build_deps(loaded, db, broker=broker), {**os.environ, **env})
        workers = [place.start_worker() for _ in range(2)]
        try:
            yield place
        finally:
            for worker in workers:
                worker.terminate()
            codes = [worker.wait(timeout=60) for worker in workers]
            broker.close()
            db.close()
    assert codes == [0, 0]


@pytest.mark.slow
@pytest.mark.timeout(PATIENCE_S + 60)
def test_exactly_what_was_printed_is_found(place, tmp_path):
    seed = int(os.environ.get("PAGES_SEED") or random.randrange(2**32))
    print(f"to repeat: PAGES_SEED={seed}")
    printed = print_pages(tmp_path, random.Random(seed))

    items = place.upload(printed)
    place.wait()

    assert {(job.status, job.error) for job in place.jobs()} == {("completed", "")}
    for item_id, (lines, addresses) in zip(items, printed.values(), strict=True):
        text = place.text(item_id)
        assert text.split() == " ".join(lines).split()
        spans = place.spans(item_id)
        assert [(name, quoted) for name, _, _, quoted in spans] == [
            (label, getattr(address, part))
            for address in addresses
            for label, part in PARTS.items()
        ]
        assert all(text[start:end] == quoted for _, start, end, quoted in spans)
    assert_stats(place, items=len(items), addresses=sum(len(a) for _, a in printed.values()))


@pytest.mark.slow
def test_an_upright_line_is_not_read_upside_down(tmp_path):
    # rapidocr's own classifier takes the second line for one that stands on its head, and would
    # have "sitnr gner gnner bgner" read in it.
    lines = ["engineer orange picture umbrella", "scientist engineer butter gardener",
             "elephant dinosaur picture garden", "1250 Prospect Street, Phoenix, AZ 45057"]  # fmt: skip
    demo_data.render(lines).save(tmp_path / "page.png")
    runner = RapidOcrRunner()
    runner.load()
    (answer,) = runner.predict(
        [RunnerInput(key="1", name="page", media_type="image/png", path=tmp_path / "page.png")]
    )
    runner.close()
    assert isinstance(answer, RawAnswer)
    assert answer.raw["text"].splitlines() == lines


def print_pages(folder, rng):
    """Path of each document: the lines printed on it and the addresses among them."""
    printed = {}
    for name, page_count in [("a.png", 1), ("turned.jpg", 1), ("fax.tiff", 2), ("book.pdf", 2)]:
        addresses = [demo_data.random_address(rng) for _ in range(page_count)]
        texts = [demo_data.random_lines(rng, address) for address in addresses]
        images = [demo_data.render(lines) for lines in texts]
        demo_data.save_document(images, folder / name, turned=name == "turned.jpg")
        printed[folder / name] = ([line for lines in texts for line in lines], addresses)
    return printed


def assert_stats(place, *, items: int, addresses: int):
    """Each page has one address, so each label stands once per page; every item has them all."""
    labels = place.labels()
    assert set(labels) == set(PARTS)
    expected = {("label", label_id): (addresses, items) for label_id in labels.values()}
    expected |= {("total", None): (addresses * len(PARTS), items)}
    with place.begin() as tx:
        found = stats.read_stats(tx, [place.split.id])
        assert found == stats.recount(tx, [place.split.id])
        assert verify.run(tx) == []
    assert {
        (row.bucket, row.label_id): (row.annotation_count, row.item_count) for row in found
    } == expected
