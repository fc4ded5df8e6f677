"""Which files of a folder hold text, and of which split; what is hidden or about the data is left alone."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from ..errors import DatasetError
from .rows import SAVED, TextFile, readable_names, text_file

ALL = "all"
_DEFAULT = "default"
_TRAIN = "train"
# The words by which the datasets library knows a split.
_SPLITS = {
    **dict.fromkeys(("train", "training"), _TRAIN),
    **dict.fromkeys(("validation", "valid", "dev", "val"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_SHARD = re.compile(r"(?P<split>.+?)-\d{5}-of-\d{5}(-[0-9a-f]+)?")
_BETWEEN_WORDS = re.compile(r"[-._ 0-9]+")
_ABOUT_THE_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json"}
_ABOUT_THE_DATA_STEMS = {"authors", "changelog", "citation", "copying", "licence", "license", "notice", "readme"}
_NAMES_SHOWN = 3


@dataclass(frozen=True)
class Selection:
    """The files to read, and what a user should know of those that are not."""

    files: list[TextFile]
    notes: list[str] = field(default_factory=list)


def select_files(path: Path, split: str | None = None, subset: str | None = None) -> Selection:
    """The files with text at ``path``, a file or a folder, in name order; of ``split``, or else of train.

    Splits and configurations are those that README.md lists, as downloads of the hub have it; otherwise names
    tell splits apart. They are never mixed, but where "all" is asked for. Files whose names speak of no split
    are train's, unless others are.

    Raises:
        DatasetError: nothing there to read, or no such split or configuration.
    """
    if path.is_file():
        file = text_file(path)
        files = [file] if file else []
    else:
        files = sorted(_walk(path), key=lambda file: file.path) if path.is_dir() else []
    if not files:
        raise DatasetError(
            f"dataset {str(path)!r} holds no text that can be read", hint=f"files may end in {readable_names()}"
        )
    selection = _of_split(files, path, split, _listed(path, subset))
    full = [file for file in selection.files if file.format == SAVED or file.path.stat().st_size]
    if not full:
        raise DatasetError(f"dataset {str(path)!r} is empty", hint="give a file with text")
    if empty := len(selection.files) - len(full):
        selection.notes.append(f"{empty} of {len(selection.files)} files are empty")
    return Selection(full, selection.notes)


def _walk(folder: Path) -> Iterator[TextFile]:
    """Follows links to folders, each folder once."""
    seen: set[str] = set()
    for root, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        here, real = Path(root), os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        if (here / "state.json").is_file() and (here / "dataset_info.json").is_file():
            folders.clear()
            yield TextFile(here, SAVED, stem=here.name)
            continue
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        for name in names:
            file = text_file(here / name)
            if file is not None and not _is_about_the_data(file) and _is_readable(file.path):
                yield file


def _refuse(error: OSError) -> NoReturn:
    raise DatasetError(f"{str(error.filename)!r} cannot be read: {error.strerror}") from error


def _is_about_the_data(file: TextFile) -> bool:
    name = file.path.name.lower()
    about = file.format == "text" and file.stem.lower() in _ABOUT_THE_DATA_STEMS
    return name.startswith(".") or name in _ABOUT_THE_DATA or about


def _is_readable(path: Path) -> bool:
    if path.is_symlink() and not path.exists():
        raise DatasetError(
            f"{str(path)!r} is a link to a file that is not there",
            hint="complete the download, or remove the link",
        )
    return path.is_file()


def _listed(folder: Path, subset: str | None) -> dict[Path, str | None]:
    """The files that README.md lists for a configuration, and the split of each; empty without a list."""
    configurations = {str(each.get("config_name", _DEFAULT)): each for each in _configurations(folder)}
    if not configurations:
        if subset is not None:
            raise DatasetError(
                f"dataset {str(folder)!r} is local and has no subset: no README.md lists any",
                hint="leave --dataset-subset out",
            )
        return {}
    if subset is None:
        first = [name for name, each in configurations.items() if each.get("default") is True or name == _DEFAULT]
        subset = (first or list(configurations))[0] if first or len(configurations) == 1 else None
    names = list(configurations) if subset == ALL and ALL not in configurations else [subset]
    if not configurations.keys() >= set(names):
        problem = "several subsets" if subset is None else f"no subset {subset!r}"
        raise DatasetError(
            f"dataset {str(folder)!r} has {problem}",
            hint=f"give one with --dataset-subset: {', '.join(configurations)}, or {ALL}",
        )
    patterns = [pair for name in names for pair in _patterns(configurations[str(name)])]
    return {path: split for split, pattern in patterns for path in _matches(folder, pattern)}


def _configurations(folder: Path) -> list[dict[str, Any]]:
    """The configurations of a dataset card that say where their files are."""
    from huggingface_hub.repocard import metadata_load

    try:
        listed = (metadata_load(folder / "README.md") or {}).get("configs", [])
    except Exception:  # no card, or one that is about something else
        return []
    configurations = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    return [each for each in configurations if "data_files" in each or "data_dir" in each]


def _patterns(configuration: dict[str, Any]) -> list[tuple[str | None, str]]:
    """Pairs of a split, None where names tell it, and a pattern of its files."""
    listed = configuration.get("data_files")
    if listed is None:
        return [(None, f"{configuration['data_dir']}/**")]
    if isinstance(listed, dict):
        listed = [{"split": split, "path": path} for split, path in listed.items()]
    pairs: list[tuple[str | None, str]] = []
    for each in listed if isinstance(listed, list) else [listed]:
        split, paths = (str(each.get("split")), each.get("path")) if isinstance(each, dict) else (_TRAIN, each)
        pairs += [(split, str(path)) for path in (paths if isinstance(paths, list) else [paths])]
    start = configuration.get("data_dir")
    return [(split, f"{start}/{pattern}") for split, pattern in pairs] if start else pairs


def _matches(folder: Path, pattern: str) -> list[Path]:
    try:
        return list(folder.glob(f"{pattern}/*" if pattern.endswith("**") else pattern))
    except (ValueError, NotImplementedError):  # an address, not a name in this folder
        return []


def _of_split(files: list[TextFile], path: Path, wanted: str | None, listed: dict[Path, str | None]) -> Selection:
    splits: dict[str, list[TextFile]] = {}
    nameless: list[TextFile] = []
    chosen = [file for file in files if file.path in listed] or files
    for file in chosen:
        name = listed.get(file.path) or (None if file.path == path else _split(file, path))
        (nameless if name is None else splits.setdefault(name, [])).append(file)
    if not splits:
        if wanted is not None:
            raise DatasetError(
                f"dataset {str(path)!r} is local and has no split: no name in it speaks of one",
                hint="leave --dataset-split out",
            )
        return Selection(nameless)
    if _TRAIN not in splits and nameless:
        splits[_TRAIN], nameless = nameless, []
    if wanted == ALL:
        return Selection(chosen)
    name = _chosen(splits, path, wanted)
    notes = []
    if others := sorted(splits.keys() - {name}):
        notes.append(f"split {name} is read, {' and '.join(others)} left alone")
    if nameless:
        shown = ", ".join(file.path.name for file in nameless[:_NAMES_SHOWN])
        more = ", ..." if len(nameless) > _NAMES_SHOWN else ""
        notes.append(f"{len(nameless)} files that belong to no split are left alone: {shown}{more}")
    return Selection(splits[name], notes)


def _chosen(splits: dict[str, list[TextFile]], path: Path, wanted: str | None) -> str:
    there = ", ".join(sorted(splits))
    if wanted is None:
        if _TRAIN in splits or len(splits) == 1:
            return _TRAIN if _TRAIN in splits else next(iter(splits))
        raise DatasetError(
            f"dataset {str(path)!r} has no split {_TRAIN!r}, which is read where none is named",
            hint=f"give one with --dataset-split: {there}, or {ALL}",
        )
    for name in (wanted, _SPLITS.get(wanted, wanted)):
        if name in splits:
            return name
    raise DatasetError(f"dataset {str(path)!r} has no split {wanted!r}", hint=f"it has {there}")


def _split(file: TextFile, root: Path) -> str | None:
    """The split that a file's folders or its name speak of, as the datasets library reads them.

    A text is a document with a title, so that there only a whole name counts: "test drive.txt" is of no split.
    """
    *folders, _ = file.path.relative_to(root).parts
    if file.format == SAVED and (file.path.parent / "dataset_dict.json").is_file():
        return file.stem
    loose = file.format != "text"
    for folder in reversed(folders):
        if (name := _spoken_split(folder, loose)) is not None:
            return name
    match = _SHARD.fullmatch(file.stem)
    if match is None:
        return _spoken_split(file.stem, loose)
    word = match["split"]
    if word not in _SPLITS and (folders[-1:] == ["data"] or word.partition("_")[0] in _SPLITS):
        return word
    return _spoken_split(word, loose)


def _spoken_split(name: str, loose: bool) -> str | None:
    words = _BETWEEN_WORDS.split(name.lower()) if loose else [name.lower()]
    return next((_SPLITS[word] for word in words if word in _SPLITS), None)
