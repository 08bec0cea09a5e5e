"""Files that nobody means as images: what operating systems, archives and tools leave in folders, and a run's own files."""

import os
import re
from collections.abc import Iterable

from trainer.storage import Store
from trainer.storage.folder import FolderStore

HIDDEN = r"(?:^|/)\.[^./][^/]*(?:/|$)|(?:^|/)\._"
FOLDERS = r"(?:^|/)(?:__macosx|@eadir|[@#]recycle|\$recycle\.bin|system volume information|lost\+found|__pycache__|_temporary)/"
FILES = r"(?:^|/)(?:zbthumbnail\.info|icon\r|_success|readme|license|(?:sha\d*|md5)sums?|thumbs\.db:[^/]*|[^/]*~)$"
TEXTS = "txt|md|html?|pdf|json|xml|csv|tsv|ya?ml|ini|log|lnk|url|aae|xmp|py|ipynb|docx?|xlsx?|md5|sha\\d+"
DATA = "parquet|db|mov|mp4|avi|zip|rar|7z|tar|gz|npy|npz|mat|h5|pkl|pth?|tmp|part|crdownload|bak"
OTHER = rf"\.(?:{TEXTS}|{DATA})$"
MARKERS = r"/$|_\$folder\$$"
JUNK = re.compile("|".join((HIDDEN, FOLDERS, FILES, OTHER, MARKERS)), re.IGNORECASE)
"""Hidden files and folders (.DS_Store, ._1.jpg, .ipynb_checkpoints/), those of macOS, Windows, Synology, QNAP, XnView and Spark;
texts, tables, archives, films and half downloads that lie beside images (Thumbs.db, 1.json, IMG_1.AAE, 1.jpg.part); objects that
stand for folders in a bucket. Names that begin with two dots are ordinary."""
OWN = ("runs/", "shards/")
"""Where a run's storage keeps its files."""


def is_junk(key: str, own: tuple[str, ...] = ()) -> bool:
    """Whether the object is no image for its name. `own`: the prefixes that `own_prefixes` found."""
    return key.startswith(own) or JUNK.search(key) is not None


def own_prefixes(source: Store, storage: Store | None, local: Iterable[str]) -> tuple[str, ...]:
    """The prefixes of the keys of `source` below which runs keep their own files: in `storage`, and in `local`, folders of this
    machine. A local folder that is the source itself, or contains it, hides nothing."""
    place = None if storage is None else prefix_of(storage, source)
    stored = () if place is None else tuple(place + folder for folder in OWN)
    return stored + tuple(prefix for folder in local if (prefix := prefix_of(FolderStore(folder), source)))


def prefix_of(storage: Store, source: Store) -> str | None:
    """The prefix of the keys of `source` that are the objects of `storage`; None if it lies elsewhere."""
    if not (inner := _place(storage)).startswith(outer := _place(source)):
        return None
    return inner.removeprefix(outer)


def _place(store: Store) -> str:
    """The URL of a bucket, or the path of a folder without symbolic links; ends with a slash."""
    return (store.url if "://" in store.url else os.path.realpath(store.url)).rstrip("/") + "/"
