"""The unmodified client of the contract, as people use it, against a running `ppworker up`.

Each public method of the client is called here or has its excuse in `docs/sdk.py`.
"""

import ast
import gc
import importlib
import inspect
import json
import random
import runpy
import shutil
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
import requests

import demo_data
import demo_pdf
from api_cases import bare
from ppworker.api.app import PREFIX, routes
from running_program import Running

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the client's own classes are of an older pydantic's style
    import seeme

ROOT = Path(__file__).parents[2]
TOLD = runpy.run_path(str(ROOT / "docs" / "sdk.py"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("seeme-sdk"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A running program that lets people register."""
    folder = tmp_path_factory.mktemp("sdk") / "data"
    with Running(
        folder, "up", "--port", "0", "--processes", "1",
        PPWORKER_REGISTRATION="open", PPWORKER_POLL_S="0.5", PPWORKER_OPERATION_WAIT_S="60",
    ) as up:  # fmt: skip
        yield up


@pytest.fixture(scope="module")
def backend(server: Running) -> str:
    return f"{server.ready['address']}/api/v1"


def registered(backend: str) -> Any:
    """A client of somebody who has just registered and logged in."""
    client = seeme.Client(backend=backend)
    name = f"anna-{uuid4().hex[:8]}"
    client.register(name, f"{name}@example.org", "correct horse", "Anna", "Ash")
    client.login(name, "correct horse")
    return client


@pytest.fixture(scope="module")
def client(backend: str) -> Any:
    return registered(backend)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The client writes where it stands, and leaves its files to the garbage collector."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    gc.collect()


@pytest.fixture
def place(client: Any) -> Any:
    """A new dataset with its first version and a split."""
    return made_place(client)


def made_place(client: Any, *, content_type: str = "documents", multi: bool = True) -> Any:
    made = client.create_dataset(
        seeme.Dataset(
            name=f"d-{uuid4().hex[:8]}", content_type=content_type, multi_label=multi,
            default_splits=True,
        )
    )  # fmt: skip
    version = made.versions[0]
    train = client.find_split_with_name(version.splits, "train")
    return SimpleNamespace(
        dataset=made, id=made.id, version=version, v=version.id, split=train, s=train.id
    )


def eventually(check: Callable[[], Any], what: str, within_s: float = 120) -> Any:
    until = time.monotonic() + within_s
    while not (found := check()):
        assert time.monotonic() < until, f"{what} did not happen in {within_s} s"
        time.sleep(0.1)
    return found


def jobs_done(client: Any, place: Any) -> list[Any]:
    """The jobs of a dataset when all of them are over, as the client shows them."""

    def over() -> list[Any] | None:
        jobs = client.get_post_processor_jobs(place.id)
        is_over = jobs and all(job.description in {"completed", "failed"} for job in jobs)
        return list(jobs) if is_over else None

    found: list[Any] = eventually(over, "the end of all jobs")
    return found


def text_item(client: Any, place: Any, text: str, **more: Any) -> Any:
    item = seeme.DatasetItem(splits=[place.split], text=text, **more)
    return client.create_dataset_item(place.id, place.v, item)


def test_register_login_keys_and_the_end_of_an_account(backend: str) -> None:
    client = seeme.Client(backend=backend)
    name = f"bert-{uuid4().hex[:8]}"
    user = client.register(name, f"{name}@example.org", "correct horse", "Bert", "Birch")
    assert (user.username, user.firstname, user.name) == (name, "Bert", "Birch")
    assert user.apikey
    with pytest.raises(ValueError, match=r"\w"):
        client.register(name, f"{name}@example.org", "correct horse", "Bert", "Birch")
    with pytest.raises(requests.HTTPError, match="401"):
        client.login(name, "wrong horse")

    let_in = client.login(name, "correct horse")
    assert let_in.username == name
    assert client.is_logged_in()
    assert client.get_current_user_context().user_id == let_in.id
    client.update_applications()
    assert client.applications == client.get_applications()
    for each in client.applications:
        assert each.id == client.get_application_id(
            each.base_framework, each.framework, each.base_framework_version,
            each.framework_version, each.application,
        )  # fmt: skip

    made = client.create_api_key("nightly", expires_in_days=3)
    assert made.key.startswith(made.key_prefix)
    assert [key.id for key in client.get_api_keys()] == [made.id]
    by_key = seeme.Client(username=name, apikey=made.key, backend=backend)
    assert by_key.get_datasets() == []

    session = {"Authorization": f"Bearer {client.get_apikey()}"}
    client.logout()
    assert not client.is_logged_in()
    assert requests.get(f"{backend}/datasets", headers=session, timeout=30).status_code == 401
    assert by_key.get_datasets() == [], "a key that was made stays"

    older = {"Authorization": f"{name}:{made.key}"}  # as SDK 0.41 sends it
    assert requests.get(f"{backend}/datasets", headers=older, timeout=30).json() == []

    again = seeme.Client(backend=backend)
    again.login(name, "correct horse")
    again.delete_api_key(made.id)
    with pytest.raises(requests.HTTPError, match="401"):
        by_key.get_datasets()
    again.delete_user()
    with pytest.raises(requests.HTTPError, match="401"):
        seeme.Client(backend=backend).login(name, "correct horse")


def test_datasets_their_logo_and_sharing(client: Any, backend: str, here: Path) -> None:
    place = made_place(client)
    read = client.get_dataset(place.id)
    assert read.id in [each.id for each in client.get_datasets()]
    assert [split.name for split in read.versions[0].splits] == ["train", "valid", "test"]

    read.notes, read.name = "some notes", read.name + " renamed"
    changed = client.update_dataset(read)
    assert (changed.notes, changed.name) == (read.notes, read.name)
    assert changed.versions == client.get_dataset(place.id).versions, "nested lists are no orders"

    demo_data.render(["logo"]).resize((64, 64)).save(here / "logo.png")
    assert client.upload_dataset_logo(place.id, str(here), "logo.png").has_logo
    with_logo = client.get_dataset(place.id)
    with_logo.logo = str(here / "again.png")
    client.get_dataset_logo(with_logo)
    assert (here / "again.png").read_bytes()[:4] == b"\x89PNG"

    friend = registered(backend)
    assert friend.get_datasets() == []
    with pytest.raises(requests.HTTPError, match="404"):
        friend.get_dataset(place.id)
    shared = client.share_dataset(place.id, f"{friend.username}@example.org")
    assert (shared.entity_type, shared.entity_id) == ("datasets", place.id)
    (theirs,) = friend.get_datasets()
    assert (theirs.id, theirs.shared_with_me) == (place.id, True)

    client.delete_dataset(place.id)
    with pytest.raises(requests.HTTPError, match="404"):
        client.get_dataset(place.id)
    assert friend.get_datasets() == []


def test_versions_splits_and_labels(client: Any, place: Any) -> None:
    second = client.create_dataset_version(
        place.id, seeme.DatasetVersion(dataset_id=place.id, name="second")
    )
    second.description = "the second one"
    assert client.update_dataset_version(place.id, second).description == "the second one"
    assert client.get_dataset_version(place.id, second.id).name == "second"
    assert [each.id for each in client.get_dataset_versions(place.id)] == [place.v, second.id]

    split = client.create_dataset_split(
        place.id, second.id, seeme.DatasetSplit(name="extra", version_id=second.id)
    )
    split.name = "further"
    assert client.update_dataset_split(place.id, second.id, split).name == "further"
    assert client.get_dataset_split(place.id, second.id, split.id).name == "further"
    assert split.id in [each.id for each in client.get_dataset_splits(place.id, second.id)]

    label = client.create_dataset_label(
        place.id, second.id,
        seeme.Label(name="dog", version_id=second.id, color=client.random_color()),
    )  # fmt: skip
    label.name = "cat"
    assert client.update_dataset_label(place.id, second.id, label).name == "cat"
    assert client.get_dataset_label(place.id, second.id, label.id).color == label.color
    known = client.get_dataset_labels(place.id, second.id)
    assert client.find_label_with_name(known, "cat").id == label.id
    client.delete_dataset_label(place.id, second.id, label.id)
    assert client.get_dataset_labels(place.id, second.id) == []
    client.delete_dataset_split(place.id, second.id, split)
    assert split.id not in [each.id for each in client.get_dataset_splits(place.id, second.id)]
    client.delete_dataset_version(place.id, second.id)
    assert [each.id for each in client.get_dataset_versions(place.id)] == [place.v]


def test_a_copy_of_a_version_keeps_everything(client: Any, place: Any) -> None:
    label = client.create_dataset_label(
        place.id, place.v, seeme.Label(name="dog", version_id=place.v)
    )
    item = text_item(client, place, "a dog", name="note")
    client.annotate(
        place.id, place.v, seeme.Annotation(label_id=label.id, item_id=item.id, split_id=place.s)
    )
    client.update_dataset_item_state(place.id, place.v, item.id, "reviewed")
    copy = client.duplicate_dataset_version(place.id, place.v)
    assert copy.name == f"{place.version.name} copy"
    assert {split.name for split in copy.splits} == {"train", "valid", "test"}
    (copied,) = client.get_dataset_items(place.id, copy.id)
    assert (copied.id, copied.text) == (item.id, "a dog")
    assert copied.annotations[0].label_id == copy.labels[0].id != label.id
    (state,) = client.get_dataset_item_states(place.id, copy.id)
    assert state.state == "reviewed"
    train = client.find_split_with_name(copy.splits, "train")
    (row,) = [s for s in client.get_label_stats(place.id, copy.id, train.id) if s.label_id]
    assert row.count == 1


def processor(client: Any, place: Any, name: str, model_type: str, **more: Any) -> Any:
    return client.create_post_processor(
        place.id, seeme.CreatePostProcessorRequest(name=name, model_type=model_type, **more)
    )


def test_texts_images_and_pdfs_pass_through_real_models(
    client: Any, place: Any, here: Path
) -> None:
    rng = random.Random(7)
    address = demo_data.random_address(rng)
    lines = demo_data.random_lines(rng, address)
    demo_data.render(lines).save(here / "page.png")
    (here / "letter.pdf").write_bytes(demo_pdf.typeset([lines], page=(900, 740), dpi=150))

    ocr = processor(
        client, place, "read", "ocr", output_target="text",
        external_config=json.dumps({"file_types": ["png", "pdf"]}),
    )  # fmt: skip
    ner = processor(
        client, place, "addresses", "ner", output_target="annotations", order=1,
        auto_create_labels=True, confidence_threshold=0.0,
    )  # fmt: skip
    kind = processor(
        client, place, "kind", "classification", output_target="annotations", order=2,
        auto_create_labels=True,
    )  # fmt: skip
    assert [each.name for each in client.get_post_processors(place.id)] == [
        "read", "addresses", "kind",
    ]  # fmt: skip
    assert client.get_post_processor(place.id, ner.id).model_type == "ner"
    client.update_post_processor(
        place.id, kind.id, seeme.UpdatePostProcessorRequest(name="kind of file")
    )
    assert client.get_post_processor(place.id, kind.id).name == "kind of file"

    letter = text_item(client, place, address.line, name="letter")
    page, pdf = (
        client.create_dataset_item(
            place.id, place.v, seeme.DatasetItem(name=name, splits=[place.split])
        )
        for name in ("page", "scan")
    )
    uploaded = client.upload_dataset_item_file(place.id, place.v, page.id, str(here), "page.png")
    assert uploaded.extension == "png"
    client.upload_dataset_item_image(place.id, place.v, pdf.id, str(here), "letter.pdf")
    assert client.upload_dataset_item_file(place.id, place.v, pdf.id, str(here), "a.wav") is None

    jobs = jobs_done(client, place)
    assert {job.description for job in jobs} == {"completed"}
    assert {(job.item_name, job.post_processor_name) for job in jobs} >= {
        ("page", "read"), ("scan", "read"), ("letter", "addresses"), ("page", "addresses"),
    }  # fmt: skip

    read = client.get_dataset_item(place.id, place.v, page.id)
    assert address.zip_code in read.text, "the model has read the picture"
    assert address.zip_code in client.get_dataset_item(place.id, place.v, pdf.id).text
    labels = {each.id: each.name for each in client.get_dataset_labels(place.id, place.v)}
    of_letter = client.get_dataset_item(place.id, place.v, letter.id).annotations
    spans = [labels[a.label_id] for a in of_letter if a.coordinates]
    assert {"ZipCode", "StateName"} <= set(spans), spans

    # What the client's classes drop is there for whoever asks.
    address_of_jobs = f"{client.crud_endpoint('datasets')}/{place.id}/versions/{place.v}/items"
    detailed = client.api_get(f"{address_of_jobs}/{page.id}/jobs")
    assert {job["status"] for job in detailed} == {"completed"}
    assert {job["post_processor_id"] for job in detailed} == {ocr.id, ner.id, kind.id}
    assert json.loads(detailed[0]["result"])
    (raw,) = [i for i in client.api_get(address_of_jobs) if i["id"] == page.id]
    assert raw["job_status"] == {
        "pending": 0, "processing": 0, "completed": 3, "failed": 0, "total": 3,
    }  # fmt: skip
    of_item = client.get_post_processor_jobs(place.id, params={"item_id": page.id})
    assert {job.id for job in of_item} == {job["id"] for job in detailed}

    client.download_dataset_item_image(place.id, place.v, page.id, "whole.png")
    assert (here / "whole.png").read_bytes() == (here / "page.png").read_bytes()
    client.download_dataset_item_image(place.id, place.v, page.id, "small.png", thumbnail=True)
    assert 0 < (here / "small.png").stat().st_size < (here / "whole.png").stat().st_size

    client.delete_post_processor(place.id, kind.id)
    assert len(client.get_post_processors(place.id)) == 2
    assert len(client.get_post_processor_jobs(place.id)) == len(jobs), "finished jobs stay"


def test_a_failed_job_is_retried_when_its_cause_is_mended(
    client: Any, place: Any, here: Path
) -> None:
    rng = random.Random(8)
    pages = [demo_data.render(demo_data.random_lines(rng, demo_data.random_address(rng)))] * 3
    demo_data.save_document(pages, here / "pages.pdf", turned=False)
    ocr = processor(
        client, place, "hurried", "ocr",
        external_config=json.dumps({"timeout_s": 0.1, "max_attempts": 1}),
    )  # fmt: skip
    item = client.create_dataset_item(place.id, place.v, seeme.DatasetItem(splits=[place.split]))
    client.upload_dataset_item_file(place.id, place.v, item.id, str(here), "pages.pdf")
    (job,) = jobs_done(client, place)
    assert job.description == "failed"
    url = f"{client.crud_endpoint('datasets')}/{place.id}/versions/{place.v}/items/{item.id}/jobs"
    (failed,) = client.api_get(url)
    assert failed["error"]
    assert failed["attempts"] == 1

    client.update_post_processor(
        place.id, ocr.id,
        seeme.UpdatePostProcessorRequest(external_config=json.dumps({"timeout_s": 120})),
    )  # fmt: skip
    retried = client.api_post(f"{url}/{job.id}/retry", seeme.seeme_client.Base())
    assert retried["id"] == job.id, "the same job, with a fresh budget"
    assert retried["status"] in {"pending", "processing", "completed"}
    (job,) = jobs_done(client, place)
    assert job.description == "completed"
    with pytest.raises(requests.HTTPError, match="409"):
        client.api_post(f"{url}/{job.id}/retry", seeme.seeme_client.Base())


def test_annotations_and_label_stats(client: Any, place: Any) -> None:
    labels = {
        name: client.create_dataset_label(
            place.id, place.v, seeme.Label(name=name, version_id=place.v)
        ).id
        for name in ("dog", "cat")
    }
    items = [text_item(client, place, f"text {n}") for n in range(3)]

    def stats() -> dict[str, int]:
        rows = client.get_label_stats(place.id, place.v, place.s)
        counts = {name: client.get_stats_for_label(rows, id_).count for name, id_ in labels.items()}
        return counts | {"": client.get_stats_for_unlabelled(rows).count}

    assert stats() == {"dog": 0, "cat": 0, "": 3}
    made = client.annotate(
        place.id, place.v,
        seeme.Annotation(label_id=labels["dog"], item_id=items[0].id, split_id=place.s,
                         coordinates="0.5 0.5 0.2 0.2"),
    )  # fmt: skip
    assert stats() == {"dog": 1, "cat": 0, "": 2}
    made.label_id = labels["cat"]
    changed = client.update_annotation(place.id, place.v, made)
    assert changed.label_id == labels["cat"]
    assert stats() == {"dog": 0, "cat": 1, "": 2}
    (listed,) = client.get_dataset_items(place.id, place.v, params={"labelId": labels["cat"]})
    assert listed.annotations == [changed]
    unlabelled = client.get_dataset_items(
        place.id, place.v, params={"onlyUnlabelled": True, "splitId": place.s, "pageSize": 1}
    )
    assert [item.id for item in unlabelled] == [items[1].id]
    assert client.delete_annotation(place.id, place.v, made.id).id == made.id
    assert stats() == {"dog": 0, "cat": 0, "": 3}
    assert client.delete_dataset_item(place.id, place.v, place.s, items[2].id).id == items[2].id
    assert stats() == {"dog": 0, "cat": 0, "": 2}


def test_a_label_replaces_the_other_where_only_one_is_allowed(client: Any) -> None:
    place = made_place(client, multi=False)
    item = text_item(client, place, "either")
    dog, cat = (
        client.create_dataset_label(place.id, place.v, seeme.Label(name=name, version_id=place.v))
        for name in ("dog", "cat")
    )
    for label in (dog, cat):
        client.annotate(
            place.id, place.v,
            seeme.Annotation(label_id=label.id, item_id=item.id, split_id=place.s),
        )  # fmt: skip
    (left,) = client.get_dataset_item(place.id, place.v, item.id).annotations
    assert left.label_id == cat.id


def test_a_stale_write_is_told_the_version_that_is(client: Any, place: Any) -> None:
    item = text_item(client, place, "first")
    item.text = "second"
    changed = client.update_dataset_item(place.id, place.v, item, if_match=item.version)
    assert changed.text == "second"
    assert changed.version > item.version
    item.text = "third"
    with pytest.raises(seeme.seeme_client.PreconditionFailed) as stale:
        client.update_dataset_item(place.id, place.v, item, if_match=item.version)
    assert stale.value.current_version == changed.version
    assert client.update_dataset_item(place.id, place.v, item).text == "third"

    unset = client.get_dataset_item_state(place.id, place.v, item.id)
    assert (unset.state, unset.version) == ("", 0)
    client.update_dataset_item_state(place.id, place.v, item.id, "seen", if_match=0)
    with pytest.raises(seeme.seeme_client.PreconditionFailed) as stale:
        client.update_dataset_item_state(place.id, place.v, item.id, "seen", if_match=0)
    assert stale.value.current_version == 1
    (state,) = client.get_dataset_item_states(place.id, place.v)
    assert (state.item_id, state.state, state.version) == (item.id, "seen", 1)


def zipped(folder: Path, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as out:
        for each in sorted(folder.rglob("*")):
            if each.is_file():
                out.write(each, each.relative_to(folder))


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(each.relative_to(folder)): each.read_bytes()
        for each in folder.rglob("*")
        if each.is_file()
    }


def test_folders_go_in_and_come_out_the_same(client: Any, place: Any, here: Path) -> None:
    source = here / "source"
    for split, label, name in (("train", "dog", "a"), ("train", "cat", "b"), ("valid", "", "c")):
        (source / split / label).mkdir(parents=True, exist_ok=True)
        (source / split / label / f"{name}.txt").write_text(f"text of {name}")
    zipped(source, here / "in.zip")
    version = client.upload_dataset_version(
        place.id, place.v, str(here), "in.zip", format=seeme.DatasetFormat.FOLDERS
    )
    assert {label.name for label in version.labels} == {"dog", "cat"}
    items = client.get_dataset_items(place.id, place.v)
    assert sorted(item.text for item in items) == ["text of a", "text of b", "text of c"]

    client.download_dataset(
        place.id, place.v, extract_to_folder=str(here / "out"),
        export_format=seeme.DatasetFormat.FOLDERS, params={},
    )  # fmt: skip
    texts = {path: text for path, text in tree(here / "out").items() if path.endswith(".txt")}
    assert texts == tree(source)
    client.download_dataset(
        place.id, place.v, split_id=place.s, extract_to_folder=str(here / "part"), params={}
    )
    assert {p.split("/")[0] for p in tree(here / "part") if p.endswith(".txt")} == {"train"}

    plain = client.create_dataset_version(
        place.id, seeme.DatasetVersion(dataset_id=place.id, name="again")
    )
    shutil.copy(here / "in.zip", here / "dataset.zip")
    client.upload_dataset_version(place.id, plain.id, str(here))
    assert len(client.get_dataset_items(place.id, plain.id)) == 3


def test_yolo_goes_in_and_comes_out_the_same(client: Any, here: Path) -> None:
    place = made_place(client, content_type="images")
    demo_data.render(["a page"]).save(here / "page.png")
    item = client.create_dataset_item(
        place.id, place.v, seeme.DatasetItem(name="page", splits=[place.split])
    )
    client.upload_dataset_item_file(place.id, place.v, item.id, str(here), "page.png")
    label = client.create_dataset_label(
        place.id, place.v, seeme.Label(name="word", version_id=place.v, color="#112233")
    )
    client.annotate(
        place.id, place.v,
        seeme.Annotation(label_id=label.id, item_id=item.id, split_id=place.s,
                         coordinates="0.25 0.25 0.125 0.5"),
    )  # fmt: skip
    client.download_dataset(
        place.id, place.v, extract_to_folder=str(here / "out"), remove_download_file=False,
        export_format=seeme.DatasetFormat.YOLO, params={},
    )  # fmt: skip
    names = tree(here / "out")
    assert names[f"{place.v}.names"].decode().splitlines() == ["word"]
    assert json.loads(names["config.json"])["colors"] == {"word": "#112233"}

    other = made_place(client, content_type="images")
    version = client.upload_dataset_version(
        other.id, other.v, str(here), "dataset.zip", format=seeme.DatasetFormat.YOLO
    )
    assert [(each.name, each.color) for each in version.labels] == [("word", "#112233")]
    (back,) = client.get_dataset_items(other.id, other.v)
    (box,) = back.annotations
    assert [float(n) for n in box.coordinates.split()] == [0.25, 0.25, 0.125, 0.5]


def test_spacy_ner_goes_in_and_comes_out_the_same(client: Any, here: Path) -> None:
    place = made_place(client, content_type="ner")
    label = client.create_dataset_label(
        place.id, place.v, seeme.Label(name="city", version_id=place.v)
    )
    item = text_item(client, place, "to Portland, OR", name="note")
    client.annotate(
        place.id, place.v,
        seeme.Annotation(label_id=label.id, item_id=item.id, split_id=place.s, coordinates="3 11"),
    )  # fmt: skip
    client.download_dataset(
        place.id, place.v, extract_to_folder=str(here / "out"), remove_download_file=False,
        export_format=seeme.DatasetFormat.SPACY_NER, params={},
    )  # fmt: skip
    (told,) = json.loads((here / "out" / "train.json").read_text())
    assert told["annotations"] == [{"start": 3, "end": 11, "label": "city"}]
    other = made_place(client, content_type="ner")
    client.upload_dataset_version(
        other.id, other.v, str(here), "dataset.zip", format=seeme.DatasetFormat.SPACY_NER
    )
    (back,) = client.get_dataset_items(other.id, other.v)
    assert (back.text, [a.coordinates for a in back.annotations]) == (item.text, ["3 11"])


def test_tables_go_in_and_come_out_the_same(client: Any, here: Path) -> None:
    pd = importlib.import_module("pandas")  # it comes with the client, without types

    table = pd.DataFrame(
        {
            "size": [1, 2, 3],
            "colour": ["red", "green, dark", 'a "blue"'],
            "split": ["train", "train", "valid"],
            "labels": ["good", "bad", "good"],
        }
    )
    version = client.upload_df(table, name=f"table {uuid4().hex[:6]}")
    assert {label.name for label in version.labels} == {"good", "bad"}
    assert {split.name for split in version.splits} >= {"train", "valid"}
    assert len(client.get_dataset_items(version.dataset_id, version.id)) == 3
    back = client.download_df(version.dataset_id, version.id, download_folder=str(here / "df"))
    columns = ["size", "colour", "split", "labels"]
    assert set(columns) <= set(back.columns)
    ordered = back.sort_values("size").reset_index(drop=True)[columns]
    pd.testing.assert_frame_equal(ordered, table[columns], check_dtype=False)
    again = client.upload_df(table, dataset_id=version.dataset_id, name="second")
    assert again.dataset_id == version.dataset_id
    assert client.read_df(str(here / "df"), version.id).equals(back)


def test_lines_of_a_table_as_items(client: Any) -> None:
    place = made_place(client, content_type="tabular")
    version = client.add_columns_structured_dataset_version(place.version, ["a", "b"])
    assert json.loads(version.config) == {"column_names": "a,b", "csv_separator": ","}
    item = client.create_structured_dataset_item(version, place.split, {"a": 1, "b": "two"})
    assert client.get_structured_dataset_item(place.id, place.v, item.id) == {"a": "1", "b": "two"}


def test_inferences_become_items_with_and_without_their_annotations(
    client: Any, place: Any
) -> None:
    model = client.create_model(seeme.Model(name="elsewhere", kind="text_classification"))
    sent = [
        client.add_inference(
            model.id,
            seeme.Inference(
                name=f"text {n}",
                inference_items=[seeme.InferenceItem(prediction="dog", confidence=0.75)],
            ),
        )
        for n in range(2)
    ]
    sent[0].error_reported = True
    assert client.update_inference(sent[0]).error_reported
    listed = client.get_inferences(model.id)
    assert {each.id for each in listed} == {each.id for each in sent}
    assert client.get_inference_stats(model.id) == 2

    with_labels, without = client.get_inferences(model.id)
    kept = client.add_inferences(
        place.id, place.v, place.s, seeme.AddInferences(inferences=[with_labels])
    )
    assert kept.keep_annotations
    assert kept.inferences[0].dataset_item_id
    plain = client.add_inferences(
        place.id, place.v, place.s,
        seeme.AddInferences(inferences=[without], keep_annotations=False),
    )  # fmt: skip
    items = {i.id: i for i in client.get_dataset_items(place.id, place.v)}
    assert len(items[kept.inferences[0].dataset_item_id].annotations) == 1
    assert items[plain.inferences[0].dataset_item_id].annotations == []
    assert items[plain.inferences[0].dataset_item_id].text == without.name
    again = client.add_inferences(
        place.id, place.v, place.s, seeme.AddInferences(inferences=[with_labels])
    )
    assert again.inferences[0].dataset_item_id == kept.inferences[0].dataset_item_id
    assert client.get_inferences(model.id) == [], "those that were added are hidden"
    assert len(client.get_inferences(model.id, include_already_added=True)) == 2


def test_models_answer_and_keep_what_they_were_asked(client: Any, here: Path) -> None:
    types = seeme.ApplicationType
    built_in = {model.kind: model for model in client.get_models()}
    said = client.predict(built_in["ner"].id, "500 Oak Avenue, Portland, OR 97201", types.NER)
    assert "ZipCode" in {each.prediction for each in said.inference_items}
    demo_data.render(["wonderful page"]).save(here / "page.png")
    read = client.inference(built_in["ocr"].id, "page.png", types.OCR)
    assert "wonderful" in read.result + read.prediction
    client.download_inference_file(read.id, "again.png")
    assert (here / "again.png").read_bytes() == (here / "page.png").read_bytes()

    (version,) = client.get_model_versions(built_in["ner"].id)
    for ask in (client.version_inference, client.version_predict):
        assert ask(version, "97201 Portland", types.NER).model_version_id == version.id

    own = client.create_model(seeme.Model(name="own", kind="ner"))
    own.description = "of mine"
    assert client.update_model(own).description == "of mine"
    first = client.create_model_version(
        own.id, seeme.ModelVersion(name="v1", application_id=client.get_applications()[0].id)
    )
    first.model_id = own.id
    first.version = "1.0"
    assert client.update_model_version(first).version == "1.0"
    assert client.get_model_version(own.id, first.id).name == "v1"
    assert client.set_active_model_version(own.id, first.id).active_version_id == first.id
    added = client.add_inference(own.id, seeme.Inference(name="page"))
    filed = client.add_inference_file(added.id, str(here), "page.png", "image/png")
    assert filed.extension == "png"
    client.delete_model_version(own.id, first.id)
    client.delete_model(own.id)
    with pytest.raises(requests.HTTPError, match="404"):
        client.get_model(own.id)


def test_every_method_of_the_client_is_called_or_has_its_excuse() -> None:
    methods = {
        name
        for name, _ in inspect.getmembers(seeme.Client, inspect.isfunction)
        if not name.startswith("_")
    }
    told = [*TOLD["METHODS"], *TOLD["LOCAL"], *TOLD["EXCUSES"]]
    assert sorted(told) == sorted(methods)
    called = {
        node.attr
        for node in ast.walk(ast.parse(Path(__file__).read_text()))
        if isinstance(node, ast.Attribute)
    }
    assert set(TOLD["METHODS"]) - called == set()
    there = {bare(f"{each.method} {each.path.removeprefix(PREFIX)}") for each in routes()}
    asked = {bare(route) for each in TOLD["METHODS"].values() for route in each}
    assert asked - there == set()
    assert not hasattr(seeme.Client, "download_dataset_item_file"), "its bug is mended; say so"
