"""Models, their versions and applications by HTTP: what is built in, what people make, who may."""

import json
from collections.abc import Iterator
from threading import Event
from typing import Any
from uuid import uuid4

import pytest

from api_server import Api, new_user, served_api
from api_shapes import Optional, Stamp, fits
from factories import World
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.setup.built_in_models import built_in_id
from ppworker.runners import registry
from ppworker.telemetry import REDACTED

MODEL = {
    "id": str, "created_at": Optional(Stamp), "updated_at": Optional(Stamp), "name": str,
    "description": str, "user_id": str, "notes": str, "has_logo": bool, "logo": str,
    "public": bool, "shared_with_me": bool, "active_version_id": str, "can_inference": bool,
    "kind": str, "config": str, "application_id": str, "has_ml_model": bool,
    "has_onnx_model": bool, "has_onnx_int8_model": bool, "has_tflite_model": bool,
    "has_labels_file": bool, "auto_convert": bool, "privacy_enabled": bool,
}  # fmt: skip
VERSION = {
    "id": str, "created_at": Optional(Stamp), "updated_at": Optional(Stamp), "name": str,
    "description": str, "model_id": str, "user_id": str, "can_inference": bool, "has_logo": bool,
    "config": str, "application_id": str, "version": str, "version_number": int,
    "has_ml_model": bool, "has_onnx_model": bool, "has_onnx_int8_model": bool,
    "has_tflite_model": bool, "has_labels_file": bool, "dataset_id": str,
    "dataset_version_id": str, "job_id": str, "metrics": list,
}  # fmt: skip
APPLICATION = {
    "id": str, "created_at": Optional(Stamp), "updated_at": Optional(Stamp), "name": str,
    "description": str, "base_framework": str, "base_framework_version": str, "framework": str,
    "framework_version": str, "application": str, "inference_host": str,
    "can_convert_to_onnx": bool, "can_convert_to_tensorflow": bool, "can_convert_to_tflite": bool,
    "continual_training": bool, "has_embedding_support": bool, "has_labels_file": bool,
    "inference_extensions": str,
}  # fmt: skip
RUNS = json.dumps({"runner": "usaddress", "runner_config": {"max_chars": 500}})


@pytest.fixture(scope="module")
def address(module_deps: Deps) -> Iterator[str]:
    """Where one server answers all tests."""
    with served_api(module_deps, World(module_deps)) as served:
        yield served.address


@pytest.fixture
def api(module_deps: Deps, address: str) -> Iterator[Api]:
    """The server as a new user with a dataset sees it."""
    mine = Api(module_deps, World(module_deps), address, Event())
    yield mine
    mine.close()


def stranger(api: Api) -> Any:
    """Somebody else."""
    return api.client(new_user(api.deps, f"stranger-{uuid4().hex[:8]}"))


