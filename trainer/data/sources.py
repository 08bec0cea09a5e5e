"""Where the images of a run are: the stores that the section [data] names."""

from collections.abc import Callable
from dataclasses import dataclass

from trainer import config
from trainer.storage import Store, open_store


@dataclass(frozen=True)
class Sources:
    """The opened sources; nothing is read yet."""

    images: dict[str, Store]
    """The key of [data] -> its store, in the order of the manifest: `source`, and `validation` and `test` if they are set."""
    labels: tuple[Store, str] | None = None
    """The store and the key of data.labels, if it is set."""

    def interruptible(self, poll: Callable[[], None]) -> "Sources":
        """The same sources; see Store.interruptible."""
        images = {name: store.interruptible(poll) for name, store in self.images.items()}
        return Sources(images, self.labels and (self.labels[0].interruptible(poll), self.labels[1]))


def open_sources(data: config.Data, s3: config.S3) -> Sources:
    """Opens the sources of `data`. Raises StoreError for a malformed URL."""
    urls = {"source": data.source, "validation": data.validation, "test": data.test}
    images = {name: open_store(url, s3) for name, url in urls.items() if url is not None}
    if data.labels is None:
        return Sources(images)
    folder, _, name = data.labels.rpartition("/")
    return Sources(images, (open_store(folder or ("/" if data.labels.startswith("/") else "."), s3), name))
