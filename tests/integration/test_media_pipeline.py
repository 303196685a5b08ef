"""Sounds and documents from the upload to what comes of their jobs."""

from collections.abc import Iterator, Sequence

import docx
import pytest
from PIL import Image

from factories import World
from ppworker.domain.post_processor import PostProcessor
from ppworker.errors import Invalid, RunnerError
from ppworker.pipeline.runs import execute, trial
from ppworker.pipeline.uploads import ingest
from ppworker.runners import registry
from ppworker.runners.base import RawAnswer, RunnerInput
from ppworker.runners.pool import RunnerPool
from ppworker.store import items
from recordings import KINDS, SPEECH, make, recording, tone, wav


class Real:
    """A real model, in a process of its own as in a worker."""

    shares_process = False

    def __init__(self, pool: RunnerPool, processor: PostProcessor) -> None:
        self._pool = pool
        permit = pool.acquire(processor.runner, processor.runner_config)
        assert permit is not None
        self._permit = permit

    def predict(
        self, inputs: Sequence[RunnerInput], *, timeout_s: float
    ) -> list[RawAnswer | RunnerError]:
        with self._permit:
            return self._pool.predict(self._permit, inputs, timeout_s)


@pytest.fixture(scope="module")
def pool() -> Iterator[RunnerPool]:
    pool = RunnerPool()
    yield pool
    pool.close()


def speech(world: World, **options):
    spec = registry.spec("pocketsphinx")
    values = {"model_type": "stt", "output_target": "both", "reads": spec.reads} | options
    return world.processor(runner="pocketsphinx", media_types=spec.media_types, **values)


def add(world: World, *paths):
    uploads = [ingest.Upload(name=path.name, path=path) for path in paths]
    return ingest.take_upload(world.deps, world.train, uploads).item_ids


def run(world: World, pool, processor):
    while (batch := world.claim(processor)).jobs:
        execute.run(world.deps, world.labels, processor, Real(pool, processor), batch)


def item(world: World, item_id):
    with world.deps.db.begin() as tx:
        found = items.find_item(tx, world.user, item_id)
    assert found is not None
    return found


# ---- sounds --------------------------------------------------------------------------------------


def test_speech_becomes_text_and_segments_of_the_item(world: World, pool) -> None:
    processor = speech(world)
    ids = add(world, SPEECH / "cards-001.wav", SPEECH / "cards-005.wav")
    run(world, pool, processor)
    short, longer = (item(world, id_) for id_ in ids)
    assert short.text == "ten of clubs"
    assert longer.text.endswith("seven of hearts")
    for found in (short, longer):
        (segment,) = world.annotations(found.id)
        assert (segment.kind, segment.label, segment.text) == ("segment", "speech", found.text)
        begin, end = segment.geometry["start"], segment.geometry["end"]
        assert 0 <= begin < end <= found.duration_s
        assert 0 < segment.score < 1
        assert segment.model_version.startswith("pocketsphinx ")
    world.check()


@pytest.mark.parametrize("extension", ["mp3", "m4a", "flac", "ogg", "mp4", "mov"])
def test_the_same_words_are_heard_in_every_container(
    world: World, pool, tmp_path, extension
) -> None:
    import av

    with av.open(str(SPEECH / "cards-003.wav")) as source:
        frames = list(source.decode(audio=0))
    samples = tone(0)
    for frame in frames:
        samples.frombytes(bytes(frame.planes[0])[: 2 * frame.samples])
    _, codec, options = KINDS[extension]
    path = recording(tmp_path / f"x.{extension}", samples, codec, **options)
    processor = speech(world)
    (id_,) = add(world, path)
    run(world, pool, processor)
    found = item(world, id_)
    assert found.text == "seven of clubs"
    assert found.duration_s == pytest.approx(len(samples) / 16_000, abs=0.1)
    assert found.media_type == KINDS[extension][0]
    world.check()


def test_a_long_recording_is_cut_into_segments_in_order(world: World, pool) -> None:
    processor = speech(world)
    (id_,) = add(world, SPEECH / "librivox-chapter.mp3")
    run(world, pool, processor)
    found = item(world, id_)
    segments = world.annotations(id_)
    assert len(segments) == 5
    times = [(each.geometry["start"], each.geometry["end"]) for each in segments]
    assert times == sorted(times)
    flat = [second for pair in times for second in pair]
    assert flat == sorted(flat)
    assert flat[0] >= 0
    assert flat[-1] <= found.duration_s == pytest.approx(27.23, abs=0.1)
    assert found.text == " ".join(each.text for each in segments)


def test_broken_and_silent_sounds_are_items_whose_jobs_say_what_is_wrong(
    world: World, pool, tmp_path
) -> None:
    processor = speech(world)
    cut = tmp_path / "cut.wav"
    cut.write_bytes((SPEECH / "cards-005.wav").read_bytes()[:40_000])
    odd = tmp_path / "odd.wav"
    odd.write_bytes(wav(bytes(3200), rate=1))
    mute = recording(tmp_path / "mute.mp4", tone(0), "aac", video=True, sound=False)
    silent = tmp_path / "silent.wav"
    silent.write_bytes(wav(bytes(64_000)))
    add(world, cut, odd, mute, silent)
    run(world, pool, processor)
    by_name = {job.item: job for job in world.jobs(processor)}
    assert by_name["silent.wav"].status == "completed"
    for name, why in (("cut.wav", "cut short"), ("odd.wav", "samples per second"),
                      ("mute.mp4", "no sound")):  # fmt: skip
        assert (by_name[name].status, by_name[name].reason) == ("failed", "unreadable_input")
        assert why in by_name[name].error
    world.check()


