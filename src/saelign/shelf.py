"""Layers in memory, as many as there is room for; the others are made again when needed."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

from saelign.layers import Layer


class Shelf:
    """The layers of all sides, the ones used last kept within a number of bytes.

    Two always stay, since it takes two to be compared.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self._kept: OrderedDict[tuple[str, int], Layer] = OrderedDict()

    def side(self, key: str, layers: Sequence[int], make: Callable[[int], Layer]) -> "ShelfSide":
        """The layers of a side as a mapping; `make` gives one that is not there."""
        return ShelfSide(self, key, layers, make)

    def get(self, key: str, layer: int, make: Callable[[int], Layer]) -> Layer:
        """A layer, made if it is not kept."""
        name = (key, layer)
        if name not in self._kept:
            self._make_room(1)  # before it is made: the room is for both
            self._kept[name] = make(layer)
        self._kept.move_to_end(name)
        self._make_room(2)
        return self._kept[name]

    def forget(self, keys: Sequence[str]) -> None:
        """Keep no layer of these sides any more."""
        for name in [name for name in self._kept if name[0] in keys]:
            del self._kept[name]

    def _make_room(self, n_stay: int) -> None:
        # The largest seen is what the next may take.
        largest = max((layer.n_bytes for layer in self._kept.values()), default=0)
        to_come = largest if n_stay == 1 else 0
        while len(self._kept) > n_stay and self.n_bytes + to_come > self.room:
            self._kept.popitem(last=False)

    @property
    def n_bytes(self) -> int:
        """What the kept layers take."""
        return sum(layer.n_bytes for layer in self._kept.values())


class ShelfSide:
    """The layers of one side, by number; each is on the shelf or made when it is looked up.

    No mapping by type, since what looks into mappings to see what they hold would make one.
    """

    def __init__(
        self, shelf: Shelf, key: str, layers: Sequence[int], make: Callable[[int], Layer]
    ) -> None:
        self.shelf, self.key, self.layers, self.make = shelf, key, list(layers), make

    def __getitem__(self, layer: int) -> Layer:
        if layer not in self.layers:
            raise KeyError(layer)
        return self.shelf.get(self.key, layer, self.make)

    def __iter__(self) -> Iterator[int]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)
