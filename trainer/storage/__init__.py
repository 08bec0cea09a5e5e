"""Where a run keeps its data: stores (a folder or an S3 bucket), checkpoints, the lease on a run's name, results.

store       the interface of every store;  folder, s3  the two stores;  s3_errors  what a failed request means
checkpoint  checkpoints that exist whole or not at all;  lease  one driver for each run name
results     what a run stores about itself
"""

import re
from urllib.parse import unquote

from trainer import config
from trainer.formatting import masked
from trainer.storage.store import Archived, Exists, NotFound, Object, Store, StoreError

__all__ = ["Archived", "Exists", "NotFound", "Object", "Store", "StoreError", "open_store"]


def open_store(url: str, s3: config.S3) -> Store:
    """The store at `s3://bucket/prefix`, `file:///folder` or a plain folder. Sends and writes nothing yet.

    Raises StoreError for a malformed URL.
    """
    from trainer.storage.folder import FolderStore
    from trainer.storage.s3 import S3Store  # boto3 loads in half a second

    scheme, separator, rest = url.partition("://")
    if separator and masked(url) != url:
        raise StoreError(
            f"{masked(url)!r} contains credentials. Fix: write s3://bucket/prefix, and set AWS_ACCESS_KEY_ID and so on."
        )
    if not separator:
        if not url.strip() or re.match(r"(s3|file):", url, re.IGNORECASE):
            raise StoreError(f"{masked(url)!r} is not a storage URL. Fix: write s3://bucket/prefix or a folder.")
        return FolderStore(url)
    if scheme == "file" and rest.startswith("/"):
        return FolderStore(unquote(rest))
    if scheme != "s3":
        raise StoreError(
            f"{url!r} is not a storage URL. Fix: write s3://bucket/prefix or a folder; "
            "a server's address belongs in s3.endpoint_url."
        )
    bucket = rest.partition("/")[0]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]", bucket):
        raise StoreError(
            f"{url!r}: {bucket!r} is not a bucket name (3-63 letters, digits, dots or dashes). Fix: write s3://bucket/prefix."
        )
    return S3Store(url, s3)
