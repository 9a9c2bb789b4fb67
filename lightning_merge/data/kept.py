"""The images of every part of every task, kept in memory and on disk while there is room."""

from pathlib import Path

from lightning_merge.core.checks import require_in
from lightning_merge.core.errors import InputError
from lightning_merge.data.corrupt import Corruption
from lightning_merge.data.dataset import CorruptedImages, TaskImages
from lightning_merge.data.division import Division, split_of
from lightning_merge.data.image_cache import FOLDER, ImageCache
from lightning_merge.models.preprocess import Preprocess


class KeptImages:
    """Images of the parts of a division; `MergeDataModule` documents the options.

    Args:
        division: The tasks, divided.
        memory: GiB that decoded images may take in this process.
        folder: Where they are kept on disk: a folder, "auto" or "none".
        disk: GiB that they may take there.
        corruption: What is done to test images; None for nothing.

    Attributes:
        disk: Their place on disk; None without one.
        made: (task, part) -> its images, once asked for.

    Raises:
        InputError: The folder is a file, or a size is negative.

    Examples:
        >>> from lightning_merge.data.embedded import EmbeddedTasks
        >>> options = {"coefficient_fraction": 1.0, "duplicates": "error", "split_seed": 0}
        >>> division = Division(EmbeddedTasks(""), validation_fraction=0.25, **options)
        >>> division.load("drawn_hues", test=False)
        >>> images = KeptImages(division, 1.0, "none", 0.0, None)
        >>> images.preprocess = Preprocess(size=8, mean=(0.5,) * 3, std=(0.5,) * 3)
        >>> len(images.find("drawn_hues", "validation"))
        440
    """

    def __init__(
        self,
        division: Division,
        memory: float,
        folder: str,
        disk: float,
        corruption: Corruption | None,
    ) -> None:
        require_in("[0, inf]", "data.", cache_gib=memory, image_cache_gib=disk)
        if Path(folder).is_file():
            raise InputError(f"data.image_cache={folder!r} is a file; give a folder, auto or none")
        self.division, self.memory, self.corruption = division, memory, corruption
        self._option, self._gib = folder, disk
        self.disk = None if folder in ("auto", "none") else ImageCache(Path(folder), disk)
        self.made: dict[tuple[str, str], TaskImages] = {}
        self._preprocess: Preprocess | None = None

    @property
    def preprocess(self) -> Preprocess | None:
        """Preprocessing of the encoder; a different one makes images be decoded again."""
        return self._preprocess

    @preprocess.setter
    def preprocess(self, preprocess: Preprocess | None) -> None:
        if preprocess != self._preprocess:
            self.made.clear()
        self._preprocess = preprocess

    def keep_beside(self, run_folder: str | Path) -> None:
        """Keep images on disk beside a run folder, unless the options or an earlier run say where.

        Args:
            run_folder: The folder; a remote one keeps nothing.
        """
        if self._option == "auto" and self.disk is None and "://" not in str(run_folder):
            self.disk = ImageCache(Path(run_folder).parent / FOLDER, self._gib)

    @property
    def place(self) -> str:
        """The option that lets another module use the same place on disk."""
        return self._option if self.disk is None else str(self.disk.folder)

    @property
    def corrupted(self) -> str:
        """Name and severity of what is done to test images; "" for nothing."""
        what = self.corruption
        return "" if what is None else f"{what.name} {what.severity}"

    @property
    def notes(self) -> list[str]:
        """Sentences that tables owe their reader."""
        if self.corruption is None or self.preprocess is None:
            return []
        return [self.corruption.note(self.preprocess.size)]

    def find(self, task: str, part: str) -> TaskImages:
        """Return the images of a part that has been loaded.

        Raises:
            InputError: The preprocessing has not been set.
        """
        if (task, part) not in self.made:
            self.made[task, part] = self._make(task, part)
        return self.made[task, part]

    def _make(self, task: str, part: str) -> TaskImages:
        if self.preprocess is None:
            raise InputError("data.preprocess is not set; assign the encoder's preprocessing first")
        hashes = self.division.hashes(task, part)
        images = clean = TaskImages(
            *self.division.part(task, part),
            self.preprocess,
            cache=False,
            name=f"{task} {part}",
            disk=self.disk,
            hashes=hashes,
        )
        if self.corruption is not None and split_of(part) == "test":
            images = CorruptedImages(clean, self.corruption, task, hashes)
        images.cache = clean.cache = images.num_bytes <= self._room
        return images

    @property
    def _room(self) -> float:
        """Bytes of memory that are left."""
        taken = sum(other.num_bytes for other in self.made.values() if other.cache)
        return self.memory * 2**30 - taken

    def prepared_for(self, preprocess: Preprocess, images: TaskImages) -> TaskImages:
        """Return images for another encoder, which sees them once.

        They are in memory only on their way to disk, if they fit in both.

        Args:
            preprocess: The other encoder's preprocessing.
            images: The images as the run's own encoder gets them.
        """
        if preprocess == images.preprocess:
            return images
        other = TaskImages(
            *(images.examples, images.rows, preprocess),
            cache=False,
            name=images.name,
            disk=self.disk,
            hashes=images.hashes,
        )
        size = other.num_bytes + len(other)
        other.cache = self.disk is not None and size <= min(self._room, self.disk.gib * 2**30)
        return other
