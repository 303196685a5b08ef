"""Post-processors and jobs by HTTP: made, changed, disabled, deleted, listed, retried, added to."""

import json
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa

from api_server import Api, new_user
from factories import classes
from ppworker.errors import RunnerTimeout, UnreadableInput
from ppworker.pipeline.control import retry_jobs
from ppworker.pipeline.inferences import inferences
from ppworker.pipeline.runs import rescue
from ppworker.pipeline.setup import processor_changes
from ppworker.store import job_pages
from ppworker.telemetry import REDACTED


def create(api: Api, **body: Any) -> dict[str, Any]:
    body = {"name": "p", "model_type": "ner", "output_target": "annotations"} | body
    response = api.me.post(f"{api.dataset}/post-processors", json=body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def change(api: Api, id_: Any, **body: Any) -> dict[str, Any]:
    response = api.me.put(f"{api.dataset}/post-processors/{id_}", json=body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def listed(api: Api, **params: Any) -> list[dict[str, Any]]:
    response = api.me.get(f"{api.dataset}/post-processors/jobs", params=params)
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()
    return found


BUILT_IN = [
    ("ocr", "text", "rapidocr"),
    ("ner", "annotations", "usaddress"),
    ("classification", "annotations", "magika"),
    ("detection", "annotations", "rapidocr-boxes"),
]


def test_a_model_type_alone_takes_the_built_in_model(api: Api) -> None:
    for model_type, target, runner in BUILT_IN:
        made = create(api, name=runner, model_type=model_type, output_target=target)
        assert (made["runner"], made["model_name"]) == (runner, runner)
        assert (made["is_external"], made["model_id"], made["enabled"]) == (False, None, True)


CANNOT_WORK: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "magic"}, "model_type"),
    ({"model_type": None}, "model_type"),
    ({"model_type": "llm"}, "runner"),
    ({"name": None}, "name"),
    ({"name": "a/b"}, "name"),
    ({"output_target": "both"}, "output_target"),
    ({"output_target": "somewhere"}, "output_target"),
    ({"model_type": "detection", "output_target": "text"}, "output_target"),
    ({"confidence_threshold": -0.1}, "confidence_threshold"),
    ({"confidence_threshold": 1.1}, "confidence_threshold"),
    ({"model_id": "m", "external_provider": "openai"}, "model_id"),
    ({"model_id": "m"}, "model_id"),
    ({"model_version": "m"}, "model_version"),
    ({"external_provider": "nobody"}, "external_provider"),
    ({"external_provider": "openai"}, "external_provider"),
    ({"external_model": "gpt"}, "external_model"),
    ({"external_config": "{"}, "external_config"),
    ({"external_config": "[]"}, "external_config"),
    ({"external_config": "[" * 50_000}, "external_config"),
    ({"external_config": '{"file_types": "png"}'}, "external_config.file_types"),
    ({"external_config": '{"temperature": 1}'}, "config.temperature"),
    ({"external_config": '{"timeout_s": NaN}'}, "external_config.timeout_s"),
    ({"config": {"nope": 1}}, "config.nope"),
    ({"config": {"max_chars": "x"}}, "config.max_chars"),
    ({"runner": "os:path"}, "runner"),
    ({"runner": "rapidocr"}, "model_type"),
    ({"config": {"model_path": "/etc/passwd"}}, "config.model_path"),
    ({"prompt": "be brief"}, "prompt"),
    ({"splits": ["nowhere"]}, "splits"),
    ({"label_mapping": {"a": str(uuid4())}}, "label_mapping"),
    ({"file_types": ["p/ng"]}, "file_types"),
    ({"order": 10**12}, "order"),
    ({"batch_size": 0}, "batch_size"),
    ({"config": {"max_chars": REDACTED}}, "config.max_chars"),
]


