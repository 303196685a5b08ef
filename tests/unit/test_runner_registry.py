import subprocess
import sys

import pytest

from ppworker.errors import Invalid
from ppworker.runners import registry


def complaint(name, config=None, **options):
    with pytest.raises(Invalid) as caught:
        registry.check(name, config or {}, **options)
    return caught.value


def test_the_real_runners_are_known_by_name():
    real = {"magika", "pocketsphinx", "rapidocr", "rapidocr-boxes", "usaddress"}
    assert real <= set(registry.names())
    assert registry.find("usaddress").__name__ == "UsaddressRunner"
    assert registry.spec("rapidocr").tasks == ("ocr",)
    assert "application/pdf" in registry.spec("rapidocr-boxes").media_types


def test_an_unknown_runner_is_refused_with_the_known_ones():
    error = complaint("tesseract")
    assert error.field == "runner"
    assert "'tesseract'" in str(error)
    assert "magika, pocketsphinx, rapidocr, rapidocr-boxes, usaddress" in str(error)


def test_a_class_of_ones_own_is_named_by_its_path():
    assert registry.check("scripted_runners:EchoRunner", {}).thread_safe
    assert registry.find("scripted_runners:EchoRunner") is registry.find(
        "scripted_runners:EchoRunner"
    )


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("no_such_module:Runner", "No module named"),
        ("scripted_runners:NoSuch", "NoSuch"),
        ("scripted_runners:", "cannot be imported"),
        (":EchoRunner", "cannot be imported"),
        ("subprocess:Popen", "is no runner"),
        ("os:system", "is no runner"),
        ("json:dumps.__call__", "is no runner"),
    ],
)
def test_a_path_that_leads_to_no_runner_is_refused_and_nothing_is_called(path, why):
    error = complaint(path, {"args": ["false"]})
    assert error.field == "runner"
    assert why in str(error)


def test_a_door_open_to_strangers_takes_no_paths():
    error = complaint("scripted_runners:EchoRunner", by_path=False)
    assert error.field == "runner"
    assert registry.check("magika", {}, by_path=False).reads == "any"


def test_a_missing_extra_is_named_with_its_command():
    error = complaint("scripted_runners:HalfMissingRunner")
    assert error.field == "runner"
    assert str(error) == (
        "runner 'scripted_runners:HalfMissingRunner' needs the extra 'models': "
        "pip install 'ppworker[models]'"
    )


@pytest.mark.parametrize(
    ("name", "config", "field"),
    [
        ("magika", {"modle": "x"}, "runner_config.modle"),
        ("rapidocr", {"dpi": "high"}, "runner_config.dpi"),
        ("rapidocr", {"dpi": True}, "runner_config.dpi"),
        ("rapidocr", {"dpi": 10_000}, "runner_config.dpi"),
        ("rapidocr-boxes", {"max_pages": 0}, "runner_config.max_pages"),
        ("pocketsphinx", {"max_duration_s": 0}, "runner_config.max_duration_s"),
        ("usaddress", {"min_line_score": 1.5}, "runner_config.min_line_score"),
        ("usaddress", {"every_line": "yes"}, "runner_config.every_line"),
        ("usaddress", {"model_path": 3}, "runner_config.model_path"),
        ("usaddress", {"max_chars": 1.5}, "runner_config.max_chars"),
        ("scripted_runners:FlakyRunner", {}, "runner_config.path"),
        ("scripted_runners:FlakyRunner", {"path": 1}, "runner_config"),
        ("scripted_runners:ChildEchoRunner", {"prefix": 1}, "runner_config.prefix"),
    ],
)
def test_settings_are_checked_when_a_post_processor_is_created(name, config, field):
    error = complaint(name, config)
    assert error.field == field


def test_an_unknown_option_is_answered_with_the_known_ones():
    assert "it knows dpi, max_pages" in str(complaint("rapidocr", {"DPI": 1}))
    assert "it has none" in str(complaint("magika", {"x": 1}))


def test_a_spec_costs_no_model_library():
    script = (
        "import sys; from ppworker.runners import registry\n"
        "for name in registry.names(): registry.check(name, {})\n"
        "heavy = {'magika', 'rapidocr', 'usaddress', 'onnxruntime', 'cv2', 'numpy', 'pypdfium2',\n"
        "         'av', 'pocketsphinx', 'sounddevice'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    seen = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert seen.stdout.strip() == "[]"
