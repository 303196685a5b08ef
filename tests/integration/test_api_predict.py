"""Inferences by HTTP: models are asked about texts and files, and what they say becomes items."""

import hashlib
import json
import os
import random
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

import demo_data
from api_server import Api, new_user, served_api
from api_shapes import Stamp, fits
from factories import World
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.inferences.collected import duration
from ppworker.pipeline.setup.built_in_models import built_in_id
from ppworker.store.ids import new_id

INFERENCE = {
    "id": str, "created_at": Stamp, "updated_at": Stamp, "name": str, "description": str,
    "prediction": str, "confidence": float, "model_id": str, "model_version_id": str,
    "extension": str, "user_id": str, "error_reported": bool, "error": str,
    "application_id": str, "inference_host": str, "inference_time": str, "end_to_end_time": str,
    "dataset_item_id": str, "result": str, "inference_items": list, "hidden": bool,
    "privacy_enabled": bool, "config": str,
}  # fmt: skip


@pytest.fixture(scope="module")
def served(module_deps: Deps) -> Iterator[Api]:
    """One server for all tests: a model stays loaded from one to the next."""
    with served_api(module_deps, World(module_deps)) as api:
        yield api


def model(
    api: Api, runner: str = "EchoRunner", options: dict[str, Any] | None = None, **columns: Any
) -> str:
    """Id of a model that runs one of the scripted runners, as only a person with a shell makes."""
    id_ = new_id()
    config = {"runner": f"scripted_runners:{runner}", "runner_config": options or {}}
    columns = {"id": id_, "user_id": api.world.user, "name": "m"} | columns
    columns["config"] = json.dumps(config) if runner else ""
    names = ", ".join(columns)
    values = ", ".join(f":{name}" for name in columns)
    api.world.sql(f"INSERT INTO models ({names}) VALUES ({values})", **columns)
    return str(id_)


def ask(api: Api, model_id: str, text: str, *, client: Any = None) -> Any:
    # As clients of the contract send it: JSON without saying so.
    body = json.dumps({"input_text": text, "temperature": 0.7, "max_tokens": None})
    return (client or api.me).post(f"/inferences/{model_id}", content=body)


def ask_file(api: Api, model_id: str, content: bytes, name: str = "a.txt", path: str = "") -> Any:
    files = {"file": (name, content, "application/octet-stream")}
    return api.me.post(path or f"/inferences/{model_id}", files=files)


def good(response: Any) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    fits(found, INFERENCE)
    return found


def listed(api: Api, model_id: str, **params: Any) -> list[str]:
    response = api.me.get(f"/models/{model_id}/inferences", params=params)
    assert response.status_code == 200, response.text
    return [each["id"] for each in response.json()]


def added(api: Api, *inferences: dict[str, Any], client: Any = None) -> list[dict[str, Any]]:
    response = (client or api.me).post(
        f"{api.split}/add_inferences", json={"inferences": inferences}
    )
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["inferences"]
    return found