def test_what_cannot_work_is_refused_when_it_is_made(api: Api, subtests: Any) -> None:
    for body, field in CANNOT_WORK:
        with subtests.test(str(body)[:60]):
            whole = {"name": "p", "model_type": "ner", "output_target": "annotations"} | body
            response = api.me.post(f"{api.dataset}/post-processors", json=whole)
            assert response.status_code == 422, response.text
            assert response.json()["field"] == field
    assert api.me.get(f"{api.dataset}/post-processors").json() == []


def test_what_has_no_field_may_stand_inside_the_external_config(api: Api) -> None:
    inside = {"file_types": [".PNG"], "splits": ["train"], "label_prefix": "x-", "max_chars": 500,
              "label_mapping": {"PlaceName": None}}  # fmt: skip
    made = create(api, external_config=json.dumps(inside), label_prefix="y-", external_model="")
    assert made["file_types"] == ["png"]
    assert made["splits"] == ["train"]
    assert made["label_prefix"] == "y-", "beside wins"
    assert made["label_mapping"] == {"PlaceName": None}
    assert made["config"] == {"max_chars": 500}
    # What a client read it can send back whole, and nothing changes.
    whole = change(api, made["id"], **made)
    assert whole == made | {"updated_at": whole["updated_at"]}


def test_null_leaves_a_field_as_it_is(api: Api) -> None:
    made = create(api, description="d", order=3, confidence_threshold=0.5, enabled=False)
    nothing = change(api, made["id"], **dict.fromkeys(made))
    assert nothing == made | {"updated_at": nothing["updated_at"]}
    changed = change(api, made["id"], order=0, name="renamed", confidence_threshold=0.0)
    differs = {name for name in made if made[name] != changed[name]}
    assert differs == {"order", "name", "confidence_threshold", "updated_at"}
    assert api.me.get(f"{api.dataset}/post-processors").json() == [changed]


def test_a_change_is_checked_like_a_new_one(api: Api) -> None:
    first, second = create(api, name="first"), create(api, name="second")
    path = f"{api.dataset}/post-processors/{second['id']}"
    for body, status, field in (
        ({"name": "first"}, 409, "name"),
        ({"output_target": "text"}, 422, "output_target"),
        ({"model_type": "ocr"}, 422, "model_type"),
        ({"splits": ["nowhere"]}, 422, "splits"),
        ({"runner": "scripted_runners:EchoRunner"}, 422, "runner"),
        ({"external_config": '{"nope": 1}'}, 422, "config.nope"),
    ):
        response = api.me.put(path, json=body)
        assert (response.status_code, response.json()["field"]) == (status, field), body
    assert api.me.get(path).json() == second
    assert change(api, first["id"], model_type="ocr", runner="rapidocr", output_target="text")[
        "runner"
    ] == "rapidocr"  # fmt: skip


def test_the_runner_of_a_person_with_a_shell_may_stay_but_not_come(api: Api) -> None:
    processor = api.world.processor(runner="scripted_runners:EchoRunner", reads="any")
    changed = change(api, processor.id, order=5)
    assert (changed["order"], changed["runner"]) == (5, "scripted_runners:EchoRunner")


def test_a_file_that_a_person_with_a_shell_named_may_stay_but_not_change(api: Api) -> None:
    own = {"model_path": "/models/own.crfsuite"}
    processor = api.world.processor(runner="usaddress", model_type="ner", runner_config=own)
    kept = change(api, processor.id, order=5, config=own | {"max_chars": 9})
    assert kept["config"] == own | {"max_chars": 9}
    for config in ({"model_path": "/etc/passwd"}, {}):
        path = f"{api.dataset}/post-processors/{processor.id}"
        response = api.me.put(path, json={"config": config})
        if config:
            assert (response.status_code, response.json()["field"]) == (422, "config.model_path")
        else:
            assert response.json()["config"] == {}, "taking it away is no danger"


def test_a_processor_whose_model_is_gone_can_still_be_disabled(api: Api) -> None:
    processor = api.world.processor(runner="not-installed-any-more")
    assert change(api, processor.id, enabled=False, description="gone")["enabled"] is False
    response = api.me.put(f"{api.dataset}/post-processors/{processor.id}", json={"order": 1})
    assert (response.status_code, response.json()["field"]) == (422, "runner")


