"""A registry that loses its database, and gets it back."""

from __future__ import annotations

from pathlib import Path

from tests.support.world import World, wait_until_ready


async def lose_the_database(world: World, folder: Path) -> Path:
    """Start the registry on an empty database; returns the folder that holds the old one."""
    await world.registry_server.kill()
    kept = _move_database(folder, folder / "kept")
    await _start_the_registry(world)
    return kept


async def restore_the_database(world: World, folder: Path, kept: Path) -> None:
    """Start the registry on the database that `lose_the_database` has kept."""
    await world.registry_server.kill()
    _move_database(folder, folder / "thrown-away")
    _move_database(kept, folder)
    await _start_the_registry(world)


def _move_database(source: Path, target: Path) -> Path:
    """Move SQLite's files, the write-ahead log too."""
    target.mkdir(exist_ok=True)
    for file in source.glob("registry.db*"):
        file.rename(target / file.name)
    return target


async def _start_the_registry(world: World) -> None:
    await world.registry_server.start()
    await wait_until_ready(f"{world.registry.url}/readyz")
