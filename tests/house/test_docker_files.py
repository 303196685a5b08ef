"""The files of ``docker/`` as far as they can be checked where no image can be built.

``.ci/docker-steps.sh`` runs the build steps for real, in a clean environment.
"""

import json
import re
import runpy
import shlex
from pathlib import Path

import pytest
import yaml

from ppworker.settings import Settings

TOP = Path(__file__).parents[2]
SECRET = re.compile(r"(?i)password|secret|token|api_?key")


read_dockerfile = runpy.run_path(str(TOP / ".ci" / "dockerfile.py"))["read"]
INSTRUCTIONS = read_dockerfile((TOP / "docker" / "Dockerfile").read_text())
COMPOSE = yaml.safe_load((TOP / "docker" / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]


def arguments(stage, keyword):
    return [i.arguments for i in INSTRUCTIONS if (i.stage, i.keyword) == (stage, keyword)]


def setting_names():
    return {f"PPWORKER_{name}".upper() for name in Settings.model_fields}


def test_every_stage_begins_with_the_same_python():
    bases = [i.arguments.split()[0] for i in INSTRUCTIONS if i.keyword == "FROM"]
    assert len(bases) == 2
    assert set(bases) == {"python:3.12-slim"}


def test_what_is_copied_into_the_image_exists_and_is_sent_to_the_builder():
    ignored = (TOP / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
    sent = {line[1:].rstrip("/") for line in ignored if line.startswith("!")}
    for copied in arguments("build", "COPY"):
        *sources, _ = shlex.split(copied)
        for source in sources:
            assert (TOP / source).exists(), source
            assert source.partition("/")[0] in sent, source


def test_packages_are_installed_by_their_hashes_or_without_an_index():
    installs = [a for i in INSTRUCTIONS if "pip install" in (a := i.arguments)]
    assert len(installs) == 3
    for install in installs:
        assert "--require-hashes" in install or "--no-index" in install, install


def test_the_build_names_no_address():
    assert not [i.arguments for i in INSTRUCTIONS if "://" in i.arguments]


def test_the_image_runs_as_an_ordinary_user_who_owns_its_data_folder():
    keywords = [i.keyword for i in INSTRUCTIONS if i.stage == "run"]
    assert arguments("run", "USER") == ["ppworker"]
    assert keywords.index("USER") > max(n for n, k in enumerate(keywords) if k == "RUN")
    (made,) = arguments("run", "RUN")
    assert "--home-dir /var/lib/ppworker" in made
    assert arguments("run", "WORKDIR") == ["/var/lib/ppworker"]


def test_the_commands_of_the_image_are_commands_of_ppworker():
    # Imported here: a broken command line must not hide what the other tests say.
    from ppworker.cli import program

    entry, command = (json.loads(arguments("run", k)[0]) for k in ("ENTRYPOINT", "CMD"))
    assert entry == ["ppworker"]
    health = json.loads(arguments("run", "HEALTHCHECK")[0].partition("CMD ")[2])
    assert health[0] == "ppworker"
    used = {command[0], health[1]} | {
        SERVICES[name]["command"][0] for name in ("migrate", "worker", "api")
    }
    assert used <= program._COMMANDS.keys()


def test_the_health_check_asks_the_process_on_the_port_it_listens_on_and_no_store():
    entries = dict(pair.split("=") for pair in shlex.split(" ".join(arguments("run", "ENV"))))
    (check,) = arguments("run", "HEALTHCHECK")
    assert json.loads(check.partition("CMD ")[2]) == ["ppworker", "health", "live"]
    ports = {entries["PPWORKER_API_PORT"], entries["PPWORKER_WORKER_PORT"]}
    assert ports == set(arguments("run", "EXPOSE")), "whichever process the container runs"
    assert entries["PPWORKER_API_HOST"] == "0.0.0.0"  # noqa: S104  inside a container


def test_only_the_api_is_published_and_to_this_machine_alone():
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    (port,) = arguments("run", "EXPOSE")
    assert published == {"api": [f"127.0.0.1:{port}:{port}"]}


def test_settings_given_to_containers_exist():
    pairs = shlex.split(" ".join(arguments("run", "ENV")))
    given = {pair.partition("=")[0] for pair in pairs} - {"PATH"}
    for service in SERVICES.values():
        given |= set(service.get("environment", ()))
    assert {name for name in given if name.startswith("PPWORKER_")} <= setting_names()


def test_services_name_only_volumes_networks_and_services_that_exist():
    for name, service in SERVICES.items():
        for volume in service.get("volumes", []):
            assert volume.partition(":")[0] in COMPOSE["volumes"], name
        for network in service.get("networks", []):
            assert network in {"default", *COMPOSE["networks"]}, name
        for needed, how in service.get("depends_on", {}).items():
            assert needed in SERVICES, name
            if how["condition"] == "service_healthy":
                assert "test" in SERVICES[needed]["healthcheck"], needed


def test_no_secret_stands_in_the_compose_file():
    def walk(value, path=()):
        if isinstance(value, dict):
            for key, each in value.items():
                yield from walk(each, (*path, str(key)))
        elif isinstance(value, list):
            for each in value:
                yield from walk(each, path)
        elif isinstance(value, str):
            yield path, value

    secrets = [(path, value) for path, value in walk(SERVICES) if SECRET.search(" ".join(path))]
    secrets += [(path, value) for path, value in walk(SERVICES) if "://" in value and "@" in value]
    assert secrets
    for path, value in secrets:
        assert re.search(r"\$\{\w+:\?[^}]+\}", value), path


def test_only_our_own_services_reach_the_stores():
    assert COMPOSE["networks"]["stores"] == {"internal": True}
    for name in ("postgres", "redis"):
        assert SERVICES[name]["networks"] == ["stores"]
        assert "ports" not in SERVICES[name]


def test_redis_keeps_what_it_was_told_and_evicts_nothing():
    command = " ".join(SERVICES["redis"]["command"])
    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command


@pytest.mark.parametrize("name", ["worker", "api"])
def test_a_process_has_longer_to_stop_than_it_takes(name):
    grace = float(SERVICES[name]["stop_grace_period"].rstrip("s"))
    # The supervisor waits for the grace of its children and five seconds more.
    assert grace > Settings.model_fields["grace_s"].default + 5


@pytest.mark.parametrize("name", ["worker", "api"])
def test_workers_and_api_start_after_the_schema_is_up_to_date(name):
    needs = SERVICES[name]["depends_on"]
    assert needs["migrate"] == {"condition": "service_completed_successfully"}
    assert needs["redis"] == {"condition": "service_healthy"}
    assert SERVICES["migrate"]["restart"] == "no"
    assert SERVICES["migrate"]["depends_on"]["postgres"] == {"condition": "service_healthy"}


@pytest.mark.parametrize(
    "text", ["RUN true\n", "FROM a AS b\nRNU true\n", "FROM a AS b\nRUN true \\\n"]
)
def test_a_broken_dockerfile_is_refused(text):
    with pytest.raises(ValueError, match=r"instruction|stands before|continued"):
        read_dockerfile(text)


def test_continued_lines_and_comments_are_read_as_docker_reads_them():
    text = "FROM a AS b\nRUN one \\\n  # not this\n  && two\n"
    assert [i.arguments for i in read_dockerfile(text)] == ["a AS b", "one && two"]