SECRET = {"api_key": "sk-aaaaaaaaaaaaaaaaaaaaaaaa", "url": "https://u:secretpw@host/x", "n": 1}


def test_a_secret_is_shown_to_nobody_and_survives_being_sent_back(api: Api) -> None:
    processor = api.world.processor(
        runner="scripted_api_runners:TakesAnything", runner_config=SECRET | {"deep": [SECRET]}
    )
    path = f"{api.dataset}/post-processors/{processor.id}"
    shown = api.me.get(path)
    for secret in ("sk-aaaa", "secretpw"):
        assert secret not in shown.text
    assert shown.json()["config"]["n"] == 1
    assert REDACTED in shown.json()["external_config"]
    sent = shown.json() | {"order": 7}
    sent["config"] |= {"n": 2}
    changed = change(api, processor.id, **sent)
    assert changed["config"]["n"] == 2
    ((stored,),) = api.world.sql("SELECT runner_config FROM post_processors")
    assert stored == SECRET | {"deep": [SECRET], "n": 2}
    forged = api.me.put(path, json={"config": {"other_token": REDACTED}})
    assert (forged.status_code, forged.json()["field"]) == (422, "config.other_token")


def test_what_waits_for_a_disabled_processor_keeps_nobody_waiting(api: Api) -> None:
    world = api.world
    first, later = world.processor("first"), world.processor("later", order=1)
    world.add("one", "two")
    assert world.claim(later).jobs == []
    assert change(api, first.id, enabled=False)["enabled"] is False
    assert world.statuses(first) == ["pending"] * 2
    assert world.claim(first).jobs == [], "it rests"
    batch = world.claim(later, limit=1)
    assert len(batch.jobs) == 1
    world.check()
    # Enabled again, it comes first again where the later one has not begun.
    change(api, first.id, enabled=True)
    assert world.claim(later).jobs == []
    world.check()
    assert world.run(first).completed == 2
    assert len(world.claim(later).jobs) == 1
    world.run(later, batch=batch)
    world.check()


def test_an_upload_of_the_moment_of_disabling_is_mended(api: Api) -> None:
    """A job planned by somebody who still saw it enabled keeps its successor waiting until the
    sweep comes by."""
    world = api.world
    first, later = world.processor("first"), world.processor("later", order=1)
    world.add("one")
    world.sql("UPDATE post_processors SET enabled = false WHERE id = :id", id=first.id)
    assert world.claim(later).jobs == []
    assert rescue.Repair(world.deps).sweep() == 1
    assert len(world.claim(later).jobs) == 1
    world.check()


def test_deleting_takes_pending_jobs_ends_running_ones_and_keeps_the_rest(api: Api) -> None:
    world = api.world
    gone, later = world.processor("gone"), world.processor("later", order=1)
    done, running, waiting = world.add("done", "running", "waiting")
    world.run(gone, classes("cat"), limit=1)
    batch = world.claim(gone, limit=1)
    response = api.me.delete(f"{api.dataset}/post-processors/{gone.id}")
    assert (response.status_code, response.content) == (204, b"")
    states = {
        UUID(job["dataset_item_id"]): (job["status"], job["post_processor_name"])
        for job in listed(api, post_processor_id=str(gone.id))
    }
    assert states == {done: ("completed", "gone"), running: ("failed", "gone")}
    assert len(world.claim(later).jobs) == 3, "nothing waits for it any more"
    assert world.run(gone, batch=batch).lost == 1, "its answer is refused"
    assert world.annotations(running) == []
    assert len(world.annotations(done)) == 1, "what it wrote stays"
    assert world.annotations(waiting) == []
    assert gone.name not in {p["name"] for p in api.me.get(f"{api.dataset}/post-processors").json()}
    assert create(api, name="gone")["name"] == "gone", "the name is free"
    assert api.me.delete(f"{api.dataset}/post-processors/{gone.id}").status_code == 404
    (failed,) = [job for job in listed(api) if job["status"] == "failed"]
    retry = api.me.post(f"{api.version}/items/{running}/jobs/{failed['id']}/retry")
    assert retry.status_code == 409
    assert "deleted" in retry.json()["message"]
    world.check()


