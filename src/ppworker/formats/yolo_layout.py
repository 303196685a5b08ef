"""Finds out how an archive of YOLO lines is laid out: its labels, splits and lines by picture."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ppworker.errors import Invalid
from ppworker.formats import colours, data_yaml, places
from ppworker.formats.archive import Archive
from ppworker.formats.base import Report
from ppworker.formats.data_yaml import DataYaml
from ppworker.formats.reading import MOST_LABELS, MOST_SPLITS, Files, label_name, refuse

_MOST_LINE = 64 << 10
_MOST_SETTINGS = 4 << 20
"""Bytes of a file with settings: ten thousand names of labels."""
_ASSIGNMENT = re.compile(r"(\w+)\s*=\s*(.*)$")
_NAMES_FILES = {"classes.txt", "obj.names", "labels.names"}
_DARKNET_WORDS = {"classes", "names", "backup", "eval"}
_SETTINGS_FILES = {"data.yaml", "data.yml", "dataset.yaml", "dataset.yml"}
_ANY_NAMES = _NAMES_FILES | _SETTINGS_FILES
_KNOWN = (colours.MEMBER, "notes.json")


@dataclass(slots=True)
class Layout:
    """Where things are."""

    names: list[str]
    """Labels by their index."""
    names_member: str
    pictures: list[str]
    lines: dict[str, str]
    """Member with the lines of each picture that has one."""
    splits: dict[str, int] = field(default_factory=dict)
    """Number of each split."""
    members: dict[str, list[int]] = field(default_factory=dict)
    """Numbers of the splits of each picture that is in one."""
    has_keypoints: bool = False

    def lines_of(self, picture: str) -> str:
        """The member with the lines of a picture; empty where it has none."""
        return self.lines.get(picture, "")

    def splits_of(self, picture: str) -> list[str]:
        """Names of the splits of a picture."""
        names = list(self.splits)
        return [names[number] for number in self.members.get(picture, ())]

    def add_split(self, split: str) -> int:
        """The number of a split.

        Raises:
            Invalid: there are too many.
        """
        number = self.splits.setdefault(split, len(self.splits))
        if number >= MOST_SPLITS:
            refuse("the archive", f"has more than {MOST_SPLITS} splits; leave some out")
        return number

    def join(self, picture: str, split: str) -> None:
        """Note that a picture is in a split."""
        number = self.add_split(split)
        numbers = self.members.setdefault(picture, [])
        if number not in numbers:
            numbers.append(number)


def is_names_file(member: str) -> bool:
    """Whether a member has the names of labels, by its own name."""
    last = member.rpartition("/")[2].lower()
    return last.endswith(".names") or last in _NAMES_FILES or _is_yaml(last)


def _is_yaml(member: str) -> bool:
    return member.lower().endswith((".yaml", ".yml"))


def looks_like_yolo(archive: Archive) -> bool:
    """Whether names of labels lie in an archive of pictures."""
    lasts = [member.rpartition("/")[2].lower() for member in archive]
    has_names = any(last.endswith(".names") or last in _ANY_NAMES for last in lasts)
    return has_names and any(places.is_picture_name(last) for last in lasts)


def find(archive: Archive, report: Report) -> Layout:
    """Look through the archive.

    Raises:
        Invalid: it has no names of labels, or they cannot be read.
    """
    files = Files(archive)
    settings = {m: _settings(archive, m) for m in archive if _is_yaml(m)}
    settings = {member: found for member, found in settings.items() if found.names}
    darknet = {m: _assignments(archive, m) for m in archive if m.lower().endswith(".data")}
    names, names_member = _names(archive, files, settings, darknet)
    pictures = [member for member in archive if places.is_picture_name(member)]
    lines = {picture: found for picture in pictures if (found := _lines_of(archive, picture))}
    layout = Layout(names, names_member, pictures, lines)
    layout.has_keypoints = any(found.has_keypoints for found in settings.values())
    known = {*lines.values(), names_member, *settings, *darknet, *pictures, *_KNOWN}
    lists = _named_lists(files, settings, darknet)
    rest = [member for member in archive if member not in known and member not in lists]
    lists |= {m: _stem(m) for m in rest if m.lower().endswith(".txt") and _is_list(archive, m)}
    for member in rest:
        if member not in lists and not is_names_file(member):
            report.skip("unused_file", member)
    for member, split in lists.items():
        _read_list(archive, files, member, split, layout, report)
    if not lists:
        _split_by_folder(layout, settings)
    return layout


def _names(
    archive: Archive,
    files: Files,
    settings: dict[str, DataYaml],
    darknet: dict[str, dict[str, str]],
) -> tuple[list[str], str]:
    """Labels by index, and the member that has them."""
    named = [files.find_unique(said.get("names", ""), member) for member, said in darknet.items()]
    plain = [member for member in archive if is_names_file(member) and not _is_yaml(member)]
    # The shortest path is the archive's own; another may lie among the pictures.
    first = [*filter(None, named), *sorted(plain, key=lambda m: (m.count("/"), m))][:1]
    if first:
        return _plain_names(archive, first[0]), first[0]
    if not settings:
        refuse(
            "the archive",
            "has no names of labels; add labels.names with one name on each line, or data.yaml",
        )
    member, found = next(iter(settings.items()))
    names = [label_name(name, f"{member}: label {i}") for i, name in enumerate(found.names)]
    return names, member


def _plain_names(archive: Archive, member: str) -> list[str]:
    names: list[str] = []
    blank = 0
    for number, line in enumerate(archive.lines(member, _MOST_LINE), start=1):
        where = f"{member}: line {number}"
        if not line.strip():
            blank = blank or number
            continue
        if blank:
            refuse(f"{member}: line {blank}", "is blank; write a name, or take the line out")
        if len(names) >= MOST_LABELS:
            refuse(where, f"has more than {MOST_LABELS} labels; leave out those nobody needs")
        names.append(label_name(line, where))
    return names


def _settings(archive: Archive, member: str) -> DataYaml:
    try:
        if archive.size(member) > _MOST_SETTINGS:
            refuse(member, f"has more than {_MOST_SETTINGS} bytes; leave out what nobody needs")
        return data_yaml.read(archive.lines(member), member)
    except Invalid:
        if member.rpartition("/")[2].lower() in _SETTINGS_FILES:
            raise
        return DataYaml()  # YAML of something else


def _assignments(archive: Archive, member: str) -> dict[str, str]:
    """Lines ``key = value`` of Darknet's description; none of what is something else."""
    try:
        matches = [_ASSIGNMENT.match(line.strip()) for line in archive.lines(member, _MOST_LINE)]
    except Invalid:
        return {}
    return {match.group(1): match.group(2) for match in matches if match}


