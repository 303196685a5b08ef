"""Chunks of staged inferences: bounded in lines, bytes and predictions, and never empty."""

import json

import pytest

from ppworker.pipeline.inferences.inference_lines import read_chunk

_PLENTY = {"most_lines": 1_000, "most_bytes": 1_000_000, "most_predictions": 1_000}


@pytest.mark.parametrize(
    ("bounds", "sizes"),
    [
        ({}, [7]),
        ({"most_lines": 3}, [3, 3, 1]),
        ({"most_bytes": 250}, [3, 3, 1]),
        ({"most_bytes": 1}, [1] * 7),
        ({"most_predictions": 4}, [2, 2, 2, 1]),
        ({"most_predictions": 1}, [1] * 7),
    ],
)
def test_a_chunk_ends_with_the_line_that_reaches_a_bound(tmp_path, bounds, sizes):
    said = [{"prediction": "a"}, {"prediction": "b"}]
    line = json.dumps({"name": "x", "inference_items": said}).ljust(99) + "\n"
    path = tmp_path / "staged"
    path.write_text(line * 7)
    found, cursor, is_last = [], 0, False
    while not is_last:
        chunk = read_chunk(path, cursor, **_PLENTY | bounds)
        found.append(len(chunk.lines))
        cursor, is_last = chunk.ends[-1], chunk.is_last
    assert found == sizes
    assert cursor == path.stat().st_size