@pytest.mark.parametrize("days", [0, 40])
def test_jobs_that_a_deletion_missed_are_swept(api: Api, days: int) -> None:
    world = api.world
    gone = world.processor("gone")
    world.add("one", "two")
    world.claim(gone, limit=1)
    world.sql(
        "UPDATE post_processors SET deleted_at = now() - make_interval(days => :days), "
        "enabled = false",
        days=days,
    )
    assert processor_changes.end_jobs_of_deleted(world.deps) == 2
    assert processor_changes.end_jobs_of_deleted(world.deps) == 0
    assert world.statuses() == ["failed"]
    world.check()


# Jobs.


def test_a_job_tells_its_status_also_where_clients_know_no_status(api: Api) -> None:
    world = api.world
    good, bad = world.processor("good"), world.processor("bad", max_attempts=1)
    (item,) = world.add("x")
    world.run(good, classes("cat", score=0.5))
    world.run(bad, RunnerTimeout("too slow"))
    by_name = {job["name"]: job for job in listed(api)}
    completed, failed = by_name["good"], by_name["bad"]
    assert (completed["description"], completed["post_processor_name"]) == ("completed", "good")
    assert json.loads(completed["result"])["predictions"][0]["label"] == "cat"
    assert (completed["item_name"], completed["dataset_item_id"]) == ("item-0", str(item))
    assert (failed["status"], failed["reason"], failed["error"]) == (
        "failed",
        "timeout",
        "too slow",
    )
    assert (failed["result"], completed["error"]) == (None, None)
    assert failed["started_at"] <= failed["completed_at"] == failed["updated_at"]


def test_jobs_are_filtered_and_paged(api: Api) -> None:
    world = api.world
    first, second = world.processor("first"), world.processor("second")
    items = world.add(*(f"text {n}" for n in range(6)))
    world.run(first, limit=4)
    everything = [job["id"] for job in listed(api)]
    assert len(everything) == 12
    assert [job["id"] for job in listed(api, status="", item_id="", pageSize="")] == everything
    assert Counter(job["status"] for job in listed(api, post_processor_id=str(first.id))) == {
        "completed": 4, "pending": 2,
    }  # fmt: skip
    assert len(listed(api, status="completed")) == 4
    assert len(listed(api, item_id=str(items[0]))) == 2
    both = {"item_id": str(items[0]), "status": "pending", "post_processor_id": str(second.id)}
    assert [job["name"] for job in listed(api, **both)] == ["second"]
    assert listed(api, item_id=str(uuid4())) == []
    pages = [listed(api, pageSize=5, pageCount=n) for n in range(4)]
    assert [job["id"] for page in pages for job in page] == everything
    path = f"{api.dataset}/post-processors/jobs"
    more = [api.me.get(path, params={"pageSize": 5, "pageCount": n}).headers["x-has-more"]
            for n in range(3)]  # fmt: skip
    assert more == ["true", "true", "false"]
    wrong = api.me.get(path, params={"status": "done"})
    assert (wrong.status_code, wrong.json()["field"]) == (400, "status")


