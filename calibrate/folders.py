"""Which files of a folder hold text, and of which split; what is hidden or about data or a model is left alone."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

from ..errors import DatasetError
from ..system.files import refuse_pointer
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
_ABOUT_THE_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
_ABOUT_A_MODEL = {
    "adapter_config.json",
    "added_tokens.json",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "quantize_config.json",
    "requirements.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "trainer_state.json",
    "vocab.json",
    "vocab.txt",
}
_INDEX_OF_WEIGHTS = ".index.json"
_ABOUT_THE_DATA_STEMS = {"authors", "changelog", "citation", "copying", "licence", "license", "notice", "readme"}
_NAMES_SHOWN = 3


@dataclass(frozen=True)
class DatasetFiles:
    """The files to read, and what a user should know of those that are not.

    Args:
        files: in name order.
        notes: one line each.
    """

    files: list[TextFile]
    notes: list[str] = field(default_factory=list)


def dataset_files(path: Path, split: str | None = None, subset: str | None = None) -> DatasetFiles:
    """The files with text at ``path``, a file or a folder, in name order; of ``split``, or else of train.

    Splits and configurations are those that README.md lists, as in downloads of the hub; else file and folder
    names say which split a file is of. Splits are mixed only where "all" is asked for. Files whose names name no
    split are train's, unless another file's name says train.

    Raises:
        DatasetError: nothing there to read, or no such split or configuration.
    """
    if path.is_file():
        refuse_pointer(path, DatasetError)  # it says more than that the format is none
        file = text_file(path)
        files = [file] if file else []
    else:
        files = sorted(_walk(path), key=lambda file: file.path) if path.is_dir() else []
    if not files:
        raise DatasetError(f"dataset {str(path)!r} holds no text that can be read", hint=_reading_hint(path))
    of_split = _files_of_split(files, path, split, _listed_files(path, subset))
    filled = [file for file in of_split.files if file.format == SAVED or file.path.stat().st_size]
    if not filled:
        raise DatasetError(f"dataset {str(path)!r} is empty", hint="give a file with text")
    if empty := len(of_split.files) - len(filled):
        of_split.notes.append(f"{empty} of {len(of_split.files)} files are empty")
    return DatasetFiles(filled, of_split.notes)


def _reading_hint(path: Path) -> str:
    if path.suffix.lower() == ".zip" and path.is_file():
        return "unpack it, and give the file with text, or the folder"
    return f"files may end in {readable_names()}"


def _walk(folder: Path) -> Iterator[TextFile]:
    """Follows links to folders, each folder once."""
    visited: set[str] = set()
    for root, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        parent, real = Path(root), os.path.realpath(root)
        if real in visited:  # a link that leads back up would be walked for ever
            folders.clear()
            continue
        visited.add(real)
        if (parent / "state.json").is_file() and (parent / "dataset_info.json").is_file():
            folders.clear()
            yield TextFile(parent, SAVED, stem=parent.name)
            continue
        # In place: os.walk goes on into what is left of the list.
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        for name in names:
            file = text_file(parent / name, in_folder=True)
            if file is not None and not _is_about_the_data(file) and _is_readable(file.path):
                yield file


def _refuse(error: OSError) -> NoReturn:
    raise DatasetError(f"{str(error.filename)!r} cannot be read: {error.strerror}") from error


def _is_about_the_data(file: TextFile) -> bool:
    name = file.path.name.lower()
    is_notice = file.format == "text" and file.stem.lower() in _ABOUT_THE_DATA_STEMS
    is_about_a_model = name in _ABOUT_A_MODEL or name.endswith(_INDEX_OF_WEIGHTS)
    return name.startswith(".") or name in _ABOUT_THE_DATA or is_about_a_model or is_notice


def _is_readable(path: Path) -> bool:
    if path.is_symlink() and not path.exists():
        raise DatasetError(
            f"{str(path)!r} is a link to a file that is not there",
            hint="complete the download, or remove the link",
        )
    return path.is_file()


def _listed_files(folder: Path, subset: str | None) -> dict[Path, str | None]:
    """The files that README.md lists for a configuration, and the split of each; empty without a list."""
    configurations = {str(entry.get("config_name", _DEFAULT)): entry for entry in _configurations(folder)}
    if not configurations:
        if subset is not None:
            raise DatasetError(
                f"dataset {str(folder)!r} is local and has no subset: no README.md lists any",
                hint="leave --dataset-subset out",
            )
        return {}
    if subset is None:
        defaults = [
            name for name, entry in configurations.items() if entry.get("default") is True or name == _DEFAULT
        ]
        subset = (defaults or list(configurations))[0] if defaults or len(configurations) == 1 else None
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
        entries = (metadata_load(folder / "README.md") or {}).get("configs", [])
    except Exception:  # no card, or one that is about something else
        return []
    configurations = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    return [entry for entry in configurations if "data_files" in entry or "data_dir" in entry]


def _patterns(configuration: dict[str, Any]) -> list[tuple[str | None, str]]:
    """Pairs of a split, None where names tell it, and a pattern of its files."""
    entries = configuration.get("data_files")
    if entries is None:
        return [(None, f"{configuration['data_dir']}/**")]
    if isinstance(entries, dict):
        entries = [{"split": split, "path": path} for split, path in entries.items()]
    pairs: list[tuple[str | None, str]] = []
    for entry in entries if isinstance(entries, list) else [entries]:
        split, paths = (str(entry.get("split")), entry.get("path")) if isinstance(entry, dict) else (_TRAIN, entry)
        pairs += [(split, str(path)) for path in (paths if isinstance(paths, list) else [paths])]
    parent = configuration.get("data_dir")
    return [(split, f"{parent}/{pattern}") for split, pattern in pairs] if parent else pairs


def _matches(folder: Path, pattern: str) -> list[Path]:
    try:
        return list(folder.glob(f"{pattern}/*" if pattern.endswith("**") else pattern))
    except (ValueError, NotImplementedError):  # an address, not a name in this folder
        return []


def _files_of_split(
    files: list[TextFile], path: Path, split: str | None, listed: dict[Path, str | None]
) -> DatasetFiles:
    splits: dict[str, list[TextFile]] = {}
    nameless: list[TextFile] = []
    candidates = [file for file in files if file.path in listed] or files
    for file in candidates:
        name = listed.get(file.path) or (None if file.path == path else _split_by_name(file, path))
        (nameless if name is None else splits.setdefault(name, [])).append(file)
    if not splits:
        if split is not None:
            raise DatasetError(
                f"dataset {str(path)!r} is local and has no split: no name in it speaks of one",
                hint="leave --dataset-split out",
            )
        return DatasetFiles(nameless)
    if _TRAIN not in splits and nameless:  # "test.jsonl" beside "questions.jsonl", say
        splits[_TRAIN], nameless = nameless, []
    if split == ALL:
        return DatasetFiles(candidates)
    name = _split_to_read(splits, path, split)
    notes = []
    if others := sorted(splits.keys() - {name}):
        # By name, as a folder's name may speak of a split by accident: "dev" beside "prod".
        left_out = _examples(chain(*(splits[other] for other in others)), path)
        notes.append(
            f"split {name} is read, {' and '.join(others)} left alone: {left_out} "
            f"(--dataset-split {ALL} reads all)"
        )
    if nameless:
        notes.append(f"{len(nameless)} files that belong to no split are left alone: {_examples(nameless, path)}")
    return DatasetFiles(splits[name], notes)


def _examples(files: Iterable[TextFile], root: Path) -> str:
    names = [str(file.path.relative_to(root)) for file in files]
    more = f", and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more


def _split_to_read(splits: dict[str, list[TextFile]], path: Path, split: str | None) -> str:
    names = ", ".join(sorted(splits))
    if split is None:
        if _TRAIN in splits or len(splits) == 1:
            return _TRAIN if _TRAIN in splits else next(iter(splits))
        raise DatasetError(
            f"dataset {str(path)!r} has no split {_TRAIN!r}, which is read where none is named",
            hint=f"give one with --dataset-split: {names}, or {ALL}",
        )
    for name in (split, _SPLITS.get(split, split)):
        if name in splits:
            return name
    raise DatasetError(f"dataset {str(path)!r} has no split {split!r}", hint=f"it has {names}")


def _split_by_name(file: TextFile, root: Path) -> str | None:
    """The split that a file's folders or its name speak of, as the datasets library reads them.

    A text is a document with a title, so that there only a whole name counts: "test drive.txt" is of no split.
    """
    *folders, _ = file.path.relative_to(root).parts
    if file.format == SAVED and (file.path.parent / "dataset_dict.json").is_file():
        return file.stem
    in_any_place = file.format != "text"
    for folder in reversed(folders):
        if (name := _split_of_words(folder, in_any_place)) is not None:
            return name
    match = _SHARD.fullmatch(file.stem)
    if match is None:
        return _split_of_words(file.stem, in_any_place)
    # The hub's own shards: their split may have any name, such as train_sft.
    word = match["split"]
    if word not in _SPLITS and (folders[-1:] == ["data"] or word.partition("_")[0] in _SPLITS):
        return word
    return _split_of_words(word, in_any_place)


def _split_of_words(name: str, in_any_place: bool) -> str | None:
    words = _BETWEEN_WORDS.split(name.lower()) if in_any_place else [name.lower()]
    return next((_SPLITS[word] for word in words if word in _SPLITS), None)
