"""Every list walks its index, however long it is: read by the plans of what the API really sends.

The times at a million items are `make bench-lists`; here it is how much of the tables is read.
"""

from typing import Any

import pytest

from api_server import Api
from long_lists import cost, fill

ITEMS = 20_000
LONG = {"dataset_items", "item_splits", "annotations", "post_processor_jobs"}


@pytest.mark.timeout(120)
def test_no_list_reads_more_than_its_page_and_a_bounded_look(api: Api) -> None:
    world = api.world
    fill(world, ITEMS)
    labels = {each["name"]: each["id"] for each in api.me.get(f"{api.version}/labels").json()}
    items, jobs = f"{api.version}/items", f"{api.dataset}/post-processors/jobs"
    train, test = str(world.train.id), str(world.test.id)
    first = api.me.get(items, params={"pageSize": 1000}).json()
    middle = api.me.get(items, params={"pageSize": 1000, "pageCount": 9})
    cursor = middle.headers["x-next-cursor"]
    of_jobs = api.me.get(jobs, params={"pageSize": 1000, "pageCount": 9}).headers["x-next-cursor"]

    # What is asked, the index that must serve it, and most blocks of all its statements.
    cases: list[tuple[str, dict[str, Any], str, int]] = [
        (items, {}, "item_splits_version", 500),
        (items, {"pageSize": 1000}, "item_splits_version", 30_000),
        (items, {"cursor": cursor}, "item_splits_version", 500),
        (items, {"pageCount": 1900}, "item_splits_version", 500),
        (items, {"pageCount": 1000}, "item_splits_version", 1_500),
        (items, {"splitId": train, "pageCount": 1590}, "item_splits_pkey", 500),
        (items, {"splitId": train}, "item_splits_pkey", 500),
        (items, {"labelId": labels["l3"]}, "annotations_label", 500),
        (items, {"labelId": labels["l19"]}, "annotations_label", 700),
        (items, {"labelId": labels["l3"], "splitId": test}, "item_splits_pkey", 1_000),
        (items, {"onlyUnlabelled": "True"}, "unlabelled_items_pkey", 500),
        (items, {"onlyUnlabelled": "True", "splitId": test}, "unlabelled_items_pkey", 500),
        (items, {"jobStatus": "pending"}, "post_processor_jobs_version", 500),
        (items, {"jobStatus": "failed"}, "post_processor_jobs_version", 500),
        (items, {"jobStatus": "completed"}, "post_processor_jobs_version", 500),
        (items, {"jobStatus": "processing"}, "post_processor_jobs_inflight", 500),
        (items, {"minScore": 0.6, "maxScore": 0.7}, "item_splits_version", 1_000),
        (items, {"text": "jumps over"}, "item_splits_version", 1_000),
        # A needle: a bounded look and no more.
        (items, {"text": "zebra"}, "item_splits_version", 20_000),
        (items, {"minScore": 0.9999}, "item_splits_version", 55_000),
        (jobs, {"pageSize": 10}, "post_processor_jobs_listed", 500),
        (jobs, {"pageSize": 10, "cursor": of_jobs}, "post_processor_jobs_listed", 500),
        (jobs, {"pageSize": 10, "status": "completed"}, "post_processor_jobs_listed", 500),
        (jobs, {"pageSize": 10, "status": "pending"}, "post_processor_jobs_listed", 500),
        (jobs, {"pageSize": 10, "status": "failed"}, "post_processor_jobs_failed", 500),
        (jobs, {"pageSize": 10, "status": "processing"}, "post_processor_jobs_inflight", 500),
        (jobs, {"item_id": first[0]["id"]}, "post_processor_jobs_item", 500),
        (f"{items}/{first[0]['id']}/jobs", {}, "post_processor_jobs_item", 500),
    ]
    for path, asked, index, most_blocks in cases:
        found = cost(api, path, **asked)
        words = f"{path.rpartition('/')[2]} {asked}"
        print(f"{found.blocks:7} blocks {found.ms:7.1f} ms {found.rows:5} rows  {words}")
        assert index in found.indexes, f"{words}: {sorted(found.indexes)}\n{found.slowest}"
        assert not found.scanned & LONG, f"{words} scans {found.scanned}\n{found.slowest}"
        assert found.blocks < most_blocks, f"{words}\n{found.slowest}"
