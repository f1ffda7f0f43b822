"""The weights of a study's best trials."""

import re
from collections.abc import Sequence

from search.trial_files import TrialFiles
from studies.stores import names_in

_NAME = re.compile(r"trial-(\d+)\.safetensors")


class BestWeights(TrialFiles):
    """The weights of one study's best trials, by trial number.

    Attributes:
        reach: how many trials after those that are kept :meth:`keep_only` need be told of, if no
            other's weights are written: as many as may end at the same time.
    """

    suffix = ".safetensors"
    reach = 32

    def kept(self) -> set[int]:
        """Return the numbers of the trials whose weights are there."""
        found = map(_NAME.fullmatch, names_in(self._store, self._folder))
        return {int(name[1]) for name in found if name}

    def keep_only(self, best: Sequence[int], keep: int) -> None:
        """Remove the weights of those that are named after the best.

        Args:
            best: numbers of trials, the best first; others' weights stay.
            keep: how many of them to keep.
        """
        for number in self.kept().intersection(best[keep:]):
            self.remove(number)
