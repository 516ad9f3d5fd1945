"""Trees of shared prefixes: every sequence can be read off again, nothing is stored twice, passes cover all."""

from hypothesis import given
from hypothesis import strategies as st

from twllm.serve.engines.batching.prefix_tree import PrefixTree, common_length

SEQUENCES = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=9), min_size=1, max_size=12)


@given(SEQUENCES, st.integers(1, 4), st.integers(1, 12))
def test_sequences_are_the_paths(sequences: list[list[int]], min_shared: int, max_tokens: int) -> None:
    tree = PrefixTree(sequences, min_shared)
    for number, ids in enumerate(sequences):
        path = [tree.nodes[index] for index in tree.path(tree.leaf[number])]
        assert [id for node in path for id in tree.sequences[node.row][node.start : node.end]] == ids
        for position in range(len(ids)):
            index, offset = tree.locate(number, position)
            assert tree.nodes[index].start + offset == position < tree.nodes[index].end
    for index, node in enumerate(tree.nodes):
        assert node.parent < index <= node.last
        assert node.start < node.end
    passes = list(tree.passes(max_tokens))
    assert [index for nodes in passes for index in nodes] == list(range(len(tree.nodes)))


@given(SEQUENCES)
def test_with_every_shared_token_a_node_it_is_a_trie(sequences: list[list[int]]) -> None:
    """min_shared 1: as many tokens as there are different prefixes."""
    tree = PrefixTree(sequences, 1)
    prefixes = {tuple(ids[:end]) for ids in sequences for end in range(1, len(ids) + 1)}
    assert sum(node.end - node.start for node in tree.nodes) == len(prefixes)


def test_short_shared_pieces_are_not_worth_a_node() -> None:
    tree = PrefixTree([[1, 2, 3, 4], [1, 2, 5], [1, 2, 3, 4]], min_shared=3)
    assert [(node.start, node.end) for node in tree.nodes] == [(0, 4), (0, 3)]
    assert tree.leaf == [0, 1, 0]


def test_known_beginning_is_node_zero() -> None:
    tree = PrefixTree([[1, 2, 3], [1, 2, 4, 5]], min_shared=9, known=2)
    assert [(node.start, node.end, node.parent) for node in tree.nodes] == [(0, 2, -1), (2, 3, 0), (2, 4, 0)]
    assert [common_length([1, 2], other) for other in ([1, 3], [1, 2, 3], [])] == [1, 2, 0]
