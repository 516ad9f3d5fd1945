"""Many sequences as one tree of shared prefixes, cut into passes: no token is computed twice, nothing is padded.

Sequences are sorted; where neighbours begin with the same MIN_SHARED tokens or more, these become a node of their own, and what
differs hangs below it. Nodes come in depth-first order, so a pass takes the next nodes up to a number of tokens, and what
a node needs from earlier passes is a path that can be kept. No torch here.

>>> tree = PrefixTree([[1, 2, 3, 4], [1, 2, 5], [9]], min_shared=2)
>>> [(node.start, node.end, node.parent) for node in tree.nodes]
[(0, 2, -1), (2, 4, 0), (2, 3, 0), (0, 1, -1)]
>>> tree.locate(1, 2)
(2, 0)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

MIN_SHARED = 16  # tokens; a shorter shared piece costs more in bookkeeping than it saves: chosen, not tuned


@dataclass
class Node:
    """Tokens `start` to `end` of sequence `row` (and of all sequences below). `last` is the last node below it, or itself."""

    row: int
    start: int
    end: int
    parent: int  # -1: none
    last: int


class PrefixTree:
    """The nodes of some sequences in depth-first order; `leaf[i]` is the node in which sequence i ends."""

    def __init__(self, sequences: Sequence[Sequence[int]], min_shared: int = MIN_SHARED, known: int = 0) -> None:
        """Build it. Sequences may be equal, or one the beginning of another; none may be empty.

        `known`: all begin with the same so many tokens and are longer; these become node 0.
        """
        self.sequences = sequences
        self.nodes: list[Node] = []
        self.leaf = [-1] * len(sequences)
        self._min = min_shared
        order = sorted(range(len(sequences)), key=lambda i: list(sequences[i]))
        common = [common_length(sequences[a], sequences[b]) for a, b in pairwise(order)]
        if known:
            self.nodes.append(Node(order[0], 0, known, -1, 0))
        work = (
            [(0, len(order), known, 0 if known else -1)] if order else []
        )  # runs of `order` still to be laid out: from, to, depth, parent
        while work:
            work += reversed(self._lay(order, common, *work.pop()))
        for index in range(len(self.nodes) - 1, -1, -1):
            parent = self.nodes[index].parent
            if parent >= 0:
                self.nodes[parent].last = max(self.nodes[parent].last, self.nodes[index].last)

    def _lay(
        self, order: list[int], common: list[int], low: int, high: int, depth: int, parent: int
    ) -> list[tuple[int, int, int, int]]:
        """One run: a leaf, a shared node with the run below it, or the smaller runs it falls into; what is left to do."""
        first = order[low]
        shared = min(common[low : high - 1], default=len(self.sequences[first]))
        if (
            high - low == 1
            or shared - depth >= self._min
            or shared == max(len(self.sequences[i]) for i in order[low:high])
        ):
            if shared > depth or parent < 0:
                self.nodes.append(Node(first, depth, shared, parent, len(self.nodes)))
                depth, parent = shared, len(self.nodes) - 1
            while low < high and len(self.sequences[order[low]]) == depth:  # sorted: those that end here come first
                self.leaf[order[low]] = parent
                low += 1
            return [(low, high, depth, parent)] if low < high else []
        runs, begin = [], low
        for at in range(low, high):
            if at == high - 1 or common[at] - depth < self._min:
                runs.append((begin, at + 1, depth, parent))
                begin = at + 1
        return runs

    def path(self, index: int) -> list[int]:
        """The node and all above it, topmost first."""
        found = []
        while index >= 0:
            found.append(index)
            index = self.nodes[index].parent
        return found[::-1]

    def locate(self, sequence: int, position: int) -> tuple[int, int]:
        """(node, offset in it) of a token of a sequence."""
        index = self.leaf[sequence]
        while self.nodes[index].start > position:
            index = self.nodes[index].parent
        return index, position - self.nodes[index].start

    def passes(self, max_tokens: int, first: int = 0) -> Iterator[range]:
        """Node numbers of each pass, from node `first` on: at most `max_tokens` tokens, save for a node that alone has more."""
        begin, tokens = first, 0
        for index in range(first, len(self.nodes)):
            length = self.nodes[index].end - self.nodes[index].start
            if index > begin and tokens + length > max_tokens:
                yield range(begin, index)
                begin, tokens = index, 0
            tokens += length
        if begin < len(self.nodes):
            yield range(begin, len(self.nodes))


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    length = min(len(a), len(b))
    for start in range(0, length, 256):  # slices compare in C
        one, other = list(a[start : start + 256]), list(b[start : start + 256])
        if one != other:
            here = min(len(one), len(other))
            return start + next((i for i in range(here) if one[i] != other[i]), here)
    return length