def made(api: Api, **body: Any) -> dict[str, Any]:
    response = api.me.post("/models", json={"name": "mine"} | body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def test_every_installed_runner_is_a_model_and_an_application(api: Api) -> None:
    models = api.me.get("/models").json()
    fits(models, [MODEL])
    assert [model["name"] for model in models] == registry.names()
    by_name = {model["name"]: model for model in models}
    ocr = by_name["rapidocr"]
    assert (ocr["kind"], ocr["public"], ocr["user_id"]) == ("ocr", True, "")
    assert ocr["id"] == str(built_in_id("rapidocr")), "the same on every machine"
    assert ocr["can_inference"] is True
    (version,) = api.me.get(f"/models/{ocr['id']}/versions").json()
    fits(version, VERSION)
    assert version["id"] == ocr["active_version_id"]
    assert version["version"], "that of the package"
    applications = api.me.get("/applications").json()
    fits(applications, [APPLICATION])
    by_id = {each["id"]: each for each in applications}
    assert by_id[ocr["application_id"]]["application"] == "ocr"
    assert "pdf" in by_id[ocr["application_id"]]["inference_extensions"].split(",")
    assert by_id[by_name["magika"]["application_id"]]["framework"] == "magika"


def test_a_built_in_model_stays_as_it_is(api: Api) -> None:
    path = f"/models/{built_in_id('magika')}"
    version = api.me.get(path).json()["active_version_id"]
    assert api.me.get(f"{path}/versions/{version}").json()["name"] == "v1"
    assert api.me.get(f"{path}/versions/{uuid4()}").status_code == 404
    for answer in (
        api.me.put(path, json={"name": "other"}),
        api.me.delete(path),
        api.me.post(f"{path}/versions", json={"name": "other"}),
        api.me.put(f"{path}/versions/{version}", json={"name": "other"}),
        api.me.delete(f"{path}/versions/{version}"),
    ):
        assert answer.status_code == 403, answer.text
        assert "built-in" in answer.json()["message"]


def test_a_model_of_ones_own_is_made_changed_and_deleted(api: Api) -> None:
    model = made(api, kind="ner", config=RUNS, notes="n", description="d", auto_convert=False)
    fits(model, MODEL)
    assert (model["can_inference"], model["config"], model["kind"]) == (True, RUNS, "ner")
    assert (model["user_id"], model["public"]) == (str(api.world.user), False)
    path = f"/models/{model['id']}"
    assert api.me.get(path).json() == model
    nothing = api.me.put(path, json=dict.fromkeys(model)).json()
    assert nothing == model | {"updated_at": nothing["updated_at"]}
    whole = api.me.put(path, json=model | {"name": "renamed", "config": ""}).json()
    assert (whole["name"], whole["config"], whole["can_inference"]) == ("renamed", "", False)
    newer = made(api, name="newer", active_version_id=str(uuid4()))
    assert newer["active_version_id"] == "", "a new one has none"
    unnamed = made(api, name=None)
    assert unnamed["name"] == "", "clients send null for it"
    api.me.delete(f"/models/{unnamed['id']}")
    listed = api.me.get("/models").json()
    assert [each["name"] for each in listed if not each["public"]] == ["newer", "renamed"]
    assert newer["can_inference"] is False
    assert api.me.delete(path).status_code == 204
    for answer in (api.me.get(path), api.me.put(path, json={}), api.me.delete(path),
                   api.me.get(f"{path}/versions"), api.me.get(f"{path}/inferences"),
                   api.me.get(f"{path}/stats")):  # fmt: skip
        assert answer.status_code == 404
    assert "renamed" not in {each["name"] for each in api.me.get("/models").json()}


def test_a_model_has_versions_of_which_one_is_active(api: Api) -> None:
    model = made(api)
    path = f"/models/{model['id']}"
    metrics = [{"name": "accuracy", "value": 0.75}]
    first = api.me.post(
        f"{path}/versions", json={"name": None, "application_id": "", "metrics": metrics}
    ).json()
    fits(first, VERSION)
    assert (first["name"], first["version"], first["version_number"]) == ("v1", "1", 1)
    assert first["metrics"] == [
        {"name": "accuracy", "description": "", "model_version_id": first["id"], "value": 0.75}
    ]
    assert api.me.get(path).json()["active_version_id"] == first["id"]
    second = api.me.post(f"{path}/versions", json={"name": "better", "config": RUNS}).json()
    assert (second["version_number"], second["can_inference"]) == (2, True)
    assert [each["id"] for each in api.me.get(f"{path}/versions").json()] == [
        first["id"], second["id"]
    ]  # fmt: skip
    assert api.me.get(path).json()["can_inference"] is False
    active = api.me.put(path, json={"active_version_id": second["id"]}).json()
    assert (active["active_version_id"], active["can_inference"]) == (second["id"], True)
    changed = api.me.put(
        f"{path}/versions/{first['id']}", json=first | {"version": "1.1", "metrics": []}
    ).json()
    assert (changed["version"], changed["metrics"]) == ("1.1", first["metrics"])
    assert api.me.delete(f"{path}/versions/{second['id']}").status_code == 204
    assert api.me.get(path).json()["active_version_id"] == ""
    assert api.me.get(f"{path}/versions/{second['id']}").status_code == 404
    third = api.me.post(f"{path}/versions", json={}).json()
    assert third["version_number"] == 3, "a number is given once"
    for body in ({"active_version_id": second["id"]}, {"active_version_id": "x"}):
        refused = api.me.put(path, json=body)
        assert (refused.status_code, refused.json()["field"]) == (409, "active_version_id")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"name": "x" * 256}, "name"),
    ({"name": 5}, "name"),
    ({"public": True}, "public"),
    ({"config": '{"runner": "nobody"}'}, "config.runner"),
    ({"config": '{"runner": "scripted_runners:EchoRunner"}'}, "config.runner"),
    ({"config": '{"runner": ["magika"]}'}, "config"),
    ({"config": '{"runner": "magika", "runner_config": []}'}, "config"),
    ({"config": '{"runner": "magika", "other": 1}'}, "config"),
    ({"config": '{"runner": "usaddress", "runner_config": {"nope": 1}}'},
     "config.runner_config.nope"),
    ({"config": '{"runner": "usaddress", "runner_config": {"model_path": "/etc/passwd"}}'},
     "config.runner_config.model_path"),
]  # fmt: skip