def _lines_of(archive: Archive, picture: str) -> str:
    """Beside the picture, or in ``labels`` where the picture is in ``images``."""
    beside = picture.rpartition(".")[0] + ".txt"
    if beside in archive:
        return beside
    parts = beside.split("/")
    for at in range(len(parts) - 2, -1, -1):
        if parts[at].lower() == "images":
            apart = "/".join([*parts[:at], "labels", *parts[at + 1 :]])
            return apart if apart in archive else ""
    return ""


def _named_lists(
    files: Files, settings: dict[str, DataYaml], darknet: dict[str, dict[str, str]]
) -> dict[str, str]:
    """Lists of pictures that a description names, with their splits."""
    found = {}
    for member, said in darknet.items():
        for split, path in said.items():
            if split not in _DARKNET_WORDS and (listed := files.find_unique(path, member)):
                found[listed] = split
    for member, yaml in settings.items():
        for split, paths in yaml.paths.items():
            for path in paths:
                if path.lower().endswith(".txt") and (listed := files.find_unique(path, member)):
                    found[listed] = split
    return found


def _is_list(archive: Archive, member: str) -> bool:
    """Whether the first line that is not blank names a picture; an empty list is one too."""
    try:
        for line in archive.lines(member, _MOST_LINE):
            if line.strip():
                return places.is_picture_name(line.strip())
    except Invalid:
        return False  # a text of something else
    return "/" not in member


def _stem(member: str) -> str:
    return member.rpartition("/")[2].rpartition(".")[0]


def _read_list(
    archive: Archive, files: Files, member: str, split: str, layout: Layout, report: Report
) -> None:
    layout.add_split(split)
    for number, line in enumerate(archive.lines(member, _MOST_LINE), start=1):
        if not line.strip():
            continue
        picture = files.find(line, member)
        if picture and places.is_picture_name(picture):
            layout.join(picture, split)
        else:
            report.skip("missing_file", f"{member}: line {number}")


def _split_by_folder(layout: Layout, settings: dict[str, DataYaml]) -> None:
    """Splits as the description's folders say, else as the folders around ``images`` say."""
    folders: dict[str, list[str]] = defaultdict(list)
    for found in settings.values():
        for split, paths in found.paths.items():
            folders[split] += ["/".join(_parts(path)) for path in paths]
    for picture in layout.pictures:
        named = [s for s, paths in folders.items() if any(_is_in(picture, p) for p in paths)]
        for split in named or _around_images(picture.split("/")[:-1]):
            layout.join(picture, split)


def _parts(path: str) -> Sequence[str]:
    return [part for part in path.replace("\\", "/").split("/") if part not in {"", ".", ".."}]


def _is_in(picture: str, folder: str) -> bool:
    return bool(folder) and f"/{folder}/" in f"/{picture}"


def _around_images(folders: list[str]) -> Iterable[str]:
    names = [folder.lower() for folder in folders]
    if "images" not in names:
        return folders[-1:]
    at = len(names) - 1 - names[::-1].index("images")
    return folders[at + 1 : at + 2] or folders[max(at - 1, 0) : at]
