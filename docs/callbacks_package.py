"""Let the documentation find `lightning_merge.callbacks`, which lives in the folder callbacks/."""

from typing import Any

import griffe


class CallbacksPackage(griffe.Extension):
    """Adds the folder callbacks/ to the package under the name it is imported by."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **_: Any) -> None:
        """Load the folder beside lightning_merge/ as a package inside it.

        Args:
            pkg: Any package that griffe has loaded.
            loader: What has loaded it.
        """
        if pkg.name == "lightning_merge":
            pkg["callbacks"] = loader.load("callbacks")
            del loader.modules_collection["callbacks"]