def test_what_cannot_work_is_refused_and_named(api: Api, subtests: Any) -> None:
    for body, field in REFUSED:
        with subtests.test(str(body)[:60]):
            response = api.me.post("/models", json={"name": "m"} | body)
            assert response.status_code == 422, response.text
            assert response.json()["field"] == field
    assert all(each["public"] for each in api.me.get("/models").json())


def test_what_others_keep_in_a_config_stays_byte_for_byte(api: Api) -> None:
    deep = '{"a":' * 700 + "1" + "}" * 700
    for config in ("", "column_names: a,b", '{"b":1,  "a":[2]}', "[1, 2]", "{", deep):
        assert made(api, config=config)["config"] == config


def test_a_secret_in_a_config_is_shown_to_nobody_and_survives(api: Api) -> None:
    secret = {"api_key": "sk-aaaaaaaaaaaaaaaaaaaaaaaa", "epochs": 3}
    model = made(api, config=json.dumps(secret))
    assert "sk-aaaa" not in json.dumps(api.me.get("/models").json())
    assert json.loads(model["config"]) == {"api_key": REDACTED, "epochs": 3}
    sent = model["config"].replace("3", "4")
    assert api.me.put(f"/models/{model['id']}", json={"config": sent}).status_code == 200
    ((stored,),) = api.world.sql("SELECT config FROM models WHERE id = :id", id=model["id"])
    assert json.loads(stored) == secret | {"epochs": 4}
    forged = api.me.put(
        f"/models/{model['id']}", json={"config": json.dumps({"other_token": REDACTED})}
    )
    assert (forged.status_code, forged.json()["field"]) == (422, "config.other_token")
    deep = '{"a":' * 700 + f'"{REDACTED}"' + "}" * 700
    refused = api.me.put(f"/models/{model['id']}", json={"config": deep})
    assert (refused.status_code, refused.json()["field"]) == (422, "config")


def test_somebody_elses_model_is_not_there(api: Api) -> None:
    model = made(api, config=RUNS)
    version = api.me.post(f"/models/{model['id']}/versions", json={}).json()["id"]
    other = stranger(api)
    path = f"/models/{model['id']}"
    assert model["id"] not in {each["id"] for each in other.get("/models").json()}
    for method, route in (
        ("GET", path), ("PUT", path), ("DELETE", path), ("GET", f"{path}/versions"),
        ("POST", f"{path}/versions"), ("GET", f"{path}/versions/{version}"),
        ("PUT", f"{path}/versions/{version}"), ("DELETE", f"{path}/versions/{version}"),
        ("GET", f"{path}/inferences"), ("GET", f"{path}/stats"),
        ("POST", f"/inferences/{model['id']}"), ("POST", f"/inferences/{model['id']}/add"),
        ("POST", f"/inferences/{model['id']}/versions/{version}"),
    ):  # fmt: skip
        answer = other.request(method, route, json={} if method in {"PUT", "POST"} else None)
        assert answer.status_code == 404, (method, route, answer.text)
    assert api.me.get(path).json() == api.me.get(path).json() | {"name": "mine"}
    assert api.with_header(None).get("/models").status_code == 401
    assert api.with_header(None).get("/applications").status_code == 401


# Post-processors by model.


def processor(api: Api, **body: Any) -> Any:
    whole = {"name": "p", "model_type": "ner", "output_target": "annotations"} | body
    return api.me.post(f"{api.dataset}/post-processors", json=whole)


def test_a_post_processor_takes_its_runner_from_a_model(api: Api) -> None:
    ner = str(built_in_id("usaddress"))
    built_in = processor(api, model_id=ner).json()
    assert (built_in["model_id"], built_in["runner"]) == (ner, "usaddress")
    assert (built_in["model_name"], built_in["model_kind"]) == ("usaddress", "ner")
    own = made(api, config=RUNS)
    taken = processor(api, name="own", model_id=own["id"]).json()
    assert (taken["runner"], taken["config"]) == ("usaddress", {"max_chars": 500})
    assert (taken["model_id"], taken["model_name"]) == (own["id"], "mine")
    assert (taken["is_external"], taken["provider_name"], taken["model_version"]) == (
        False, "", "",
    )  # fmt: skip
    listed = api.me.get(f"{api.dataset}/post-processors").json()
    assert listed == [built_in, taken]