def test_a_result_that_is_too_much_for_a_page_is_left_out(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = api.world.processor()
    api.world.add("a", "b", "c")
    api.world.run(processor)
    monkeypatch.setattr(job_pages, "_MOST_RESULT_BYTES", 150)
    told = [job["result"] is not None for job in listed(api)]
    assert told[0]
    assert not told[-1]


def test_a_result_is_shown_with_the_job_that_left_it_and_no_other(api: Api) -> None:
    processor = api.world.processor()
    item = api.item()
    api.world.run(processor, classes("cat"))
    again = api.me.post(f"{item}/upload", files={"file": ("new.txt", b"new", "text/plain")})
    assert again.status_code == 200, again.text
    api.world.run(processor, classes("dog"))
    first, second = listed(api)
    assert (first["status"], first["result"]) == ("completed", None)
    assert "dog" in second["result"]


def test_a_page_is_bounded_also_where_its_results_are_stored_in_a_hundredth_of_their_size(
    api: Api,
) -> None:
    processor = api.world.processor()
    api.world.add("a", "b", "c")
    api.world.run(processor)
    api.world.sql("UPDATE job_results SET raw = to_jsonb(repeat('x', 20000000))")
    told = [job["result"] for job in listed(api)]
    assert [result and len(result) for result in told] == [20_000_002, None, None]


def test_of_many_who_retry_exactly_one_succeeds(api: Api) -> None:
    world = api.world
    processor = world.processor(max_attempts=1)
    world.add(*(f"text {n}" for n in range(20)))
    world.run(processor, RunnerTimeout("too slow"))
    failed = listed(api, status="failed")
    assert len(failed) == 20
    callers = [api.client(world.user) for _ in range(25)]

    def retry(caller: Any) -> list[int]:
        return [
            caller.post(
                f"{api.version}/items/{job['dataset_item_id']}/jobs/{job['id']}/retry",
                content=b"{}",
            ).status_code
            for job in failed
        ]

    with ThreadPoolExecutor(len(callers)) as pool:
        answers = list(pool.map(retry, callers))
    for position in range(len(failed)):
        statuses = Counter(answer[position] for answer in answers)
        assert statuses == {200: 1, 409: 24}
    retried = listed(api, status="pending")
    assert len(retried) == 20
    assert {(job["attempts"], job["error"], job["started_at"]) for job in retried} == {
        (0, None, None)
    }
    world.check()


def test_a_retry_answers_with_the_job(api: Api) -> None:
    world = api.world
    processor = world.processor(max_attempts=1)
    (item,) = world.add("x")
    world.run(processor, RunnerTimeout("too slow"))
    (job,) = listed(api)
    path = f"{api.version}/items/{item}/jobs/{job['id']}/retry"
    assert api.me.post(f"{api.version}/items/{item}/jobs/{uuid4()}/retry").status_code == 404
    answer = api.me.post(path).json()
    assert (answer["id"], answer["status"], answer["description"]) == (
        job["id"],
        "pending",
        "pending",
    )
    assert (answer["attempts"], answer["error"], answer["completed_at"]) == (0, None, None)
    again = api.me.post(path)
    assert again.status_code == 409
    assert "pending" in again.json()["message"]


# Stats.


def test_stats_have_a_row_for_every_label_and_one_for_the_unlabelled(api: Api) -> None:
    world = api.world
    path = f"{api.version}/labels/splits/{world.train.id}"
    assert [(row["label_id"], row["item_count"]) for row in api.me.get(path).json()] == [("", 0)]
    cat, _bare = world.add("cat", "bare")
    (other,) = world.add("dog", split=world.valid)
    world.annotate(cat, "cat")
    world.annotate(other, "dog", split=world.valid)
    names = {each["id"]: each["name"] for each in api.me.get(f"{api.version}/labels").json()}
    rows = [
        (names.get(row["label_id"], ""), row["count"], row["annotation_count"], row["item_count"])
        for row in api.me.get(path).json()
    ]
    assert rows == [("cat", 1, 1, 1), ("dog", 0, 0, 0), ("", 1, 0, 1)]
    one = api.me.get(f"{api.version}/labels/stats/splits/{world.train.id}").json()
    assert (one["label_id"], one["count"], one["annotation_count"], one["item_count"]) == (
        "",
        2,
        1,
        2,
    )
    assert one["split_id"] == str(world.train.id)


# Inferences.

NULLS = {
    "id": None, "created_at": None, "updated_at": None, "name": "said", "description": None,
    "prediction": None, "confidence": None, "model_id": None, "extension": None, "hidden": None,
    "error_reported": None, "inference_time": "228.278543ms", "dataset_item_id": None,
    "result": None, "config": None, "inference_items": [
        {"id": None, "name": None, "prediction": "cat", "confidence": 0.75, "coordinates": None}
    ],
}  # fmt: skip


def test_an_echo_holds_no_null_that_its_sender_cannot_read(api: Api) -> None:
    answer = api.me.post(f"{api.split}/add_inferences", json={"inferences": [NULLS]}).json()
    assert answer["keep_annotations"] is True
    (echo,) = answer["inferences"]
    assert {name for name, value in echo.items() if value is None} == {"created_at", "updated_at"}
    assert (echo["inference_time"], echo["config"], echo["hidden"]) == ("228.278543ms", "{}", False)
    item = api.me.get(f"{api.version}/items/{echo['dataset_item_id']}").json()
    assert (item["text"], len(item["annotations"])) == ("said", 1)
    again = api.me.post(f"{api.split}/add_inferences", json={"inferences": [NULLS]}).json()
    assert again["inferences"] == answer["inferences"]
    assert len(api.me.get(f"{api.version}/items").json()) == 1
    api.world.check()


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"config": {}}, "config"),
        ({"created_at": 1664313840}, "created_at"),
        ({"hidden": "perhaps"}, "hidden"),
        ({"description": ["x"]}, "description"),
        (
            {"inference_items": [{"prediction": "cat", "inference_id": 5}]},
            "inference_items[0].inference_id",
        ),
    ],
)
def test_what_could_not_be_given_back_is_refused_before_anything_is_written(
    api: Api, wrong: dict[str, Any], field: str
) -> None:
    sent = [{"id": "good", "name": "x"}, {"id": "bad", "name": "y"} | wrong]
    response = api.me.post(f"{api.split}/add_inferences", json={"inferences": sent})
    assert response.status_code == 422, response.text
    assert response.json()["field"] == f"inferences[1].{field}"
    assert api.me.get("/operations").json() == []