def hosts() -> set[int]:
    """Processes of this one that hold models."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError):  # it may end meanwhile
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            said = stat.with_name("cmdline").read_text()
            if parent == os.getpid() and "ppworker.runners.host" in said:
                found.add(int(stat.parent.name))
    return found


def test_a_text_is_answered_and_kept(served: Api) -> None:
    own = model(served)
    said = good(ask(served, own, "cat on a mat"))
    assert (said["name"], said["extension"], said["dataset_item_id"]) == ("cat on a mat", "", "")
    assert (said["prediction"], said["confidence"], said["model_id"]) == ("cat", 1.0, own)
    (item,) = said["inference_items"]
    assert (item["prediction"], item["confidence"], item["inference_id"]) == ("cat", 1, said["id"])
    assert said["inference_time"].endswith(("ms", "s"))
    assert json.loads(said["config"]) == {"model_version": "echo-1"}
    assert listed(served, own) == [said["id"]]
    assert served.me.get(f"/models/{own}/stats").json() == 1
    assert served.me.get(f"/inferences/{said['id']}/download").status_code == 404


def test_a_file_is_answered_kept_and_given_back(served: Api) -> None:
    own = model(served)
    content = b"dog in <b>fog</b>"
    said = good(ask_file(served, own, content, "../../d\u202eog.html"))
    assert (said["name"], said["extension"]) == ("dog.html", "html")
    file = served.me.get(f"/inferences/{said['id']}/download")
    assert (file.status_code, file.content) == (200, content)
    assert file.headers["content-disposition"].startswith("attachment")
    assert file.headers["x-content-type-options"] == "nosniff"
    served.me.put(f"/inferences/{said['id']}", json={"name": "é" * 100_000})
    named = served.me.get(f"/inferences/{said['id']}/download").headers["content-disposition"]
    assert len(named) < 2_000
    version = served.me.post(f"/models/{own}/versions", json={}).json()["id"]
    path = f"/inferences/{own}/versions/{version}"
    by_version = good(ask_file(served, own, content, path=path))
    assert by_version["model_version_id"] == version
    assert listed(served, own, modelVersionIds=version) == [by_version["id"]]


BAD: list[tuple[dict[str, Any], int, str]] = [
    ({"content": b"{"}, 400, ""),
    ({"content": b"[" * 100_000}, 400, ""),
    ({"content": b"[]"}, 422, ""),
    ({"json": {}}, 422, "input_text"),
    ({"json": {"input_text": None}}, 422, "input_text"),
    ({"json": {"input_text": 5}}, 422, "input_text"),
    ({"json": {"input_text": ""}}, 422, "input_text"),
    ({"json": {"input_text": "\0"}}, 422, "input_text"),
    ({"json": {"input_text": "x" * (4 * 1024 * 1024 + 1)}}, 422, "input_text"),
    ({"json": {"input_text": "UNREADABLE"}}, 422, "input_text"),
    ({"json": {"input_text": "x", "temperature": "warm"}}, 422, "temperature"),
    ({"content": b"x", "headers": {"Content-Type": "text/plain"}}, 400, ""),
    ({"files": {"other": ("a", b"x")}}, 422, "file"),
    ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 400, "file"),
]


def test_a_bad_question_is_refused_and_nothing_is_kept(served: Api, subtests: Any) -> None:
    own = model(served)
    for request, status, field in BAD:
        with subtests.test(str(request)[:50]):
            response = served.me.post(f"/inferences/{own}", **request)
            assert response.status_code == status, response.text
            assert response.json()["field"] == field
    assert served.me.get(f"/models/{own}/stats").json() == 0
    collects = model(served, runner="")
    refused = ask(served, collects, "x")
    assert (refused.status_code, refused.json()["field"]) == (409, "model_id")
    for id_ in (str(uuid4()), "x"):
        assert ask(served, id_, "x").status_code == 404
    assert served.me.post(f"/inferences/{own}/versions/{uuid4()}", json={}).status_code == 404


def test_a_file_that_the_model_does_not_take_is_refused_before_it_is_loaded(served: Api) -> None:
    ocr = str(built_in_id("rapidocr"))
    for response, field in (
        (ask_file(served, ocr, b"no picture"), "file"),
        (ask(served, ocr, "no picture"), "input_text"),
    ):
        assert (response.status_code, response.json()["field"]) == (422, field)
        assert "image/png" in response.json()["message"]
    reads_text = ask_file(served, str(built_in_id("usaddress")), b"\x89PNG\r\n\x1a\n0000")
    assert (reads_text.status_code, reads_text.json()["field"]) == (422, "file")


def test_models_run_in_processes_of_their_own_and_a_crash_costs_one_request(served: Api) -> None:
    own = model(served)
    said = good(ask(served, own, "cat"))
    assert said["prediction"] == "cat"
    assert hosts(), "also for one that a worker would hold itself"
    crashing = model(served, "CrashRunner")
    response = ask(served, crashing, "CRASH")
    assert response.status_code == 503, response.text
    assert response.headers["retry-after"]
    assert good(ask(served, own, "dog"))["prediction"] == "dog"


def test_what_a_private_model_was_asked_is_not_kept(served: Api) -> None:
    private = model(served, privacy_enabled=True)
    said = good(ask_file(served, private, b"secret words"))
    assert (said["name"], said["privacy_enabled"]) == ("", True)
    assert served.me.get(f"/inferences/{said['id']}/download").status_code == 404
    digest = hashlib.sha256(b"secret words").hexdigest()
    assert served.world.sql("SELECT 1 FROM blobs WHERE sha256 = :s", s=digest) == []


def test_what_was_said_elsewhere_is_kept_and_its_file_follows(served: Api) -> None:
    own = model(served, runner="")
    version = served.me.post(f"/models/{own}/versions", json={}).json()["id"]
    body = {
        "id": str(uuid4()), "name": "x.png", "extension": ".PNG", "confidence": None,
        "inference_time": "228.278543ms", "dataset_item_id": str(uuid4()),
        "inference_items": [{"prediction": "cat", "confidence": 0.75, "coordinates": ""}],
    }  # fmt: skip
    kept = good(served.me.post(f"/inferences/{own}/add", json=body))
    assert kept["id"] != body["id"], "ids are the server's"
    assert (kept["dataset_item_id"], kept["model_version_id"]) == ("", version)
    assert (kept["extension"], kept["inference_time"]) == ("png", "228.278543ms")
    filed = good(ask_file(served, own, b"GIF89a", "x.gif", f"/inferences/{kept['id']}/upload"))
    assert (filed["name"], filed["extension"]) == ("x.png", "gif")
    assert served.me.get(f"/inferences/{kept['id']}/download").content == b"GIF89a"
    reported = good(
        served.me.put(
            f"/inferences/{kept['id']}",
            json=kept | {"error_reported": True, "inference_items": [], "description": None,
                         "prediction": "other", "dataset_item_id": str(uuid4())},
        )
    )  # fmt: skip
    assert reported["error_reported"] is True
    assert reported["inference_items"] == kept["inference_items"], "nested lists are no change"
    assert (reported["prediction"], reported["dataset_item_id"]) == ("", "")
    unknown = {"model_version_id": str(uuid4())}
    refused = served.me.post(f"/inferences/{own}/add", json=unknown)
    assert (refused.status_code, refused.json()["field"]) == (409, "model_version_id")
    for wrong, field in (
        ({"confidence": 2}, "confidence"),
        ({"inference_items": [{"confidence": -1}]}, "inference_items[0].confidence"),
        ({"name": 5}, "name"),
        ({"inference_time": 5.5}, "inference_time"),
    ):
        refused = served.me.post(f"/inferences/{own}/add", json=wrong)
        assert (refused.status_code, refused.json()["field"]) == (422, field), refused.text


def test_lists_are_paged_newest_first_and_filtered(served: Api) -> None:
    own = model(served, runner="")
    ids = [
        served.me.post(f"/inferences/{own}/add", json={"name": f"text {n}"}).json()["id"]
        for n in range(7)
    ]
    newest_first = ids[::-1]
    assert listed(served, own) == newest_first
    pages = [listed(served, own, pageSize=3, pageCount=n) for n in range(4)]
    assert [len(page) for page in pages] == [3, 3, 1, 0]
    assert [id_ for page in pages for id_ in page] == newest_first
    served.me.put(f"/inferences/{ids[0]}", json={"hidden": True})
    (echo,) = added(served, {"id": ids[1], "name": "text 1"})
    assert echo["dataset_item_id"]
    assert listed(served, own, includeAlreadyAdded="False", showHidden="False") == newest_first[:5]
    assert listed(served, own, includeAlreadyAdded="True") == newest_first[:6]
    assert listed(served, own, includeAlreadyAdded="True", showHidden="True") == newest_first
    assert listed(served, own, pageSize="", pageCount="", modelVersionIds="") == newest_first[:5]
    assert listed(served, own, modelVersionIds=f"{uuid4()},x") == []
    assert served.me.get(f"/models/{own}/stats").json() == 7
    for params, field in (({"pageSize": 0}, "pageSize"), ({"pageCount": -1}, "pageCount"),
                          ({"showHidden": "perhaps"}, "showHidden")):  # fmt: skip
        wrong = served.me.get(f"/models/{own}/inferences", params=params)
        assert (wrong.status_code, wrong.json()["field"]) == (400, field)


def test_a_kept_inference_brings_its_file_and_its_text_into_a_split(served: Api) -> None:
    own = model(served)
    content = b"bird in a bush"
    filed = good(ask_file(served, own, content, "bird.txt"))
    text = good(ask(served, own, "cow in a meadow"))
    echo = added(served, filed, text)
    assert all(each["dataset_item_id"] for each in echo)
    item = served.me.get(f"{served.version}/items/{echo[0]['dataset_item_id']}").json()
    assert (item["name"], item["extension"], item["text"]) == (
        "bird.txt", "txt", content.decode(),
    )  # fmt: skip
    assert item["size_bytes"] == len(content)
    assert len(item["annotations"]) == 1
    plain = served.me.get(f"{served.version}/items/{echo[1]['dataset_item_id']}").json()
    assert (plain["text"], plain["size_bytes"]) == ("cow in a meadow", 0)
    assert listed(served, own) == []
    shown = served.me.get(
        f"/models/{own}/inferences", params={"includeAlreadyAdded": "True"}
    ).json()
    assert {each["id"]: each["dataset_item_id"] for each in shown} == {
        each["id"]: each["dataset_item_id"] for each in echo
    }
    again = added(served, *shown)
    assert [each["dataset_item_id"] for each in again] == [
        each["dataset_item_id"] for each in shown
    ], "adding again makes nothing new"
    served.world.check()


def test_an_inference_that_says_only_its_id_is_taken_as_it_is_kept(served: Api) -> None:
    own = model(served)
    said = good(ask_file(served, own, b"fox and box", "fox.txt"))
    # A client's class sends every field, null and empty where it knows nothing.
    (echo,) = added(served, dict.fromkeys(said) | {"id": said["id"], "inference_items": []})
    item = served.me.get(f"{served.version}/items/{echo['dataset_item_id']}").json()
    labels = {each["id"]: each["name"] for each in served.me.get(f"{served.version}/labels").json()}
    assert item["name"] == "fox.txt"
    assert [labels[each["label_id"]] for each in item["annotations"]] == ["fox.txt"]


def test_an_inference_can_go_into_a_second_dataset_too(served: Api) -> None:
    own = model(served)
    said = good(ask_file(served, own, b"owl on a bowl", "owl.txt"))
    added(served, said)
    (again,) = served.me.get(
        f"/models/{own}/inferences", params={"includeAlreadyAdded": "True"}
    ).json()
    other = served.me.post(
        "/datasets", json={"name": f"d-{uuid4().hex[:6]}", "content_type": "text",
                           "default_splits": True}
    ).json()  # fmt: skip
    version = other["versions"][0]
    split = f"/datasets/{other['id']}/versions/{version['id']}/splits/{version['splits'][0]['id']}"
    answer = served.me.post(f"{split}/add_inferences", json={"inferences": [again]}).json()
    (echo,) = answer["inferences"]
    assert echo["dataset_item_id"] not in {"", again["dataset_item_id"]}
    item = served.me.get(
        f"/datasets/{other['id']}/versions/{version['id']}/items/{echo['dataset_item_id']}"
    ).json()
    assert item["size_bytes"] == len(b"owl on a bowl")


def test_nobody_gets_a_file_by_the_id_of_somebody_elses_inference(served: Api) -> None:
    own = model(served)
    said = good(ask_file(served, own, b"very private", "private.txt"))
    stranger = new_user(served.deps, f"stranger-{uuid4().hex[:6]}")
    theirs = served.client(stranger)
    for method, path, body in (
        ("GET", f"/inferences/{said['id']}/download", None),
        ("PUT", f"/inferences/{said['id']}", {}),
    ):
        assert theirs.request(method, path, json=body).status_code == 404
    upload = theirs.post(f"/inferences/{said['id']}/upload", files={"file": ("a", b"x")})
    assert upload.status_code == 404
    dataset = theirs.post(
        "/datasets", json={"name": "d", "content_type": "text", "default_splits": True}
    ).json()
    version = dataset["versions"][0]
    path = f"/datasets/{dataset['id']}/versions/{version['id']}"
    split = f"{path}/splits/{version['splits'][0]['id']}"
    answer = theirs.post(f"{split}/add_inferences", json={"inferences": [said]}).json()
    (echo,) = answer["inferences"]
    item = theirs.get(f"{path}/items/{echo['dataset_item_id']}").json()
    assert item["size_bytes"] == 0, "a place for a file, and no file"
    assert listed(served, own) == [said["id"]], "its owner's inference was not touched"


def test_whoever_shares_a_dataset_brings_own_files_and_takes_none(served: Api) -> None:
    friend = new_user(served.deps, f"friend-{uuid4().hex[:6]}")
    theirs = served.client(friend)
    served.world.sql(
        "INSERT INTO shares (dataset_id, user_id, role) VALUES (:d, :u, 'writer')",
        d=served.world.dataset.id, u=friend,
    )  # fmt: skip
    magika = str(built_in_id("magika"))
    kept = theirs.post(f"/inferences/{magika}/add", json={"name": "f.txt", "extension": "txt"})
    id_ = kept.json()["id"]
    theirs.post(f"/inferences/{id_}/upload", files={"file": ("f.txt", b"of a friend")})
    (echo,) = added(served, {"id": id_, "name": "f.txt", "extension": "txt"}, client=theirs)
    item = served.me.get(f"{served.version}/items/{echo['dataset_item_id']}").json()
    assert (item["text"], item["user_id"]) == ("of a friend", str(served.world.user))
    mine = served.me.post("/blobs", files={"file": ("x", b"of the owner")}).json()["sha256"]
    stolen = theirs.post(
        f"{served.split}/add_inferences", json={"inferences": [{"name": "x", "blob": mine}]}
    )
    assert (stolen.status_code, stolen.json()["field"]) == (422, "inferences[0].blob")


def test_those_who_wait_for_models_leave_threads_to_the_others(served: Api) -> None:
    own = model(served, "SlowRunner", {"seconds": 0.2})
    good(ask(served, own, "a"))
    with ThreadPoolExecutor(12) as pool:
        waiting = [pool.submit(ask, served, own, "b") for _ in range(12)]
        began = time.monotonic()
        assert served.me.get("/datasets").status_code == 200
        assert time.monotonic() - began < 2, "while twelve wait their turn"
        assert [each.result().status_code for each in waiting] == [200] * 12


def test_idle_models_give_their_memory_back(deps: Deps, world: World) -> None:
    settings = deps.settings.model_copy(update={"idle_unload_s": 3.0})
    object.__setattr__(deps, "settings", settings)
    before = hosts()
    with served_api(deps, world) as api:
        good(ask(api, model(api), "cat"))
        assert hosts() - before
        until = time.monotonic() + 20
        while hosts() - before:
            assert time.monotonic() < until, "it stays loaded"
            time.sleep(0.05)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.228278543, "228.278543ms"), (0, "0ms"), (0.0000004, "0.0004ms"), (1, "1s"),
     (1.5, "1.5s"), (123.25, "2m3.25s"), (59.9999999999, "1m0s")],
)  # fmt: skip
def test_durations_are_written_as_clients_read_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# The real client with real models.


@pytest.fixture
def seeme(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The client of the contract, writing where the test may."""
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its classes are of an older pydantic's style
        import seeme
    return seeme


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # it leaves files to the collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_real_client_predicts_and_adds(api: Api, seeme: Any, tmp_path: Path) -> None:
    key = api.me.headers["authorization"].removeprefix("Bearer ")
    client = seeme.Client("user", key, f"{api.address}/api/v1")
    assert {each.name for each in client.applications} >= {"magika", "rapidocr"}
    built_in = {each.name: each for each in client.get_models()}
    types = seeme.types.ApplicationType
    rng = random.Random(4)
    address = demo_data.random_address(rng)
    picture = tmp_path / "page.png"
    demo_data.render(demo_data.random_lines(rng, address)).save(picture)

    code = "import os\n\ndef main() -> None:\n    print(os.getcwd())\n" * 4
    kind = client.predict(built_in["magika"].id, code, types.TEXT_CLASSIFICATION)
    assert kind.prediction == "python"
    seen = client.predict(built_in["magika"].id, str(picture), types.IMAGE_CLASSIFICATION)
    assert (seen.prediction, seen.name, seen.extension) == ("png", "page.png", "png")
    read = client.predict(built_in["rapidocr"].id, str(picture), types.OCR)
    assert address.zip_code in read.result
    version = client.get_model_version(built_in["magika"].id, seen.model_version_id)
    again = client.version_predict(version, str(picture), types.IMAGE_CLASSIFICATION)
    assert again.prediction == "png"

    own = client.create_model(seeme.Model(name="own", kind="text_classification"))
    told = client.add_inference(
        own.id,
        seeme.Inference(
            name="said elsewhere",
            inference_items=[seeme.InferenceItem(prediction="cat", confidence=0.5)],
        ),
    )
    client.add_inference_file(told.id, str(tmp_path), "page.png", "image/png")
    client.download_inference_file(told.id, str(tmp_path / "back.png"))
    assert (tmp_path / "back.png").read_bytes() == picture.read_bytes()
    told.error_reported = True
    assert client.update_inference(told).error_reported is True
    assert client.get_inference_stats(own.id) == 1
    assert len(client.get_inferences(built_in["magika"].id)) == 3
    assert len(client.get_inferences(own.id, model_version_ids=[str(uuid4())])) == 0

    place = (str(api.world.dataset.id), str(api.world.dataset.version_id), str(api.world.train.id))
    chosen = [kind, seen, read, *client.get_inferences(own.id)]
    done = client.add_inferences(*place, seeme.AddInferences(inferences=chosen))
    by_id = {
        each.id: client.get_dataset_item(place[0], place[1], each.dataset_item_id)
        for each in done.inferences
    }
    assert by_id[kind.id].text == code
    assert by_id[read.id].text == read.result
    assert [each.extension for each in (by_id[seen.id], by_id[told.id])] == ["png", "png"]
    assert [len(by_id[each.id].annotations) for each in chosen] == [1, 1, 0, 1]
    ((stored,),) = api.world.sql(
        "SELECT content_sha256 FROM dataset_items WHERE id = :id", id=by_id[seen.id].id
    )
    assert stored == hashlib.sha256(picture.read_bytes()).hexdigest()
    assert client.get_inferences(own.id) == []
    assert len(client.get_inferences(own.id, include_already_added=True)) == 1
    client.delete_model(own.id)
    api.world.check()