def test_a_recording_above_the_limit_fails_and_names_the_option(
    world: World, pool, tmp_path
) -> None:
    processor = speech(world, runner_config={"max_duration_s": 1})
    add(world, make(tmp_path, "wav", seconds=2))
    run(world, pool, processor)
    (job,) = world.jobs(processor)
    assert (job.status, job.reason) == ("failed", "too_large")
    assert "runner_config.max_duration_s" in job.error


def test_a_post_processor_of_speech_can_be_tried_without_a_file(world: World, pool) -> None:
    processor = speech(world)
    said = trial.try_out(world.deps, pool, processor, None, version_id=world.dataset.version_id)
    assert said.error is None
    assert said.raw == {"text": "", "segments": [], "language": "en", "duration": 0.5}
    path = SPEECH / "cards-001.wav"
    said = trial.try_out(world.deps, pool, processor, path, version_id=world.dataset.version_id)
    assert said.applied is not None
    assert [draft.text for draft in said.applied.drafts] == ["ten of clubs"]


# ---- documents -----------------------------------------------------------------------------------


def document(path, *lines):
    made = docx.Document()
    for line in lines:
        made.add_paragraph(line)
    made.save(str(path))
    return path


def test_the_text_of_a_word_document_is_the_items_and_is_read_at_once(
    world: World, tmp_path
) -> None:
    ner = world.processor(model_type="ner", reads="text")
    (id_,) = add(world, document(tmp_path / "a.docx", "Dear Sir", "Yours"))
    world.run(ner, lambda given: {"predictions": [span(given.text)]})
    (found,) = world.annotations(id_)
    assert found.text == item(world, id_).text == "Dear Sir\nYours"


def span(text):
    """All of it."""
    return {"label": "all", "start": 0, "end": len(text), "text": text}


def test_a_document_without_a_text_is_an_item_whose_job_says_why(world: World, tmp_path) -> None:
    ner = world.processor(model_type="ner", reads="text", max_attempts=1)
    kinds = world.processor()
    broken, old = tmp_path / "broken.docx", tmp_path / "old.doc"
    broken.write_bytes(document(tmp_path / "a.docx", "x").read_bytes()[:-300])
    old.write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(4000))
    add(world, broken, old)
    world.run(ner)
    world.run(kinds)
    by_name = {job.item: job for job in world.jobs(ner)}
    assert {job.reason for job in by_name.values()} == {"no_input"}
    assert "broken or locked" in by_name["broken.docx"].error
    assert "save it as .docx" in by_name["old.doc"].error
    assert world.statuses(kinds) == ["completed", "completed"]
    world.check()


def test_a_document_whose_text_is_too_long_is_refused_as_a_text_file_is(
    world: World, tmp_path
) -> None:
    most = world.deps.settings.max_text_bytes
    long = document(tmp_path / "long.docx", "ab" * (most // 2), "c")
    with pytest.raises(Invalid, match="PPWORKER_MAX_TEXT_BYTES") as caught:
        add(world, long)
    assert caught.value.field == "text"
    assert not world.sql("SELECT 1 FROM dataset_items")


def test_pages_of_a_tiff_are_stored_and_bound_what_a_model_says(world: World, tmp_path) -> None:
    boxes = world.processor(model_type="detection", media_types=("image/*",), reads="file")
    path = tmp_path / "x.tiff"
    first, second = Image.new("L", (100, 50)), Image.new("L", (80, 40))
    first.save(path, save_all=True, append_images=[second])
    (id_,) = add(world, path)
    said = [{"label": "a", "bbox": [1, 1, 9, 9], "page": page} for page in (0, 1, 2)]
    world.run(boxes, {"predictions": said})
    assert item(world, id_).page_count == 2
    assert sorted(each.page for each in world.annotations(id_)) == [0, 1]
    (job,) = world.jobs(boxes)
    assert job.dropped == {"outside": 1}


# ---- texts that models write ---------------------------------------------------------------------


def test_a_models_text_above_the_limit_is_not_written_but_counted_and_kept_in_the_result(
    world: World,
) -> None:
    most = world.deps.settings.max_text_bytes
    writer = world.processor(model_type="llm", output_target="text")
    within, above = world.add("one", "two")
    texts: dict[str | None, str] = {"one": "x" * most, "two": "x" * most + "y"}
    world.run(writer, lambda given: {"text": texts[given.text]})
    assert len(item(world, within).text) == most
    assert item(world, above).text == "two"
    by_item = {job.item_id: job for job in world.jobs(writer)}
    assert by_item[above].status == "completed"
    assert by_item[above].dropped == {"text_too_long": 1}
    assert not by_item[within].dropped
    ((kept,),) = world.sql(
        "SELECT length(raw->>'text') FROM job_results WHERE item_id = :item", item=above
    )
    assert kept == most + 1
    world.check()