def test_times_of_predictions_are_given_back_as_they_came(api: Api) -> None:
    said = {"prediction": "cat", "created_at": "", "updated_at": "2022-09-27T21:24:00.042635+02:00"}
    sent = {"inferences": [{"name": "x", "inference_items": [said]}]}
    answer = api.me.post(f"{api.split}/add_inferences", json=sent)
    assert answer.status_code == 200, answer.text
    (echo,) = answer.json()["inferences"][0]["inference_items"]
    assert said.items() <= echo.items()


def test_without_annotations_items_come_unlabelled_and_run_all_the_same(api: Api) -> None:
    processor = api.world.processor()
    body = {"keep_annotations": False, "inferences": [NULLS, {"id": "2", "name": "another"}]}
    answer = api.me.post(f"{api.split}/add_inferences", json=body).json()
    assert answer["keep_annotations"] is False
    assert len({echo["dataset_item_id"] for echo in answer["inferences"]}) == 2
    stat = api.me.get(f"{api.version}/labels/stats/splits/{api.world.train.id}").json()
    assert (stat["item_count"], stat["annotation_count"]) == (2, 0)
    assert len(api.world.claim(processor).jobs) == 2


def test_nothing_to_add_is_nothing_added(api: Api) -> None:
    bodies: list[dict[str, Any]] = [{"inferences": []}, {"inferences": None}, {}]
    for body in bodies:
        answer = api.me.post(f"{api.split}/add_inferences", json=body)
        assert (answer.status_code, answer.json()["inferences"]) == (200, [])
    assert api.me.get("/operations").json() == []