def test_a_post_processor_may_name_a_version_of_its_model(api: Api) -> None:
    own = made(api, config=RUNS)
    config = '{"runner": "usaddress", "runner_config": {"max_chars": 9}}'
    api.me.post(f"/models/{own['id']}/versions", json={"version": "1.0"})
    api.me.post(f"/models/{own['id']}/versions", json={"version": "2.0", "config": config})
    plain = processor(api, model_id=own["id"]).json()
    assert (plain["config"], plain["model_version"]) == ({"max_chars": 500}, "")
    second = processor(api, name="second", model_id=own["id"], model_version="2.0").json()
    assert (second["config"], second["model_version"]) == ({"max_chars": 9}, "2.0")
    path = f"{api.dataset}/post-processors/{second['id']}"
    whole = api.me.put(path, json=second).json()
    assert whole == second | {"updated_at": whole["updated_at"]}
    first = api.me.put(path, json={"model_id": own["id"], "model_version": "1.0"}).json()
    assert (first["config"], first["model_version"]) == ({"max_chars": 500}, "1.0")
    other = api.me.put(path, json={"runner": "rapidocr", "model_type": "ocr",
                                   "output_target": "text", "config": {}}).json()  # fmt: skip
    assert (other["model_id"], other["model_version"], other["model_name"]) == (
        None, "", "rapidocr",
    )  # fmt: skip


def test_a_later_change_of_the_model_leaves_its_post_processors(api: Api) -> None:
    own = made(api, config=RUNS)
    taken = processor(api, model_id=own["id"]).json()
    changed = RUNS.replace("500", "7")
    api.me.put(f"/models/{own['id']}", json={"config": changed})
    path = f"{api.dataset}/post-processors/{taken['id']}"
    assert api.me.get(path).json()["config"] == {"max_chars": 500}
    # Naming the model again, as clients that know no runner do, takes it as it is now.
    again = api.me.put(path, json={"model_id": own["id"]}).json()
    assert again["config"] == {"max_chars": 7}
    assert api.me.delete(f"/models/{own['id']}").status_code == 204
    gone = api.me.put(path, json={"model_id": own["id"], "order": 3})
    assert gone.status_code == 200, "what it has already is no news"
    assert (gone.json()["order"], gone.json()["config"]) == (3, {"max_chars": 7})
    assert gone.json()["model_name"] == "mine", "readable with its name"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"model_id": "m"}, "model_id"),
        ({"model_id": str(uuid4())}, "model_id"),
        ({"model_id": str(built_in_id("usaddress")), "runner": "rapidocr"}, "model_id"),
        ({"model_id": str(built_in_id("usaddress")), "external_provider": "openai"}, "model_id"),
        ({"model_id": str(built_in_id("usaddress")), "model_version": "9"}, "model_version"),
        ({"model_id": str(built_in_id("usaddress")), "config": {"nope": 1}}, "config.nope"),
        ({"model_id": str(built_in_id("rapidocr"))}, "model_type"),
        ({"prompt": "be brief"}, "prompt"),
    ],
)
def test_a_model_that_cannot_serve_is_refused(api: Api, body: dict[str, Any], field: str) -> None:
    response = processor(api, **body)
    assert (response.status_code, response.json()["field"]) == (422, field), response.text


def test_options_that_nest_without_end_are_refused(api: Api) -> None:
    path = f"{api.dataset}/post-processors/{processor(api).json()['id']}"
    deep = '{"max_chars":' + '{"a":' * 700 + "1" + "}" * 701
    refused = api.me.put(path, json={"external_config": deep})
    assert (refused.status_code, refused.json()["field"]) == (422, "config")


def test_a_model_that_only_collects_serves_nobody(api: Api) -> None:
    refused = processor(api, model_id=made(api)["id"])
    assert (refused.status_code, refused.json()["field"]) == (422, "model_id")
    assert "only collects" in refused.json()["message"]


def test_the_model_of_somebody_else_serves_nobody_else(api: Api) -> None:
    own = made(api, config=RUNS)
    theirs = stranger(api)
    dataset = theirs.post("/datasets", json={"name": "d", "content_type": "text"}).json()["id"]
    body = {"name": "p", "model_type": "ner", "output_target": "annotations", "model_id": own["id"]}
    refused = theirs.post(f"/datasets/{dataset}/post-processors", json=body)
    assert (refused.status_code, refused.json()["field"]) == (422, "model_id")
