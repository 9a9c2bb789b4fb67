"""The examples of every part of every task, kept in memory and on disk while there is room."""

from pathlib import Path

from lightning_merge.core.checks import require_in
from lightning_merge.core.errors import InputError, warn
from lightning_merge.data.corrupt import Corruption
from lightning_merge.data.dataset import CorruptedImages, TaskInputs
from lightning_merge.data.division import PARTS, Division, split_of
from lightning_merge.data.image_cache import FOLDER, ImageCache
from lightning_merge.models.image_preprocess import ImagePreprocess
from lightning_merge.models.preprocess import Preprocess


class KeptInputs:
    """Examples of the parts of a division; `MergeDataModule` documents the options.

    Args:
        division: The tasks, divided.
        memory: GiB that transformed examples may take in this process.
        folder: Where images are kept on disk: a folder, "auto" or "none".
        disk: GiB that they may take there.
        corruption: What is done to test images; None for nothing.

    Attributes:
        disk: Place of images on disk; None without one.
        made: (task, part) -> its examples, once asked for.

    Raises:
        InputError: The folder is a file, or a size is negative.

    Examples:
        >>> from lightning_merge.data.embedded import EmbeddedTasks
        >>> options = {"coefficient_fraction": 1.0, "duplicates": "error", "split_seed": 0}
        >>> division = Division(EmbeddedTasks(""), validation_fraction=0.25, **options)
        >>> division.load("drawn_hues", test=False)
        >>> from lightning_merge.models import ImagePreprocess
        >>> images = KeptInputs(division, 1.0, "none", 0.0, None)
        >>> images.preprocess = ImagePreprocess(size=8, mean=(0.5,) * 3, std=(0.5,) * 3)
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
        self.made: dict[tuple[str, str], TaskInputs] = {}
        self._preprocess: Preprocess | None = None
        self._told = ""

    @property
    def preprocess(self) -> Preprocess | None:
        """Preprocessing of the encoder; a different one makes examples be transformed again."""
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
        most = self.division.at_most
        few = [f"{most[part]} {part}" for part in PARTS if part in most]
        notes = (
            [f"Of every task at most {', '.join(few)} examples, chosen at random."] if few else []
        )
        if self.corruption is not None and isinstance(self.preprocess, ImagePreprocess):
            notes.append(self.corruption.note(self.preprocess.size))
        return notes

    @property
    def remark(self) -> str:
        """What a user should know of the examples that were transformed, "" if nothing."""
        made = {inputs.name: inputs.transform for inputs in self.made.values()}
        return "" if self.preprocess is None else self.preprocess.remark(made)

    def tell(self) -> None:
        """Warn of what `remark` says, unless it has been said."""
        if (remark := self.remark) and remark != self._told:
            warn(remark)
            self._told = remark

    def find(self, task: str, part: str) -> TaskInputs:
        """Return the examples of a part that has been loaded.

        Raises:
            InputError: The preprocessing has not been set, or is not for examples of this kind.
        """
        if (task, part) not in self.made:
            self.made[task, part] = self._make(task, part)
        return self.made[task, part]

    def _make(self, task: str, part: str) -> TaskInputs:
        if self.preprocess is None:
            raise InputError("data.preprocess is not set; assign the encoder's preprocessing first")
        hashes, (examples, rows) = self.division.hashes(task, part), self.division.part(task, part)
        kind = self.preprocess.kind
        if examples.kind != kind:
            raise InputError(
                f"task {task!r} has {examples.kind}, and the encoder takes {kind}; give tasks of "
                f"{kind}, or an encoder of {examples.kind}"
            )
        inputs = clean = TaskInputs(
            *(examples, rows, self.preprocess),
            cache=False,
            name=f"{task} {part}",
            disk=self.disk if kind == "images" else None,
            hashes=hashes,
        )
        if self.corruption is not None and split_of(part) == "test":
            if kind != "images":
                raise InputError(f"data.corruption is for images, and task {task!r} has {kind}")
            inputs = CorruptedImages(clean, self.corruption, task, hashes)
        inputs.cache = clean.cache = inputs.num_bytes <= self._room
        return inputs

    @property
    def _room(self) -> float:
        """Bytes of memory that are left."""
        taken = sum(other.num_bytes for other in self.made.values() if other.cache)
        return self.memory * 2**30 - taken

    def prepared_for(self, preprocess: Preprocess, inputs: TaskInputs) -> TaskInputs:
        """Return examples for another encoder, which sees them once.

        Images are in memory only on their way to disk, if they fit in both.

        Args:
            preprocess: The other encoder's preprocessing.
            inputs: The examples as the run's own encoder gets them.
        """
        if preprocess == inputs.preprocess:
            return inputs
        other = TaskInputs(
            *(inputs.examples, inputs.rows, preprocess),
            cache=False,
            name=inputs.name,
            disk=self.disk if preprocess.kind == "images" else None,
            hashes=inputs.hashes,
        )
        size = other.num_bytes + len(other)
        other.cache = other.disk is not None and size <= min(self._room, other.disk.gib * 2**30)
        return other
