"""Sends commands to ppworker as another program would: by dramatiq and redis, and nothing else.

It knows the broker and the published schema (docs/reference/asyncapi.yaml), not ppworker itself, so
it can be copied to any machine that has `dramatiq[redis]`.

    python producer.py upload --split mine/train --text "Robie House, Chicago"
    python producer.py upload --split mine/train --inbox scans/page-1.png --bulk
    python producer.py inferences --split mine/train --inbox night-run.jsonl
    python producer.py retry 01912d68-9a10-7c55-b1f0-0d7a5a3f21c8

The same upload sent twice is one upload: its key is made of what it says, unless you name one. So
a producer that crashed may simply be run again. A file of the inbox is said by its
name: where tomorrow's file has the name of today's, name a key.
"""

import argparse
import hashlib
import json
import os
import sys
from pathlib import PurePath
from uuid import uuid4

import dramatiq
import redis
from dramatiq.brokers.redis import RedisBroker

SCHEMA_VERSION = 1
NAMESPACE = "ppworker"
QUEUE = "commands"
MOST_ITEMS = 500


def connect(url: str) -> RedisBroker:
    """The broker, on a redis that answers."""
    client = redis.Redis.from_url(url, socket_timeout=10)
    client.ping()
    return RedisBroker(client=client, namespace=NAMESPACE)  # type: ignore[no-untyped-call]


def send(broker: RedisBroker, command: str, fields: dict[str, object]) -> str:
    """Queue a command; its id, once redis has it."""

    def follow(**_fields: object) -> None:
        raise NotImplementedError("followed by ppworker, not here")

    actor = broker.actors.get(command) or dramatiq.actor(
        actor_name=command, queue_name=QUEUE, broker=broker
    )(follow)
    message = actor.send(schema_version=SCHEMA_VERSION, **fields)
    return str(message.message_id)


def with_key(fields: dict[str, object], key: str | None) -> dict[str, object]:
    """The fields with the key given, or one made of what they say."""
    if key is None:
        said = json.dumps(fields, sort_keys=True).encode()
        key = f"producer-{hashlib.sha256(said).hexdigest()[:32]}"
    return fields | {"key": key}


def sender() -> dict[str, object]:
    """Who commands: a key from the environment, or a user's name."""
    if key := os.environ.get("PPWORKER_API_KEY"):
        return {"api_key": key}
    return {"user": os.environ.get("PPWORKER_USER", "local")}


def uploads(options: argparse.Namespace) -> list[dict[str, object]]:
    """The commands of an upload, several where one would be too long."""
    items: list[dict[str, object]] = [
        {"name": f"text-{number}.txt", "text": text} for number, text in enumerate(options.text, 1)
    ]
    items += [{"name": PurePath(path).name, "path": path} for path in options.inbox]
    items += [{"name": name, "blob": sha256} for sha256, name in options.blob]
    if not items:
        raise SystemExit("nothing to upload: give --text, --inbox or --blob")
    commands = []
    for start in range(0, len(items), MOST_ITEMS):
        key = options.key if start == 0 or options.key is None else f"{options.key}-{start}"
        fields = {
            "split": options.split,
            "items": items[start : start + MOST_ITEMS],
            "priority": "bulk" if options.bulk else "interactive",
        }
        commands.append(with_key(fields, key) | sender())
    return commands


def inferences(options: argparse.Namespace) -> list[dict[str, object]]:
    fields = {
        "split": options.split,
        "path": options.inbox,
        "keep_annotations": not options.no_keep_annotations,
    }
    return [with_key(fields, options.key) | sender()]


def retries(options: argparse.Namespace) -> list[dict[str, object]]:
    # Not made of what it says: the same job may fail again, and be worth another retry.
    key = options.key or f"producer-{uuid4().hex}"
    return [
        {"job": job, "key": f"{key}-{number}", "successors": options.successors} | sender()
        for number, job in enumerate(options.job)
    ]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Send commands to ppworker. PPWORKER_API_KEY or PPWORKER_USER says for whom."
    )
    parser.add_argument(
        "--redis",
        metavar="URL",
        default=os.environ.get("PPWORKER_REDIS_URL", "redis://localhost:6379/0"),
        help="where redis is; default: PPWORKER_REDIS_URL, else redis://localhost:6379/0",
    )
    commands = parser.add_subparsers(dest="command", required=True)

    upload = commands.add_parser("upload", help="make items of texts and files")
    upload.add_argument("--split", required=True, metavar="DATASET/SPLIT")
    upload.add_argument("--text", action="append", default=[], help="a text; repeatable")
    upload.add_argument(
        "--inbox",
        action="append",
        default=[],
        metavar="PATH",
        help="a file in the inbox; repeatable",
    )
    upload.add_argument(
        "--blob", action="append", nargs=2, default=[], metavar=("SHA256", "NAME"),
        help="a stored file; repeatable",
    )  # fmt: skip
    upload.add_argument("--bulk", action="store_true", help="let interactive uploads go first")
    upload.set_defaults(actor="take_upload", make=uploads)

    add = commands.add_parser("inferences", help="apply predictions made elsewhere")
    add.add_argument("--split", required=True, metavar="DATASET/SPLIT")
    add.add_argument("--inbox", required=True, metavar="PATH", help="JSON Lines in the inbox")
    add.add_argument("--no-keep-annotations", action="store_true", help="add items without labels")
    add.set_defaults(actor="apply_inferences", make=inferences)

    retry = commands.add_parser("retry", help="start failed jobs again")
    retry.add_argument("job", nargs="+", metavar="JOB", help="ids")
    retry.add_argument("--successors", action="store_true", help="run later post-processors, too")
    retry.set_defaults(actor="retry_job", make=retries)

    for each in (upload, add, retry):
        each.add_argument("--key", help="idempotency key: the same twice is done once")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    commands = options.make(options)
    try:
        broker = connect(options.redis)
        for fields in commands:
            message_id = send(broker, options.actor, fields)
            print(json.dumps({"sent": options.actor, "key": fields["key"], "message": message_id}))
    except (redis.RedisError, ValueError) as error:  # the latter for a URL that is none
        print(f"producer: redis does not take it, send it again: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
