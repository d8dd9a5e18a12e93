"""A data set so small that a whole run takes a fraction of a second, with distinct samples."""

from typing import ClassVar

from dltrain.data.classification import Split
from dltrain.data.digits import Digits


class FewDigits(Digits):
    """The first 96 + 40 + 40 digits. `history` has the sample indices of each training batch of this process."""

    history: ClassVar[list[tuple[int, ...]]] = []

    def load(self) -> None:
        super().load()
        self.splits = {split: Split(samples.images[:count], samples.labels[:count]) for (split, samples), count
                       in zip(self.splits.items(), (96, 40, 40), strict=True)}

    def train_dataloader(self):
        is_new = self.train_loader is None
        loader = super().train_dataloader()
        if is_new:
            read = loader.read

            def read_and_note(batches):
                for indices, batch in zip(batches, read(batches), strict=True):
                    FewDigits.history.append(tuple(indices.tolist()))
                    yield batch

            loader.read = read_and_note
        return loader


class SharedDigits(FewDigits):
    """The same, whose batches lie in shared memory, as those of worker processes do."""

    def __init__(self, **keys):
        super().__init__(**keys)
        self.num_workers = 2

    def read(self, split, batches):
        for batch in super().read(split, batches):
            yield type(batch)(*(tensor.share_memory_() for tensor in batch))