def test_what_takes_longer_is_answered_with_the_operation(api: Api) -> None:
    api.stopping.set()  # as when the process is told to stop: nobody waits any more
    sent = [{"id": f"i{n}", "name": f"text {n}"} for n in range(50)]
    response = api.me.post(f"{api.split}/add_inferences", json={"inferences": sent})
    assert response.status_code == 202, response.text
    operation = response.json()
    assert (operation["status"], operation["done"], operation["total"]) == ("pending", 0, 50)
    assert response.headers["location"] == f"/api/v1/operations/{operation['id']}"
    api.stopping.clear()
    again = api.me.post(f"{api.split}/add_inferences", json={"inferences": sent})
    assert again.status_code == 200, "whoever asks again is not kept from it"
    assert len({echo["dataset_item_id"] for echo in again.json()["inferences"]}) == 50
    found = api.me.get(f"/operations/{operation['id']}").json()
    assert found["status"] == "pending", "it goes on when a worker comes by"
    api.world.check()


def test_those_who_wait_for_operations_leave_threads_to_the_others(api: Api) -> None:
    """Half of the threads may wait at most; who comes then is told the operation at once."""
    settings = api.deps.settings.model_copy(update={"operation_wait_s": 20.0})
    object.__setattr__(api.deps, "settings", settings)
    held = threading.Event()
    # Somebody holds the version, so that no label can be created: the operation cannot go on.
    with api.deps.db.engine.connect() as blocker:
        blocker.execute(
            sa.text("SELECT 1 FROM dataset_versions WHERE id = :id FOR UPDATE"),
            {"id": api.world.dataset.version_id},
        )

        def ask(n: int) -> int:
            body = {"inferences": [{"id": f"w{n}", "name": f"{n}", "inference_items": [
                {"prediction": "cat", "confidence": 1}]}]}  # fmt: skip
            with api.client(api.world.user) as mine:
                status = mine.post(f"{api.split}/add_inferences", json=body).status_code
            held.set()
            return status

        with ThreadPoolExecutor(8) as pool:
            waiting = [pool.submit(ask, n) for n in range(8)]
            assert held.wait(20), "those beyond the half are answered"
            assert api.me.get("/datasets").status_code == 200
            blocker.rollback()
            answers = Counter(each.result() for each in waiting)
    assert answers == {200: 4, 202: 4}


def test_an_operation_that_failed_is_told(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    accepted = inferences.add

    def then_delete(deps: Any, split: Any, sent: Any, **options: Any) -> Any:
        done = accepted(deps, split, sent, **options)
        with deps.db.begin() as tx:
            tx.execute(sa.text("DELETE FROM dataset_splits WHERE id = :id"), {"id": split.id})
        return done

    monkeypatch.setattr("ppworker.api.resources.inferences.inferences.add", then_delete)
    body = {"inferences": [{"id": "x", "name": "x"}]}
    response = api.me.post(f"{api.split}/add_inferences", json=body)
    assert response.status_code == 409, response.text
    (operation,) = api.me.get("/operations", params={"status": "failed"}).json()
    assert operation["id"] in response.json()["message"]


def test_operations_are_their_owners(api: Api) -> None:
    api.me.post(f"{api.split}/add_inferences", json={"inferences": [NULLS]})
    stranger = api.client(new_user(api.deps, "stranger"))
    assert stranger.get("/operations").json() == []
    assert api.me.get("/operations", params={"limit": 0}).status_code == 400


def test_many_failed_jobs_are_restarted_by_one_request(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = api.world.processor(max_attempts=1)
    api.world.add("one", "two", "three")
    api.world.run(processor, UnreadableInput("no"))
    path = f"{api.dataset}/post-processors/jobs/retry"
    none = api.me.post(path, json={"reason": "timeout"}).json()
    assert none == {"retried": 0, "skipped": 0}
    monkeypatch.setattr(retry_jobs, "AT_ONCE", 2)
    many = api.me.post(path, json={"post_processor_id": str(processor.id)})
    assert many.status_code == 202
    operation = many.json()
    assert many.headers["Location"] == f"/api/v1/operations/{operation['id']}"
    assert (operation["kind"], operation["total"]) == ("retry_jobs", 3)
    monkeypatch.undo()
    assert api.me.post(path, json={}).json()["retried"] == 3
    assert set(api.world.statuses(processor)) == {"pending"}
